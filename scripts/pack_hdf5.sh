#!/usr/bin/env bash
# Packs a data set into one HDF5 file: JPEG bytes and 16-bit sounds.
# Usage: bash scripts/pack_hdf5.sh DATASET ROOT OUT.h5 [--clip-list L] [--annotations J] [--workers N] [--allow-missing]
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" -m scripts.pack_hdf5 "$@"
