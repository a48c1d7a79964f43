#!/usr/bin/env bash
# Dropped: the quickstart makes the checkpoint.
# Usage: bash scripts/quickstart.sh
set -euo pipefail
. "$(dirname "$0")/common.sh"
echo "make_quickstart_checkpoint.sh was dropped: train the quickstart's model with bash scripts/quickstart.sh; its run folder holds the checkpoint." >&2
exit 2
