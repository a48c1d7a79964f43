#!/usr/bin/env bash
# SSL-TIE on VGGSound-144k: the published recipe (100 epochs, batch 32, Adam 1e-4).
# Usage: VGGSOUND_ROOT=/data/… [OUTPUT=runs/ssl_tie_VGGSound144k] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_VGGSound144k.sh [options of main.py ssl_tie]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_ROOT "$@"

exec bash "$scripts/run.sh" main.py ssl_tie \
  --train-set vggsound ${VGGSOUND_ROOT:+--data-root "$VGGSOUND_ROOT"} --clip-list ssl_tie_vggsound_144k \
  --output "${OUTPUT:-runs/ssl_tie_VGGSound144k}" \
  --epochs 100 --batch-size 32 --learning-rate 1e-4 --weight-decay 1e-4 --seed 4 \
  --equivariance-weight 1 "$@"
