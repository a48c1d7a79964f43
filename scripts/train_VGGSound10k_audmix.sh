#!/usr/bin/env bash
# SSL-TIE on VGGSound-10k with the audio-mixing curriculum: training sounds are mixed with their nearest ones, more with
# every epoch (docs/method_ssl_tie.md has the schedule, and what the authors' program does otherwise).
# Usage: VGGSOUND_ROOT=/data/… [OUTPUT=runs/ssl_tie_VGGSound10k_audmix] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_VGGSound10k_audmix.sh [options of main.py ssl_tie]
set -euo pipefail
scripts=$(dirname "$0")

exec bash "$scripts/run.sh" main.py ssl_tie \
  --train-set vggsound ${VGGSOUND_ROOT:+--data-root "$VGGSOUND_ROOT"} --clip-list ssl_tie_vggsound_10k \
  --output "${OUTPUT:-runs/ssl_tie_VGGSound10k_audmix}" \
  --epochs 100 --batch-size 32 --learning-rate 1e-4 --weight-decay 1e-4 --seed 4 \
  --max-rotation 30 --equivariance-weight 1 \
  --audio-mixing --mixing-start-epoch 1 --mixing-candidates 4000 "$@"
