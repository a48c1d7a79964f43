#!/usr/bin/env bash
# Writes a trained localiser as ONNX, for programs that have no PyTorch; the file is checked against PyTorch first.
# Usage: bash scripts/export.sh --checkpoint F --output model.onnx [--inputs raw] (--help for all)
# Installs requirements-export.txt into .venv; with VSSL_PYTHON that interpreter must have them.
set -euo pipefail
export VSSL_REQUIREMENTS=requirements-export.txt
exec bash "$(dirname "$0")/run.sh" scripts/export_onnx.py "$@"
