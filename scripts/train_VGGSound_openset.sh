#!/usr/bin/env bash
# SSL-TIE on the heard half of VGGSound's classes: the published recipe (100 epochs, batch 32, Adam 1e-4).
# OPENSET=ssl_tie: its 70k clips of 110 classes. OPENSET=ez_vsl: EZ-VSL's 59,468 clips. The two halves differ:
# score such a model with the same OPENSET, see docs/data.md. scripts/get_splits.sh fetches both lists; TRAIN_LIST
# names a file of your own.
# Usage: VGGSOUND_ROOT=/data/… [OPENSET=ssl_tie|ez_vsl] [TRAIN_LIST=file] [OUTPUT=runs/ssl_tie_VGGSound_openset_ssl_tie] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_VGGSound_openset.sh [options of main.py ssl_tie]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
openset=${OPENSET:-ssl_tie}
case $openset in
  ssl_tie | ez_vsl) ;;
  *)
    echo "train_VGGSound_openset: OPENSET is ssl_tie or ez_vsl, not '$openset'" >&2
    exit 2
    ;;
esac
need_root VGGSOUND_ROOT "$@"

exec bash "$scripts/run.sh" main.py ssl_tie \
  --train-set vggsound ${VGGSOUND_ROOT:+--data-root "$VGGSOUND_ROOT"} \
  --clip-list "${TRAIN_LIST:-${openset}_openset_train}" \
  --output "${OUTPUT:-runs/ssl_tie_VGGSound_openset_$openset}" \
  --epochs 100 --batch-size 32 --learning-rate 1e-4 --weight-decay 1e-4 --seed 4 \
  --equivariance-weight 1 "$@"
