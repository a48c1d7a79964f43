#!/usr/bin/env bash
# Turns videos, in folders or .tar.gz archives, into the folders that training and testing read; can be stopped and resumed.
# Usage: bash scripts/prepare_videos.sh IN … OUT [--layout vggsound,vgg_ss] [--frames used|all] [--clip-list LIST] ...   (--help for all)
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" -m scripts.prepare_videos "$@"
