#!/usr/bin/env bash
# SSL-TIE on Flickr-144k: the published recipe (100 epochs, batch 32, Adam 1e-4).
# SSL-TIE's own list has no known sum: save it as a file, or FLICKR_LIST=ez_vsl_flickr_144k (without it: every clip found).
# Usage: FLICKR_ROOT=/data/… [FLICKR_LIST=file] [OUTPUT=runs/ssl_tie_Flickr144k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_Flickr144k.sh [options of main.py ssl_tie]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"

exec bash "$scripts/run.sh" main.py ssl_tie \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} ${FLICKR_LIST:+--clip-list "$FLICKR_LIST"} \
  --output "${OUTPUT:-runs/ssl_tie_Flickr144k}" \
  --epochs 100 --batch-size 32 --learning-rate 1e-4 --weight-decay 1e-4 --seed 4 \
  --equivariance-weight 1 --audio-excerpt-seconds 4 "$@"
