#!/usr/bin/env bash
# Decodes a whole data set and reports what is missing, unreadable, silent or there twice.
# Usage: bash scripts/verify_dataset.sh DATASET ROOT [--clip-list LIST] [--workers N] [--output report.json]   (--help for all)
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" -m scripts.verify_dataset "$@"
