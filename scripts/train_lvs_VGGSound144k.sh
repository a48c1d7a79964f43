#!/usr/bin/env bash
# LVS on VGGSound-144k: its loss in our recipe, as its trainer was never released (SSL-TIE's, from random weights).
# The authors' list is not known here: this is SSL-TIE's.
# Usage: VGGSOUND_ROOT=/data/… [OUTPUT=runs/lvs_VGGSound144k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_lvs_VGGSound144k.sh [options of main.py lvs]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_ROOT "$@"

exec bash "$scripts/run.sh" main.py lvs \
  --train-set vggsound ${VGGSOUND_ROOT:+--data-root "$VGGSOUND_ROOT"} --clip-list ssl_tie_vggsound_144k \
  --output "${OUTPUT:-runs/lvs_VGGSound144k}" "$@"
