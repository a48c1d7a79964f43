#!/usr/bin/env bash
# Measures this computer's speed, a JSON line per variant; `scaling` predicts that of many GPUs.
# Usage: bash scripts/benchmark.sh {loader,train,evaluate,head,all,scaling} [--device cpu] [--threads N] (CASE --help for all)
set -euo pipefail

exec bash "$(dirname "$0")/run.sh" scripts/benchmark.py "$@"
