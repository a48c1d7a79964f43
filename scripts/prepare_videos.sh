#!/usr/bin/env bash
# Turns a folder of videos into the folders that training and testing read; can be stopped and resumed.
# Usage: bash scripts/prepare_videos.sh IN OUT [--layout vggsound,vgg_ss] [--frames used|all] [--clip-list LIST] ...   (--help for all)
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" -m scripts.prepare_videos "$@"
