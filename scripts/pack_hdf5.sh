#!/usr/bin/env bash
# Packs a data set into HDF5: JPEG bytes and 16-bit sounds, in parallel; call again to go on after a stop.
# Usage: bash scripts/pack_hdf5.sh DATASET ROOT OUT.h5 [--clip-list L] [--annotations J] [--workers N] [--seconds S] [--clips-per-file N] [--allow-missing] (--help for all)
set -euo pipefail
exec bash "$(dirname "$0")/run.sh" -m datasets.pack_hdf5 "$@"
