#!/usr/bin/env bash
# SSL-TIE on Flickr-144k with the audio-mixing curriculum: training sounds are mixed with their nearest ones, more with
# every epoch (docs/method_ssl_tie.md has the schedule, and what the authors' program does otherwise).
# SSL-TIE's own list has no known sum: save it as a file, or FLICKR_LIST=ez_vsl_flickr_144k (without it: every clip found).
# Usage: FLICKR_ROOT=/data/… [FLICKR_LIST=file] [OUTPUT=runs/ssl_tie_Flickr144k_audmix] [CUDA_VISIBLE_DEVICES=0] bash scripts/train_Flickr144k_audmix.sh [options of main.py ssl_tie]
set -euo pipefail
. "$(dirname "$0")/common.sh"

export OUTPUT="${OUTPUT:-runs/ssl_tie_Flickr144k_audmix}"
exec bash "$(dirname "$0")/train_Flickr144k.sh" --audio-mixing "$@"
