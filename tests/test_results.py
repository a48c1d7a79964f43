"""What an evaluation leaves: summary, table, report, overlays and galleries."""

import csv
import hashlib
import html
import io
import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import soundfile
import torch
from result_inputs import SHA256, make_context, make_result, with_rows

from datasets.clips import Batch
from utils.evaluation.protocols import PROTOCOLS, find_protocols
from utils.leaks import find_leak
from utils.pictures import OverlayWriter, PictureCollector, choose_clips, draw_clips
from utils.results import check_results_folder, summarise, warnings_of, write_results
from utils.scores import ClipScore

NAN = math.nan


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def table_of(folder):
    with (folder / "per_clip.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------- summary


def test_summary_holds_scores_and_where_they_come_from(tmp_path):
    summary = write_results(tmp_path / "new", make_result(), make_context(), [])
    assert strict_json(tmp_path / "new" / "summary.json") == json.loads(json.dumps(summary))
    assert list(summary) == [
        "benchmark",
        "protocol",
        "cIoU@0.5",
        "AUC",
        "mean_cIoU",
        "pointing_accuracy",
        "num_clips",
        "num_without_object",
        "num_listed",
        "complete",
        "num_missing",
        "missing",
        "num_empty_ground_truth",
        "num_non_finite_maps",
        "num_unreadable",
        "unreadable",
        "rows",
        "protocols",
        "extra_metrics",
        "intervals",
        "groupings",
        "labels",
        "clip_list",
        "cut",
        "scored_clips_sha256",
        "data_root",
        "frame_geometry",
        "audio",
        "object_prior",
        "note",
        "scored_from_maps",
        "checkpoint",
        "leak_check",
        "num_clips_epoch_was_chosen_on",
        "warnings",
        "environment",
        "command",
    ]
    assert summary["cIoU@0.5"] == 50
    assert summary["mean_cIoU"] == pytest.approx(100 * (0.75 + 0.25 + 0.5 + 0.1234567) / 4)
    assert summary["pointing_accuracy"] == 50
    assert summary["num_clips"] == summary["num_listed"] == 4
    assert summary["complete"] is True
    assert summary["protocol"]["name"] == "ssl_tie"
    assert summary["protocol"]["description"] == PROTOCOLS["ssl_tie"].description
    assert summary["checkpoint"]["sha256"] == SHA256
    assert summary["leak_check"]["num_clips"] == 0
    assert [row["kind"] for row in summary["rows"]] == ["model", "baseline", "baseline", "ceiling"]
    assert [row["ciou_at_0.5"] for row in summary["rows"]] == [50, 0, 100, 100]
    assert [row["pointing_accuracy"] for row in summary["rows"]] == [50, None, 100, None]


def test_summary_holds_every_rule_with_its_rows(tmp_path):
    summary = write_results(tmp_path, make_result(), make_context(), [])
    first, second = summary["protocols"]
    assert first["rows"] == summary["rows"]
    assert summary["protocol"].items() <= first.items()
    assert first.keys() - summary["protocol"].keys() == {"rows", "groups"}
    assert (second["name"], second["threshold"], second["value"]) == ("sspl", "fixed", 0.5)
    assert second["description"] == PROTOCOLS["sspl"].description
    assert [row["kind"] for row in second["rows"]] == ["model", "baseline", "baseline", "ceiling"]
    assert [row["ciou_at_0.5"] for row in second["rows"]] == [100, 0, 100, 100]


def test_scored_clips_are_fingerprinted_whatever_their_order():
    expected = hashlib.sha256(b"clip_0\nclip_1\nclip_2\nclip_3").hexdigest()
    result = make_result()
    assert summarise(result, make_context())["scored_clips_sha256"] == expected
    rows = result.by_protocol[0].rows
    turned = with_rows(result, [replace(row, clips=row.clips[::-1]) for row in rows])
    assert summarise(turned, make_context())["scored_clips_sha256"] == expected
    fewer = make_result((0.75, 0.25, 0.5))
    assert summarise(fewer, make_context())["scored_clips_sha256"] != expected


def test_results_are_six_files(tmp_path):
    write_results(tmp_path, make_result(), make_context(), [])
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "summary.json",
        "per_clip.csv",
        "table.md",
        "table.tex",
        "table.csv",
        "report.html",
    }


