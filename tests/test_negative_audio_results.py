"""Files and options of negative audio: every number with all that stands beside it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from negative_inputs import (
    CLASS_OF,
    CLIP_IDS,
    COSINE,
    NUM_CLIPS,
    NUM_SEEDS,
    Listener,
    evaluate,
    numbers,
    own_truth,
)
from result_inputs import make_context

from utils.leaks import find_leak
from utils.negative_audio_results import NegativeSetting, read_threshold, summarise, write_negative_results
from utils.negative_audio_scores import DEAF, DISC, PUBLISHED_THRESHOLDS, Scoring
from utils.negative_audio_tables import render_table, score_rows, screen_table
from utils.negative_options import NegativeOptions

MINIMAL = {
    "checkpoint": "c", "benchmark": "vgg_ss", "data_root": "d", "output": "o", "labels": "l",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def make_setting(**changes):
    classes = dict(zip(CLIP_IDS, map(str, CLASS_OF), strict=True))
    labels = {"path": "l.csv", "sha256": "ef" * 32, "form": "CSV of id,label"}
    context = make_context(classes=classes, labels=labels, num_listed=NUM_CLIPS)
    setting = NegativeSetting(context, COSINE, NUM_SEEDS, "other_class")
    return replace(setting, **changes)


def test_the_files_hold_the_numbers_and_all_that_stands_beside_them(tmp_path):
    setting, result = make_setting(), evaluate(Listener(), COSINE)
    summary = write_negative_results(tmp_path, setting, result)
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    found = numbers(result)
    assert {name: one["mean"] for name, one in summary["scores"].items()} == pytest.approx(found)
    assert summary["threshold"]["value"] == 0.25
    assert summary["threshold"]["num_negatives"] == 3 * NUM_SEEDS * NUM_CLIPS
    assert summary["threshold"]["seeds"] == list(range(NUM_SEEDS))
    assert summary["threshold"]["clip_list_sha256"] == "cd" * 32
    area = 100 * own_truth().mean()
    deaf = 2 * 100 * (100 - area) / (200 - area)
    assert summary["without_ears"][DEAF]["f_loc"] == pytest.approx(deaf)
    assert summary["without_ears"][DISC]["pia_noise"] == pytest.approx(100 * 25088 / 50176, abs=0.1)
    with (tmp_path / "per_clip.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clip_id"] for row in rows] == list(CLIP_IDS)
    assert {row["pIA_noise"] for row in rows} == {"0.000000"}
    donors = rows[0]["off_screen_sounds_of"].split()
    assert len(donors) == NUM_SEEDS and all(int(d[5:]) % 2 == 1 for d in donors)
    page = (tmp_path / "report.html").read_text()
    for words in ("cd" * 32, "F_LOC", "universal", "deaf", "off-screen"):
        assert words.lower() in page.lower()
    assert "AS PUBLISHED" not in page
    assert "src=" not in page and "http" not in page.replace("http-equiv", "")
    assert "F_LOC" in screen_table(summary)
    assert r"F\_LOC" in (tmp_path / "table.tex").read_text()
    with (tmp_path / "table.csv").open() as file:
        lines = {line["number"]: line for line in csv.DictReader(file)}
    assert float(lines["f_auc"]["score"]) == pytest.approx(100)
    assert len(lines) == len(score_rows(summary)) == len(summary["scores"])


def test_every_table_says_what_leaked_what_is_missing_and_which_cut_it_is():
    leak = find_leak(["clip_0", "clip_3"], ["clip_0", "clip_1"], purpose="test")
    context = replace(make_setting().context, leak=leak, missing=("x: no frame",), cut="VGG-SS, 4,911 clips")
    result = evaluate(Listener(), COSINE)
    torn = (("y", "torn"), ("z", "torn"))
    summary = summarise(make_setting(context=context), replace(result, unreadable=torn))
    for line in csv.DictReader(render_table(summary, "csv").splitlines()):
        names = ("leak_checked", "num_leaked", "num_missing", "num_unreadable", "cut")
        assert [line[name] for name in names] == ["1", "1", "1", "2", "VGG-SS, 4,911 clips"]
    for form in ("md", "tex"):
        text = render_table(summary, form)
        for words in ("LEAK: 1 of 2 test clips", "1 without files, 2 unreadable", "VGG-SS, 4,911 clips"):
            assert words in text, (form, words)
    unknown = replace(context, leak=find_leak(None, [], purpose="test"), cut="")
    text = render_table(summarise(make_setting(context=unknown), result), "csv")
    line = next(csv.DictReader(text.splitlines()))
    assert (line["leak_checked"], line["num_leaked"], line["cut"]) == ("0", "", "")


def test_the_spread_is_over_seeds_and_the_interval_over_clips():
    result = evaluate(Listener(), COSINE, threshold=0.2)
    rng = np.random.default_rng(0)
    areas = rng.random((NUM_CLIPS, NUM_SEEDS))
    result = replace(result, scores={**result.scores, "area:noise": areas})
    score = summarise(make_setting(), result)["scores"]["pia_noise"]
    assert score["mean"] == pytest.approx(100 * areas.mean())
    assert score["sd"] == pytest.approx(100 * areas.mean(axis=0).std(ddof=1))
    lower, upper = score["interval"]
    assert lower < score["mean"] < upper
    drawn = rng.integers(NUM_CLIPS, size=(4000, NUM_CLIPS))
    slow = np.quantile(100 * areas.mean(axis=1)[drawn].mean(axis=1), [0.025, 0.975])
    assert [lower, upper] == pytest.approx(slow, abs=2.5)
    silent = summarise(make_setting(), result)["scores"]["pia_silence"]
    assert silent["sd"] is None and silent["interval"] is None


def test_results_with_the_authors_errors_say_so_everywhere(tmp_path):
    scoring = Scoring(half_cosine=False, published=PUBLISHED_THRESHOLDS["ssl_tie"])
    setting = make_setting(scoring=scoring, peer="ssl_tie")
    summary = write_negative_results(tmp_path, setting, evaluate(Listener(), scoring, 0.3338))
    for form in ("md", "tex", "csv", "json"):
        assert "AS PUBLISHED" in render_table(summary, form), form
    assert screen_table(summary).startswith("AS PUBLISHED")
    assert "<h1>AS PUBLISHED" in (tmp_path / "report.html").read_text()
    assert "as_published" in (tmp_path / "per_clip.csv").read_text().splitlines()[0]
    assert summary["threshold"]["source"] == "published"
    with pytest.raises(FileExistsError, match="as_published"):
        make_setting().check(tmp_path)
    setting.check(tmp_path)


def test_a_threshold_of_another_set_is_taken_from_its_summary(tmp_path):
    write_negative_results(tmp_path, make_setting(), evaluate(Listener(), COSINE))
    path, sha256 = tmp_path / "summary.json", make_context().checkpoint["sha256"]
    shared = read_threshold(path, sha256, "cosine", [CLIP_IDS[0], "other"])
    assert shared["value"] == 0.25 and shared["num_negatives"] == 120
    setting = make_setting(threshold_from=shared)
    summary = summarise(setting, evaluate(Listener(), COSINE, 0.25))
    # Another list, one clip of which was there: not held out.
    assert summary["threshold"]["source"] == "shared clips"
    assert "NOT HELD OUT" in screen_table(summary)
    assert any("not held out: 1 of the clips" in warning for warning in summary["warnings"])
    held_out = read_threshold(path, sha256, "cosine", ["other"])
    setting = replace(setting, threshold_from=held_out)
    summary = summarise(setting, evaluate(Listener(), COSINE, 0.25))
    assert summary["threshold"]["source"] == "held out"
    assert not any("not held out" in warning for warning in summary["warnings"])
    with pytest.raises(ValueError, match="another checkpoint"):
        read_threshold(path, "99" * 32, "cosine", CLIP_IDS)
    with pytest.raises(ValueError, match=r"\(cosine \+ 1\) / 2"):
        read_threshold(path, sha256, "(cosine + 1) / 2", CLIP_IDS)
    with pytest.raises(FileNotFoundError, match=r"test\.py negatives"):
        read_threshold(tmp_path / "none.json", sha256, "cosine", CLIP_IDS)
    (tmp_path / "per_clip.csv").rename(tmp_path / "moved.csv")
    with pytest.raises(FileNotFoundError, match=r"No per_clip\.csv beside"):
        read_threshold(path, sha256, "cosine", CLIP_IDS)
    path.write_text('{"identity": {"task": "retrieval"}}')
    with pytest.raises(ValueError, match=r"not of test\.py negatives"):
        read_threshold(path, sha256, "cosine", CLIP_IDS)
    path.write_text("[")
    with pytest.raises(ValueError, match="not a summary"):
        make_setting().check(tmp_path)


def test_a_benchmark_s_metrics_of_localisation_are_not_asked_for():
    context = replace(make_setting().context, benchmark="is3")
    summary = summarise(make_setting(context=context), evaluate(Listener(), COSINE))
    assert not any("--protocol" in warning for warning in summary["warnings"])


def test_any_off_screen_sound_is_warned_of():
    setting = make_setting(off_screen="any")
    summary = summarise(setting, evaluate(Listener(), COSINE))
    assert any("same class" in warning for warning in summary["warnings"])


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seeds": 0}, "--seeds"),
        ({"batch_size": 0}, "--batch-size"),
        ({"threshold": 0.5, "as_published": True}, "--threshold and --as-published"),
        ({"threshold": 0.5, "threshold_from": "s.json"}, "--threshold and --threshold-from"),
        ({"threshold": 2.0}, "from -1 to 1"),
        ({"peer": "fnac"}, "--peer needs --as-published"),
    ],
)
def test_options_without_meaning_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        NegativeOptions(**MINIMAL, **given)


def test_whose_errors_are_repeated():
    plain = NegativeOptions(**MINIMAL)
    assert plain.published_peer("sspl") is None and plain.published_thresholds("lvs") is None
    published = NegativeOptions(**MINIMAL, as_published=True)
    assert published.published_peer("slavc") == "slavc"
    assert published.published_thresholds("ssl_tie").third_quartile == 0.3338
    with pytest.raises(ValueError, match="have not scored sspl"):
        published.published_peer("sspl")
    with pytest.raises(ValueError, match="--peer ez_vsl, or --peer fnac"):
        published.published_peer("ez_vsl_or_fnac")
    fnac = NegativeOptions(**MINIMAL, as_published=True, peer="fnac")
    assert fnac.published_thresholds("ez_vsl_or_fnac").third_quartile == 0.5538
    with pytest.raises(ValueError, match="does not fit"):
        fnac.published_peer("lvs")
