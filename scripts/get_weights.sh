#!/usr/bin/env bash
# Fetches the weights of SSPL's frozen encoders and of the object prior into ckpts/ and verifies them.
# Usage: bash scripts/get_weights.sh [vgg16] [vggish] [resnet18] [--folder DIR]
# Without names: all files.
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" -m models.released "$@"