def test_every_row_has_its_intervals(tmp_path):
    summary = write_results(tmp_path, make_result(), make_context(), [])
    assert summary["intervals"] == {
        "method": "percentile bootstrap over clips",
        "confidence": 0.95,
        "resamples": 2000,
        "seed": 0,
    }
    model, disc, *_ = strict_json(tmp_path / "summary.json")["rows"]
    for key in ("ciou_at_0.5", "auc", "mean_ciou", "pointing_accuracy"):
        lower, upper = model["intervals"][key]
        assert 0 <= lower < model[key] < upper <= 100
        assert disc["intervals"][key] is None  # its clips all score the same
    assert summary["protocols"][1]["rows"][0]["intervals"]["ciou_at_0.5"] is None


CLASSES = {"clip_0": "harp", "clip_1": "dog", "clip_2": "harp", "clip_3": "dog"}
LABELS = {"path": "labels.csv", "sha256": "ef" * 32, "form": "CSV of id,label"}


def test_groups_stand_in_summary_and_report(tmp_path):
    context = make_context(classes=CLASSES, labels=LABELS)
    summary = write_results(tmp_path, make_result((0.75, 0.25, 0.5, 0.1)), context, [])
    assert list(summary["groupings"]) == ["box_size", "number_of_boxes", "class"]
    assert summary["labels"] == LABELS
    first, second = summary["protocols"]
    assert [group["name"] for group in first["groups"]["class"]] == ["dog", "harp"]
    assert [group["ciou_at_0.5"] for group in first["groups"]["class"]] == [0, 100]
    assert [group["ciou_at_0.5"] for group in second["groups"]["class"]] == [100, 100]
    page = (tmp_path / "report.html").read_text()
    for words in ("By box size", "By number of boxes", "By class", "labels.csv", "ef" * 32):
        assert words in page
    assert page.index(">harp<") < page.index(">dog<")  # the best class first
    without = write_results(tmp_path, make_result(), make_context(), [])
    assert "class" not in without["groupings"] and without["labels"] is None
    assert "By class" not in (tmp_path / "report.html").read_text()


def test_results_without_truths_have_no_groups(tmp_path):
    summary = write_results(tmp_path, replace(make_result(), truths=()), make_context(), [])
    assert summary["groupings"] == {} and "groups" not in summary["protocols"][0]
    assert "<details" not in (tmp_path / "report.html").read_text()


