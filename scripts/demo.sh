#!/usr/bin/env bash
# A page in the browser that localises sounds in one's own videos and pictures; only this computer can open it.
# Usage: bash scripts/demo.sh [--port 7860] [--host 127.0.0.1] [--checkpoints ckpts] [--examples DIR] (--help for all)
# The page runs in .venv-demo, as Gradio's requirements contradict requirements.txt; the models run in .venv, or VSSL_PYTHON.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ -n "${VSSL_PYTHON:-}" ] || bash "$root/scripts/setup.sh"
bash "$root/scripts/setup.sh" requirements-demo.txt .venv-demo
model_python=${VSSL_PYTHON:-$root/.venv/bin/python}
export VSSL_PYTHON=$root/.venv-demo/bin/python
exec bash "$root/scripts/run.sh" scripts/demo.py --model-python "$model_python" "$@"
