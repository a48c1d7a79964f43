#!/usr/bin/env bash
# Trains the quickstart's SSL-TIE and writes ckpts/quickstart_ssl_tie.pth, weights only, with its model card beside it.
# Usage: bash scripts/make_quickstart_checkpoint.sh [--file ckpts/NAME.pth] [options of main.py ssl_tie]; variables as for quickstart.sh
# Called again, it goes on where it was stopped; a finished and scored run is not made again.
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" scripts/make_quickstart_checkpoint.py "$@"
