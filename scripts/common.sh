#!/usr/bin/env bash
# What the other scripts share: --help prints the comment at a script's head; variables that a recipe needs.
# Usage: . scripts/common.sh, in a script
set -euo pipefail
case " $* " in
  *" --help "* | *" -h "*)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    case ${0##*/} in train_* | test_*) echo "All options: bash scripts/run.sh main.py METHOD --help, or test.py TASK --help" ;; esac
    exit 0
    ;;
esac

# need_root VARIABLE "$@": ends with status 2 where neither the variable nor an option names the data.
need_root() {
  local name=$1 holds
  case "${0##*/} ${*:2}" in train_*" --config"*)
    echo "$(basename "$0"): the options of this recipe would win over --config. Call:" \
      "bash scripts/run.sh main.py METHOD --config FILE" >&2
    exit 2
    ;;
  esac
  case " ${*:2}" in *" --data-root"*) return ;; esac
  [ -z "${!name:-}" ] || return 0
  case $name in
    VGGSOUND_ROOT) holds="VGGSound's training clips (total_video_frames/ and total_video_3s_audio/)" ;;
    FLICKR_ROOT) holds="Flickr-SoundNet's training clips (frames/ and mp3/)" ;;
    VGGSOUND_TEST_ROOT) holds="VGG-SS (frame/, audio/ and anno/)" ;;
    FLICKR_TEST_ROOT) holds="Flickr-SoundNet's test clips (frame/, audio/ and anno/)" ;;
  esac
  echo "$(basename "$0"): $name is not set. It is the folder of $holds, see docs/data.md:" \
    "$name=/data/… bash $0, or --data-root /data/…" >&2
  exit 2
}

# find_encoders: what SSPL's frozen encoders lack; status 0 where both are there. Needs `scripts`.
find_encoders() {
  local answer
  answer=$(bash "$scripts/run.sh" -c "from models.released import find_pretrained as find
find('vgg16', None), find('vggish', None)" 2>&1) && return
  echo "${answer##*Error: }"
  return 1
}

# released FILE LIST "$@": sets `checkpoint`, options that name CHECKPOINT or else a released file. That one
# does not hold what it was trained on, as one's own checkpoints do: the list goes with its name alone.
released() {
  local chosen=${CHECKPOINT:-$1}
  checkpoint=(--checkpoint "$chosen")
  case " ${*:3}" in *" --checkpoint"* | *" --training-list"*) return ;; esac
  [ "${chosen##*/}" != "${1##*/}" ] || checkpoint+=(--training-list "$2")
}
