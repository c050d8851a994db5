#!/usr/bin/env bash
# start_gpu.sh PYTHON MODEL PORT [FLAGS]: a server on 127.0.0.1, on CUDA.
# README.md says why each flag; those given last win.
set -euo pipefail
python=$1 model=$2 port=$3
shift 3
export HF_HUB_OFFLINE=1
exec "$python" -m sglang.launch_server --model-path "$model" \
  --host 127.0.0.1 --port "$port" --enable-deterministic-inference \
  --attention-backend fa3 --dtype bfloat16 --enable-memory-saver \
  --mem-fraction-static 0.5 --skip-server-warmup --sleep-on-idle "$@"