def test_table_of_clips(tmp_path):
    write_results(tmp_path, make_result(), make_context(classes=CLASSES, labels=LABELS), [])
    text = (tmp_path / "per_clip.csv").read_text()
    assert text.splitlines()[0] == (
        "clip_id,pointing,"
        "ssl_tie:ciou,ssl_tie:success,ssl_tie:disc,ssl_tie:gaussian,ssl_tie:ceiling,"
        "sspl:ciou,sspl:success,sspl:disc,sspl:gaussian,sspl:ceiling,area,num_boxes,class"
    )
    assert text.splitlines()[1] == (
        "clip_0,1,0.750000,1,0.250000,0.500000,1.000000,0.600000,1,0.250000,0.500000,1.000000,1000.5,1,harp"
    )
    rows = table_of(tmp_path)
    assert [row["clip_id"] for row in rows] == [f"clip_{index}" for index in range(4)]
    assert [float(row["ssl_tie:ciou"]) for row in rows] == [0.75, 0.25, 0.5, 0.123457]
    assert [row["ssl_tie:success"] for row in rows] == ["1", "0", "1", "0"]
    assert [row["sspl:success"] for row in rows] == ["1", "1", "1", "1"]
    assert [row["pointing"] for row in rows] == ["1", "0", "1", "0"]
    assert [row["num_boxes"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["class"] for row in rows] == ["harp", "dog", "harp", "dog"]
    assert "\r" not in text


def test_rows_of_other_clips_are_never_put_side_by_side(tmp_path):
    result = make_result()
    model, disc, *others = result.by_protocol[0].rows
    shorter = replace(disc, clips=disc.clips[:-1])
    with pytest.raises(ValueError):
        write_results(tmp_path, with_rows(result, [model, shorter, *others]), make_context(), [])
    assert not (tmp_path / "summary.json").exists()


def test_nan_of_a_clip_stays_out_of_the_summary(tmp_path):
    summary = write_results(tmp_path, make_result((NAN, 1.0, NAN)), make_context(num_listed=3), [])
    assert summary["cIoU@0.5"] == summary["mean_cIoU"] == pytest.approx(100 / 3)
    strict_json(tmp_path / "summary.json")
    assert [row["ssl_tie:ciou"] for row in table_of(tmp_path)] == ["nan", "1.000000", "nan"]
    assert [row["ssl_tie:success"] for row in table_of(tmp_path)] == ["0", "1", "0"]


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_no_file_says_nan_in_json(tmp_path, value):
    context = make_context()
    context = replace(context, checkpoint={**context.checkpoint, "selection": {"score": value}})
    with pytest.raises(ValueError):
        write_results(tmp_path, make_result(), context, [])
    assert not (tmp_path / "summary.json").exists()


# -------------------------------------------------------------------------------------- warnings


INCOMPLETE = [
    (
        {"missing": ("clip_9 (no frame)", "clip_8"), "num_listed": 6},
        (),
        "2 of 6 listed clips are missing or broken and not scored, first: clip_9 (no frame)",
    ),
    (
        {"num_listed": 5},
        [("torn", "frame/torn.jpg cannot be read")],
        "1 clips could not be decoded and are not scored, first: frame/torn.jpg cannot be read",
    ),
]


@pytest.mark.parametrize(("changes", "unreadable", "warning"), INCOMPLETE)
def test_incomplete_results_are_marked(tmp_path, changes, unreadable, warning):
    result, context = make_result(unreadable=unreadable), make_context(**changes)
    summary = write_results(tmp_path, result, context, [])
    assert summary["complete"] is False
    assert summary["num_missing"] == len(summary["missing"]) == len(context.missing)
    assert summary["num_unreadable"] == len(unreadable)
    assert summary["unreadable"] == [f"{clip_id}: {reason}" for clip_id, reason in unreadable]
    assert warnings_of(result, context) == [warning]
    assert warning in (tmp_path / "report.html").read_text()
    assert f"4 of {context.num_listed} listed" in (tmp_path / "report.html").read_text()


def test_complete_and_clean_results_are_not_warned_about(tmp_path):
    assert warnings_of(make_result(), make_context()) == []
    write_results(tmp_path, make_result(), make_context(), [])
    assert 'role="alert"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"leak": find_leak(["clip_0"], ["clip_0", "clip_1"], purpose="test")}, "LEAK: 1 of 2"),
        ({"leak": find_leak(None, ["clip_0"], purpose="test")}, "could not be checked"),
        ({"num_chosen_on": 4}, "CHOSEN ON TEST: this epoch was picked as the best on 4 of"),
        ({"clip_list": "every clip found"}, "No clip list was given"),
    ],
)
def test_reasons_for_distrust_stand_in_the_report(tmp_path, changes, words):
    context = make_context(**changes)
    (warning,) = warnings_of(make_result(), context)
    assert words in warning
    write_results(tmp_path, make_result(), context, [])
    assert warning in (tmp_path / "report.html").read_text()


def test_the_note_stands_in_every_result(tmp_path):
    summary = write_results(tmp_path, make_result(), make_context(note="drawn <set>"), [])
    assert summary["note"] == "drawn <set>"
    assert "vgg_ss (drawn &lt;set&gt;)" in (tmp_path / "report.html").read_text()


