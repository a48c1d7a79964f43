"""Retrieval: exact neighbours and scores against slow loops, embeddings kept in a file, the command line."""

import json
import math
from itertools import combinations, permutations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from command_line import scoring
from golden_inputs import arrays
from pandas.testing import assert_frame_equal
from result_inputs import make_context
from sklearn.metrics import average_precision_score

import utils.evaluation.retrieval
from models.encoders import pool_positions
from models.released import build_localiser
from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.sspl import SSPL, SSPLConfig
from utils.evaluation.retrieval import (
    DIRECTIONS,
    Embeddings,
    chance_accuracy,
    chance_average_precision,
    embed_clips,
    evaluate_retrieval,
    fixed_point,
    load_embeddings,
    rank_gallery,
    save_embeddings,
)
from utils.reports.report import Card, render_page, write_report
from utils.reports.retrieval import retrieval_report

ALL = tuple(DIRECTIONS)


def unit_vectors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return fixed_point(F.normalize(torch.randn(*shape, generator=generator), dim=-1))


def with_ties(count, width=6, seed=0):
    """Unit vectors of few directions: most scores come several times."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randint(-1, 2, (count, width), generator=generator).float()
    few[:, 0] = 1.0
    return fixed_point(F.normalize(few, dim=-1))


def all_scores(queries, gallery):
    """Every score at once, in float64."""
    queries, gallery = (v.double() if v.ndim == 3 else v.double()[:, None] for v in (queries, gallery))
    scores = np.empty((len(queries), len(gallery)))
    for i, query in enumerate(queries.numpy()):
        for j, candidate in enumerate(gallery.numpy()):
            pairs = (zip(one, other, strict=True) for one in query for other in candidate)
            scores[i, j] = max(math.fsum(a * b for a, b in pair) for pair in pairs)
    return scores


def ranked(queries, gallery):
    """Order and scores of the whole gallery for each query, from all blocks."""
    firsts, scores, orders = zip(*rank_gallery(queries, gallery), strict=True)
    limit = max(8 * len(gallery), utils.evaluation.retrieval.BLOCK_BYTES)  # of one query, if not of more
    assert max(block.nbytes for block in scores) <= limit
    assert list(firsts) == np.cumsum([0, *map(len, orders)])[:-1].tolist()
    order = np.concatenate(orders)
    return order, np.take_along_axis(np.concatenate(scores), order, axis=1)


@pytest.mark.parametrize("block_bytes", [8 * 7 * 7, 8 * 20 * 20, 1 << 27])
@pytest.mark.parametrize("make", [unit_vectors, with_ties])
@pytest.mark.parametrize("positions", [(None, None), (3, None), (None, 3), (2, 3)])
def test_the_order_is_that_of_a_full_sort_whatever_the_blocks(positions, make, block_bytes, monkeypatch):
    monkeypatch.setattr(utils.evaluation.retrieval, "BLOCK_BYTES", block_bytes)
    counts = [(13, 6) if p is None else (13 * p, 6) for p in positions]
    queries, gallery = (make(*shape, seed=seed) for seed, shape in enumerate(counts))
    queries, gallery = (
        v if p is None else v.view(13, p, 6) for v, p in zip((queries, gallery), positions, strict=True)
    )
    order, cosines = ranked(queries, gallery)
    scores = all_scores(queries, gallery)
    expected = [sorted(range(13), key=lambda j, row=row: (-row[j], j)) for row in scores]
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(cosines, np.take_along_axis(scores, order, axis=1))
    first = np.concatenate([some for *_, some in rank_gallery(queries, gallery, most=5)])
    np.testing.assert_array_equal(first, order[:, :5])


def test_golden_queues_of_the_authors_program():
    golden = arrays("retrieval")
    embeddings = fixed_point(F.normalize(torch.from_numpy(golden["emb"]), dim=-1))
    names = golden["names"].tolist()
    # Two equal vectors and a zero one: the authors' order among equals is chance.
    ambiguous = {names.index(f"clip_{number:03d}") for number in (3, 7, 11)}
    compared = 0
    for setting in ("q53_seed0", "q53_seed5", "q20_seed0", "q20_seed5", "q10_seed0", "q10_seed5"):
        for batch, queue in enumerate(golden[f"{setting}/queue_idx"]):
            rows = range(16 * batch, min(16 * batch + 16, len(names)))
            order, _ = ranked(embeddings[rows.start : rows.stop], embeddings[queue])
            for row, mine in zip(rows, queue[order[:, 0]].tolist(), strict=True):
                expected = int(golden[f"{setting}/top1"][row])
                if not {row, expected, mine} & ambiguous:
                    assert mine == expected, (setting, row)
                    compared += 1
    assert compared > 250
    for row, (first, second) in enumerate(ranked(embeddings, embeddings)[0][:, :2].tolist()):
        mine, expected = second if first == row else first, int(golden["full_noself_top1"][row])
        assert mine == expected or {row, mine, expected} & ambiguous


def make_embeddings(count, seed=0, width=8, make=unit_vectors, **changes):
    parts = {"audio": make(count, width, seed=seed), "image": make(count, width, seed=seed + 1)} | changes
    return Embeddings(tuple(f"clip_{index}" for index in range(count)), **parts)


def evaluate(labels, ks=(1, 2), directions=ALL, **changes):
    return evaluate_retrieval(make_embeddings(len(labels), **changes), labels, directions, ks)


def by_name(scores, direction):
    return scores[scores["direction"] == direction].set_index("metric")


def slow_metrics(queries, gallery, labels, k, *, cross_modal):
    """Acc@k, Prec@k, mAP, R@k and tied queries, clip by clip from all scores."""
    scores = all_scores(queries, gallery)
    rows = {name: [] for name in (f"Acc@{k}", f"Prec@{k}", "mAP", f"R@{k}")}
    ties = dict.fromkeys(rows, 0)
    for query, row in enumerate(scores):
        ordered = sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))
        others = [j for j in ordered if j != query]
        same = [labels[j] == labels[query] for j in others]
        rows[f"Acc@{k}"].append(float(any(same[:k])))
        rows[f"Prec@{k}"].append(sum(same[:k]) / k)
        # Precision where each of its class is found, among all that score as much or more.
        precisions = []
        for place, j in enumerate(others):
            if same[place]:
                above = [labels[i] == labels[query] for i in others if row[i] >= row[j]]
                precisions.append(np.mean(above))
        rows["mAP"].append(np.mean(precisions) if precisions else 0.0)
        rows[f"R@{k}"].append(float(query in ordered[:k]))
        ties[f"Acc@{k}"] += len(others) > k and row[others[k - 1]] == row[others[k]]
        ties[f"R@{k}"] += row[ordered[k - 1]] == row[ordered[k]]
    ties[f"Prec@{k}"] = ties[f"Acc@{k}"]
    found = {name: (values, ties[name]) for name, values in rows.items()}
    return found if cross_modal else {n: v for n, v in found.items() if not n.startswith("R@")}


@pytest.mark.parametrize("make", [unit_vectors, with_ties])
def test_scores_equal_a_slow_loop_in_every_direction(make, monkeypatch):
    monkeypatch.setattr(utils.evaluation.retrieval, "BLOCK_BYTES", 8 * 31 * 4)  # four queries at once
    labels = [str(label) for label in np.random.default_rng(0).integers(0, 5, 30)] + ["alone"]
    parts = {"audio": make(31, 6, seed=1), "image": make(31, 6, seed=2)}
    parts["image"][::3] = parts["audio"][::3]  # some partners are found
    queries, scores = evaluate(labels, ks=(1, 5, 10), **parts)
    assert list(dict.fromkeys(scores["direction"])) == list(ALL)
    for name, (one, other) in DIRECTIONS.items():
        rows, mine = queries[queries["direction"] == name], by_name(scores, name)
        expected = {}
        for k in (1, 5, 10):
            expected |= slow_metrics(parts[one], parts[other], labels, k, cross_modal=one != other)
        assert set(mine.index) == set(expected)
        for metric, (values, num_tied) in expected.items():
            np.testing.assert_allclose(rows[metric], values, err_msg=metric)
            assert mine.loc[metric, "score"] == pytest.approx(100 * np.mean(values))
            assert mine.loc[metric, "ties"] == num_tied
        partners, num_others = [labels.count(label) - 1 for label in labels], len(labels) - 1
        shares = [30 / 31, np.mean([min(count, 5) / 5 for count in partners]), 30 / 31]
        assert (mine.loc[["Acc@5", "Prec@5", "mAP"], "ceiling"] / 100).tolist() == pytest.approx(shares)
        assert mine.loc["Prec@5", "chance"] == pytest.approx(100 * np.mean(partners) / num_others)
        for k in (1, 5, 10) if one != other else ():
            assert mine.loc[f"R@{k}", "chance"] == pytest.approx(100 * k / 31)
            np.testing.assert_array_equal(rows["own_rank"].le(k).fillna(value=False), rows[f"R@{k}"] == 1)
    assert (scores["ties"].sum() > 0) == (make is with_ties)


def test_chance_is_the_mean_over_every_possible_draw():
    labels = list("aaabbc")
    counts = np.array([labels.count(label) - 1 for label in labels])
    for k in (1, 2, 4, 5):
        hits = []
        for query, label in enumerate(labels):
            others = [j for j in range(len(labels)) if j != query]
            draws = [[labels[j] == label for j in draw] for draw in combinations(others, k)]
            hits.append(np.mean([any(draw) for draw in draws]))
        assert chance_accuracy(counts, len(labels) - 1, k) == pytest.approx(np.mean(hits))
    precisions = []
    for count in counts:
        relevant = [True] * count + [False] * (5 - count)
        orders = [order for order in permutations(relevant) if count]
        found = [average_precision_score(order, range(5, 0, -1)) for order in orders]
        precisions.append(np.mean(found) if found else 0)
    assert chance_average_precision(counts, 5) == pytest.approx(np.mean(precisions))
    assert chance_average_precision(np.array([1, 1]), 1) == 1


def test_without_labels_only_the_partner_can_be_found():
    names = ["image_to_audio", "audio_to_image"]
    for make in (unit_vectors, with_ties):
        embeddings = make_embeddings(30, make=make)
        queries, scores = evaluate_retrieval(embeddings, None, names, (1, 8))
        assert scores["metric"].tolist() == ["R@1", "R@8"] * 2
        assert set(queries["label"]) == {""}
        # The same as where all are sorted, for classes.
        labelled = evaluate_retrieval(embeddings, ["x"] * 30, names, (1, 8))
        assert_frame_equal(queries.drop(columns="label"), labelled[0][queries.columns].drop(columns="label"))
        rows = labelled[1]["metric"].isin(scores["metric"])
        assert_frame_equal(scores, labelled[1][rows].reset_index(drop=True))


def test_pooling_of_frames():
    features = torch.rand(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    for name, pool in (("max", torch.amax), ("mean", torch.mean)):
        expected = F.normalize(pool(features, (2, 3)), dim=1)
        torch.testing.assert_close(pool_positions(features, name), expected)
    assert pool_positions(features.bfloat16(), "max").dtype == torch.float32


@pytest.mark.parametrize("name", ["ssl_tie", "sspl", "lvs", "slavc"])
@torch.inference_mode()
def test_embeddings_are_those_that_localise_and_the_pcm_s_frames_have_none(name):
    torch.manual_seed(0)
    frames = torch.randn(2, 3, 96, 96)
    if name == "ssl_tie":
        model, sounds = SSLTIE(SSLTIEConfig()).eval(), torch.randn(2, 1, 64, 80) * 10 - 40
    elif name == "sspl":
        model, sounds = SSPL(SSPLConfig(pcm=False)).eval(), torch.randn(2, 3, 1, 96, 64)
    else:
        model, sounds = build_localiser(name, {}).eval(), torch.randn(2, 1, 257, 40)
    audio = model.embed_audio(sounds)
    found = torch.einsum("bpd,bd->bp", model.embed_frames(frames, "positions"), audio)
    torch.testing.assert_close(found, model.localise(frames, sounds).flatten(1))
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model.embed_frames(frames, "max").norm(dim=1), torch.ones(2))
    if name == "sspl":
        model.predictive_coding = torch.nn.Identity()
        with pytest.raises(ValueError, match=r"no embedding of a frame alone.*--directions"):
            model.embed_frames(frames)


def batch_of(*clip_ids, broken=()):
    numbers = torch.tensor([float(clip_id) for clip_id in clip_ids])
    return SimpleNamespace(clip_ids=clip_ids, broken=broken, frames=numbers, waveforms=numbers)


class FakeModel:
    """Embeds numbers: a sound n as (cos n, sin n), a frame n as that of n + 1."""

    positions = 1

    def prepare(self, frames, waveforms):
        return frames, waveforms

    def embed_audio(self, sounds):
        return torch.stack([sounds.cos(), sounds.sin()], dim=1)

    def embed_frames(self, frames, pooling):
        found = self.embed_audio(frames + 1)
        return found if pooling == "max" else found[:, None].expand(-1, self.positions, -1)


TORN = SimpleNamespace(clip_id="c", reason="torn")
BATCHES = [batch_of("0", "1"), batch_of(broken=(TORN,)), batch_of("5")]


def embed(model, batches=BATCHES, **options):
    options = {"num_clips": 4, "image_pooling": "max"} | options
    return embed_clips(model, batches, **options)


def test_embeddings_are_of_the_clips_that_could_be_read():
    found = embed(FakeModel())
    assert found.clip_ids == ("0", "1", "5")
    assert found.unreadable == (("c", "torn"),)
    torch.testing.assert_close(found.audio[:, 0], torch.tensor([0.0, 1.0, 5.0]).cos())
    torch.testing.assert_close(found.image[:, 0], torch.tensor([1.0, 2.0, 6.0]).cos())
    assert embed(FakeModel(), image_pooling="positions").image.shape == (3, 1, 2)
    assert embed(FakeModel(), image_pooling=None).image is None


def test_what_cannot_be_embedded_is_refused_in_words(monkeypatch):
    with pytest.raises(ValueError, match=r"No clip could be embedded \(1 unreadable, first: torn"):
        embed(FakeModel(), BATCHES[1:2])
    with pytest.raises(ValueError, match="audio embedding of clips 1, nan is not finite"):
        embed(FakeModel(), [batch_of("1", "nan")])
    with pytest.raises(ValueError, match="object has no embeddings for retrieval"):
        embed(object())
    monkeypatch.setattr(utils.evaluation.retrieval, "MAX_BYTES", 4 * 4 * 2 * 3)
    embed(FakeModel(), image_pooling="positions")
    monkeypatch.setattr(FakeModel, "positions", 4)
    with pytest.raises(ValueError, match=r"4 clips would take .*--image-pooling max"):
        embed(FakeModel(), image_pooling="positions")


def test_embeddings_come_back_from_their_file_and_only_for_the_same_question(tmp_path):
    path = tmp_path / "results" / "embeddings.npz"
    identity = {"checkpoint": "ab", "clips": "cd", "frame geometry": "squash", "image pooling": "max"}
    without = {**identity, "image pooling": None}
    assert load_embeddings(path, identity) is None
    saved = embed(FakeModel())
    save_embeddings(path, saved, identity)
    for wanted in (identity, without):
        loaded = load_embeddings(path, wanted)
        assert (loaded.clip_ids, loaded.unreadable) == (saved.clip_ids, saved.unreadable)
        assert torch.equal(loaded.audio, saved.audio) and torch.equal(loaded.image, saved.image)
    for name in identity:
        with pytest.raises(FileExistsError, match=rf"another {name}\)"):
            load_embeddings(path, {**identity, name: "other"})
    save_embeddings(path, embed(FakeModel(), image_pooling=None), without)
    assert load_embeddings(path, without).image is None
    assert load_embeddings(path, identity) is None
    for content in (path.read_bytes()[:-40], b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole file of embeddings"):
            load_embeddings(path, without)


COUNT = 12
CLIP_IDS = tuple(f"clip_{index}" for index in range(COUNT))
CLASSES = ["dog", "cat", "<b>cow</b>"] * (COUNT // 3)


def make_report(classes=CLASSES, directions=ALL, num_shown=2, **changes):
    labels = None if classes is None else {"path": "l.csv", "sha256": "ef" * 32}
    context = make_context(labels=labels, num_listed=COUNT + 1, **changes)
    identity = {"task": "retrieval", "directions": list(directions), "ks": [1, 3], "image_pooling": "max"}
    queries, scores = evaluate_retrieval(make_embeddings(COUNT, width=5), classes, directions, (1, 3))

    def card_of(clip_id):
        return Card(clip_id, "", [clip_id.encode()], b"sound")

    torn = [("clip_x", "torn")]
    report = retrieval_report(
        queries, scores, context, identity, unreadable=torn, num_shown=num_shown, card_of=card_of
    )
    return queries, report


def test_the_files_hold_the_scores(tmp_path):
    queries, report = make_report()
    write_report(tmp_path, report)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["num_clips"], summary["complete"], summary["labels"]["num_classes"]) == (COUNT, False, 3)
    assert any("torn" in warning for warning in summary["warnings"])
    lines = pd.read_csv(tmp_path / "table.csv")
    assert len(lines) == sum(map(len, summary["directions"].values()))
    for line in lines.to_dict("records"):
        found = summary["directions"][line["direction"]][line["metric"]]
        values = queries[queries["direction"] == line["direction"]][line["metric"]]
        assert line["score"] == pytest.approx(found["value"], abs=1e-4)
        assert found["value"] == pytest.approx(100 * values.mean())
        assert [line["score_low"], line["score_high"]] == pytest.approx(found["interval"], abs=1e-4)
    rows = pd.read_csv(tmp_path / "per_query.csv")
    assert len(rows) == 3 * COUNT and (rows["neighbour_1"] != rows["clip_id"]).all()
    class_of = rows["neighbour_1"].map(dict(zip(CLIP_IDS, CLASSES, strict=True)))
    assert (rows["Acc@1"] == (class_of == rows["label"])).all()
    assert (rows["own_rank"].notna() == (rows["R@3"] == 1)).all()
    assert rows["R@1"].notna().equals(rows["direction"] != "audio_to_audio")


def test_the_page_shows_queries_with_their_neighbours():
    queries, report = make_report()
    page = render_page(report)
    assert "<b>cow" not in page and "&lt;b&gt;cow" in page
    assert "Sounds found by a sound: best clips" in page and "✗ miss" in page
    galleries = report.sections[-1].items
    assert len(galleries) == page.count('class="panel query-row"') == 3 * 3 * 2  # directions, groups, queries
    for place, gallery in enumerate(galleries):
        direction = ALL[place // 6]
        table = queries[queries["direction"] == direction].set_index("clip_id")
        query, *neighbours = gallery.cards
        expected = table.loc[query.clip_id]
        assert query.style == "query" and len(neighbours) == 3
        for rank, card in enumerate(neighbours, start=1):
            assert card.clip_id == expected[f"neighbour_{rank}"]
            assert card.style == ("hit" if table.loc[card.clip_id, "label"] == expected["label"] else "miss")
            assert f"cosine {expected[f'score_{rank}']:.3f}" in card.score
        # Clips that stand for sounds can be heard.
        kinds = [direction.split("_to_")[min(place, 1)] for place in range(4)]
        assert [card.sound is not None for card in gallery.cards] == [kind == "audio" for kind in kinds]
        assert all(card.pictures == [card.clip_id.encode()] for card in gallery.cards)


def test_a_matrix_of_directions_and_metrics_comes_first():
    _, report = make_report()
    count = f"{COUNT} of {COUNT + 1} clips"
    assert report.title == f"SSL-TIE runs, 80 epochs, on vgg_ss: ssl_tie_vgg_ss_4911, {count}"
    (matrix,) = report.sections[0].items
    rows = matrix.scores.set_index("name")
    titles = ["Sounds found by a sound", "Frames found by a sound", "Sounds found by a frame"]
    assert rows.index.tolist() == [*titles, "Chance", "Ceiling"]
    assert list(matrix.headings) == ["Acc@1", "Acc@3", "Prec@3", "mAP", "R@1", "R@3"]
    for title, metrics in zip(titles, report.summary["directions"].values(), strict=True):
        for name in metrics.keys() - {"Prec@1"}:
            found = metrics[name]
            assert rows.loc[title, name] == found["value"]
            assert rows.loc[["Chance", "Ceiling"], name].tolist() == [found["chance"], found["ceiling"]]
    assert np.isnan(rows.loc["Sounds found by a sound", "R@1"])


def test_without_labels_there_are_no_marks():
    queries, report = make_report(None, ("audio_to_image",), num_shown=1)
    page = render_page(report)
    assert "hit, " not in page and "miss, " not in page
    shown = [gallery.cards[0].clip_id for gallery in report.sections[-1].items]
    ranks = queries.set_index("clip_id").loc[shown, "own_rank"].fillna(0).tolist()
    assert ranks[0] == queries["own_rank"].min() and ranks[-1] == 0


@pytest.fixture
def retrieval(tiny_data, checkpoint, testing_program, tmp_path):
    """Runs the task; returns its exit status."""
    classes = tmp_path / "labels.csv"
    classes.write_text("".join(f"test_{index},{'abc'[index % 3]}\n" for index in range(6)))

    def run(*arguments, output="results", labels=classes):
        words = ("--ks", "1,3", *(["--labels", labels] if labels else []), *arguments)
        given = scoring(tiny_data, checkpoint, tmp_path / output, *words, task="retrieval")
        return testing_program.main(given)

    return run


def test_the_whole_way_and_again_without_the_model(retrieval, tmp_path, capsys, monkeypatch, caplog):
    assert retrieval() == 0
    shown = capsys.readouterr().out
    assert "on vgg_ss: every clip found, 6 clips, 3 classes" in shown and "audio_to_audio" in shown
    folder = tmp_path / "results"
    names = {"embeddings.npz", "per_query.csv", "report.html", "summary.json"}
    assert {path.name for path in folder.iterdir()} == names | {"table.md", "table.tex", "table.csv"}
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
    capsys.readouterr()
    assert retrieval(*again, *arguments, "--table", "csv", output="few", labels=None) == 0
    assert capsys.readouterr().out == (tmp_path / "few" / "table.csv").read_text()
    few = json.loads((tmp_path / "few" / "summary.json").read_text())["directions"]
    assert list(few) == ["audio_to_image"] and list(few["audio_to_image"]) == ["R@1"]
    assert few["audio_to_image"]["R@1"]["value"] == summary["directions"]["audio_to_image"]["R@1"]["value"]
    sounds = ["--directions", "audio_to_audio", "--gallery", 0, "--embeddings", folder / "embeddings.npz"]
    assert retrieval(*sounds, output="sounds") == 0
    assert json.loads((tmp_path / "sounds" / "summary.json").read_text())["image_embedding"] == "not used"
    assert retrieval("--ks", "1", "--gallery", "0") == 2
    assert "another evaluation (another ks)" in caplog.text
    assert retrieval(output="unlabelled", labels=None) == 2
    assert "by class only: name the classes with --labels" in caplog.text


def test_a_mended_clip_is_embedded_and_other_data_are_refused(retrieval, tiny_data, tmp_path, caplog):
    path = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    assert retrieval("--gallery", 0) == 2
    assert retrieval("--gallery", 0, "--ks", "1,5", output="five") == 2
    assert "--ks 5: of 5 clips" in caplog.text
    path.write_bytes(whole)
    assert retrieval("--gallery", 0) == 0
    assert json.loads((tmp_path / "results" / "summary.json").read_text())["num_clips"] == 6
    assert retrieval("--gallery", 0, "--data-root", tiny_data.root / "VGGSound_test") == 2
    assert "another data root" in caplog.text


def test_positions_and_other_batches(retrieval, tmp_path):
    options = ("--image-pooling", "positions", "--gallery", 0)
    assert retrieval(*options) == 0
    assert retrieval(*options, "--batch-size", 4, output="batches") == 0
    one, many = (pd.read_csv(tmp_path / name / "per_query.csv")["score_1"] for name in ("results", "batches"))
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ks", "0"], "--ks takes whole numbers"),
        (["--ks", "6"], "--ks 6: of 6 clips"),
        (["--directions", "image_to_image"], "--directions takes some of audio_to_audio"),
        (["--labels", "none.csv"], "No labels at none.csv"),
        (["--gallery", "-1"], "--gallery must be at least 0, got -1"),
        (["--embeddings", "{folder}/labels.csv"], "not a whole file of embeddings"),
        (["--labels", "{folder}/few.csv"], "5 of 6 clips have no class, first: test_1"),
    ],
)
def test_bad_options_end_in_words(retrieval, tmp_path, caplog, arguments, words):
    (tmp_path / "few.csv").write_text("test_0,a\n")
    assert retrieval(*(text.format(folder=tmp_path) for text in arguments)) == 2
    assert words in caplog.text
    assert not (tmp_path / "results").exists()
