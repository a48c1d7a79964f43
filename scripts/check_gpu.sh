#!/usr/bin/env bash
# All that needs a GPU, in one command: tests, speed beside the computed limit, three minutes of learning.
# Usage: bash scripts/check_gpu.sh [--quick]      --quick: the same path on the CPU, with tiny sizes
#   CHECK_OUTPUT   where it writes: check_gpu.json, data and the run (runs/check_gpu)
# It ends with a table. Status 1: a test or a measurement failed; 2: there is no GPU.
set -euo pipefail
. "$(dirname "$0")/common.sh"
case ${CHECK_OUTPUT:-/} in /*) ;; *) CHECK_OUTPUT=$PWD/$CHECK_OUTPUT ;; esac
cd "$(dirname "$0")/.."
run=(bash scripts/run.sh)
output=${CHECK_OUTPUT:-runs/check_gpu}
cores=$(nproc)
export VSSL_REQUIREMENTS=requirements-dev.txt QUICKSTART_SIZE=full QUICKSTART_STAMPS=${QUICKSTART_STAMPS:---test 200}
export QUICKSTART_DATA=$output/stamps QUICKSTART_OUTPUT=$output/run QUICKSTART_SECONDS=${QUICKSTART_SECONDS:-180}
tests=(tests/test_gpu.py) speed=(--method ssl_tie) train=(--batch-size 32 --variants compile)
larger=(--batch-sizes 64,256,largest --variants plain)
learn=(--epochs 1000)
if [ "${1:-}" = --quick ]; then
  export GPU_TESTS_DEVICE=cpu QUICKSTART_SIZE=small QUICKSTART_STAMPS="--source procedural --train 16 --test 12"
  tests+=(-k "views and ssl_tie")
  speed+=(--device cpu --frame-size 32 --clips 8 --batch-size 4 --repeats 1 --window-seconds 1 --mel-bins 32
    --hop-length 400 --time-mask 10 --frequency-mask 8)
  train=(--batch-size 2 --variants plain) larger=(--batch-size 4 --variants plain)
  cores=1
  learn=(--device cpu --workers 0 --epochs 1 --batch-size 8 --frame-size 64)
elif [ $# -gt 0 ]; then
  echo "check_gpu: takes --quick or nothing, not '$*'" >&2
  exit 2
elif ! "${run[@]}" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  echo "check_gpu: PyTorch sees no GPU here; --quick tries the same path on the CPU." >&2
  exit 2
fi

if [ -e "$output" ]; then
  echo "check_gpu: $output is there already: remove it, or name another folder with CHECK_OUTPUT" >&2
  exit 2
fi
mkdir -p "$output"
passed=yes
"${run[@]}" -m pytest -q -n 0 -p no:cacheprovider "${tests[@]}" | tee "$output/tests.txt" >&2 || passed=no
{
  "${run[@]}" scripts/benchmark.py train "${speed[@]}" "${train[@]}" || passed=no
  "${run[@]}" scripts/benchmark.py train "${speed[@]}" "${larger[@]}" || passed=no
  "${run[@]}" scripts/benchmark.py loader --worker-counts "$cores" "${speed[@]}" || passed=no
  "${run[@]}" scripts/benchmark.py evaluate "${speed[@]}" || passed=no
} > "$output/speed.jsonl"
bash scripts/quickstart.sh "${learn[@]}"

columns="case variant batch_size samples_per_s limit_samples_per_s limit_share compiled_limit_samples_per_s
  compiled_limit_share peak_mib device"
"${run[@]}" -c "import json, pathlib, sys, pandas
folder, columns = pathlib.Path(sys.argv[1]), sys.argv[2].split()
speed, words = ((folder / name).read_text().splitlines() for name in ('speed.jsonl', 'tests.txt'))
lines, results = [json.loads(line) for line in speed], folder / 'run/results'
learned = {name: json.loads((results / name / 'summary.json').read_text()) for name in ('test', 'wrong_sound')}
report = {'tests': words[-1], 'speed': lines, 'learning': learned}
(folder / 'check_gpu.json').write_text(json.dumps(report, indent=2))
table = pandas.DataFrame(lines).reindex(columns=columns).dropna(axis='columns', how='all')
print(table.to_string(na_rep='', index=False), words[-1], sep='\n')" "$output" "$columns"
[ "$passed" = yes ]
