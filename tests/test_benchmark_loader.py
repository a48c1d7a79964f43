"""The benchmark of the loader: both ways are timed, the ratio is theirs, and it is what we ask."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datasets import loading_speed
from scripts.benchmark import main

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = "--clips 4 --batch-size 2 --picture-size 64 --sound-seconds 0.5 --repeats 2".split()
SHARED = {
    "case", "variant", "samples_per_s", "milliseconds_per_sample",
    "peak_memory_bytes_cpu_profiler", "flops_per_sample", "share_of_peak", "peak_flops_per_s",
    "peak_basis", "ratio_to_plain", "batch_size", "repeats", "device", "threads",
}  # fmt: skip
"""Keys of every benchmark's lines."""
MEANINGLESS = ("flops_per_sample", "share_of_peak", "peak_flops_per_s", "peak_basis")
FLOAT, SIDE, BINS, FRAMES = 4, 224, 257, 670


def benchmark(*arguments):
    return subprocess.run(
        ["bash", str(SCRIPTS / "benchmark.sh"), "loader", *map(str, arguments)],
        env={**os.environ, "VSSL_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def lines_of(capsys, *arguments):
    assert main(["loader", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_per_way_and_one_for_the_views(capsys):
    lines = reference, ours, views = lines_of(capsys, *TINY)
    assert [line["variant"] for line in lines] == ["reference", "ours", "views_on_device"]
    for line in lines:
        assert line.keys() >= SHARED
        assert [line[name] for name in MEANINGLESS] == [None] * 4
        assert (line["case"], line["device"]) == ("loader", "cpu")
        assert (line["batch_size"], line["repeats"]) == (2, 2)
        milliseconds = line["milliseconds_per_sample"]
        assert line["samples_per_s"] * milliseconds["median"] == pytest.approx(1000, rel=1e-3)
        assert 0 < milliseconds["minimum"] <= milliseconds["median"]
    for line in (reference, ours):
        assert (line["clips"], line["picture_size"], line["threads"]) == (4, 64, 1)
    per_batch = views["milliseconds_per_batch"]["median"]
    assert per_batch == pytest.approx(2 * views["milliseconds_per_sample"]["median"], rel=1e-3)


def test_ratios_are_of_our_way_to_the_authors(capsys, monkeypatch):
    times = {
        "reference": loading_speed.LoadingTimes([2.0, 20.0, 4.0], [3.0, 6.0, 9.0], {}),
        "ours": loading_speed.LoadingTimes([1.0, 5.0, 4.0], [1.0, 2.0, 4.0], {}),
    }
    monkeypatch.setattr(loading_speed, "time_loading", lambda *_, **__: times)
    reference, ours, views = lines_of(capsys, *TINY)
    assert reference["ratio_to_plain"] == 1 and views["ratio_to_plain"] is None
    assert ours["ratio_to_plain"] == 2  # of 2, 4 and 1 in the rounds
    assert ours["speed_ratio"] == {
        "wall": {"median": 1, "minimum": 2},
        "processor": {"median": 3, "minimum": 3},
    }
    assert (reference["samples_per_s"], ours["samples_per_s"]) == (0.25, 0.25)
    assert ours["samples_per_processor_second"] == {"median": 0.5, "maximum": 1}


def test_the_memory_is_that_of_a_batch(capsys):
    reference, ours, views = (line["peak_memory_bytes_cpu_profiler"] for line in lines_of(capsys, *TINY))
    frames, spectrograms = 2 * 3 * SIDE**2 * FLOAT, 2 * BINS * FRAMES * FLOAT
    assert reference > frames + spectrograms
    assert 0 < ours < frames  # the device makes float32 of them
    assert views > 2 * frames + spectrograms


@pytest.mark.slow
def test_a_core_decodes_six_times_as_many_clips_as_the_authors_way(capsys):
    _, ours, _ = lines_of(capsys, "--clips", 200, "--repeats", 3)
    assert ours["speed_ratio"]["processor"]["median"] >= 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--repeats", 0), "--repeats must be at least 1"),
        (("--batch-size", 0), "--batch-size must be 1 to --clips"),
        (("--clips", 3), "--batch-size must be 1 to --clips, got 32 and 3"),
        (("--picture-size", 4), "--picture-size must be at least 16"),
        (("--sound-seconds", 0), "--sound-seconds at least 0.1"),
        (("--device", "abacus"), "--device abacus"),
    ],
)
def test_mistakes_are_refused_in_words(arguments, words):
    finished = benchmark(*arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not finished.stdout
