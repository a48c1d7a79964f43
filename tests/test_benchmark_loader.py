"""The benchmark of the loader: both ways are timed, the ratio is theirs, and it is what we ask."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = "--clips 4 --batch-size 2 --picture-size 64 --sound-seconds 0.5 --repeats 1".split()


def benchmark(*arguments):
    return subprocess.run(
        ["bash", str(SCRIPTS / "benchmark.sh"), "loader", *map(str, arguments)],
        env={**os.environ, "VSSL_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def lines_of(*arguments):
    finished = benchmark(*arguments)
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_a_line_per_way_and_their_ratio():
    reference, ours, compared, views = lines_of(*TINY)
    assert (reference["variant"], ours["variant"]) == ("reference", "ours")
    for line in (reference, ours):
        assert (line["clips"], line["batch_size"], line["picture_size"]) == (4, 2, 64)
        assert line["threads"] == 1 and line["repeats"] == 1
    rates = {"wall": "samples_per_second", "processor": "samples_per_processor_second"}
    for kind, rate in rates.items():
        for statistic, best in (("median", "median"), ("minimum", "maximum")):
            assert compared["speed_ratio"][kind][statistic] == pytest.approx(
                ours[rate][best] / reference[rate][best], rel=1e-3
            )
    assert views["variant"] == "views_on_device" and views["batch_size"] == 2
    assert views["milliseconds_per_batch"]["minimum"] > 0


@pytest.mark.slow
def test_a_core_decodes_six_times_as_many_clips_as_the_authors_way():
    *_, compared, _ = lines_of("--clips", 200, "--repeats", 3)
    assert compared["speed_ratio"]["processor"]["median"] >= 6


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
