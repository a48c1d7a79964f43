#!/usr/bin/env bash
# Runs the tests in .venv with the development requirements.
# Usage: bash scripts/run_tests.sh [options of pytest]      -m 'slow or not slow' adds the slow ones
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

bash scripts/setup.sh requirements-dev.txt
exec .venv/bin/python -m pytest "$@"
