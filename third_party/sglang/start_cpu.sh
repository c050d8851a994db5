#!/usr/bin/env bash
# start_cpu.sh PYTHON MODEL PORT [FLAGS]: a server on 127.0.0.1, on the CPU in
# float32, for tests: protocol and control plane, not speed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1 model=$2 port=$3
shift 3
export PYTHONPATH=$here/cpu_shim HF_HUB_OFFLINE=1 SGLANG_USE_CPU_ENGINE=1
export SGLANG_CPU_OMP_THREADS_BIND=
exec "$python" -m sglang.launch_server --model-path "$model" \
  --host 127.0.0.1 --port "$port" --enable-deterministic-inference \
  --device cpu --attention-backend torch_native --dtype float32 \
  --mem-fraction-static 0.3 --max-total-tokens 65536 --skip-server-warmup --sleep-on-idle "$@"
