#!/usr/bin/env bash
# SSPL on Flickr-10k: the authors' settings, 20 epochs with the PCM; 100 without it (--no-pcm, with another OUTPUT).
# The authors publish no list of their 10k clips: this is SSL-TIE's. CLIP_LIST= (empty) takes every clip of the
# folder, as their HDF5 files need it.
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/sspl_Flickr10k] [CLIP_LIST=file or name] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_sspl_Flickr10k.sh [options of main.py sspl]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"
list=${CLIP_LIST-ssl_tie_flickr_10k}

exec bash "$scripts/run.sh" main.py sspl \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} ${list:+--clip-list "$list"} \
  --output "${OUTPUT:-runs/sspl_Flickr10k}" --seed 1234 "$@"
