#!/usr/bin/env bash
# From a bare machine to a trained, scored localiser: real photos and recordings, training, a report.
# Usage: bash scripts/quickstart.sh [--method ssl_tie|sspl] [options of main.py METHOD; places: variables below]
#   --method sspl takes VGG-16 and VGGish from ckpts/ (scripts/get_weights.sh fetches them); without
#   both it starts from random ones, says so in every report, and its figures say nothing of SSPL.
#   QUICKSTART_SIZE    small (the default): 12 classes, 96-pixel frames, minutes on two CPU cores;
#                      full: 50 classes, 224-pixel frames, published spectrogram, for a GPU
#   QUICKSTART_DATA    where the stamps set goes     (data/stamps-<size> in the project)
#   QUICKSTART_OUTPUT  where run and results go      (runs/quickstart-<size>, SSPL: -sspl-<size>)
#   QUICKSTART_SECONDS training stops after so many, and what it reached is scored
#   QUICKSTART_STAMPS  further options of make_stamps.sh, e.g. "--source procedural --train 64"
# Called again, it goes on where it was stopped. With --dry-run it prints what would run.
set -euo pipefail
. "$(dirname "$0")/common.sh"
scripts=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$scripts")
run=("bash" "$scripts/run.sh")

method=ssl_tie
if [ "${1:-}" = --method ]; then
  method=${2:-}
  shift $(($# > 1 ? 2 : 1))
fi
case " $*" in *" --output"* | *" --data-root"* | *" --clip-list"* | *" --config"*)
  echo "quickstart: name places by QUICKSTART_OUTPUT and QUICKSTART_DATA; for --clip-list and --config take" \
    "scripts/run.sh main.py" >&2
  exit 2
  ;;
esac
size=${QUICKSTART_SIZE:-small}
case $size in
  small) stamps=(--classes 12 --train 2000 --test 200) ;;
  full) stamps=(--classes 50 --train 8000 --test 1000) ;;
  *)
    echo "quickstart: QUICKSTART_SIZE is small or full, not '$size'" >&2
    exit 2
    ;;
esac
data=${QUICKSTART_DATA:-$root/data/stamps-$size}
# Method, loss and networks are the published ones. With crop, colour, grey, blur and scaling they need some
# 60 epochs to come as far as without within 6: docs/reproduction.md.
note=
case $method-$size in
  ssl_tie-*)
    output=${QUICKSTART_OUTPUT:-$root/runs/quickstart-$size}
    protocol=ssl_tie,sspl
    recipe=(--no-crop --no-colour --no-grey --no-blur --no-scaling --learning-rate 3e-4)
    if [ "$size" = small ]; then
      recipe+=(--window-seconds 3 --mel-bins 64 --fft-size 1024 --hop-length 640
        --time-mask 20 --frequency-mask 9 --frame-size 96 --epochs 6)
    else
      recipe+=(--epochs 30)
    fi
    ;;
  sspl-*)
    output=${QUICKSTART_OUTPUT:-$root/runs/quickstart-sspl-$size}
    protocol=sspl,ssl_tie
    recipe=(--seed 1234)
    if [ "$size" = small ]; then
      recipe+=(--no-pcm --frame-size 96 --batch-size 128 --epochs 6)
    fi
    random=
    case " $* " in
      *" --random-init "*) random=yes ;;
      *" --vgg16"[\ =]*|*" --vggish"[\ =]*|*" --start"[\ =]*) ;;
      *)
        if ! missing=$(find_encoders); then
          echo "quickstart: the encoders stay RANDOM, and figures say nothing of SSPL. $missing" >&2
          recipe+=(--random-init)
          random=yes
        fi
        ;;
    esac
    [ -z "$random" ] || note=", RANDOM frozen encoders: not SSPL's accuracy"
    ;;
  *)
    echo "quickstart: --method is ssl_tie or sspl, not '$method'" >&2
    exit 2
    ;;
esac
resume=--no-resume
[ -f "$output/last.pth" ] && resume=--resume

train=("${run[@]}" main.py "$method" --train-set vggsound --data-root "$data"
  --clip-list "$data/train.txt" --output "$output" $resume "${recipe[@]}" "$@")
test=("${run[@]}" test.py localisation --checkpoint "$output/last.pth" --benchmark stamps
  --data-root "$data" --labels "$data/stamps.json" --protocol "$protocol")
if [[ " $* " == *" --dry-run "* ]]; then
  exec "${train[@]}"
fi

# shellcheck disable=SC2086 # options, each a word
bash "$scripts/make_stamps.sh" "$data" --seed 0 "${stamps[@]}" ${QUICKSTART_STAMPS:-}
if [ -n "${QUICKSTART_SECONDS:-}" ]; then
  timeout --foreground "$QUICKSTART_SECONDS" "${train[@]}" || [ $? = 124 ]
else
  "${train[@]}"
fi

# Results of an earlier, shorter run of this script would be of another checkpoint.
rm -rf "$output/results"
# "real" or "procedural"; stands in the title of every report.
source=$(grep -m1 -o '"source": "[a-z]*"' "$data/stamps.json" | cut -d'"' -f4)
score() { # name of the results, clip list, further options
  echo "== $1"
  "${test[@]}" --note "$source set$note" --output "$output/results/$1" --clip-list "$data/$2.txt" \
    --gallery 0 "${@:3}"
}
score wrong_sound test --audio shuffled
for part in test_seen test_held_out_recording test_held_out_photo test_both_held_out \
  test_one_object test_two_objects; do
  if [ -f "$data/$part.txt" ]; then score "$part" "$part"; fi
done
score test test --save-overlays all --gallery 8

output=${output#"$PWD/"} data=${data#"$PWD/"} scripts=${scripts#"$PWD/"}
echo
echo "With another clip's sound, under the first rule (a model that listens must do worse):"
sed -n 5p "$output/results/wrong_sound/table.md" | tr -d '|\\'
clip=$data/VGGSound_test id=$(head -n 1 "$data/test.txt")
cat <<END
Report: $output/results/test/report.html
Next:
  bash $scripts/demo.sh        # your own videos and pictures, in the browser
  bash $scripts/run.sh test.py image --checkpoint $output/last.pth --image $clip/frame/$id.jpg \\
    --sound $clip/audio/$id.wav --output heat.png
  bash $scripts/run.sh -m tensorboard.main --logdir $output        # how it learned
END
