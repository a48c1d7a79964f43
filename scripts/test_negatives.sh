#!/usr/bin/env bash
# Scores SSL-TIE on VGG-SS (4,911 clips) with silence, noise and off-screen sounds: docs/negative_audio.md.
# Classes come from the VGG-SS JSON, which scripts/get_splits.sh fetches (another file: LABELS=…).
# Usage: VGGSOUND_TEST_ROOT=/data/… [CHECKPOINT=ckpts/vggsound144k.pth.tar] [LABELS=metadata/lvs_vgg_ss_boxes.json] [OUTPUT=results/negatives] bash scripts/test_negatives.sh [options of test.py negatives]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_TEST_ROOT "$@"
released "$scripts/../ckpts/vggsound144k.pth.tar" ssl_tie_vggsound_144k "$@"

exec bash "$scripts/run.sh" test.py negatives \
  "${checkpoint[@]}" \
  --benchmark vgg_ss ${VGGSOUND_TEST_ROOT:+--data-root "$VGGSOUND_TEST_ROOT"} --clip-list ssl_tie_vgg_ss_4911 \
  --labels "${LABELS:-$scripts/../metadata/lvs_vgg_ss_boxes.json}" \
  --output "${OUTPUT:-results/negatives}" "$@"
