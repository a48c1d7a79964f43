#!/usr/bin/env bash
# A page in the browser that localises sounds in one's own videos and pictures; only this computer can open it.
# Usage: bash scripts/demo.sh [--port 7860] [--host 127.0.0.1] [--checkpoints ckpts] [--examples DIR] (--help for all)
# Installs requirements-demo.txt into .venv; with VSSL_PYTHON that interpreter must have them.
set -euo pipefail
export VSSL_REQUIREMENTS=requirements-demo.txt
exec bash "$(dirname "$0")/run.sh" scripts/demo.py "$@"
