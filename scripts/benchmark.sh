#!/usr/bin/env bash
# Measures this computer's speed; one JSON line per variant and one that compares them.
# Usage: bash scripts/benchmark.sh train [--batch-size 8] [--steps 3] [--repeats 5] [--threads N] [--device cpu] (--help for all)
set -euo pipefail

exec bash "$(dirname "$0")/run.sh" scripts/benchmark.py "$@"
