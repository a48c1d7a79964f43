#!/usr/bin/env bash
# Scores SSL-TIE trained on VGGSound-144k on Flickr-SoundNet (249 clips).
# Usage: FLICKR_TEST_ROOT=/data/… [CHECKPOINT=ckpts/vggsound144k.pth.tar] [OUTPUT=results/VGGSound_Flickr] bash scripts/test_VGGSound_Flickr.sh [options of test.py localisation]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_TEST_ROOT "$@"
released "$scripts/../ckpts/vggsound144k.pth.tar" ssl_tie_vggsound_144k "$@"

exec bash "$scripts/run.sh" test.py localisation \
  "${checkpoint[@]}" \
  --benchmark flickr_soundnet ${FLICKR_TEST_ROOT:+--data-root "$FLICKR_TEST_ROOT"} --clip-list ssl_tie_flickr_249 \
  --output "${OUTPUT:-results/VGGSound_Flickr}" "$@"
