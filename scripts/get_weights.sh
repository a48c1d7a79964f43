#!/usr/bin/env bash
# Fetches the weights of SSPL's frozen encoders into ckpts/ and verifies them.
# Usage: bash scripts/get_weights.sh [vgg16] [vggish] [--folder DIR]
# Without names: both files.
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" scripts/get_weights.py "$@"
