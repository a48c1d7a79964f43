"""Metrics of single benchmarks in an evaluation's results: numbers, files, and what is not said."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from detection_oracle import slow_scores
from result_inputs import make_context

from utils.benchmark_metrics import (
    BENCHMARK_METRICS,
    clip_columns,
    default_protocols,
    extra_scores,
    extra_warnings,
    with_object_only,
)
from utils.evaluation.metrics import area_under_success, success_curve, success_rate
from utils.evaluation.protocols import PROTOCOLS, find_protocols
from utils.metric_families import SIZES
from utils.results import summarise, write_results
from utils.scores import ClipScore, ClipTruth, LocalisationResult, ProtocolScores, Scores
from utils.segmentation import compare_masks, f_avsbench, f_dataset
from utils.tables import TABLE_FILES, headline, render_table, score_table

COUNT = 60


def make_rows(rng, name, *, masks=(None,) * COUNT):
    """A model, two blind predictors of which one has a peak, and a ceiling."""
    ids = [f"clip_{index}" for index in range(COUNT)]
    kinds = {"model": "model", "disc": "baseline", "gaussian": "baseline", "ceiling": "ceiling"}
    rows = []
    for row, kind in kinds.items():
        has_map = row in ("model", "gaussian")
        cious = np.ones(COUNT) if kind == "ceiling" else rng.random(COUNT)
        confidences = np.round(rng.random(COUNT), 1) if row == "model" else np.full(COUNT, 0.7)
        clips = [
            ClipScore(
                ids[place],
                float(cious[place]),
                bool(place % 2) if has_map else None,
                float(confidences[place]) if has_map else None,
                masks[place] if has_map else None,
            )
            for place in range(COUNT)
        ]
        rows.append(Scores(row, kind, tuple(clips)))
    return ProtocolScores(PROTOCOLS[name], tuple(rows))


def make_result(*protocols, num_boxes=1, pair_keys=(None,) * COUNT, masks=(None,) * COUNT):
    rng = np.random.default_rng(3)
    counts = [num_boxes] * COUNT if isinstance(num_boxes, int) else num_boxes
    truths = [
        ClipTruth(0.0 if counts[place] == 0 else 500.0 * (1 + place), counts[place], pair_keys[place])
        for place in range(COUNT)
    ]
    by_protocol = [make_rows(rng, name, masks=masks) for name in protocols]
    return LocalisationResult(tuple(by_protocol), (), truths=tuple(truths))


HALF_NEGATIVE = [place % 2 for place in range(COUNT)]


def extended():
    return make_result("slavc", "ssl_tie", num_boxes=HALF_NEGATIVE)


def test_consensus_iou_is_of_clips_with_an_object_only():
    result = extended()
    summary = summarise(result, make_context(benchmark="vgg_ss_extended", num_listed=COUNT))
    positive = [clip for clip in result.model.clips if int(clip.clip_id.split("_")[1]) % 2]
    rate = 100 * success_rate([clip.ciou for clip in positive])
    assert summary["cIoU@0.5"] == summary["rows"][0]["extra"]["LocAcc"] == rate
    assert (summary["num_clips"], summary["num_without_object"]) == (COUNT, COUNT // 2)
    assert summary["pointing_accuracy"] == 100  # odd places alone
    sizes = summary["protocols"][0]["groups"]["box_size"]
    assert sum(group["num_clips"] for group in sizes) == COUNT // 2
    assert "nothing annotated" not in {group["name"] for group in sizes}
    assert "30 of them with an object" in headline(summary)


def test_the_same_clips_on_another_benchmark_are_misses():
    result = extended()
    assert with_object_only("vgg_ss", result) is result
    assert extra_scores("vgg_ss", result) is None
    summary = summarise(result, make_context(num_listed=COUNT))
    assert summary["extra_metrics"] is None and "extra" not in summary["rows"][0]
    assert summary["num_without_object"] == 0


def test_average_precision_is_that_of_slow_loops_for_every_predictor_and_rule():
    result = extended()
    names = ("AP", "AP_exact", "max_F1", "max_F1_exact", "F1@0.5conf", "LocAcc", "Precision_all")
    keys = (
        "average_precision",
        "average_precision_exact",
        "max_f1",
        "max_f1_exact",
        "f1_at_half",
        "localisation_accuracy",
        "precision_all",
    )
    found = extra_scores("flickr_soundnet_extended", result)
    for one, rows in zip(result.by_protocol, found, strict=True):
        for scores, further in zip(one.rows, rows, strict=True):
            clips = []
            pairs = zip(scores.clips, HALF_NEGATIVE, strict=True)
            for place, (clip, has_object) in enumerate(pairs):
                assumed = has_object + place / 1e6 if scores.kind == "ceiling" else 1.0
                known = assumed if clip.confidence is None else clip.confidence
                clips.append((known, clip.ciou, bool(has_object)))
            for level, suffix in ((0.5, ""), (0.75, "@0.75")):
                expected = slow_scores(clips, level)
                for name, key in zip(names, keys, strict=True):
                    if name + suffix in further.scores:
                        value = pytest.approx(100 * expected[key], abs=1e-10)
                        assert further.scores[name + suffix] == value, (scores.name, name, level)
    ceiling = found[0][3].scores
    assert ceiling["AP_exact"] == ceiling["max_F1_exact"] == ceiling["LocAcc"] == 100
    assert ceiling["AP"] > 90 and ceiling["F1@0.5conf"] == 100


def test_sizes_are_of_positives_only():
    result = extended()
    (rows, _) = extra_scores("vgg_ss_extended", result)
    scores = result.by_protocol[0].rows[0]
    limits = dict(zip(SIZES, ((0, 32**2), (32**2, 96**2), (96**2, 144**2), (144**2, 1e9)), strict=True))
    for size, (least, most) in limits.items():
        clips = [
            (clip.confidence, clip.ciou, True)
            for clip, truth in zip(scores.clips, result.truths, strict=True)
            if truth.num_boxes and least <= truth.area < most
        ]
        found = [rows[0].scores[f"{name}@{size}"] for name in ("AP", "max_F1", "LocAcc")]
        if not clips:
            assert found == [None] * 3
            continue
        expected = slow_scores(clips, 0.5)
        keys = ("average_precision", "max_f1", "localisation_accuracy")
        assert found == pytest.approx([100 * expected[key] for key in keys])


def test_the_model_has_intervals_around_its_scores():
    (rows, _) = extra_scores("vgg_ss_extended", extended())
    for name in ("AP", "max_F1", "LocAcc", "AP_exact"):
        lower, upper = rows[0].intervals[name]
        assert lower <= rows[0].scores[name] <= upper and lower < upper
    assert not rows[1].intervals


def test_pairs_are_scored_by_their_worse_clip():
    keys = [f"frame_{place // 2}" for place in range(COUNT)]
    result = make_result("ssl_align_adaptive", "ssl_tie", pair_keys=keys)
    assert clip_columns("is3", result) == {"pair": keys}
    for one, rows in zip(result.by_protocol, extra_scores("is3", result), strict=True):
        for scores, further in zip(one.rows, rows, strict=True):
            worse = np.reshape(scores.cious, (-1, 2)).min(axis=1)
            assert further.scores["IIoU"] == pytest.approx(100 * success_rate(worse))
            area = 100 * area_under_success(success_curve(worse))
            assert further.scores["IAUC"] == pytest.approx(area)
    lower, upper = rows[0].intervals["IIoU"]
    assert lower < rows[0].scores["IIoU"] < upper


def test_masks_are_scored_where_there_are_maps():
    maps = torch.rand(COUNT, 8, 8, generator=torch.Generator().manual_seed(1))
    truths = (maps + torch.rand(maps.shape, generator=torch.Generator().manual_seed(2)) > 1).float()
    truths[::7] = 0
    masks = compare_masks(maps, truths)
    result = make_result("ssl_align", num_boxes=[None] * COUNT, masks=masks)
    assert float(clip_columns("avsbench_s4", result)["ssl_align:iou"][1]) == pytest.approx(
        masks[1].iou, abs=1e-6
    )
    ((model, disc, gaussian, ceiling),) = extra_scores("avsbench_ms3", result)
    curves = np.stack([mask.f_curve for mask in masks])
    assert model.scores == gaussian.scores
    assert model.scores["F_dataset"] == pytest.approx(100 * f_dataset(curves))
    assert model.scores["F_avsbench_batch5"] == pytest.approx(100 * f_avsbench(curves, 5))
    assert model.scores["mIoU"] == pytest.approx(100 * np.mean([mask.iou for mask in masks]))
    assert set(disc.scores.values()) == set(ceiling.scores.values()) == {None}
    for name in ("mIoU", "F_dataset"):
        lower, upper = model.intervals[name]
        assert lower < model.scores[name] < upper


def test_clips_that_lack_what_a_metric_needs_are_refused():
    with pytest.raises(ValueError, match="is3 is scored in pairs, but 60 clips have no key"):
        extra_scores("is3", make_result("ssl_tie"))
    with pytest.raises(ValueError, match="none of the 60 scored clips has a box"):
        extra_scores("vgg_ss_extended", make_result("ssl_tie", num_boxes=0))


def test_warnings_say_what_is_not_as_published():
    keys = ["alone", *(f"frame_{place // 2}" for place in range(1, COUNT - 1)), "last"]
    result = make_result("ssl_tie", pair_keys=keys)
    unpublished, alone = extra_warnings("is3", result)
    assert "the rule ssl_align_adaptive, which was not scored" in unpublished
    assert alone.startswith("4 of 32 frames")
    assert not extra_warnings("vgg_ss_extended", extended())
    assert not extra_warnings("vgg_ss", result)


def test_masks_are_not_said_to_be_what_was_published():
    masks = compare_masks(torch.rand(COUNT, 4, 4), torch.ones(COUNT, 4, 4))
    result = make_result("ssl_tie", num_boxes=[None] * COUNT, masks=masks)
    (apart,) = extra_warnings("avsbench_s4", _renamed(result, lambda place: f"v{place // 5}_1"))
    assert "with masks; SSL-Align's published one is with boxes" in apart
    _, by_batch = extra_warnings("avsbench_s4", _renamed(result, lambda place: f"v{place // 7}_1"))
    assert by_batch.startswith("7 of 12 batches of 5 clips are not")
    context = make_context(benchmark="avsbench_s4", num_listed=COUNT)
    summary = summarise(result, context)
    assert summary["extra_metrics"]["published_under"] is None
    assert not any("--protocol" in warning for warning in summary["warnings"])


def _renamed(result, name):
    (one,) = result.by_protocol
    rows = [
        replace(row, clips=tuple(replace(clip, clip_id=name(i)) for i, clip in enumerate(row.clips)))
        for row in one.rows
    ]
    return replace(result, by_protocol=(replace(one, rows=tuple(rows)),))


def test_the_rule_of_a_benchmark_s_metrics_is_the_headline():
    assert default_protocols("vgg_ss") == "ssl_tie,sspl"
    assert default_protocols("flickr_soundnet_extended") == "slavc,ssl_tie,sspl"
    for name in BENCHMARK_METRICS:
        assert find_protocols(default_protocols(name))[0].name == BENCHMARK_METRICS[name].headline


def test_negatives_are_not_counted_as_empty_truths():
    result = replace(extended(), num_empty=30)
    context = make_context(benchmark="vgg_ss_extended", num_listed=COUNT)
    summary = summarise(result, context)
    assert summary["num_empty_ground_truth"] == 0
    assert not any("nothing annotated" in warning for warning in summary["warnings"])


def test_every_benchmark_s_rule_and_words_are_there():
    for metrics in BENCHMARK_METRICS.values():
        assert metrics.headline in PROTOCOLS
        assert set(metrics.family.shown) <= set(metrics.family.words)


def test_files_hold_the_metrics_with_their_definitions(tmp_path):
    context = make_context(benchmark="vgg_ss_extended", num_listed=COUNT)
    summary = write_results(tmp_path, extended(), context, [])
    words = summary["extra_metrics"]["words"]
    for form in TABLE_FILES:
        text = render_table(summary, form)
        assert text == (tmp_path / f"table.{form}").read_text()
        for name in ("AP", "LocAcc", "max_F1"):
            assert name in text.replace("\\", "")
    assert words["AP"] in (tmp_path / "table.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert all(meaning.replace("'", "&#x27;") in page for meaning in words.values())
    assert "30 clips: not in cIoU, AUC, pointing, curves and groups" in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert set(words) <= set(rows[0])
    assert float(rows[0]["AP"]) == pytest.approx(summary["rows"][0]["extra"]["AP"], abs=1e-4)
    assert float(rows[0]["AP_low"]) <= float(rows[0]["AP"]) <= float(rows[0]["AP_high"])
    assert rows[1]["AP_low"] == ""
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    screen = score_table(summary["protocols"], headline(summary), summary["extra_metrics"])
    assert "AP_exact" in screen and f"{summary['rows'][0]['extra']['AP']:.2f}" in screen
    with (tmp_path / "per_clip.csv").open() as file:
        clips = list(csv.DictReader(file))
    assert len(clips) == COUNT
    assert [clip["num_boxes"] for clip in clips[:2]] == ["0", "1"]
    assert float(clips[0]["slavc:confidence"]) == extended().model.clips[0].confidence


def test_a_nan_is_no_number_in_json():
    masks = compare_masks(torch.rand(COUNT, 4, 4), torch.zeros(COUNT, 4, 4))
    result = make_result("ssl_align", num_boxes=[None] * COUNT, masks=masks)
    context = make_context(benchmark="avsbench_ms3", num_listed=COUNT)
    row = summarise(result, context)["rows"][0]
    assert row["extra"]["F_dataset"] is None and not math.isnan(row["extra"]["mIoU"])
