#!/usr/bin/env bash
# Runs the tests in .venv with the development requirements.
# Usage: bash scripts/run_tests.sh [options of pytest]      -m 'slow or not slow' adds the slow ones
# One process per core, up to four, with one thread each: most tests are too small for more. -n 0 runs them in one.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."

bash scripts/setup.sh requirements-dev.txt
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
