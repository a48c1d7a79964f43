#!/usr/bin/env bash
# Scores several checkpoints on the same clips: one table, one report, and how each differs from the first.
# Usage: bash scripts/compare_models.sh [NAME=]A.pth [NAME=]B.pth … -- --benchmark … --data-root … --output DIR [options of test.py localisation]
# What has been scored already is not scored again: stop it and call again.
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" scripts/collect.py "$@"
