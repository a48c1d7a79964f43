#!/usr/bin/env bash
# SSL-TIE on Flickr-10k with the audio-mixing curriculum: training sounds are mixed with their nearest ones, more with
# every epoch (docs/method_ssl_tie.md has the schedule, and what the authors' program does otherwise).
# Usage: FLICKR_ROOT=/data/… [OUTPUT=runs/ssl_tie_Flickr10k_audmix] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_Flickr10k_audmix.sh [options of main.py ssl_tie]
set -euo pipefail
. "$(dirname "$0")/common.sh"

export OUTPUT="${OUTPUT:-runs/ssl_tie_Flickr10k_audmix}"
exec bash "$(dirname "$0")/train_Flickr10k.sh" --audio-mixing "$@"
