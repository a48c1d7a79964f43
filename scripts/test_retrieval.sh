#!/usr/bin/env bash
# Scores retrieval among the 4,911 clips of VGG-SS: sounds by sounds, frames by sounds, sounds by frames.
# Classes come from the VGG-SS JSON, which scripts/get_splits.sh fetches (another file: LABELS=…).
# Usage: VGGSOUND_TEST_ROOT=/data/… [CHECKPOINT=ckpts/vggsound144k.pth.tar] [LABELS=metadata/lvs_vgg_ss_boxes.json] [OUTPUT=results/retrieval] bash scripts/test_retrieval.sh [options of test.py retrieval]
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
need_root VGGSOUND_TEST_ROOT "$@"
released "$scripts/../ckpts/vggsound144k.pth.tar" ssl_tie_vggsound_144k "$@"

exec bash "$scripts/run.sh" test.py retrieval \
  "${checkpoint[@]}" \
  --dataset vgg_ss ${VGGSOUND_TEST_ROOT:+--data-root "$VGGSOUND_TEST_ROOT"} --clip-list ssl_tie_vgg_ss_4911 \
  --labels "${LABELS:-$scripts/../metadata/lvs_vgg_ss_boxes.json}" \
  --output "${OUTPUT:-results/retrieval}" "$@"
