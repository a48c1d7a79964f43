#!/usr/bin/env bash
# Fetches the official clip lists into metadata/ (or $VSSL_SPLITS) and verifies count and sha256.
# Usage: bash scripts/get_splits.sh [NAME ...] [--folder DIR] [--base-url URL] [--list]
# Without names: all lists.
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" -m datasets.lists "$@"
