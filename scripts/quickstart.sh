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

# "real" or "procedural"; stands in the title of the report.
source=$(grep -m1 -o '"source": "[a-z]*"' "$data/stamps.json" | cut -d'"' -f4)

# Method, loss and networks are the published ones. Cheaper than published, so that two CPU cores need
# minutes: 3 s of sound (the clips hold no more) in 76 x 64 instead of 670 x 257 points, frames of 96
# pixels, no crop, colour, grey or blur augmentation, no scaling, 6 epochs at 3 x the learning rate.
resume=--no-resume
[ -f "$output/last.pth" ] && resume=--resume
bash "$scripts/run.sh" main.py ssl_tie \
  --train-set vggsound --data-root "$data" --clip-list "$data/train.txt" --output "$output" $resume \
  --window-seconds 3 --mel-bins 64 --fft-size 1024 --hop-length 640 \
  --time-mask 20 --frequency-mask 9 --frame-size 96 \
  --no-crop --no-colour --no-grey --no-blur --no-scaling \
  --learning-rate 3e-4 --epochs 6 --workers 1 "$@"

bash "$scripts/run.sh" test.py localisation --checkpoint "$output/last.pth" \
  --benchmark stamps --data-root "$data" --clip-list "$data/test.txt" --note "$source set" \
  --output "$output/results" --save-overlays all --workers 1
