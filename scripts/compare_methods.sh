#!/usr/bin/env bash
# Trains every method from scratch on the stamps set under one budget of clips seen, scores each run, and puts
# accuracy, audio sensitivity, retrieval and cost into one table.
# Usage: bash scripts/compare_methods.sh [options of ablate.sh] [-- options of main.py for all methods]
#   COMPARE_DATA names the stamps set (data/stamps-small); it is made where there is none.
# Stop it and call again: finished runs are skipped, interrupted ones resumed. --dry-run prints the commands.
set -euo pipefail
. "$(dirname "$0")/common.sh"
scripts=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$scripts")
data=${COMPARE_DATA:-$root/data/stamps-small}

own=(--seeds 4,5)
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  own+=("$1")
  shift
done
methods=ssl_tie,lvs,ez_vsl,slavc,fnac
if missing=$(find_encoders); then
  methods+=,sspl
else
  echo "compare_methods: SSPL is left out. $missing" >&2
fi
if [[ " ${own[*]} " != *" --dry-run "* ]] && [ ! -f "$data/stamps.json" ]; then
  bash "$scripts/make_stamps.sh" "$data" --seed 0 --classes 12 --train 2000 --test 200
fi
scored=(--data-root "$data" --clip-list "$data/test.txt" --labels "$data/stamps.json")
exec bash "$scripts/ablate.sh" methods --output "$root/runs/compare-methods" --variants "$methods" \
  "${own[@]}" -- --train-set vggsound --data-root "$data" --clip-list "$data/train.txt" "${@:2}" \
  -- localisation --benchmark stamps "${scored[@]}" --protocol ssl_tie,sspl --gallery 0 \
  -- retrieval --dataset stamps "${scored[@]}" --gallery 0 \
  -- negatives --benchmark stamps "${scored[@]}" \
  -- benchmark
