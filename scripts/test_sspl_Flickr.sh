#!/usr/bin/env bash
# Scores SSPL on Flickr-SoundNet (249 clips), under its own rule and SSL-TIE's.
# CHECKPOINT may be the results folder of the authors' program; they have released no trained weights.
# Usage: FLICKR_TEST_ROOT=/data/… [CHECKPOINT=runs/sspl_Flickr10k/last.pth] [OUTPUT=results/sspl_Flickr] bash scripts/test_sspl_Flickr.sh [options of test.py localisation]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root FLICKR_TEST_ROOT "$@"

exec bash "$scripts/run.sh" test.py localisation \
  --checkpoint "${CHECKPOINT:-runs/sspl_Flickr10k/last.pth}" \
  --benchmark flickr_soundnet ${FLICKR_TEST_ROOT:+--data-root "$FLICKR_TEST_ROOT"} --clip-list sspl_flickr_249 \
  --protocol sspl,ssl_tie --output "${OUTPUT:-results/sspl_Flickr}" "$@"
