#!/usr/bin/env bash
# LVS on Flickr-144k: its loss in our recipe, as its trainer was never released (SSL-TIE's, from random weights).
# The authors' list is not known here: this is EZ-VSL's.
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/lvs_Flickr144k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_lvs_Flickr144k.sh [options of main.py lvs]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"

exec bash "$scripts/run.sh" main.py lvs \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} --clip-list ez_vsl_flickr_144k \
  --output "${OUTPUT:-runs/lvs_Flickr144k}" "$@"
