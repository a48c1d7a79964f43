#!/usr/bin/env bash
# Makes .venv with the pinned requirements, once; later calls return at once.
# Usage: bash scripts/setup.sh [requirements file]      PYTHON picks the interpreter (3.11 or newer)
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."

requirements=${1:-requirements.txt}
python=${PYTHON:-python3}
# A stamp for each file, of the content of all, as they include each other.
stamp_of() { echo ".venv/.installed-$({ cat requirements*.txt; echo "$1"; } | cksum | tr -dc 0-9)"; }

[ -f "$(stamp_of "$requirements")" ] && exit 0
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "setup: Python 3.11 or newer is needed, '$python' is $("$python" --version 2>&1 || true)." \
       "Install one, or name it: PYTHON=python3.12 bash scripts/setup.sh" >&2
  exit 2
fi
# What has no pip (stopped half-way, or made by uv) gets one. Only what has no Python that runs is made anew,
# and never what a link leads to.
make=("$python" -m venv --clear .venv)
if .venv/bin/python -c "" 2>/dev/null || [ -L .venv ]; then
  make=(.venv/bin/python -m ensurepip)
fi
if ! .venv/bin/python -c "import pip" 2>/dev/null; then
  "${make[@]}" >&2 || {
    echo "setup: could not make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 2
  }
fi
echo "setup: installing $requirements into .venv (about 5 GB, a few minutes)" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2 || {
  echo "setup: pip could not install $requirements; its message is above. Call again to go on." >&2
  exit 2
}
# Each requirements file contains requirements.txt, so that one is installed as well.
touch "$(stamp_of "$requirements")" "$(stamp_of requirements.txt)"
