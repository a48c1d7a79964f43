#!/usr/bin/env bash
# SSL-TIE on VGGSound-144k with the audio-mixing curriculum: training sounds are mixed with their nearest ones, more with
# every epoch (docs/method_ssl_tie.md has the schedule, and what the authors' program does otherwise).
# Usage: VGGSOUND_ROOT=/data/… [OUTPUT=runs/ssl_tie_VGGSound144k_audmix] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_VGGSound144k_audmix.sh [options of main.py ssl_tie]
set -euo pipefail
. "$(dirname "$0")/common.sh"

export OUTPUT="${OUTPUT:-runs/ssl_tie_VGGSound144k_audmix}"
exec bash "$(dirname "$0")/train_VGGSound144k.sh" --audio-mixing "$@"
