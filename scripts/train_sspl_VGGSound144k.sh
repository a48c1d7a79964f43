#!/usr/bin/env bash
# SSPL on VGGSound-144k, with the PCM or without it (--no-pcm, with another OUTPUT).
# The authors publish settings for Flickr-10k only, which are taken here as well, and no list of their clips:
# this is SSL-TIE's. CLIP_LIST= (empty) takes every clip of the folder, as their HDF5 files need it.
# Usage: VGGSOUND_ROOT=/data/… [OUTPUT=runs/sspl_VGGSound144k] [CLIP_LIST=file or name] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_sspl_VGGSound144k.sh [options of main.py sspl]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_ROOT "$@"
list=${CLIP_LIST-ssl_tie_vggsound_144k}

exec bash "$scripts/run.sh" main.py sspl \
  --train-set vggsound ${VGGSOUND_ROOT:+--data-root "$VGGSOUND_ROOT"} ${list:+--clip-list "$list"} \
  --output "${OUTPUT:-runs/sspl_VGGSound144k}" --seed 1234 "$@"
