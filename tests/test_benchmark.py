"""The benchmark of a training step: its output, its arithmetic and its refusals."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = (
    "--frame-size 64 --batch-size 2 --mel-bins 33 --spectrogram-frames 48 --repeats 1 --steps 1 "
    "--threads 1"
).split()
REFERENCE_GFLOP = {1.0: 163.8, 0.5: 150.2}  # two encodings of the sound


def benchmark(*arguments):
    return subprocess.run(
        ["bash", str(SCRIPTS / "benchmark.sh"), *map(str, arguments)],
        env={**os.environ, "VSSL_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def lines():
    finished = benchmark("train", *TINY)
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_a_line_per_variant_and_one_that_compares(lines):
    once, twice, compared = lines
    assert (once["variant"], once["audio_encodings"]) == ("sound_encoded_once", 1)
    assert (twice["variant"], twice["audio_encodings"]) == ("sound_encoded_twice", 2)
    for line in (once, twice):
        assert (line["batch_size"], line["frame_size"], line["threads"]) == (2, 64, 1)
        assert (line["mel_bins"], line["spectrogram_frames"]) == (33, 48)
        assert line["device"] == "cpu"
        assert line["torch"]
        assert 0 < line["seconds_per_step"]["minimum"] <= line["seconds_per_step"]["median"]
        by_scale = line["gflop_per_sample_by_scale"]
        assert line["gflop_per_sample"] == pytest.approx(fmean(by_scale.values()), rel=1e-4)
        assert by_scale["1"] > by_scale["0.5"]
    assert set(compared) == {"compared", "flop_ratio", "speed_ratio"}


def test_ratios_follow_from_the_variants(lines):
    once, twice, compared = lines
    assert twice["gflop_per_sample"] > once["gflop_per_sample"]
    assert compared["flop_ratio"] == pytest.approx(
        once["gflop_per_sample"] / twice["gflop_per_sample"], rel=1e-4
    )
    for kind in ("median", "minimum"):
        assert compared["speed_ratio"][kind] == pytest.approx(
            twice["seconds_per_step"][kind] / once["seconds_per_step"][kind], rel=1e-4
        )
    for line in (once, twice):
        for rate, kind in (("median", "median"), ("maximum", "minimum")):
            assert line["samples_per_second"][rate] == pytest.approx(
                2 / line["seconds_per_step"][kind], rel=1e-4
            )


def test_arithmetic_at_reference_sizes():
    program = runpy.run_path(str(SCRIPTS / "benchmark.py"))  # an import would leave a .pyc there
    count, sizes = program["gflop_per_sample"], program["Sizes"]()
    assert (sizes.frame_size, sizes.mel_bins, sizes.spectrogram_frames) == (224, 257, 670)
    twice = {scale: count(program["TWICE"], sizes, scale) for scale in REFERENCE_GFLOP}
    assert twice == pytest.approx(REFERENCE_GFLOP, rel=0.02)
    once = {scale: count(program["ONCE"], sizes, scale) for scale in REFERENCE_GFLOP}
    assert fmean(once.values()) / fmean(twice.values()) <= 0.65


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "case"),
        (("fly",), "invalid choice"),
        (("train", "--steps", "many"), "--steps"),
        (("train", "--steps", 0), "--steps must be at least 1"),
        (("train", "--repeats", 0), "--repeats must be at least 1"),
        (("train", "--threads", 0), "--threads must be at least 1"),
        (("train", "--batch-size", 0), "--batch-size must be at least 1"),
        (("train", "--frame-size", 100), "--frame-size must be a multiple of 32"),
        (("train", "--mel-bins", 1), "--mel-bins and --spectrogram-frames"),
        (("train", "--device", "abacus"), "--device abacus"),
    ],
)
def test_mistakes_are_refused_in_words(arguments, words):
    finished = benchmark(*arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not finished.stdout
