#!/usr/bin/env bash
# Makes .venv with the pinned requirements, once; later calls return at once.
# Usage: bash scripts/setup.sh [requirements file [environment]]      PYTHON picks the interpreter (3.11 or newer)
# The environment is .venv; another one is for requirements that contradict requirements.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=${1:-requirements.txt}
environment=${2:-.venv}
python=${PYTHON:-python3}
# Of all files, as they include each other.
stamp_of() { echo "$environment/.installed-$({ cat requirements*.txt; echo "$1"; } | sha256sum | cut -c1-16)"; }

[ -f "$(stamp_of "$requirements")" ] && exit 0
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "setup: Python 3.11 or newer is needed, '$python' is $("$python" --version 2>&1 || true)." \
       "Install one, or name it: PYTHON=python3.12 bash scripts/setup.sh" >&2
  exit 2
fi
if ! [ -x "$environment/bin/python" ]; then
  "$python" -m venv "$environment" || {
    echo "setup: could not make $environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 2
  }
fi
size="about 5 GB"
[ "$environment" = .venv ] || size="about 0.4 GB"
echo "setup: installing $requirements into $environment ($size, a few minutes)" >&2
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2 || {
  echo "setup: pip could not install $requirements; its message is above. Call again to go on." >&2
  exit 2
}
touch "$(stamp_of "$requirements")"
# Each requirements file for .venv contains requirements.txt, so that one is installed as well.
[ "$environment" != .venv ] || touch "$(stamp_of requirements.txt)"
