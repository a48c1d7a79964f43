#!/usr/bin/env bash
# SSPL on Flickr-144k, with the PCM or without it (--no-pcm, with another OUTPUT).
# The authors publish settings for Flickr-10k only, which are taken here as well; they advise to stop early.
# No verified list of the 144k clips is known: name yours in CLIP_LIST (without it: every clip found).
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/sspl_Flickr144k] [CLIP_LIST=file or name] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_sspl_Flickr144k.sh [options of main.py sspl]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_ROOT "$@"

exec bash "$scripts/run.sh" main.py sspl \
  --train-set flickr ${FLICKR_ROOT:+--data-root "$FLICKR_ROOT"} ${CLIP_LIST:+--clip-list "$CLIP_LIST"} \
  --output "${OUTPUT:-runs/sspl_Flickr144k}" --seed 1234 "$@"
