"""What a retrieval leaves, and the whole of it through the command line."""

import base64
import csv
import json
import re
import sys
import time
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.annotations import Labels
from models.ssl_tie import SSLTIE
from utils.embeddings import Embeddings
from utils.evaluation.statistics import CHUNK, CONFIDENCE, RESAMPLES, SEED
from utils.leaks import find_leak
from utils.reports.report import EvaluationContext
from utils.reports.visualisation import encode_jpeg
from utils.retrieval import DIRECTIONS, Metric, evaluate_retrieval
from utils.retrieval_report import Preview
from utils.retrieval_results import RetrievalSetting, score_intervals, write_retrieval
from utils.retrieval_tables import COLUMNS, render_table, screen_table
from utils.tables import TABLE_FILES

COUNT = 12
CLIP_IDS = tuple(f"clip_{index}" for index in range(COUNT))
CLASSES = ["dog", "cat", "<b>cow</b>"] * (COUNT // 3)


def make_context(benchmark="vgg_ss"):
    return EvaluationContext(
        benchmark=benchmark,
        data_root="data/VGGSound_test",
        clip_list="ssl_tie_vgg_ss_4911",
        clip_list_sha256="cd" * 32,
        num_listed=COUNT + 1,
        missing=(),
        frame_geometry="squash",
        audio="own",
        note="",
        checkpoint={
            "path": "runs/last.pth",
            "sha256": "ab" * 32,
            "method": "ssl_tie",
            "epoch": 80,
            "selection": {"kind": "last"},
        },
        leak=find_leak(["other"], CLIP_IDS, purpose="test").as_dict(),
        num_chosen_on=0,
        environment={"torch": "2.11", "device": "cpu"},
        command="python test.py retrieval --output 'results/<a>'",
    )


class PageReader(HTMLParser):
    """Texts and pictures of a page whose tags are balanced."""

    def __init__(self, page):
        super().__init__()
        self.open, self.pictures, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture
def labels():
    return Labels("l.csv", "ef" * 32, "CSV of id,label", dict(zip(CLIP_IDS, CLASSES, strict=True)))


@pytest.fixture
def setting(labels):
    return RetrievalSetting(make_context(), tuple(DIRECTIONS), (1, 3), labels, "max")


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    audio, image = F.normalize(torch.randn(2, COUNT, 5, generator=generator), dim=-1)
    return Embeddings(CLIP_IDS, audio, image, (("clip_x", "torn"),))


def preview_of(clip_id):
    place = CLIP_IDS.index(clip_id)
    picture = encode_jpeg(np.full((16, 16, 3), 20 * place, np.uint8))
    return Preview(picture, f"sound {place}".encode())


def score(embeddings, setting):
    known = setting.labels_of(embeddings.clip_ids)
    return evaluate_retrieval(embeddings, known, setting.directions, setting.ks)


@pytest.fixture
def written(tmp_path, setting, embeddings):
    results = score(embeddings, setting)
    summary = write_retrieval(tmp_path, setting, embeddings, results, (2, preview_of))
    return tmp_path, summary, results


def test_summary_holds_all_that_stands_beside_the_scores(written, setting):
    folder, summary, results = written
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for result in results:
        for metric in result.metrics:
            row = summary["directions"][result.name][metric.name]
            assert row["value"] == pytest.approx(100 * metric.per_query.mean())
            assert row["chance"] == pytest.approx(100 * metric.chance)
    chance = 100 * 3 / 11
    assert summary["directions"]["audio_to_audio"]["Prec@3"]["chance"] == pytest.approx(chance)
    assert "R@1" not in summary["directions"]["audio_to_audio"]
    assert summary["labels"] == {
        "path": "l.csv", "sha256": "ef" * 32, "form": "CSV of id,label", "num_classes": 3,
    }  # fmt: skip
    assert summary["num_clips"] == COUNT and not summary["complete"]
    assert summary["checkpoint"]["sha256"] == setting.context.checkpoint["sha256"]
    assert any("torn" in warning for warning in summary["warnings"])
    assert summary["command"] == setting.context.command
    shown = screen_table(summary)
    assert "audio_to_image" in shown and "27.27" in shown and "max:" in shown


def test_intervals_equal_a_slow_bootstrap_over_queries(written):
    _, summary, results = written
    assert summary["intervals"] == {
        "method": "percentile bootstrap over queries, the gallery as given",
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
    }
    drawn = np.random.default_rng(SEED).integers(COUNT, size=(RESAMPLES, COUNT))
    compared = 0
    for result in results:
        for metric in result.metrics:
            means = sorted(float(metric.per_query[queries].mean()) for queries in drawn)
            slow = [100 * np.quantile(means, share) for share in (0.025, 0.975)]
            interval = summary["directions"][result.name][metric.name]["interval"]
            if metric.per_query.min() == metric.per_query.max():
                assert interval is None
                continue
            assert interval == pytest.approx(slow)
            assert interval[0] < 100 * metric.value < interval[1]
            compared += 1
    assert compared >= 10


def test_scores_that_every_query_shares_have_no_interval(written, setting, tmp_path):
    same = torch.ones(COUNT, 5) / 5**0.5
    setting = replace(setting, directions=("audio_to_image",), ks=(1, COUNT - 1))
    results = score(Embeddings(CLIP_IDS, same, same, ()), setting)
    (of_direction,) = score_intervals(results)
    by_name = dict(zip((m.name for m in results[0].metrics), of_direction, strict=True))
    assert by_name["Acc@11"] is None and by_name["R@1"] is not None
    summary = write_retrieval(
        tmp_path / "same", setting, Embeddings(CLIP_IDS, same, same, ()), results, (0, preview_of)
    )
    (line,) = [one for one in screen_table(summary).splitlines() if "Acc@11" in one]
    assert re.search(r"Acc@11 +100\.00 +- +", line)
    (row,) = [r for r in csv_rows(render_table(summary, "csv")) if r["metric"] == "Acc@11"]
    assert row["low"] == row["high"] == ""


@pytest.mark.parametrize(
    ("count", "num_scores"), [(20_000, 2), pytest.param(100_000, 24, marks=pytest.mark.slow)]
)
def test_intervals_of_many_queries_stay_in_bounded_memory(written, count, num_scores):
    _, _, results = written
    hits = np.random.default_rng(0).random((num_scores, count)) < 0.5
    metrics = tuple(
        Metric(f"R@{place}", of_metric.astype(np.float64), 0.1, 1.0, 0)
        for place, of_metric in enumerate(hits)
    )
    tracemalloc.start()
    start = time.perf_counter()
    (intervals,) = score_intervals([replace(results[0], metrics=metrics)])
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    words = f"{num_scores} scores of {count} queries: {seconds:.1f} s, {peak / 2**20:.0f} MiB"
    sys.stdout.write(f"\n{words}\n")
    assert peak < 6 * 8 * CHUNK < 8 * RESAMPLES * count
    for (low, high), metric in zip(intervals, metrics, strict=True):
        spread = 100 * 1.96 * metric.per_query.std() / count**0.5
        assert high - 100 * metric.value == pytest.approx(spread, rel=0.1)
        assert 100 * metric.value - low == pytest.approx(spread, rel=0.1)


def csv_rows(text):
    return list(csv.DictReader(text.splitlines()))


def test_tables_hold_what_must_stand_beside_the_scores(written, setting):
    folder, summary, _ = written
    context = setting.context
    for form in TABLE_FILES:
        text = (folder / f"table.{form}").read_text()
        assert text == render_table(summary, form)
        plain = text.replace("\\", "")
        for expected in (
            context.clip_list, context.clip_list_sha256, context.checkpoint["sha256"],
            summary["scored_clips_sha256"], "torn",
        ):  # fmt: skip
            assert expected in plain, (form, expected)
        if form != "csv":
            for expected in (
                *COLUMNS, "leak check: No test clip was trained on.", "12 of 13 listed",
                "missing: 0 without files, 1 unreadable",
                "95%, percentile bootstrap over queries, the gallery as given, 2000 resamples",
            ):  # fmt: skip
                assert expected in plain, (form, expected)
    row = summary["directions"]["audio_to_image"]["Prec@3"]
    low, high = row["interval"]
    numbers = (f"{row['value']:.2f}", f"{low:.2f} to {high:.2f}", "27.27", "100.00")
    assert f"| audio\\_to\\_image | Prec@3 | {' | '.join(numbers)} |" in render_table(summary, "md")
    assert rf"audio\_to\_image & Prec@3 & {' & '.join(numbers)} &" in render_table(summary, "tex")
    assert re.search(rf"Prec@3 +{' +'.join(numbers)} ", screen_table(summary))
    page = re.sub(r"<[^>]+>", "|", (folder / "report.html").read_text())
    assert f"|{'||'.join(numbers)}|" in page and "the gallery as given" in page

    rows = csv_rows(render_table(summary, "csv"))
    assert len(rows) == sum(map(len, summary["directions"].values()))
    for row in rows:
        found = summary["directions"][row["direction"]][row["metric"]]
        for name, value in (
            ("score", found["value"]), ("chance", found["chance"]), ("ceiling", found["ceiling"]),
            *zip(("low", "high"), found["interval"] or (), strict=False),
        ):  # fmt: skip
            assert float(row[name]) == pytest.approx(value, abs=1e-4), name
        assert (row["leak_checked"], row["num_leaked"]) == ("1", "0")
        assert (row["num_missing"], row["num_unreadable"]) == ("0", "1")


def test_a_leak_and_an_unknown_one_stand_in_every_table(tmp_path, setting, embeddings):
    known = find_leak(CLIP_IDS[:2], CLIP_IDS, purpose="test")
    unknown = find_leak(None, CLIP_IDS, purpose="test")
    for leak, count in ((known, "2"), (unknown, "")):
        changed = replace(setting, context=replace(setting.context, leak=leak.as_dict()))
        results = score(embeddings, changed)
        summary = write_retrieval(tmp_path, changed, embeddings, results, (0, preview_of))
        (first, *_) = csv_rows(render_table(summary, "csv"))
        assert (first["leak_checked"], first["num_leaked"]) == (str(int(leak.checked)), count)
        words = leak.message.split(",")[0]
        for form in TABLE_FILES:
            assert words in render_table(summary, form).replace("\\", "")


def test_the_table_has_every_query_of_every_direction(written):
    folder, _, results = written
    rows = list(csv.DictReader((folder / "per_query.csv").open()))
    assert len(rows) == 3 * COUNT
    for result, first in zip(results, range(0, 3 * COUNT, COUNT), strict=True):
        for query, row in enumerate(rows[first : first + COUNT]):
            assert (row["direction"], row["clip_id"]) == (result.name, CLIP_IDS[query])
            assert row["label"] == CLASSES[query]
            nearest = CLIP_IDS[result.others.indices[query, 0]]
            assert row["neighbour_1"] == nearest != row["clip_id"]
            same = CLASSES[CLIP_IDS.index(nearest)] == CLASSES[query]
            assert float(row["Acc@1"]) == float(same)
            assert float(row["score_1"]) >= float(row["score_2"])
            if result.own_ranks is None:
                assert row["own_rank"] == row["R@1"] == ""
            else:
                assert row["own_rank"] == str(result.own_ranks[query] or "")
                assert float(row["R@3"]) == float(result.own_ranks[query] > 0)


def test_the_report_shows_queries_with_their_neighbours_and_needs_no_network(written):
    folder, _, results = written
    page = (folder / "report.html").read_text()
    reader = PageReader(page)
    assert not re.search(r"url\(|@import|<script|<link|<iframe", page)
    pictures = reader.pictures
    assert len(pictures) == 3 * 3 * 2 * (1 + 3)  # directions, groups, queries, query and neighbours
    for picture in pictures:
        header, content = picture["src"].split(",")
        assert header == "data:image/jpeg;base64"
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
        clip_id = re.search(r"clip_\d+", picture["alt"])[0]
        assert abs(int(decoded.mean()) - 20 * CLIP_IDS.index(clip_id)) < 3
    assert "<b>cow" not in page and "&lt;b&gt;cow" in page
    words = " ".join(reader.texts)
    for expected in ("Sounds found by a sound: best queries", "Frames found by a sound", "✗ miss"):
        assert expected in words
    figures = re.findall(r'<figure class="candidate (\w*)"><img alt="[^"]*?of (clip_\d+)', page)
    marks, result = figures[:4], results[0]
    query = CLIP_IDS.index(marks[0][1])
    assert marks[0][0] == "query"
    quality = result.relevant[:, :3].mean(axis=1)
    assert quality[query] == quality.max()
    for place, (mark, clip_id) in enumerate(marks[1:]):
        assert clip_id == CLIP_IDS[result.others.indices[query, place]]
        assert mark == ("hit" if result.relevant[query, place] else "miss")


def test_best_median_and_worst_are_different_queries_in_that_order(written, embeddings, setting):
    folder, _, results = written
    page = (folder / "report.html").read_text()
    shown = re.findall(r'candidate query"><img alt="[^"]*?of (clip_\d+)', page)
    for result, first in zip(results, range(0, 18, 6), strict=True):
        queries = [CLIP_IDS.index(clip_id) for clip_id in shown[first : first + 6]]
        assert len(set(queries)) == 6
        quality = result.relevant[:, :3].mean(axis=1)
        best, middle, worst = (quality[queries[start : start + 2]] for start in (0, 2, 4))
        assert best.min() >= middle.max() >= middle.min() >= worst.max()
        assert worst.min() == quality.min()


def test_clips_that_stand_for_sounds_can_be_heard(written):
    folder, _, _ = written
    figures = (folder / "report.html").read_text().split("<figure ")[1:]
    for figure in figures:
        kind = re.search(r'alt="(?:query: )?(sound|frame) of', figure)[1]
        heard = re.search(r'<audio [^>]*src="data:audio/mpeg;base64,([^"]*)"', figure)
        assert bool(heard) == (kind == "sound")
        if heard:
            place = CLIP_IDS.index(re.search(r"clip_\d+", figure)[0])
            assert base64.b64decode(heard[1]) == f"sound {place}".encode()
    assert len({"<audio " in figure for figure in figures}) == 2


def test_without_labels_there_are_no_marks(tmp_path, setting, embeddings):
    setting = replace(setting, labels=None, directions=("audio_to_image",))
    results = score(embeddings, setting)
    summary = write_retrieval(tmp_path, setting, embeddings, results, (1, preview_of))
    assert summary["labels"] is None
    page = (tmp_path / "report.html").read_text()
    PageReader(page)
    assert "hit</strong>" not in page and "miss</strong>" not in page
    shown = re.findall(r'candidate query"><img alt="[^"]*?of (clip_\d+)', page)
    ranks = [results[0].own_ranks[CLIP_IDS.index(clip_id)] for clip_id in shown]
    assert ranks[0] == 1 and ranks[-1] == 0


def test_a_folder_of_other_results_is_refused(written, setting, labels):
    folder, _, _ = written
    setting.check(folder, CLIP_IDS)
    changes = {
        "ks": {"ks": (1, 2)},
        "directions": {"directions": ("audio_to_audio",)},
        "labels_sha256": {"labels": replace(labels, sha256="00" * 32)},
        "image_pooling": {"image_pooling": "mean"},
        "dataset": {"context": make_context("stamps")},
    }
    for name, change in changes.items():
        with pytest.raises(FileExistsError, match=rf"another {name}\)"):
            replace(setting, **change).check(folder, CLIP_IDS)
    (folder / "summary.json").write_text('{"benchmark": "vgg_ss"}')
    with pytest.raises(FileExistsError, match="another task"):
        setting.check(folder, CLIP_IDS)
    for nonsense in ("{", "[]"):
        (folder / "summary.json").write_text(nonsense)
        with pytest.raises(ValueError, match="not a summary of this program"):
            setting.check(folder, CLIP_IDS)


def test_what_could_not_be_scored_is_refused_before_the_work(tmp_path, setting):
    with pytest.raises(ValueError, match="1 of 13 clips have no class, first: other"):
        setting.check(tmp_path, [*CLIP_IDS, "other"])
    with pytest.raises(ValueError, match="--ks 3: of 3 clips"):
        setting.check(tmp_path, CLIP_IDS[:3])
    with pytest.raises(ValueError, match="by class only"):
        replace(setting, labels=None).check(tmp_path, CLIP_IDS)


# ------------------------------------------------------------------------------- the command line


@pytest.fixture
def retrieval(tiny_data, checkpoint, testing_program, tmp_path):
    """Runs the task; returns its exit status."""
    classes = tmp_path / "labels.csv"
    classes.write_text("".join(f"test_{index},{'abc'[index % 3]}\n" for index in range(6)))

    def run(*arguments, output="results", labels=classes):
        given = ["--checkpoint", checkpoint, "--dataset", "vgg_ss", "--data-root", tiny_data.root,
                 "--output", tmp_path / output, "--ks", "1,3", "--workers", 0, "--device", "cpu",
                 *(["--labels", labels] if labels else []), *arguments]  # fmt: skip
        return testing_program.main(["retrieval", *map(str, given)])

    return run


def test_the_whole_way_and_again_without_the_model(retrieval, tmp_path, capsys, monkeypatch):
    assert retrieval() == 0
    shown = capsys.readouterr().out
    assert "vgg_ss, 6 of 6 listed clips, 3 classes" in shown and "audio_to_audio" in shown
    folder = tmp_path / "results"
    names = {"embeddings.npz", "per_query.csv", "report.html", "summary.json"}
    names |= {f"table.{form}" for form in TABLE_FILES}
    assert {path.name for path in folder.iterdir()} == names
    assert "95 % interval" in shown and f"Report: {folder / 'report.html'}" in shown
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["directions"]["audio_to_image"]["R@3"]["chance"] == pytest.approx(50)
    assert summary["leak_check"]["num_clips"] == 0

    monkeypatch.setattr(SSLTIE, "embed_audio", None)  # must not be needed
    again = ["--embeddings", folder / "embeddings.npz"]
    assert retrieval(*again, output="again") == 0
    rows = (tmp_path / "again" / "per_query.csv").read_text()
    assert rows == (folder / "per_query.csv").read_text()
    arguments = ["--ks", "1", "--directions", "audio_to_image", "--gallery", "0"]
    assert retrieval(*again, *arguments, output="few", labels=None) == 0
    few = json.loads((tmp_path / "few" / "summary.json").read_text())
    assert list(few["directions"]) == ["audio_to_image"]
    assert few["directions"]["audio_to_image"].keys() == {"R@1"}
    assert few["directions"]["audio_to_image"]["R@1"]["value"] == pytest.approx(
        summary["directions"]["audio_to_image"]["R@1"]["value"]
    )


def test_a_table_is_printed_alone(retrieval, tmp_path, capsys):
    assert retrieval("--table", "csv") == 0
    folder = tmp_path / "results"
    assert capsys.readouterr().out == (folder / "table.csv").read_text()
    again = ["--embeddings", folder / "embeddings.npz", "--gallery", "0"]
    for form in ("md", "tex"):
        assert retrieval(*again, "--table", form) == 0
        assert capsys.readouterr().out == (folder / f"table.{form}").read_text()
    assert retrieval(*again, "--table", "json") == 0
    assert capsys.readouterr().out == (folder / "summary.json").read_text()


@pytest.mark.parametrize("pooling", ["mean", "positions"])
def test_other_poolings_and_batches(retrieval, tmp_path, pooling):
    assert retrieval("--image-pooling", pooling) == 0
    assert retrieval("--image-pooling", pooling, "--batch-size", 4, output="batches") == 0
    rows, others = (
        list(csv.DictReader((tmp_path / name / "per_query.csv").open())) for name in ("results", "batches")
    )
    for row, other in zip(rows, others, strict=True):
        assert float(row["score_1"]) == pytest.approx(float(other["score_1"]), abs=1e-5)


def test_a_clip_that_breaks_is_left_out_and_named_and_the_status_tells(retrieval, tiny_data, tmp_path):
    path = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    assert retrieval() == 2
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["num_clips"] == 5 and not summary["complete"]
    assert summary["unreadable"][0].startswith("test_3:")
    assert retrieval("--allow-missing", output="allowed") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ks", "0"], "--ks takes whole numbers"),
        (["--ks", "6"], "--ks 6: of 6 clips"),
        (["--directions", "image_to_image"], "--directions takes some of audio_to_audio"),
        (["--labels", "none.csv"], "No labels at none.csv"),
        (["--gallery", "-1"], "--gallery 0 or more, got 32, 0, -1"),
        (["--embeddings", "{folder}/labels.csv"], "not a whole file of embeddings"),
    ],
)
def test_bad_options_end_in_words(retrieval, tmp_path, caplog, arguments, words):
    assert retrieval(*(text.format(folder=tmp_path) for text in arguments)) == 2
    assert words in caplog.text
    assert not (tmp_path / "results").exists()


def test_sounds_alone_need_no_frame_embeddings(retrieval, tmp_path, monkeypatch):
    monkeypatch.setattr(SSLTIE, "embed_frames", None)
    # The attribute is there, so the model is taken for one that embeds, and must not be asked to.
    assert retrieval("--directions", "audio_to_audio") == 0
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["image_embedding"] == "not used"
