#!/usr/bin/env bash
# LVS on Flickr-10k: its loss in our recipe, as its trainer was never released (SSL-TIE's, from random weights).
# The authors' list is not known here: this is SSL-TIE's.
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/lvs_Flickr10k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_lvs_Flickr10k.sh [options of main.py lvs]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"

exec bash "$scripts/run.sh" main.py lvs \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} --clip-list ssl_tie_flickr_10k \
  --output "${OUTPUT:-runs/lvs_Flickr10k}" "$@"
