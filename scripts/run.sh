#!/usr/bin/env bash
# Runs a program of this project in its environment; every other script goes through here.
# Usage: scripts/run.sh main.py … | scripts/run.sh test.py … | scripts/run.sh -m package … (or -c code)
# VSSL_PYTHON names another interpreter that has the requirements; without it, .venv is made and used.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -z "${VSSL_PYTHON:-}" ]; then
  bash "$root/scripts/setup.sh"
  VSSL_PYTHON=$root/.venv/bin/python
fi
# -P and PYTHONPATH: the project's packages are found from any working folder, and nothing else is.
if [ "${1#-}" = "$1" ]; then
  program=$root/$1
  VSSL_CALL="bash $(printf %q "$0")" # results say how they were made
  export VSSL_CALL
  shift
  set -- "$program" "$@"
fi
export PYTHONPATH=$root
exec "$VSSL_PYTHON" -P "$@"
