"""The benchmarks: their lines, their arithmetic and their refusals."""

import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datasets.loading_speed import profiled_peak_bytes
from scripts import benchmark_train
from scripts.benchmark import main
from scripts.benchmark_measure import device_peak, published_peak, speed_ratio, take_turns
from scripts.benchmark_steps import (
    PLAIN,
    SCALES,
    Sizes,
    TrainingSteps,
    Variant,
    draw_inputs,
    flops_per_sample,
    variants_for,
)

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = (
    "--frame-size 64 --batch-size 4 --mel-bins 33 --spectrogram-frames 48 --repeats 1 --steps 1 "
    "--threads 1 --loss-steps 1 --variants bf16,encoded_twice,tf32"
).split()
REFERENCE_GFLOP = {1.0: 163.8, 0.5: 150.2}  # two encodings of the sound
CPU = torch.device("cpu")
MEASURED = {
    "samples_per_s", "peak_memory_bytes_cpu_profiler", "flops_per_sample", "share_of_peak",
    "ratio_to_plain", "peak_basis", "threads", "device",
}  # fmt: skip


def benchmark(*arguments):
    return subprocess.run(
        ["bash", str(SCRIPTS / "benchmark.sh"), *map(str, arguments)],
        env={**os.environ, "VSSL_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def lines_of(*arguments):
    finished = benchmark(*arguments)
    assert finished.returncode == 0, finished.stderr
    return {line["variant"]: line for line in map(json.loads, finished.stdout.splitlines())}


def check(line):
    assert line.keys() >= MEASURED
    assert line["samples_per_s"] * line["milliseconds_per_sample"]["median"] == pytest.approx(1000, rel=1e-3)
    assert line["milliseconds_per_sample"]["minimum"] <= line["milliseconds_per_sample"]["median"]
    assert line["share_of_peak"] == pytest.approx(
        line["samples_per_s"] * line["flops_per_sample"] / line["peak_flops_per_s"], rel=1e-3
    )
    assert line["device"] == "cpu" and line["peak_memory_bytes_cpu_profiler"] > 0


@pytest.mark.slow
def test_a_line_for_each_way_to_train():
    lines = lines_of("train", *TINY)
    assert "GPU" in lines.pop("tf32")["skipped"]
    assert set(lines) == {"plain", "bf16", "encoded_twice"}
    for name, line in lines.items():
        check(line)
        assert line["case"] == "train" and line["threads"] == 1
        assert (line["batch_size"], line["frame_size"], line["mel_bins"]) == (4, 64, 33)
        assert line["loss_difference_after_1_steps"] == pytest.approx(
            line["loss_after_1_steps"] - lines["plain"]["loss_after_1_steps"], abs=1e-3
        )
        assert line["flops_per_sample"] == lines["plain"]["flops_per_sample"]  # useful, once
        assert (line["flops_done_per_sample"] > line["flops_per_sample"]) == (name == "encoded_twice")
    assert lines["plain"]["ratio_to_plain"] == 1
    assert lines["plain"]["loss_difference_after_1_steps"] == 0
    assert abs(lines["encoded_twice"]["loss_difference_after_1_steps"]) < 1e-3
    assert lines["bf16"]["loss_difference_after_1_steps"] != 0
    assert lines["bf16"]["options"]["precision"] == "bf16"


class StepsThatFit:
    """Training steps that cost nothing; some variants run out of memory."""

    too_large = ()

    def __init__(self, variant, device):
        self.variant = variant

    def step(self, inputs):
        if self.variant.name in self.too_large:
            raise torch.OutOfMemoryError
        return torch.tensor(0.5)


@pytest.mark.parametrize("too_large", [("plain",), ("plain", "bf16", "encoded_twice"), ("bf16",)])
def test_what_does_not_fit_into_memory_costs_no_other_line(too_large, capsys, caplog, monkeypatch):
    monkeypatch.setattr(benchmark_train, "TrainingSteps", StepsThatFit)
    monkeypatch.setattr(StepsThatFit, "too_large", too_large)
    monkeypatch.setattr(benchmark_train, "flops_per_sample", lambda *_: 1.0)
    monkeypatch.setattr(benchmark_train, "_compare_with_loader", lambda *_: None)
    tiny = "--frame-size 64 --batch-size 4 --repeats 1 --loss-steps 1 --loader-workers 1"
    assert main(["train", *tiny.split(), "--variants", "bf16,encoded_twice"]) == 0
    captured = capsys.readouterr()
    lines = {line["variant"]: line for line in map(json.loads, captured.out.splitlines())}
    assert set(lines) == {"plain", "bf16", "encoded_twice"}
    compared = {"ratio_to_plain", "loss_difference_after_1_steps"}
    for name, line in lines.items():
        if name in too_large:
            assert line["skipped"] == "out of the GPU's memory"
        else:
            assert line["samples_per_s"] > 0 and line["loss_after_1_steps"] == 0.5
            assert compared & line.keys() == (set() if "plain" in too_large else compared)
    said = "There is no plain to compare with" in captured.err + caplog.text
    assert said == ("plain" in too_large)


def test_training_from_a_loader_is_held_against_steps_that_are_compiled(capsys, monkeypatch):
    clock = [0]
    compiled = set()

    def step(inputs):
        clock[0] += 1 if inputs in compiled else 100
        compiled.add(inputs)

    def step_on(*_, **__):
        clock[0] += 1

    def seconds_of(action, device):
        start = clock[0]
        action()
        return clock[0] - start

    monkeypatch.setattr(benchmark_train, "seconds_of", seconds_of)
    monkeypatch.setattr(benchmark_train, "make_clips", lambda *_: [None] * 4)
    monkeypatch.setattr(benchmark_train, "build_train_loader", lambda *_, **__: itertools.repeat(None))
    trainer = SimpleNamespace(step_on=step_on, stepper=SimpleNamespace(device=CPU))
    steps = SimpleNamespace(variant=Variant(name="fast", compile=True), step=step, trainer=trainer)
    sizes = Sizes(batch_size=4, frame_size=64)
    options = benchmark_train.TrainBenchmark(loader_workers=1)
    benchmark_train._compare_with_loader(steps, ["whole", "halved"], sizes, options)
    line = json.loads(capsys.readouterr().out)
    assert line["variant"] == "fast_from_loader" and line["steps"] == 10
    assert line["ratio_to_ready_inputs"] == 1
    assert line["samples_per_s"] == 4


def test_a_line_for_each_way_to_score():
    sizes = "--clips 4 --batch-size 2 --frame-size 64 --mel-bins 32 --repeats 2 --threads 1"
    lines = lines_of("evaluate", *sizes.split())
    assert list(lines) == ["one_by_one", "batches", "batches_all_rules"]
    for line in lines.values():
        check(line)
        shares = line["share_of_time"]
        assert set(shares) == {"decoding", "views", "forward", "scoring"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3) and min(shares.values()) > 0
    assert lines["one_by_one"]["ratio_to_plain"] == 1
    assert lines["batches_all_rules"]["rules"] > lines["batches"]["rules"] == 1


def test_predictions_say_that_they_are_predictions():
    finished = benchmark("scaling", "--gpus", "1,8")
    assert finished.returncode == 0, finished.stderr
    alone, eight = map(json.loads, finished.stdout.splitlines())
    assert alone["prediction"] and eight["prediction"]
    assert alone["predicted_efficiency"] == 1 > eight["predicted_efficiency"] > 0
    assert not any(name.startswith("samples") for name in eight)


def test_arithmetic_at_reference_sizes():
    sizes = Sizes()
    assert (sizes.frame_size, sizes.mel_bins, sizes.spectrogram_frames) == (224, 257, 670)
    twice = Variant(name="twice", audio_encodings=2)
    counted = {scale: flops_per_sample(twice, sizes, scale) / 1e9 for scale in SCALES}
    assert counted == pytest.approx(REFERENCE_GFLOP, rel=0.02)
    once = [flops_per_sample(PLAIN, sizes, scale) / 1e9 for scale in SCALES]
    assert statistics.fmean(once) / statistics.fmean(counted.values()) <= 0.65


def test_every_option_has_its_variant():
    variants = {variant.name: variant for variant in variants_for(torch.device("cuda"))}
    for name, value in {
        "precision": "bf16", "tf32": True, "channels_last": True, "compile": True,
        "fused_adam": False, "audio_encodings": 2,
    }.items():  # fmt: skip
        assert any(getattr(variant, name) == value for variant in variants.values()), name
        assert getattr(variants["plain"], name) != value
    assert variants["together"].arithmetic == "half"
    assert not next(v for v in variants_for(CPU) if v.name == "together").tf32


def test_variants_start_from_the_same_weights():
    sizes = Sizes(batch_size=4, frame_size=64, mel_bins=33, spectrogram_frames=48)
    inputs = draw_inputs(sizes, 1.0, CPU)
    plain, recomputed, nudged = (
        TrainingSteps(variant, CPU).step(inputs).item()
        for variant in (PLAIN, Variant(name="again"), Variant(name="nudged", nudged=True))
    )
    assert plain == recomputed != nudged
    assert nudged == pytest.approx(plain, rel=1e-4)


def test_published_peaks_are_found_by_name():
    assert published_peak("NVIDIA H200", "half").flops_per_s == 989e12
    assert published_peak("NVIDIA H100 80GB HBM3", "tf32").flops_per_s == 494e12
    assert published_peak("NVIDIA H100 PCIe", "half").flops_per_s == 756e12
    assert published_peak("NVIDIA L40S", "half").flops_per_s == 362e12
    assert published_peak("NVIDIA L4", "half").flops_per_s == 121e12
    assert published_peak("NVIDIA A100-SXM4-80GB", "fp32").flops_per_s == 19.5e12
    assert published_peak("Abacus 2000", "half") is None
    assert "measured" in device_peak(CPU, "fp32").basis


def test_ways_take_turns_and_ratios_are_of_one_round():
    order = []
    actions = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = take_turns(actions, CPU, repeats=3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys("abc", 3)
    assert speed_ratio([2.0, 20.0, 4.0], [1.0, 5.0, 4.0]) == 2.0


def test_the_peak_counts_what_is_gone_at_the_end():
    mib = 2**20
    peak = profiled_peak_bytes(lambda: torch.ones(mib // 4).mul(2).sum().item())
    assert 2 * mib <= peak < 2.1 * mib


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "case"),
        (("fly",), "invalid choice"),
        (("train", "--steps", "many"), "--steps"),
        (("train", "--steps", 0), "--steps must be at least 1"),
        (("train", "--repeats", 0), "--repeats must be at least 1"),
        (("train", "--threads", 0), "--threads must be at least 1"),
        (("train", "--batch-size", 3), "--batch-size must be at least 4"),
        (("train", "--frame-size", 100), "--frame-size must be a multiple of 32"),
        (("train", "--mel-bins", 1), "--mel-bins and --spectrogram-frames"),
        (("train", "--device", "abacus"), "--device abacus"),
        (("train", "--variants", "warp"), "--variants takes all, or some of plain, bf16"),
        (("train", "--loss-steps", -1), "--loss-steps and --loader-workers must be 0 or more"),
        (("train", "--loader-workers", 1, "--mel-bins", 64), "--loader-workers"),
        (("evaluate", "--clips", 4, "--batch-size", 5), "--batch-size must be 1 to --clips"),
        (("loader", "--repeats", 0), "--repeats must be at least 1"),
        (("scaling", "--gpus", "few"), "--gpus takes numbers"),
    ],
)
def test_mistakes_are_refused_in_words(arguments, words, caplog, capsys):
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as refused:  # argparse's
        status = refused.code
    assert status == 2
    captured = capsys.readouterr()
    assert words in captured.err + caplog.text
    assert not captured.out
