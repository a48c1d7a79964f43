#!/usr/bin/env bash
# Scores a model of scripts/train_VGGSound_openset.sh on VGG-SS twice: on classes that it has heard, and on others.
# OPENSET=ssl_tie: 2,425 and 2,463 clips. OPENSET=ez_vsl: 2,564 and 2,575 clips. scripts/get_splits.sh fetches the
# lists. The two halves differ: only OPENSET as in training tells what a model does with classes that it has not
# heard, see docs/data.md.
# Usage: VGGSOUND_TEST_ROOT=/data/… [OPENSET=ssl_tie|ez_vsl] [HEARD_LIST=file] [UNHEARD_LIST=file] [CHECKPOINT=runs/ssl_tie_VGGSound_openset_ssl_tie/last.pth] [OUTPUT=results/VGGSound_openset_ssl_tie] bash scripts/test_VGGSound_openset.sh [options of test.py localisation but --output]
# Results: OUTPUT/heard and OUTPUT/unheard. Status 2, as that of test.py, if either half ended with it; both are tried.
set -euo pipefail
scripts=$(dirname "$0")
. "$scripts/common.sh"
openset=${OPENSET:-ssl_tie}
case $openset in
  ssl_tie) lists=ssl_tie_openset ;;
  ez_vsl) lists=ez_vsl_vgg_ss ;;
  *)
    echo "test_VGGSound_openset: OPENSET is ssl_tie or ez_vsl, not '$openset'" >&2
    exit 2
    ;;
esac
need_root VGGSOUND_TEST_ROOT "$@"

status=0
for part in heard unheard; do
  list=${lists}_$part
  if [ "$part" = heard ]; then list=${HEARD_LIST:-$list}; else list=${UNHEARD_LIST:-$list}; fi
  bash "$scripts/run.sh" test.py localisation \
    --checkpoint "${CHECKPOINT:-runs/ssl_tie_VGGSound_openset_$openset/last.pth}" \
    --benchmark vgg_ss ${VGGSOUND_TEST_ROOT:+--data-root "$VGGSOUND_TEST_ROOT"} --clip-list "$list" \
    --output "${OUTPUT:-results/VGGSound_openset_$openset}/$part" "$@" || {
    status=$?
    [ "$status" -eq 2 ] || exit "$status"
  }
done
exit "$status"
