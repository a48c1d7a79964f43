#!/usr/bin/env bash
# All that needs a GPU, in one command: tests, speed beside the computed limit, three minutes of learning.
# Usage: bash scripts/check_gpu.sh [--quick]      --quick: the same path on the CPU, with tiny sizes
#   CHECK_OUTPUT   where it writes: check_gpu.json, data and the run (runs/check_gpu)
# It ends with a table. Status 1: a test failed; 2: there is no GPU.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."
run=(bash scripts/run.sh)
output=${CHECK_OUTPUT:-runs/check_gpu}
cores=$(nproc)
export VSSL_REQUIREMENTS=requirements-dev.txt QUICKSTART_SIZE=full QUICKSTART_STAMPS="--test 200"
export QUICKSTART_DATA=$output/stamps QUICKSTART_OUTPUT=$output/run QUICKSTART_SECONDS=180
tests=() speed=() train=(--batch-sizes 32,256,largest --variants plain)
learn=(--epochs 1000)
if [ "${1:-}" = --quick ]; then
  export GPU_TESTS_DEVICE=cpu QUICKSTART_SIZE=small QUICKSTART_STAMPS="--source procedural --train 16 --test 12"
  tests=(-k "views and ssl_tie")
  speed=(--device cpu --frame-size 32 --clips 8 --batch-size 4 --repeats 1 --window-seconds 1 --mel-bins 32
    --hop-length 400 --time-mask 10 --frequency-mask 8)
  train=(--batch-sizes 2,4 --variants plain)
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
"${run[@]}" -m pytest -q -n 0 -p no:cacheprovider tests/test_gpu.py "${tests[@]}" | tee "$output/tests.txt" >&2 ||
  passed=no
{
  "${run[@]}" scripts/benchmark.py train "${train[@]}" "${speed[@]}"
  "${run[@]}" scripts/benchmark.py loader --worker-counts "$cores" "${speed[@]}"
  "${run[@]}" scripts/benchmark.py evaluate "${speed[@]}"
} > "$output/speed.jsonl"
bash scripts/quickstart.sh "${learn[@]}" >&2

table=$(cat <<'END'
import json, sys
from pathlib import Path
from utils.files import write_atomically
folder, passed = Path(sys.argv[1]), sys.argv[2] == "yes"
lines = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
results = folder / "run" / "results"
test, wrong = (json.loads((results / name / "summary.json").read_text()) for name in ("test", "wrong_sound"))
words = (folder / "tests.txt").read_text().splitlines()[-1]
rows, fastest = [("tests", words)], 0
for line in lines:
    speed, name = line["samples_per_s"], f"{line['case']}, {line['variant']}"
    text = f"{speed:,.1f} clips/s"
    if line["case"] == "train":
        name, fastest = f"training step, batch {line['batch_size']}", max(fastest, speed)
        for limit, kind in (("limit_samples_per_s", "computed limit"), ("compiled_limit_samples_per_s", "compiled")):
            if limit not in line:
                continue  # the speed of this device is not known
            text += f", {speed / line[limit]:.1%} of {line[limit]:,.0f} ({kind})"
        text += f", {line['peak_mib']:,.0f} MiB"
    elif line["case"] == "loader":
        text += f", {speed / fastest:.2f} x the fastest step's"
    rows.append((name, text))
score = [f"{row['ciou_at_0.5']:.1f}" for row in (test["rows"][0], wrong["rows"][0], test["rows"][1])]
rows.append(("learning", f"{test['model']}: cIoU@0.5 {score[0]}, wrong sound {score[1]}, blind {score[2]}"))
report = {"passed": passed, "tests": words, "speed": lines, "learning": {"test": test, "wrong_sound": wrong}}
write_atomically(folder / "check_gpu.json", json.dumps(report, indent=2).encode() + b"\n")
print(lines[0]["device"], *(f"{name:28}{text}" for name, text in rows), sep="\n")
END
)
"${run[@]}" -c "$table" "$output" "$passed"
[ "$passed" = yes ]
