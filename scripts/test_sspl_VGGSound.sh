#!/usr/bin/env bash
# Scores SSPL on VGG-SS (4,692 clips), under its own rule and SSL-TIE's.
# CHECKPOINT may be the results folder of the authors' program; they have released no trained weights.
# Usage: VGGSOUND_TEST_ROOT=/data/… [CHECKPOINT=runs/sspl_VGGSound144k/last.pth] [OUTPUT=results/sspl_VGGSound] bash scripts/test_sspl_VGGSound.sh [options of test.py localisation]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_TEST_ROOT "$@"

exec bash "$scripts/run.sh" test.py localisation \
  --checkpoint "${CHECKPOINT:-runs/sspl_VGGSound144k/last.pth}" \
  --benchmark vgg_ss ${VGGSOUND_TEST_ROOT:+--data-root "$VGGSOUND_TEST_ROOT"} --clip-list sspl_vgg_ss_4692 \
  --protocol sspl,ssl_tie --output "${OUTPUT:-results/sspl_VGGSound}" "$@"
