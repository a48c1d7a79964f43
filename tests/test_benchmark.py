"""The benchmark prints figures of what main.py and test.py do, and refuses what it cannot measure."""

import json

import pytest
import torch

import main
from scripts import benchmark

TINY = (
    "--frame-size 32 --clips 8 --batch-size 4 --repeats 1 --device cpu --window-seconds 1 --mel-bins 32 "
    "--hop-length 400 --time-mask 10 --frequency-mask 8"
).split()


def lines_of(capsys, *arguments):
    assert benchmark.main([*arguments, *TINY]) == 0
    return {line["variant"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}


@pytest.mark.parametrize(
    ("arguments", "variants"),
    [
        (["train", "--variants", "bf16", "--no-crop"], ["plain", "bf16"]),
        (["loader", "--worker-counts", "0,1"], ["workers_0", "workers_1", "views"]),
        (["evaluate"], ["one_by_one", "batches", "batches_all_rules"]),
    ],
)
def test_each_way_has_a_line(capsys, monkeypatch, arguments, variants):
    steps = []
    monkeypatch.setattr(main, "take_step", lambda *a, real=main.take_step: (steps.append(a[-1]), real(*a)))
    lines = lines_of(capsys, *arguments)
    assert list(lines) == variants
    for line in lines.values():
        assert line["case"] == arguments[0]
        assert line["samples_per_s"] > 0
        assert line["device"].startswith("CPU, 1 threads")
        assert "limit_samples_per_s" not in line
    assert lines[variants[0]]["ratio_to_plain"] == 1
    # Products are counted in a round of their own. Then ways take turns, backwards in the first round.
    expected = ["fp32", "fp32", "bf16", "bf16", "fp32", "fp32", "fp32", "fp32", "bf16", "bf16"]
    assert steps == (expected if arguments[0] == "train" else [])


def test_the_cost_of_a_step_goes_into_a_file(capsys, tmp_path):
    lines = lines_of(capsys, "train", "--variants", "plain", "--output", str(tmp_path), "--tflops", "790")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == lines["plain"] and summary["method"] == "ssl_tie"
    # Counted as the 93.2 of docs/performance.md, which are of the paper's sizes.
    assert summary["gflop_per_sample"] == pytest.approx(1.133537388) and summary["peak_mib"] > 100
    # Compiled, a step is no longer than without, and no product is left out.
    assert summary["limit_samples_per_s"] < summary["compiled_limit_samples_per_s"]
    assert summary["compiled_limit_samples_per_s"] < 790e3 / summary["gflop_per_sample"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--variants", "warp"], "warp"),
        (["train", "--repeats", "0"], "--repeats"),
        (["train", "--device", "cpu", "--batch-sizes", "4,largest"], "is for GPUs"),
        (["train", "--batch-sizes", "largest"], "--batch-sizes takes whole numbers"),
        (["evaluate", "--device", "cuda:9"], "cuda:9"),
    ],
)
def test_what_cannot_be_measured_is_refused(caplog, arguments, words):
    assert benchmark.main(arguments) == 2
    assert words in caplog.text


def test_batches_grow_until_one_does_not_fit(caplog, monkeypatch):
    sizes = []

    class Small(benchmark.Benchmark):
        def __init__(self, _, words, __):
            sizes.append(int(words[-1]))

        def train(self):
            if sizes[-1] > 16:
                raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmark, "Benchmark", Small)
    monkeypatch.setattr(benchmark, "pick_device", lambda _: torch.device("cuda"))
    assert benchmark.main(["train", "--batch-sizes", "3,8,largest"]) == 0
    assert sizes == [3, 8, 16, 32] and "A batch of 32 clips does not fit" in caplog.text
