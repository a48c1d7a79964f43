"""Metrics of single benchmarks through the command line, against loops over what it leaves."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from benchmark_inputs import make_extended, make_is3, make_ms3
from command_line import run
from peer_inputs import SHAPES, filled, official_file
from test_metrics import slow_detection


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("release") / "model.pth"
    torch.save(official_file("ez_vsl_or_fnac", filled(SHAPES["ez_vsl_or_fnac"])), path)
    return path


def options(checkpoint, benchmark, root, output, *more):
    return [
        "localisation", "--checkpoint", checkpoint, "--benchmark", benchmark, "--data-root", root,
        "--output", output, "--workers", 0, "--device", "cpu", "--gallery", 1, *more,
    ]  # fmt: skip


def results_of(folder):
    with (folder / "per_clip.csv").open() as file:
        return json.loads((folder / "summary.json").read_text()), list(csv.DictReader(file))


def test_extended_vgg_ss_from_the_command_line(checkpoint, tiny_data, tmp_path):
    positives, negatives = make_extended(tiny_data, tmp_path)
    leaking, labels = tmp_path / "leaking.txt", tmp_path / "labels.csv"
    leaking.write_text("neg_1\n")  # the frame of a negative
    labels.write_text("".join(f"{name},c{name[-1]}\n" for name in tiny_data.test_ids[:4]))
    given = options(
        checkpoint, "vgg_ss_extended", tiny_data.root, tmp_path / "out", "--clip-list", positives,
        "--negatives", negatives, "--training-list", leaking, "--labels", labels,
        "--protocol", "slavc,ssl_tie", "--batch-size", 3, "--save-overlays", 1,
    )  # fmt: skip
    finished = run("test.py", *given)
    assert finished.returncode == 0, finished.stderr
    assert "vgg_ss_extended: positives and negatives, 7 clips, 4 of them with an object" in finished.stdout
    for name in ("AP", "max_F1", "LocAcc"):
        assert name in finished.stdout
    assert "SLAVC published results on another clip list" in finished.stdout
    assert "nothing annotated" not in finished.stderr  # negatives are no misses
    assert "LEAK" in finished.stderr

    summary, clips = results_of(tmp_path / "out")
    assert (summary["num_clips"], summary["num_without_object"]) == (7, 3)
    assert summary["num_empty_ground_truth"] == 0 and summary["complete"]
    assert "LEAK: 1 of 6" in summary["leak_check"]["message"]
    assert len(list((tmp_path / "out" / "overlays").glob("*.jpg"))) == 1
    for one in summary["protocols"]:
        rule, row = one["name"], one["rows"][0]
        columns = f"{rule}:confidence", f"{rule}:ciou"
        found = [(*(float(clip[c] or "nan") for c in columns), clip["num_boxes"] != "0") for clip in clips]
        assert [has_object for *_, has_object in found] == [True] * 4 + [False] * 3
        expected = slow_detection(found)
        for name, score in zip(("AP", "max_F1", "LocAcc"), expected, strict=True):
            assert row["extra"][name] == pytest.approx(100 * score)
            lower, upper = row["extra_intervals"][name] or (row["extra"][name],) * 2
            assert lower <= row["extra"][name] <= upper
        hits = [ciou >= 0.5 for _, ciou, has_object in found if has_object]
        assert row["ciou_at_0.5"] == row["extra"]["LocAcc"] == 100 * np.mean(hits)
        by_size, by_class = one["groups"]["box_size"], one["groups"]["class"]
        assert sum(group["num_clips"] for group in by_size) == 4
        assert [(group["name"], group["num_clips"]) for group in by_class] == [(f"c{i}", 1) for i in range(4)]
    # A blind map is as confident of every clip.
    gaussian = summary["protocols"][0]["rows"][2]
    assert gaussian["name"].startswith("centre Gaussian") and gaussian["extra"]["AP"] == 0
    assert "Metrics of this benchmark" in (tmp_path / "out" / "report.html").read_text()
    # Whoever averages a column gets the score: what says nothing is empty.
    assert [clip["class"] for clip in clips] == ["c0", "c1", "c2", "c3", "", "", ""]
    for name in ("pointing", "slavc:ciou", "slavc:success", "slavc:disc", "slavc:ceiling"):
        assert [clip[name] == "" for clip in clips] == [False] * 4 + [True] * 3
    assert all(clip["slavc:confidence"] for clip in clips)


def test_is3_in_pairs(checkpoint, testing_program, tmp_path):
    make_is3(tmp_path / "data")
    given = options(checkpoint, "is3", tmp_path / "data", tmp_path / "out")
    assert testing_program.main([str(word) for word in given]) == 0
    summary, clips = results_of(tmp_path / "out")
    assert len({clip["pair"] for clip in clips}) == 2
    assert summary["cut"] == "IS3, 4 clips: none of the published cuts"
    assert "could not be looked for" in summary["leak_check"]["message"]
    rules = [one["name"] for one in summary["protocols"]]
    assert rules == ["ssl_align_adaptive", "ssl_tie", "sspl"]
    for one in summary["protocols"]:
        worst = {}
        for clip in clips:
            ciou = float(clip[f"{one['name']}:ciou"])
            worst[clip["pair"]] = min(ciou, worst.get(clip["pair"], math.inf))
        extra = one["rows"][0]["extra"]
        assert extra["IIoU"] == 100 * np.mean([ciou >= 0.5 for ciou in worst.values()])
        rates = [np.mean([ciou >= 0.05 * i for ciou in worst.values()]) for i in range(21)]
        assert extra["IAUC"] == pytest.approx(100 * sum(0.025 * (rates[i] + rates[i + 1]) for i in range(20)))


def test_avsbench_by_masks(checkpoint, testing_program, tmp_path):
    make_ms3(tmp_path / "data")
    given = options(checkpoint, "avsbench_ms3", tmp_path / "data", tmp_path / "out")
    given += ["--protocol", "ssl_align,ssl_tie", "--batch-size", 3]
    assert testing_program.main([str(word) for word in given]) == 0
    summary, clips = results_of(tmp_path / "out")
    for one in summary["protocols"]:
        model, disc, gaussian, ceiling = (row["extra"] for row in one["rows"])
        ious = [float(clip[f"{one['name']}:iou"]) for clip in clips]
        assert model["mIoU"] == pytest.approx(100 * np.mean(ious), abs=1e-4)
        assert 0 < model["F_dataset"] <= model["F_avsbench_batch5"] + 1e-9
        # Three masks are the whole frame, and one is empty: the disc has half of each. At the
        # threshold 0 everything is predicted.
        assert disc["mIoU"] == pytest.approx(50, abs=0.5)
        assert disc["F_dataset"] == pytest.approx(100)
        assert gaussian["mIoU"] is not None and set(ceiling.values()) == {None}