def test_report_shows_every_rule(tmp_path):
    write_results(tmp_path, make_result(), make_context(), [])
    page = (tmp_path / "report.html").read_text()
    for name in ("ssl_tie", "sspl"):
        assert page.count(f"<h3>Protocol <code>{name}</code></h3>") == 1
        assert html.escape(PROTOCOLS[name].description) in page
        assert f"best possible under {name}" in page
    header = page[page.index("</style>") : page.index("<h2>Scores</h2>")]
    assert ">50.0<" in header and "ssl_tie" in header and ">100.0<" not in header


def test_report_says_what_was_run(tmp_path):
    write_results(tmp_path, make_result(), make_context(), [])
    page = (tmp_path / "report.html").read_text()
    for words in (SHA256, "ssl_tie_vgg_ss_4911", "squash", "torch 2.11", "centre disc (blind)"):
        assert words in page
    assert "results/&lt;a&gt;" in page and "results/<a>" not in page


# ---------------------------------------------------------------------------------- whose folder


def check(folder, protocol="ssl_tie,sspl", **changes):
    check_results_folder(folder, find_protocols(protocol), make_context(**changes))


def test_new_folder_and_the_same_evaluation_again_are_fine(tmp_path):
    check(tmp_path / "nowhere")
    check(tmp_path)
    write_results(tmp_path, make_result(), make_context(), [])
    check(tmp_path)
    write_results(tmp_path, make_result((0.9, 0.9, 0.9, 0.9)), make_context(), [])
    assert strict_json(tmp_path / "summary.json")["cIoU@0.5"] == 100


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"benchmark": "flickr_soundnet"}, "benchmark"),
        ({"protocol": "sspl"}, "protocol"),
        ({"protocol": "ssl_tie"}, "protocol"),
        ({"protocol": "sspl,ssl_tie"}, "protocol"),
        ({"protocol": "all"}, "protocol"),
        ({"checkpoint": {"sha256": "f" * 64}}, "checkpoint"),
        ({"clip_list_sha256": "e" * 64}, "clip list"),
        ({"frame_geometry": "centre_crop"}, "frame geometry"),
    ],
)
def test_another_evaluations_folder_is_refused(tmp_path, other, name):
    write_results(tmp_path, make_result(), make_context(), [])
    with pytest.raises(FileExistsError, match=rf"another evaluation \(another {name}\).*--output"):
        check(tmp_path, **other)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"benchmark": "vgg_ss", "protocol": "ssl_tie", "checkpoint": {}}',
        b'{"benchmark": "vgg_ss", "protocol": {"name": "a"}, "checkpoint": {"sha256": null}}',
    ],
)
def test_foreign_summary_is_refused(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises((ValueError, FileExistsError), match=r"summary\.json .*--output"):
        check(tmp_path)


def test_summary_of_a_version_with_one_rule_is_refused_in_words(tmp_path):
    summary = write_results(tmp_path, make_result(), make_context(), [])
    del summary["protocols"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=r"not a summary of this version .*another --output"):
        check(tmp_path)


# -------------------------------------------------------------------------------------- pictures


def make_batch(clip_ids, size=32, boxes=((0.25, 0.25, 0.75, 0.75),)):
    count = len(clip_ids)
    rng = np.random.default_rng(count)
    return Batch(
        clip_ids=tuple(clip_ids),
        frames=torch.tensor(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)),
        waveforms=torch.zeros(count, 4),
        bounding_boxes=(None if boxes is None else np.array(boxes),) * count,
        ground_truth_maps=None,
        crop_seeds=(0,) * count,
        broken=(),
        sound_lengths=(4,) * count,
    )


def ramps(count, size=32):
    return np.tile(np.linspace(0, 1, size, dtype=np.float32), (count, size, 1))


