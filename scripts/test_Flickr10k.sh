#!/usr/bin/env bash
# Scores SSL-TIE trained on Flickr-10k on Flickr-SoundNet (249 clips).
# Usage: FLICKR_TEST_ROOT=/data/… [CHECKPOINT=ckpts/flickr10k.pth.tar] [OUTPUT=results/Flickr10k] bash scripts/test_Flickr10k.sh [options of test.py localisation]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_TEST_ROOT "$@"
released "$scripts/../ckpts/flickr10k.pth.tar" ssl_tie_flickr_10k "$@"

exec bash "$scripts/run.sh" test.py localisation \
  "${checkpoint[@]}" \
  --benchmark flickr_soundnet ${FLICKR_TEST_ROOT:+--data-root "$FLICKR_TEST_ROOT"} --clip-list ssl_tie_flickr_249 \
  --output "${OUTPUT:-results/Flickr10k}" "$@"
