#!/usr/bin/env bash
# make_cpu_env.sh DIR: an environment in which SGLang serves on a CPU, for
# tests, from PyPI only. Python 3.11; about 5 GB, 4 minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python3.11 -m venv "$1"
"$1/bin/pip" install -q torch==2.13.0
"$1/bin/pip" install -q -r "$here/requirements_cpu.txt"
"$1/bin/pip" install -q --no-deps torchvision==0.28.0 sglang==0.5.23
