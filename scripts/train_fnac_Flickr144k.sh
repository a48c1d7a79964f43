#!/usr/bin/env bash
# FNAC on Flickr-144k: the published recipe (30 epochs, batch 256, Adam 1e-4, frames from ImageNet).
# The authors' list is the same as EZ-VSL's, which is taken.
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/fnac_Flickr144k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_fnac_Flickr144k.sh [options of main.py fnac]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"

exec bash "$scripts/run.sh" main.py fnac \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} --clip-list ez_vsl_flickr_144k \
  --output "${OUTPUT:-runs/fnac_Flickr144k}" --epochs 30 --seed 12345 "$@"
