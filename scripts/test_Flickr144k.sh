#!/usr/bin/env bash
# Scores SSL-TIE trained on Flickr-144k on Flickr-SoundNet (249 clips).
# Usage: FLICKR_TEST_ROOT=/data/… [CHECKPOINT=ckpts/flickr144k.pth.tar] [OUTPUT=results/Flickr144k] bash scripts/test_Flickr144k.sh [options of test.py localisation]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_TEST_ROOT "$@"

exec bash "$scripts/run.sh" test.py localisation \
  --checkpoint "${CHECKPOINT:-$scripts/../ckpts/flickr144k.pth.tar}" \
  --benchmark flickr_soundnet ${FLICKR_TEST_ROOT:+--data-root "$FLICKR_TEST_ROOT"} --clip-list ssl_tie_flickr_249 \
  --output "${OUTPUT:-results/Flickr144k}" "$@"
