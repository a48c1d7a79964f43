#!/usr/bin/env bash
# Trains and scores every variant of a grid with every seed, and puts mean and deviation into one table.
# Usage: bash scripts/ablate.sh GRID --output DIR [--seeds 4,5] -- OPTIONS OF main.py -- TASK AND OPTIONS OF test.py   (--help names the grids)
# Stop it and call again: finished runs are skipped, interrupted ones resumed.
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" scripts/ablate.py "$@"
