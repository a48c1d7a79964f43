#!/usr/bin/env bash
# SLAVC on VGGSound-144k: the published recipe (20 epochs, batch 128, Adam 1e-4, frames from ImageNet).
# Usage: VGGSOUND_ROOT=/data/… [OUTPUT=runs/slavc_VGGSound144k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_slavc_VGGSound144k.sh [options of main.py slavc]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_ROOT "$@"

exec bash "$scripts/run.sh" main.py slavc \
  --train-set vggsound ${VGGSOUND_ROOT:+--data-root "$VGGSOUND_ROOT"} --clip-list ez_vsl_vggsound_144k \
  --output "${OUTPUT:-runs/slavc_VGGSound144k}" --epochs 20 "$@"
