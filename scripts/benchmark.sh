#!/usr/bin/env bash
# Measures this computer's speed, a JSON line for each way of doing the same work.
# Usage: bash scripts/benchmark.sh {train,loader,evaluate} [--device cpu] (--help for all)
set -euo pipefail

exec bash "$(dirname "$0")/run.sh" scripts/benchmark.py "$@"
