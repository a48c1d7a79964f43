#!/usr/bin/env bash
# A page in the browser that localises sounds in one's own videos and pictures; only this computer can open it.
# Usage: bash scripts/demo.sh [--port 7860] [--host 127.0.0.1] [--checkpoints ckpts] [--examples DIR] (--help for all)
# Installs requirements-demo.txt into .venv; with VSSL_PYTHON that interpreter must have them.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ -n "${VSSL_PYTHON:-}" ] || bash "$root/scripts/setup.sh" requirements-demo.txt
exec bash "$root/scripts/run.sh" scripts/demo.py "$@"
