#!/usr/bin/env bash
set -euo pipefail
echo "make_quickstart_checkpoint.sh was dropped: train the quickstart's model with bash scripts/quickstart.sh; its run folder holds the checkpoint." >&2
exit 2
