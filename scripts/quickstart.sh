#!/usr/bin/env bash
# From a bare machine to a trained, scored localiser: real photos and recordings, SSL-TIE, a report.
# Usage: bash scripts/quickstart.sh [options of main.py ssl_tie]
#   QUICKSTART_DATA    where the stamps set goes     (data/stamps in the project)
#   QUICKSTART_OUTPUT  where run and results go      (runs/quickstart in the project)
#   QUICKSTART_STAMPS  further options of make_stamps.sh, e.g. "--source procedural --train 64"
# Called again, it goes on where it was stopped.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$scripts")
data=${QUICKSTART_DATA:-$root/data/stamps}
output=${QUICKSTART_OUTPUT:-$root/runs/quickstart}

read -ra stamps_options <<< "${QUICKSTART_STAMPS:-}"
bash "$scripts/make_stamps.sh" "$data" --train 2000 --test 200 --seed 0 "${stamps_options[@]}"

# A quarter of the published size in each respect that costs time: 3 s of sound (the clips hold no
# more) at half the resolution, frames of 128 pixels. Method and loss are the published ones.
resume=--no-resume
[ -f "$output/last.pth" ] && resume=--resume
bash "$scripts/run.sh" main.py ssl_tie \
  --train-set vggsound --data-root "$data" --clip-list "$data/train.txt" --output "$output" $resume \
  --window-seconds 3 --mel-bins 128 --hop-length 478 --time-mask 27 --frequency-mask 17 \
  --frame-size 128 --learning-rate 5e-4 --epochs 4 --workers 1 "$@"

bash "$scripts/run.sh" test.py localisation --checkpoint "$output/last.pth" \
  --benchmark vgg_ss --data-root "$data" --clip-list "$data/test.txt" \
  --output "$output/results" --save-overlays all --workers 1
