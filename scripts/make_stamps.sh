#!/usr/bin/env bash
# Makes the stamps data set: real object photos and recordings on real backgrounds, no VGGSound needed.
# Usage: bash scripts/make_stamps.sh data/stamps [--train N] [--test M] ...   --help lists all options
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" -m scripts.stamps "$@"
