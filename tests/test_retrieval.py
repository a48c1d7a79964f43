"""Retrieval: exact neighbours against slow oracles, ties, chance, embeddings kept in a file."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_inputs import arrays
from sklearn.neighbors import NearestNeighbors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import utils.embeddings
from models.pooling import pool_positions
from models.similarity import similarity_maps
from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.sspl import SSPL, SSPLConfig
from utils.embeddings import (
    Embeddings,
    embed_clips,
    embeddings_identity,
    load_embeddings,
    merge_embeddings,
    save_embeddings,
)
from utils.retrieval import (
    DIRECTIONS,
    accuracy_at_k,
    chance_accuracy,
    evaluate_retrieval,
    find_directions,
    find_ks,
    nearest,
    precision_at_k,
    recall_at_k,
)

ROOT = Path(__file__).parents[1]
ALL = tuple(DIRECTIONS)
SMALL_BLOCK = 8 * 7 * 7
"""A block of at most 7 x 7 scores."""


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def unit_vectors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def with_ties(count, width=6, seed=0):
    """Unit vectors of few directions: most scores come several times."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randint(-1, 2, (count, width), generator=generator).float()
    few[:, 0] = 1.0
    return F.normalize(few, dim=-1)


def all_scores(queries, gallery):
    """Every score at once, in float64, of the vectors rounded as the search rounds them."""
    queries, gallery = ((v.double() * 2**26).round() / 2**26 for v in (queries, gallery))
    queries, gallery = (v if v.ndim == 3 else v[:, None] for v in (queries, gallery))
    scores = np.empty((len(queries), len(gallery)))
    for i, query in enumerate(queries.numpy()):
        for j, candidate in enumerate(gallery.numpy()):
            scores[i, j] = max(
                math.fsum(a * b for a, b in zip(one, other, strict=True))
                for one in query
                for other in candidate
            )
    return scores


def slow_nearest(queries, gallery, count):
    scores = all_scores(queries, gallery)
    order = [sorted(range(len(row)), key=lambda j, row=row: (-row[j], j)) for row in scores]
    indices = np.array(order)[:, :count]
    return indices, np.take_along_axis(scores, indices, axis=1)


# ------------------------------------------------------------------------------ the exact search


@pytest.mark.parametrize("block_bytes", [SMALL_BLOCK, 8 * 20 * 20, 1 << 27])
@pytest.mark.parametrize("make", [unit_vectors, with_ties])
def test_search_equals_a_full_sort_whatever_the_blocks(make, block_bytes):
    queries, gallery = make(23, 6, seed=1), make(41, 6, seed=2)
    for count in (1, 5, 40, 41):
        found = nearest(queries, gallery, count, block_bytes=block_bytes)
        indices, scores = slow_nearest(queries, gallery, count)
        np.testing.assert_array_equal(found.indices, indices)
        np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("positions", [(3, None), (None, 3), (2, 3)])
def test_the_best_position_counts(positions):
    shapes = [(17, 5) if p is None else (17, p, 5) for p in positions]
    queries, gallery = (unit_vectors(*shape, seed=i) for i, shape in enumerate(shapes))
    found = nearest(queries, gallery, 6, block_bytes=8 * 6 * 6 * 9)
    indices, scores = slow_nearest(queries, gallery, 6)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.scores, scores)


def test_search_equals_scikit_learn():
    embeddings = unit_vectors(300, 64, seed=3)
    found = nearest(embeddings, embeddings, 11, block_bytes=8 * 37 * 64).without_own()
    reference = NearestNeighbors(n_neighbors=11, metric="cosine", algorithm="brute")
    distances, indices = reference.fit(embeddings.double().numpy()).kneighbors()
    np.testing.assert_array_equal(found.indices, indices[:, :10])
    np.testing.assert_allclose(found.scores, 1 - distances[:, :10], atol=1e-7)


def test_a_collapsed_model_gives_the_first_of_the_gallery_in_order():
    embeddings = unit_vectors(1, 8).expand(50, 8)
    found = nearest(embeddings, embeddings, 12, block_bytes=8 * 9 * 9)
    assert (found.indices == np.arange(12)).all()
    assert found.num_tied(5) == 50
    others = found.without_own()
    assert others.indices[0].tolist() == list(range(1, 12))
    assert others.indices[3].tolist() == [0, 1, 2, *range(4, 12)]
    assert others.indices[40].tolist() == list(range(11))