def scores_of(clip_ids, ciou=0.5):
    return [ClipScore(clip_id, ciou, True) for clip_id in clip_ids]


@pytest.mark.parametrize("num_clips", [0, 1, 2, 3, 4, 7, 10, 30])
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_galleries_show_each_clip_once(num_clips, count):
    cious = np.random.default_rng(0).permutation(num_clips) / 30
    scores = [ClipScore(f"clip_{index}", ciou, True) for index, ciou in enumerate(cious)]
    by_id = {score.clip_id: score.ciou for score in scores}
    galleries = choose_clips(scores, count)
    shown = [clip_id for clip_ids in galleries.values() for clip_id in clip_ids]
    assert len(shown) == len(set(shown))
    assert all(0 < len(clip_ids) <= count for clip_ids in galleries.values())
    if num_clips and count:
        assert by_id[galleries["Best clips"][0]] == max(cious)
    if num_clips >= 3 * count > 0:
        ordered = sorted(cious)
        best, median, worst = ([by_id[clip_id] for clip_id in ids] for ids in galleries.values())
        assert list(galleries) == ["Best clips", "Clips around the median", "Worst clips"]
        assert best == ordered[::-1][:count]
        assert worst == ordered[:count]
        below = sum(ciou < min(median) for ciou in cious)
        above = sum(ciou > max(median) for ciou in cious)
        assert len(median) == count and abs(below - above) <= 1


def test_galleries_count_nan_as_the_worst_and_break_ties_by_id():
    cious = {"e": 0.4, "b": NAN, "d": 0.4, "a": 0.9, "c": 0.1, "f": 0.4}
    scores = [ClipScore(clip_id, ciou, False) for clip_id, ciou in cious.items()]
    expected = {"Best clips": ["a", "d"], "Clips around the median": ["e", "f"], "Worst clips": ["b", "c"]}
    assert choose_clips(scores, 2) == expected
    assert choose_clips(scores[::-1], 2) == expected


@pytest.mark.parametrize(("limit", "written"), [(0, 0), (2, 2), (4, 4), (math.inf, 7), (9, 7)])
def test_overlays_of_the_first_clips(tmp_path, limit, written):
    writer = OverlayWriter(tmp_path / "overlays", limit)
    for start, end in ((0, 3), (3, 6), (6, 7)):
        clip_ids = [f"clip_{index}" for index in range(start, end)]
        writer(make_batch(clip_ids), torch.from_numpy(ramps(len(clip_ids))), scores_of(clip_ids))
    names = {entry.name for entry in tmp_path.glob("overlays/*")}
    assert names == {f"clip_{index}.jpg" for index in range(written)}
    assert writer.num_written == written


def test_overlay_file_shows_the_drawn_clip(tmp_path):
    batch = make_batch(["clip"], size=64)
    OverlayWriter(tmp_path, 1)(batch, torch.from_numpy(ramps(1, 64)), scores_of(["clip"]))
    (drawn,) = draw_clips(batch, ramps(1, 64), scores_of(["clip"]))
    picture = cv2.imread(str(tmp_path / "clip.jpg"), cv2.IMREAD_COLOR_RGB)
    assert picture.shape == (64, 64, 3)
    # Noise suffers from JPEG; another clip, or swapped channels, would be twice as far.
    assert np.abs(picture.astype(int) - drawn.overlay).mean() < 30


