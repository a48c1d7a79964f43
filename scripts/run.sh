#!/usr/bin/env bash
# Runs a program of this project in its environment; every other script goes through here.
# Usage: scripts/run.sh main.py … | scripts/run.sh test.py … | scripts/run.sh -m package … (or -c code)
# VSSL_PYTHON names another interpreter that has the requirements; without it, .venv is made and used.
# With --help nothing is installed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in "" | -h | --help) set -- --help && . "$root/scripts/common.sh" ;; esac

if [ -z "${VSSL_PYTHON:-}" ]; then
  VSSL_PYTHON=$root/.venv/bin/python
  case " $* " in
    *" --help "* | *" -h "*)
      if ! compgen -G "$root/.venv/.installed-*" >/dev/null; then
        echo "run.sh: --help needs .venv, which is not there: bash scripts/setup.sh makes it (about 5 GB, a few minutes)" >&2
        exit 2
      fi
      ;;
    *) bash "$root/scripts/setup.sh" "${VSSL_REQUIREMENTS:-requirements.txt}" ;;
  esac
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
# glibc keeps freed memory instead of asking the kernel for it again in each step: 1.1 x the speed on a CPU.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_-33554432} # bytes; 32 MiB is the most that it takes
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-17179869184}
exec "$VSSL_PYTHON" -P "$@"