def test_no_ties_are_reported_where_there_are_none_and_none_beyond_the_gallery():
    embeddings = unit_vectors(20, 16)
    found = nearest(embeddings, embeddings, 20)
    assert [found.num_tied(k) for k in (1, 19, 20)] == [0, 0, 0]
    doubled = torch.cat([embeddings[:10], embeddings[:10]])
    found = nearest(doubled, doubled, 20)
    assert [found.num_tied(k) for k in (1, 2, 19, 20)] == [20, 0, 20, 0]


class LargestTensor(TorchDispatchMode):
    """Notes the largest result of any operation, in bytes."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf._base is None:
                self.num_bytes = max(self.num_bytes, leaf.numel() * leaf.element_size())
        return result


@pytest.mark.parametrize("width", [16, 256])
@pytest.mark.parametrize("positions", [None, 3])
@pytest.mark.parametrize("make", [unit_vectors, with_ties])
def test_no_intermediate_array_is_larger_than_a_block(make, positions, width):
    queries = make(4800 // width + 300, width)
    gallery = queries if positions is None else queries[:300].view(100, positions, width)
    block_bytes = 1 << 15
    with LargestTensor() as largest:
        nearest(queries, gallery, 12, block_bytes=block_bytes)
    assert block_bytes / 2 < largest.num_bytes <= block_bytes


def test_vectors_that_cannot_be_compared_are_refused():
    good = unit_vectors(9, 4)
    for spoil in (float("nan"), float("inf"), 2.0):
        bad = good.clone()
        bad[7, 1] = spoil
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(ValueError, match="finite and of unit norm; that of row 7"):
                nearest(*pair, 3, block_bytes=8 * 4 * 4)
    with pytest.raises(ValueError, match="10 neighbours cannot be found among 9"):
        nearest(good, good, 10)


def test_golden_queues_of_the_authors_program():
    golden = arrays("retrieval")
    embeddings = F.normalize(torch.from_numpy(golden["emb"]), dim=-1)
    names = golden["names"].tolist()
    # Two equal vectors and a zero one: the authors' order among equals is chance.
    ambiguous = {names.index(f"clip_{number:03d}") for number in (3, 7, 11)}
    compared = 0
    for setting in ("q53_seed0", "q53_seed5", "q20_seed0", "q20_seed5", "q10_seed0", "q10_seed5"):
        for batch, queue in enumerate(golden[f"{setting}/queue_idx"]):
            rows = range(16 * batch, min(16 * batch + 16, len(names)))
            found = nearest(embeddings[rows.start : rows.stop], embeddings[queue], 1)
            for row, place in zip(rows, found.indices[:, 0], strict=True):
                expected = golden[f"{setting}/top1"][row]
                if not {row, int(expected), int(queue[place])} & ambiguous:
                    assert queue[place] == expected, (setting, row)
                    compared += 1
    assert compared > 250
    others = nearest(embeddings, embeddings, 2).without_own().indices[:, 0]
    for row, (mine, expected) in enumerate(zip(others, golden["full_noself_top1"], strict=True)):
        if not {row, int(mine), int(expected)} & ambiguous:
            assert mine == expected
    assert others[3] == 7 and others[7] == 3 and others[11] == 0


SCALE = """
import resource, sys, time
import torch
import torch.nn.functional as F
from utils.retrieval import BLOCK_BYTES, nearest
count, queries = int(sys.argv[1]), int(sys.argv[2])
gallery = F.normalize(torch.randn(count, 512, generator=torch.Generator().manual_seed(0)))
nearest(gallery[:2], gallery[:5000], 12)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start = time.monotonic()
found = nearest(gallery[:queries], gallery, 12)
seconds = time.monotonic() - start
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
assert (found.indices[:, 0] == range(queries)).all()
print(f"{queries} queries among {count}: {seconds:.1f} s, {grown / 2**20:.0f} MiB more")
assert grown < 6 * BLOCK_BYTES, grown
"""


@pytest.mark.slow
def test_100_000_clips_fit_into_the_stated_memory():
    """All scores together would be 75 GiB; the search of 8,192 of the queries takes its blocks."""
    finished = subprocess.run(
        [sys.executable, "-c", SCALE, "100000", "8192"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    sys.stdout.write(finished.stdout)


# ---------------------------------------------------------------------------------- the metrics


def test_metrics_by_hand():
    relevant = np.array([[True, False, True], [False, False, True], [False, False, False]])
    assert accuracy_at_k(relevant, 1).tolist() == [1, 0, 0]
    assert accuracy_at_k(relevant, 3).tolist() == [1, 1, 0]
    assert precision_at_k(relevant, 2).tolist() == [0.5, 0, 0]
    np.testing.assert_allclose(precision_at_k(relevant, 3), [2 / 3, 1 / 3, 0])
    indices = np.array([[2, 0, 1], [1, 0, 2], [0, 1, 2]])
    assert recall_at_k(indices, 1).tolist() == [0, 1, 0]
    assert recall_at_k(indices, 2).tolist() == [1, 1, 0]


def test_chance_is_the_mean_over_every_possible_draw():
    labels = list("aaabbc")
    for k in (1, 2, 4, 5):
        hits, shares = [], []
        for query, label in enumerate(labels):
            others = [j for j in range(len(labels)) if j != query]
            draws = [[labels[j] == label for j in draw] for draw in combinations(others, k)]
            hits.append(np.mean([any(draw) for draw in draws]))
            shares.append(np.mean([np.mean(draw) for draw in draws]))
        counts = np.array([labels.count(label) - 1 for label in labels])
        assert chance_accuracy(counts, len(labels) - 1, k) == pytest.approx(np.mean(hits))
        result = by_name(evaluate(labels, ks=(k,)), "audio_to_image")
        assert result[f"Acc@{k}"].chance == pytest.approx(np.mean(hits))
        assert result[f"Prec@{k}"].chance == pytest.approx(np.mean(shares))
        assert result[f"R@{k}"].chance == pytest.approx(k / 6)
        assert result[f"Acc@{k}"].ceiling == pytest.approx(5 / 6)
        best = [min(count, k) / k for count in counts]
        assert result[f"Prec@{k}"].ceiling == pytest.approx(np.mean(best))


def make_embeddings(count, seed=0, **changes):
    found = Embeddings(
        tuple(f"clip_{index}" for index in range(count)),
        unit_vectors(count, 8, seed=seed),
        unit_vectors(count, 8, seed=seed + 1),
    )
    return replace(found, **changes)


def evaluate(labels, ks=(1, 2), directions=ALL, **changes):
    return evaluate_retrieval(make_embeddings(len(labels), **changes), labels, directions, ks)


def by_name(results, direction):
    (found,) = [result for result in results if result.name == direction]
    return {metric.name: metric for metric in found.metrics}


def slow_metrics(queries, gallery, labels, k, *, cross_modal):
    """Acc@k, Prec@k, R@k and tied queries, clip by clip from all scores."""
    scores = all_scores(queries, gallery)
    rows = {"Acc": [], "Prec": [], "R": []}
    ties = {"Acc": 0, "R": 0}
    for query, row in enumerate(scores):
        ordered = sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))
        others = [j for j in ordered if j != query]
        same = [labels[j] == labels[query] for j in others[:k]]
        rows["Acc"].append(float(any(same)))
        rows["Prec"].append(sum(same) / k)
        rows["R"].append(float(query in ordered[:k]))
        ties["Acc"] += len(others) > k and row[others[k - 1]] == row[others[k]]
        ties["R"] += row[ordered[k - 1]] == row[ordered[k]]
    found = {f"{name}@{k}": (values, ties.get(name, ties["Acc"])) for name, values in rows.items()}
    return found if cross_modal else {n: v for n, v in found.items() if not n.startswith("R@")}


@pytest.mark.parametrize("make", [unit_vectors, with_ties])
def test_scores_equal_a_slow_loop_in_every_direction(make):
    labels = [str(label) for label in np.random.default_rng(0).integers(0, 5, 30)]
    parts = {"audio": make(30, 6, seed=1), "image": make(30, 6, seed=2)}
    parts["image"][::3] = parts["audio"][::3]  # some partners are found
    results = evaluate(labels, ks=(1, 5, 10), **parts)
    assert [result.name for result in results] == list(ALL)
    for name, (queries, gallery) in DIRECTIONS.items():
        mine = by_name(results, name)
        expected = {}
        for k in (1, 5, 10):
            expected |= slow_metrics(
                parts[queries], parts[gallery], labels, k, cross_modal=queries != gallery
            )
        assert mine.keys() == expected.keys()
        for metric, (values, num_tied) in expected.items():
            np.testing.assert_allclose(mine[metric].per_query, values, err_msg=metric)
            assert mine[metric].num_tied == num_tied
    tied = sum(metric.num_tied for result in results for metric in result.metrics)
    assert (tied > 0) == (make is with_ties)


def test_the_own_clip_counts_by_clip_and_never_by_class():
    audio = torch.eye(6, 8)
    results = evaluate(list("aabbcd"), ks=(1,), audio=audio, image=audio.clone())
    for name in ("audio_to_image", "image_to_audio"):
        metrics = by_name(results, name)
        assert metrics["R@1"].value == 1.0
        # All others score 0: by the order of the list the first clip wins, or the second for it.
        assert metrics["Acc@1"].per_query.tolist() == [1, 1, 0, 0, 0, 0]
        assert metrics["Acc@1"].num_tied == 6 and metrics["R@1"].num_tied == 0


def test_own_ranks_count_from_one_and_stop_at_the_largest_k():
    audio = unit_vectors(12, 8, seed=5)
    image = audio.roll(1, dims=0)
    (result,) = evaluate(list("ab" * 6), (1, 3), ["audio_to_image"], audio=audio, image=image)
    scores = all_scores(audio, image)
    ranks = [int((row > row[query]).sum()) + 1 for query, row in enumerate(scores)]
    assert result.own_ranks.tolist() == [rank if rank <= 3 else 0 for rank in ranks]
    assert 0 < sum(rank <= 3 for rank in ranks) < 12


def test_without_labels_only_the_partner_can_be_found():
    names = ["image_to_audio", "audio_to_image"]
    results = evaluate_retrieval(make_embeddings(9), None, names, (1, 8))
    assert [result.name for result in results] == names
    assert [m.name for m in results[0].metrics] == ["R@1", "R@8"]
    assert results[0].relevant is None
    with pytest.raises(ValueError, match=r"by class only.*--labels"):
        evaluate_retrieval(make_embeddings(9), None, ALL, (1,))
    with pytest.raises(ValueError, match=r"--ks 9: of 9 clips, each has 8 others"):
        evaluate_retrieval(make_embeddings(9), None, names, (1, 9))
    with pytest.raises(ValueError, match="of sounds only"):
        evaluate_retrieval(make_embeddings(9, image=None), None, names, (1,))


def test_names_and_numbers_of_the_command_line():
    assert find_directions("image_to_audio, audio_to_audio") == ("image_to_audio", "audio_to_audio")
    assert find_ks("10,1, 5") == (1, 5, 10)
    for words in ("", "audio_to_video", "audio_to_audio,audio_to_audio"):
        with pytest.raises(ValueError, match="audio_to_audio, audio_to_image, image_to_audio"):
            find_directions(words)
    for numbers in ("", "0", "1,1", "-1", "1.5", "1,a"):
        with pytest.raises(ValueError, match="whole numbers from 1 on"):
            find_ks(numbers)


# ------------------------------------------------------------------------------- the embeddings


def test_pooling_of_frames():
    features = torch.rand(3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    at_maximum, at_mean = pool_positions(features, "max"), pool_positions(features, "mean")
    for clip, found in enumerate(at_maximum):
        channels = torch.stack([channel.max() for channel in features[clip]])
        torch.testing.assert_close(found, channels / channels.norm())
    for clip, found in enumerate(at_mean):
        channels = torch.stack([channel.mean() for channel in features[clip]])
        torch.testing.assert_close(found, channels / channels.norm())
    sounds = unit_vectors(4, 5)
    positions = pool_positions(features, "positions")
    maps = similarity_maps(F.normalize(features, dim=1), sounds)
    highest = torch.einsum("vpd,ad->vap", positions, sounds).amax(dim=2)
    torch.testing.assert_close(highest, maps.amax(dim=(2, 3)))
    assert pool_positions(features.bfloat16(), "max").dtype == torch.float32
    with pytest.raises(ValueError, match="max, mean, positions, got 'sum'"):
        pool_positions(features, "sum")


def test_ssl_tie_s_embeddings_are_those_that_localise():
    torch.manual_seed(0)
    model = SSLTIE(SSLTIEConfig()).eval()
    frames, sounds = torch.randn(3, 3, 64, 64), torch.randn(3, 1, 64, 80) * 10 - 40
    with torch.inference_mode():
        audio = model.embed_audio(sounds)
        highest = torch.einsum("bpd,bd->bp", model.embed_frames(frames, "positions"), audio)
        expected = model.localise(frames, sounds).flatten(1)
        pooled = model.embed_frames(frames)
    torch.testing.assert_close(highest, expected)
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(3))


def test_sspl_s_embeddings_are_those_that_localise_and_the_pcm_s_frames_have_none():
    torch.manual_seed(0)
    frames, sounds = torch.randn(2, 3, 96, 96), torch.randn(2, 3, 1, 96, 64)
    model = SSPL(SSPLConfig(pcm=False)).eval()
    with torch.inference_mode():
        audio = model.embed_audio(sounds)
        found = torch.einsum("bpd,bd->bp", model.embed_frames(frames, "positions"), audio)
        torch.testing.assert_close(found, model.localise(frames, sounds).flatten(1))
    model.predictive_coding = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"no embedding of a frame alone.*--directions"):
        model.embed_frames(frames)


class FakeBatch:
    def __init__(self, *clip_ids, broken=()):
        self.clip_ids, self.broken = clip_ids, broken


class FakeModel:
    """Embeds numbers: a sound n as (cos n, sin n), a frame n as that of n + 1."""

    positions = 1

    def embed_audio(self, audio_input):
        return torch.stack([audio_input.cos(), audio_input.sin()], dim=1)

    def embed_frames(self, frames, pooling):
        found = self.embed_audio(frames + 1)
        return found if pooling == "max" else found[:, None].expand(-1, self.positions, -1)


class Broken:
    clip_id, reason = "c", "torn"


BATCHES = [FakeBatch("0", "1"), FakeBatch(broken=(Broken(),)), FakeBatch("5")]


def numbers_of(batch):
    numbers = torch.tensor([float(clip_id) for clip_id in batch.clip_ids])
    return numbers, numbers


def embed(model, batches=BATCHES, **options):
    options = {"num_clips": 4, "image_pooling": "max"} | options
    return embed_clips(model, batches, numbers_of, **options)


def test_embeddings_are_of_the_clips_that_could_be_read():
    found = embed(FakeModel())
    assert found.clip_ids == ("0", "1", "5")
    assert found.unreadable == (("c", "torn"),)
    torch.testing.assert_close(found.audio[:, 0], torch.tensor([0.0, 1.0, 5.0]).cos())
    torch.testing.assert_close(found.image[:, 0], torch.tensor([1.0, 2.0, 6.0]).cos())
    assert embed(FakeModel(), image_pooling="positions").image.shape == (3, 1, 2)
    sounds = embed(FakeModel(), image_pooling=None)
    assert sounds.image is None
    merged = merge_embeddings([found, found])
    assert merged.clip_ids == found.clip_ids * 2 and merged.unreadable == found.unreadable * 2
    assert torch.equal(merged.image, torch.cat([found.image, found.image]))
    assert merge_embeddings([sounds, sounds]).image is None


def test_what_cannot_be_embedded_is_refused_in_words(monkeypatch):
    with pytest.raises(ValueError, match=r"No clip could be embedded \(1 unreadable, first: torn"):
        embed(FakeModel(), BATCHES[1:2])
    with pytest.raises(ValueError, match="image embedding of clip nan is not finite"):
        broken = FakeModel()
        broken.embed_audio = lambda numbers: torch.ones(len(numbers), 2)
        broken.embed_frames = lambda frames, pooling: frames[:, None]
        embed(broken, [FakeBatch("1", "nan")])
    with pytest.raises(ValueError, match="object has no embeddings for retrieval"):
        embed(object())
    monkeypatch.setattr(utils.embeddings, "MAX_IMAGE_BYTES", 4 * 4 * 2 * 3)
    embed(FakeModel(), image_pooling="positions")
    FakeModel.positions = 4
    try:
        with pytest.raises(ValueError, match=r"4 clips would take .*--image-pooling max"):
            embed(FakeModel(), image_pooling="positions")
    finally:
        FakeModel.positions = 1


def test_embeddings_come_back_from_their_file_and_only_for_the_same_question(tmp_path):
    path = tmp_path / "results" / "embeddings.npz"
    identity = embeddings_identity("ab" * 32, ["0", "1", "c", "5"], "squash")
    assert load_embeddings(path, identity, "max") is None
    saved = embed(FakeModel())
    save_embeddings(path, saved, identity, "max")
    for pooling in ("max", None):
        loaded = load_embeddings(path, identity, pooling)
        assert (loaded.clip_ids, loaded.unreadable) == (saved.clip_ids, saved.unreadable)
        assert torch.equal(loaded.audio, saved.audio) and torch.equal(loaded.image, saved.image)
    others = {
        "checkpoint": embeddings_identity("cd" * 32, ["0", "1", "c", "5"], "squash"),
        "clips": embeddings_identity("ab" * 32, ["1", "0", "c", "5"], "squash"),
        "frame geometry": embeddings_identity("ab" * 32, ["0", "1", "c", "5"], "centre_crop"),
    }
    for name, other in others.items():
        with pytest.raises(FileExistsError, match=rf"another {name}\)"):
            load_embeddings(path, other, "max")
    with pytest.raises(FileExistsError, match=r"another image pooling\)"):
        load_embeddings(path, identity, "mean")
    save_embeddings(path, embed(FakeModel(), image_pooling=None), identity, None)
    assert load_embeddings(path, identity, None).image is None
    assert load_embeddings(path, identity, "max") is None
    for content in (path.read_bytes()[:-40], b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole file of embeddings"):
            load_embeddings(path, identity, None)
