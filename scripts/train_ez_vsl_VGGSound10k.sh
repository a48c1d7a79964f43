#!/usr/bin/env bash
# EZ-VSL on VGGSound-10k: the published recipe (100 epochs, batch 128, Adam 1e-4, frames from ImageNet).
# Usage: VGGSOUND_ROOT=/data/… [OUTPUT=runs/ez_vsl_VGGSound10k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_ez_vsl_VGGSound10k.sh [options of main.py ez_vsl]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_ROOT "$@"

exec bash "$scripts/run.sh" main.py ez_vsl \
  --train-set vggsound ${VGGSOUND_ROOT:+--data-root "$VGGSOUND_ROOT"} --clip-list ez_vsl_vggsound_10k \
  --output "${OUTPUT:-runs/ez_vsl_VGGSound10k}" --epochs 100 "$@"
