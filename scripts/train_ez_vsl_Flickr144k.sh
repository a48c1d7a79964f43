#!/usr/bin/env bash
# EZ-VSL on Flickr-144k: the published recipe (20 epochs, batch 128, Adam 1e-4, frames from ImageNet).
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/ez_vsl_Flickr144k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_ez_vsl_Flickr144k.sh [options of main.py ez_vsl]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"

exec bash "$scripts/run.sh" main.py ez_vsl \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} --clip-list ez_vsl_flickr_144k \
  --output "${OUTPUT:-runs/ez_vsl_Flickr144k}" --epochs 20 "$@"
