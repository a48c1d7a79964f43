"""The benchmark prints figures of what main.py and test.py do, and refuses what it cannot measure."""

import json

import pytest

from datasets.audio import AudioConfig
from scripts import benchmark

TINY = "--frame-size 32 --clips 8 --batch-size 4 --repeats 1".split()


@pytest.fixture(autouse=True)
def short_sounds(monkeypatch):
    audio = AudioConfig(window_seconds=4.0, mel_bins=64, hop_length=320)
    monkeypatch.setattr(benchmark, "AudioConfig", lambda: audio)


def lines_of(capsys, *arguments):
    assert benchmark.main([*arguments, *TINY]) == 0
    return {line["variant"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("arguments", "variants"),
    [
        (["train", "--variants", "encoded_twice"], ["plain", "encoded_twice"]),
        (["loader", "--worker-counts", "0,1"], ["workers_0", "workers_1", "views"]),
        (["evaluate"], ["one_by_one", "batches", "batches_all_rules"]),
    ],
)
def test_each_way_has_a_line(capsys, arguments, variants):
    lines = lines_of(capsys, *arguments)
    assert list(lines) == variants
    for line in lines.values():
        assert line["case"] == arguments[0]
        assert line["samples_per_s"] > 0
        assert line["device"].startswith("CPU, 1 threads")
    assert lines[variants[0]]["ratio_to_plain"] == 1
    if arguments[0] == "train":  # counted, not timed: the sound is encoded once or twice
        twice, once = (lines[name]["gflop_per_sample"] for name in ("encoded_twice", "plain"))
        assert 1.2 * once < twice < 2 * once


def test_ways_take_turns_and_the_first_round_is_not_counted(capsys, monkeypatch):
    clock, calls = iter(range(1000)), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    ways = {name: lambda name=name: calls.append(name) for name in ("plain", "other")}
    options = benchmark.BenchmarkOptions(repeats=3)
    benchmark.measure("case", ways, options, benchmark.pick_device("cpu"), samples=6)
    assert calls == ["other", "plain", "plain", "other"] * 2
    plain, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert (plain["samples_per_s"], other["ratio_to_plain"]) == (6, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--variants", "warp"], "warp"),
        (["train", "--repeats", "0"], "--repeats"),
        (["evaluate", "--device", "cuda:9"], "cuda:9"),
    ],
)
def test_what_cannot_be_measured_is_refused(caplog, arguments, words):
    assert benchmark.main(arguments) == 2
    assert words in caplog.text
