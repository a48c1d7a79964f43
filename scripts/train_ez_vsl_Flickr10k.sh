#!/usr/bin/env bash
# EZ-VSL on Flickr-10k: the published recipe (100 epochs, batch 128, Adam 1e-4, frames from ImageNet).
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/ez_vsl_Flickr10k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_ez_vsl_Flickr10k.sh [options of main.py ez_vsl]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"

exec bash "$scripts/run.sh" main.py ez_vsl \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} --clip-list ez_vsl_flickr_10k \
  --output "${OUTPUT:-runs/ez_vsl_Flickr10k}" --epochs 100 "$@"
