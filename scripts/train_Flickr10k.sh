#!/usr/bin/env bash
# SSL-TIE on Flickr-10k: the published recipe (100 epochs, batch 32, Adam 1e-4).
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/ssl_tie_Flickr10k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_Flickr10k.sh [options of main.py ssl_tie]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"

exec bash "$scripts/run.sh" main.py ssl_tie \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} --clip-list ssl_tie_flickr_10k \
  --output "${OUTPUT:-runs/ssl_tie_Flickr10k}" \
  --epochs 100 --batch-size 32 --learning-rate 1e-4 --weight-decay 1e-4 --seed 4 \
  --equivariance-weight 1 --audio-excerpt-seconds 4 "$@"
