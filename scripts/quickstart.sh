#!/usr/bin/env bash
# From a bare machine to a trained, scored localiser: real photos and recordings, SSL-TIE, a report.
# Usage: bash scripts/quickstart.sh [options of main.py ssl_tie]
#   QUICKSTART_SIZE    small: 12 classes, 96-pixel frames, minutes on two CPU cores;
#                      full: 50 classes, 224-pixel frames, published spectrogram, for a GPU
#                      (default: full where PyTorch sees a GPU, else small)
#   QUICKSTART_DATA    where the stamps set goes     (data/stamps-<size> in the project)
#   QUICKSTART_OUTPUT  where run and results go      (runs/quickstart-<size> in the project)
#   QUICKSTART_STAMPS  further options of make_stamps.sh, e.g. "--source procedural --train 64"
# Called again, it goes on where it was stopped. With --dry-run it prints what would run.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$scripts")
run=("bash" "$scripts/run.sh")

size=${QUICKSTART_SIZE:-}
if [ -z "$size" ]; then
  size=$("${run[@]}" -c "import torch; print('full' if torch.cuda.is_available() else 'small')")
fi
# Method, loss and networks are the published ones. On so small a set they learn within minutes only
# without crop, colour, grey, blur and scaling and at 3 x the learning rate: docs/quickstart.md.
recipe=(--no-crop --no-colour --no-grey --no-blur --no-scaling --learning-rate 3e-4)
case $size in
  small)
    stamps=(--classes 12 --train 2000 --test 200)
    recipe+=(--window-seconds 3 --mel-bins 64 --fft-size 1024 --hop-length 640
      --time-mask 20 --frequency-mask 9 --frame-size 96 --epochs 6 --workers 1)
    ;;
  full)
    stamps=(--classes 50 --train 8000 --test 1000)
    recipe+=(--epochs 30)
    ;;
  *)
    echo "quickstart: QUICKSTART_SIZE is small or full, not '$size'" >&2
    exit 2
    ;;
esac
data=${QUICKSTART_DATA:-$root/data/stamps-$size}
output=${QUICKSTART_OUTPUT:-$root/runs/quickstart-$size}
read -ra more <<< "${QUICKSTART_STAMPS:-}"
resume=--no-resume
[ -f "$output/last.pth" ] && resume=--resume

train=("${run[@]}" main.py ssl_tie --train-set vggsound --data-root "$data"
  --clip-list "$data/train.txt" --output "$output" $resume "${recipe[@]}" "$@")
test=("${run[@]}" test.py localisation --checkpoint "$output/last.pth" --benchmark stamps
  --data-root "$data" --workers 1)
if [[ " $* " == *" --dry-run "* ]]; then
  exec "${train[@]}"
fi

bash "$scripts/make_stamps.sh" "$data" --seed 0 "${stamps[@]}" "${more[@]}"
"${train[@]}"

# Results of an earlier, shorter run of this script would be of another checkpoint.
rm -rf "$output/results"
# "real" or "procedural"; stands in the title of every report.
source=$(grep -m1 -o '"source": "[a-z]*"' "$data/stamps.json" | cut -d'"' -f4)
score() { # name of the results, clip list, further options
  echo "== $1"
  "${test[@]}" --note "$source set" --output "$output/results/$1" --clip-list "$data/$2.txt" \
    --gallery 0 "${@:3}"
}
score min_max test --protocol min_max_0.5
score wrong_sound test --audio shuffled
for part in test_seen test_held_out_recording test_held_out_photo test_both_held_out \
  test_one_object test_two_objects; do
  if [ -f "$data/$part.txt" ]; then score "$part" "$part"; fi
done
score test test --save-overlays all --gallery 8
