#!/usr/bin/env bash
# Fetches the official clip lists into metadata/ (or $VSSL_SPLITS) and verifies count and sha256.
# Usage: bash scripts/get_splits.sh [NAME ...] [--folder DIR] [--base-url URL] [--list]
# Without names: all lists. Relative folders start at the repository root.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m datasets.splits "$@"
