#!/usr/bin/env bash
# FNAC on VGGSound-10k: the published recipe (30 epochs, batch 256, Adam 1e-4, frames from ImageNet).
# Usage: VGGSOUND_ROOT=/data/… [OUTPUT=runs/fnac_VGGSound10k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_fnac_VGGSound10k.sh [options of main.py fnac]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_ROOT "$@"

exec bash "$scripts/run.sh" main.py fnac \
  --train-set vggsound ${VGGSOUND_ROOT:+--data-root "$VGGSOUND_ROOT"} --clip-list fnac_vggsound_10k \
  --output "${OUTPUT:-runs/fnac_VGGSound10k}" --epochs 30 --seed 12345 "$@"
