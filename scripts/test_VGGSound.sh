#!/usr/bin/env bash
# Scores SSL-TIE trained on VGGSound-144k on VGG-SS (4,911 clips).
# Usage: VGGSOUND_TEST_ROOT=/data/… [CHECKPOINT=ckpts/vggsound144k.pth.tar] [OUTPUT=results/VGGSound] bash scripts/test_VGGSound.sh [options of test.py localisation]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_TEST_ROOT "$@"
released "$scripts/../ckpts/vggsound144k.pth.tar" ssl_tie_vggsound_144k "$@"

exec bash "$scripts/run.sh" test.py localisation \
  "${checkpoint[@]}" \
  --benchmark vgg_ss ${VGGSOUND_TEST_ROOT:+--data-root "$VGGSOUND_TEST_ROOT"} --clip-list ssl_tie_vgg_ss_4911 \
  --output "${OUTPUT:-results/VGGSound}" "$@"