@pytest.mark.parametrize("frame_size", [32, 96, 448])
def test_frames_take_the_size_of_the_map(frame_size):
    batch = make_batch(["a", "b"], frame_size)
    batch.frames[:, :, : frame_size // 2] = 0
    batch.frames[:, 0, frame_size // 2 :] = 200
    before = batch.frames.clone()
    drawn = draw_clips(batch, np.zeros((2, 64, 64), np.float32), scores_of(batch.clip_ids))
    assert [clip.score.clip_id for clip in drawn] == ["a", "b"]
    for clip in drawn:
        assert clip.frame.shape == clip.overlay.shape == (64, 64, 3)
        assert clip.frame.dtype == clip.overlay.dtype == np.uint8
        assert (clip.frame[:30] == 0).all() and (clip.frame[34:, :, 0] == 200).all()
    assert torch.equal(batch.frames, before)


@pytest.mark.parametrize(
    ("constant", "has_heat"), [(-0.5, False), (1.3, True), (2.0, True), (NAN, False), (0.0, False)]
)
def test_constant_maps_beyond_0_to_1_are_drawn(constant, has_heat):
    batch = make_batch(["clip"], 64, boxes=None)
    maps = np.full((1, 64, 64), constant, np.float32)
    (drawn,) = draw_clips(batch, maps, scores_of(["clip"], NAN))
    below_caption = (drawn.overlay != drawn.frame)[32:].any(axis=2)
    assert below_caption.mean() > 0.9 if has_heat else not below_caption.any()
    np.testing.assert_array_equal(maps, np.full((1, 64, 64), constant, np.float32))


def test_boxes_beyond_the_frame_and_no_boxes_are_drawn():
    for boxes in (((-3, 0.5, 5, 4.0), (0.2, 0.2, 0.4, 0.4)), None, np.zeros((0, 4))):
        batch = make_batch(["clip"], 64, boxes)
        (drawn,) = draw_clips(batch, np.zeros((1, 64, 64), np.float32), scores_of(["clip"]))
        changed = (drawn.overlay != drawn.frame)[40:].any()
        assert changed == (boxes is not None and len(boxes) > 0)


def test_each_clip_is_drawn_with_its_own_score_map_and_boxes():
    batch = make_batch(["a", "b"], 64)
    batch = replace(batch, bounding_boxes=(None, np.array([[0.1, 0.8, 0.9, 0.95]])))
    maps = np.zeros((2, 64, 64), np.float32)
    maps[0, 40:44] = 1
    scores = [ClipScore("a", 0.11, True), ClipScore("b", 0.88, True)]
    first, second = draw_clips(batch, maps, scores)
    heat_rows = slice(40, 44)
    assert (first.overlay != first.frame)[heat_rows].any(axis=2).mean() > 0.9
    assert not (second.overlay != second.frame)[heat_rows].any()
    assert not (first.overlay != first.frame)[44:].any()
    assert (second.overlay != second.frame)[44:].any()
    assert (first.score, second.score) == tuple(scores)


LOUDNESS = {"a": 0.1, "b": 0.3, "c": 0.6}


def test_collected_pictures_become_galleries(tmp_path):
    collector = PictureCollector(16_000)
    for clip_ids in (["a", "b"], ["c"]):
        batch = make_batch(clip_ids, 48)
        sounds = [LOUDNESS[i] * torch.sin(torch.arange(16_000) / 10) for i in clip_ids]
        batch = replace(batch, waveforms=torch.stack(sounds), sound_lengths=(16_000,) * len(sounds))
        collector(batch, torch.from_numpy(ramps(len(clip_ids))), scores_of(clip_ids, 0.25))
    galleries = collector.galleries({"Best clips": ["c", "a"], "Worst clips": ["b"]})
    shown = {gallery.title: [clip.clip_id for clip in gallery.clips] for gallery in galleries}
    assert shown == {"Best clips": ["c", "a"], "Worst clips": ["b"]}
    for gallery in galleries:
        for clip in gallery.clips:
            frame, overlay = (
                cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) for picture in clip.pictures
            )
            assert frame.shape == overlay.shape == (32, 32, 3)
            assert (frame != overlay).any()
            assert clip.ciou == 0.25
            heard, rate = soundfile.read(io.BytesIO(clip.sound))
            assert rate == 16_000 and abs(np.abs(heard).max() - LOUDNESS[clip.clip_id]) < 0.05
    write_results(tmp_path, make_result(), make_context(), galleries)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert page.count("data:audio/mpeg;base64,") == 3
    assert "Best clips" in page
