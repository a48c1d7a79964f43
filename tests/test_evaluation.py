"""The evaluation: the authors' scores on their maps, and every clip exactly once."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from golden_inputs import arrays, records

from datasets.annotations import consensus_map, read_flickr_xml, read_vgg_ss_xml
from datasets.clips import Batch, BrokenClip
from utils.evaluation.baselines import centre_disc, centre_gaussian, centre_square, oracle_cious
from utils.evaluation.localisation import evaluate_baselines, evaluate_localisation
from utils.evaluation.metrics import TruthMaps, consensus_iou, pointing_hits
from utils.evaluation.protocols import PROTOCOLS, normalise, predict, upsample
from utils.scores import ClipScore, ClipTruth, Scores

MEDIAN = PROTOCOLS["ssl_tie"]
FORMATS = {"vggss": (read_vgg_ss_xml, 1), "flickr": (read_flickr_xml, 2)}
WRAPPED = {"vggss": {"smooth_21", "smooth_23"}, "flickr": {"smooth_23"}}
"""Boxes with negative coordinates: the authors' slices wrap round, ours are cut to the frame."""


@dataclass(frozen=True)
class Replay:
    """Gives each clip the map with the number that stands in its frame."""

    similarity_maps: torch.Tensor

    def localise(self, frames, log_mel_spectrogram):
        assert torch.is_inference_mode_enabled()
        assert len(frames) == len(log_mel_spectrogram)
        return self.similarity_maps[frames[:, 0, 0, 0]]


def look(batch):
    """The views of a replayed batch."""
    return batch.frames, batch.waveforms


def make_batch(numbers, truths, clip_ids, broken=()):
    numbers = torch.as_tensor(list(numbers), dtype=torch.long)
    return Batch(
        clip_ids=tuple(clip_ids),
        frames=numbers[:, None, None, None].expand(-1, 3, 2, 2),
        waveforms=torch.zeros(len(numbers), 4),
        bounding_boxes=(np.array([[0.2, 0.2, 0.6, 0.6]]),) * len(numbers),
        ground_truth_maps=truths,
        crop_seeds=(0,) * len(numbers),
        broken=tuple(broken),
        pair_keys=(None,) * len(numbers),
    )


def batches_of(truths, clip_ids, batch_size):
    for start in range(0, len(truths), batch_size):
        part = slice(start, start + batch_size)
        yield make_batch(range(start, start + len(truths[part])), truths[part], clip_ids[part])


def evaluate(batches, similarity_maps, *protocols, on_batch=None):
    return evaluate_localisation(
        Replay(torch.as_tensor(similarity_maps)), batches, look, protocols or [MEDIAN], on_batch
    )


# ------------------------------------------------------------------------------ golden data sets


def golden_bits(name):
    return np.unpackbits(arrays("evaluation")[name], axis=1).reshape(-1, 224, 224)


@pytest.fixture(scope="module")
def golden_truths(tmp_path_factory):
    """Ground truth of the 60 clips from their XML; the authors' own where their slices wrap."""
    folder = tmp_path_factory.mktemp("anno")
    names = arrays("evaluation")["names"].tolist()
    truths = {}
    for benchmark, (read, annotators_needed) in FORMATS.items():
        full = golden_bits(f"{benchmark}/gt_x2")
        authors = full + 0.5 * (golden_bits(f"{benchmark}/gt_any") - full)
        truths[benchmark] = authors.astype(np.float32)
        for index, name in enumerate(names):
            path = folder / f"{benchmark}_{name}.xml"
            path.write_text(records("evaluation")["xml"][benchmark][name])
            ours = consensus_map(read(path), annotators_needed=annotators_needed)
            if name in WRAPPED[benchmark]:
                assert (ours != authors[index]).any()
            else:
                truths[benchmark][index] = ours
    return truths


@pytest.fixture(scope="module")
def golden_results(golden_truths):
    names = arrays("evaluation")["names"].tolist()
    heat = arrays("evaluation")["heat"]
    return {
        benchmark: evaluate(batches_of(truths, names, 7), heat) for benchmark, truths in golden_truths.items()
    }


@pytest.mark.parametrize("benchmark", FORMATS)
def test_each_clip_scores_as_in_the_authors_program(golden_results, benchmark):
    golden = arrays("evaluation")
    result = golden_results[benchmark]
    assert [clip.clip_id for clip in result.model.clips] == golden["names"].tolist()
    np.testing.assert_allclose(
        result.model.cious, golden[f"{benchmark}/ciou"], rtol=0, atol=1e-12, equal_nan=True
    )


@pytest.mark.parametrize(("benchmark", "ciou", "auc"), [("vggss", 25.0, 32.125), ("flickr", 10.0, 30.375)])
def test_data_set_scores_as_in_the_authors_program(golden_results, benchmark, ciou, auc):
    summary = golden_results[benchmark].model.summary()
    assert summary["ciou_at_0.5"] == pytest.approx(ciou, abs=1e-7)
    assert summary["auc"] == pytest.approx(auc, abs=1e-7)
    assert summary["name"] == summary["kind"] == "model"


@pytest.mark.parametrize("benchmark", FORMATS)
def test_pointing_of_each_clip(golden_results, golden_truths, benchmark):
    maps = upsample(torch.from_numpy(arrays("evaluation")["heat"]), MEDIAN).numpy()
    expected = [
        bool(truth.ravel()[np.argmax(similarity)] > 0 and not np.isnan(similarity).any())
        for similarity, truth in zip(maps, golden_truths[benchmark], strict=True)
    ]
    found = [clip.pointing for clip in golden_results[benchmark].model.clips]
    assert found == expected
    accuracy = golden_results[benchmark].model.summary()["pointing_accuracy"]
    assert accuracy == pytest.approx(100 * np.mean(expected))
    assert 0 < sum(expected) < 60


# -------------------------------------------------------------------------------- made-up clips


@pytest.fixture(scope="module")
def made_up():
    """Ids, ground truth and similarity maps of ten clips; some maps find their object."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.5, (10, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.5, (10, 2))], axis=1)
    truths = np.stack([consensus_map(box[None], annotators_needed=1) for box in boxes])
    maps = rng.random((10, 14, 14), dtype=np.float32)
    maps[::2] += truths[::2, 8::16, 8::16]
    return tuple(f"clip_{index}" for index in range(10)), truths, maps


def all_rows(result):
    return result.by_protocol[0].rows


def ceiling_of(result):
    return result.by_protocol[0].rows[-1].cious


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_batch_size_does_not_matter(made_up, protocol, batch_size):
    clip_ids, truths, maps = made_up
    whole = evaluate(batches_of(truths, clip_ids, 10), maps, protocol)
    parts = evaluate(batches_of(truths, clip_ids, batch_size), maps, protocol)
    assert parts == whole
    if protocol.name != "slavc_fixed":  # it predicts the whole frame for these maps
        assert len({clip.ciou for clip in whole.model.clips}) == 10


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_rows_are_of_the_same_clips_in_the_same_order(made_up, protocol):
    clip_ids, truths, maps = made_up
    result = evaluate(batches_of(truths, clip_ids, 4), maps, protocol)
    for row in all_rows(result):
        assert tuple(clip.clip_id for clip in row.clips) == clip_ids
    assert [row.kind for row in all_rows(result)] == ["model", "baseline", "baseline", "ceiling"]
    assert len({row.name for row in all_rows(result)}) == 4
    assert [one.protocol for one in result.by_protocol] == [protocol]
    given = TruthMaps(torch.from_numpy(truths))
    (prediction,) = predict(torch.from_numpy(maps), [protocol], given.num_annotated)
    normalised = prediction.localisation_maps
    model, disc, gaussian, ceiling = all_rows(result)
    assert result.model is model
    repeated = centre_disc(224).expand(10, -1, -1)
    assert result.model.cious == consensus_iou(prediction.masks, given).tolist()
    assert [c.pointing for c in result.model.clips] == pointing_hits(normalised, given).tolist()
    assert [c.confidence for c in result.model.clips] == prediction.confidences.tolist()
    assert disc.cious == consensus_iou(repeated, given).tolist()
    assert ceiling.cious == oracle_cious(given, protocol).tolist()
    assert {clip.confidence for clip in (*disc.clips, *ceiling.clips)} == {None}
    assert {clip.pointing for clip in (*disc.clips, *ceiling.clips)} == {None}
    repeated = centre_gaussian().repeat(10, 1, 1)
    (middle,) = predict(repeated, [protocol], given.num_annotated)
    assert gaussian.cious == consensus_iou(middle.masks, given).tolist()
    hits = pointing_hits(middle.localisation_maps, given).tolist()
    assert [clip.pointing for clip in gaussian.clips] == hits
    assert [clip.confidence for clip in gaussian.clips] == middle.confidences.tolist()
    assert gaussian.cious != disc.cious or protocol.threshold == "median"


EVERY_RULE = list(PROTOCOLS.values())


def test_many_rules_in_one_pass_equal_a_pass_for_each(made_up):
    clip_ids, truths, maps = made_up
    calls = []

    class Counting(Replay):
        def localise(self, frames, log_mel_spectrogram):
            calls.append(len(frames))
            return super().localise(frames, log_mel_spectrogram)

    together = evaluate_localisation(
        Counting(torch.as_tensor(maps)), batches_of(truths, clip_ids, 4), look, EVERY_RULE
    )
    assert calls == [4, 4, 2]
    assert [one.protocol for one in together.by_protocol] == EVERY_RULE
    for found in together.by_protocol:
        alone = evaluate(batches_of(truths, clip_ids, 4), maps, found.protocol)
        assert alone.by_protocol == (found,)
        assert found.rows[-1].name == f"ceiling of {found.protocol.name} (maps without ties)"


def test_the_first_rule_is_the_headline(made_up):
    clip_ids, truths, maps = made_up
    seen = []
    rules = [PROTOCOLS["sspl"], MEDIAN, PROTOCOLS["slavc"]]
    result = evaluate(
        batches_of(truths, clip_ids, 4), maps, *rules, on_batch=lambda *given: seen.append(given)
    )
    assert result.model.clips == result.by_protocol[0].rows[0].clips
    assert tuple(score for _, _, scores in seen for score in scores) == result.model.clips
    drawn = torch.cat([shown for _, shown, _ in seen])
    assert torch.equal(drawn, normalise(upsample(torch.from_numpy(maps), rules[0]), rules[0]))
    assert result.model.cious != result.by_protocol[1].rows[0].cious


@pytest.mark.parametrize("rules", [[], [MEDIAN, MEDIAN], [MEDIAN, replace(PROTOCOLS["sspl"], map_size=112)]])
def test_rules_that_cannot_be_scored_together_are_refused(made_up, rules):
    clip_ids, truths, maps = made_up
    model = Replay(torch.as_tensor(maps))
    with pytest.raises(ValueError, match="one protocol or more, each once and all of one map size"):
        evaluate_localisation(model, batches_of(truths, clip_ids, 4), look, rules)


def test_baselines_without_a_model_are_those_beside_a_model(made_up):
    clip_ids, truths, maps = made_up
    beside = evaluate(batches_of(truths, clip_ids, 10), maps, *EVERY_RULE)
    parts = [(clip_ids[:7], truths[:7]), (clip_ids[7:], truths[7:])]
    alone = evaluate_baselines(parts, EVERY_RULE)
    for with_model, without in zip(beside.by_protocol, alone, strict=True):
        assert without.protocol == with_model.protocol
        frame, square, *others = without.rows
        assert tuple(others) == with_model.rows[1:]
        assert frame.cious == pytest.approx(truths.mean(axis=(1, 2)).tolist())
        given = TruthMaps(torch.from_numpy(truths))
        assert square.cious == consensus_iou(centre_square(224)[None], given).tolist()
        assert {row.kind for row in without.rows} == {"baseline", "ceiling"}


def test_baselines_of_no_clips_and_of_a_clip_twice_are_refused(made_up):
    clip_ids, truths, _ = made_up
    with pytest.raises(ValueError, match="No clip could be scored"):
        evaluate_baselines([], [MEDIAN])
    with pytest.raises(ValueError, match="came twice"):
        evaluate_baselines([(clip_ids, truths), (clip_ids[:1], truths[:1])], [MEDIAN])


def test_no_model_without_ties_beats_the_ceiling(made_up):
    clip_ids, truths, maps = made_up
    result = evaluate(batches_of(truths, clip_ids, 10), maps)
    ceiling = ceiling_of(result)
    assert all(found <= best for found, best in zip(result.model.cious, ceiling, strict=True))
    assert result.model.cious != ceiling


@pytest.mark.parametrize("benchmark", FORMATS)
def test_authors_maps_without_ties_stay_below_the_ceiling(golden_results, benchmark):
    without_ties = arrays("evaluation")[f"{benchmark}/pred_area"] == 25_087
    result = golden_results[benchmark]
    model, ceiling = np.array(result.model.cious), np.array(ceiling_of(result))
    assert without_ties.sum() > 40
    assert (model <= ceiling)[without_ties].all()
    assert (model < ceiling)[without_ties].any()


def test_on_batch_sees_every_clip_once_with_its_map_and_score(made_up):
    clip_ids, truths, maps = made_up
    seen = []
    result = evaluate(batches_of(truths, clip_ids, 4), maps, on_batch=lambda *given: seen.append(given))
    assert [len(batch.clip_ids) for batch, _, _ in seen] == [4, 4, 2]
    assert sum((batch.clip_ids for batch, _, _ in seen), ()) == clip_ids
    assert tuple(score for _, _, scores in seen for score in scores) == result.model.clips
    drawn = torch.cat([normalised for _, normalised, _ in seen])
    assert torch.equal(drawn, normalise(upsample(torch.from_numpy(maps), MEDIAN), MEDIAN))


def test_half_precision_maps_are_scored(made_up):
    clip_ids, truths, maps = made_up
    halves = torch.as_tensor(maps).bfloat16()
    result = evaluate(batches_of(truths, clip_ids, 4), halves)
    assert result == evaluate(batches_of(truths, clip_ids, 4), halves.float())


def test_broken_clips_are_listed_and_not_scored(made_up):
    clip_ids, truths, maps = made_up
    batches = [
        make_batch([0, 2], truths[[0, 2]], ("clip_0", "clip_2"), [BrokenClip("torn", "no JPEG")]),
        make_batch([], None, (), [BrokenClip("silent", "no sound"), BrokenClip("gone", "empty")]),
        make_batch([5], truths[[5]], ("clip_5",)),
    ]
    seen = []
    result = evaluate(batches, maps, on_batch=lambda batch, *_: seen.append(batch.clip_ids))
    assert result.unreadable == (("torn", "no JPEG"), ("silent", "no sound"), ("gone", "empty"))
    assert seen == [("clip_0", "clip_2"), ("clip_5",)]
    whole = evaluate(batches_of(truths, clip_ids, 10), maps)
    for row, full_row in zip(all_rows(result), all_rows(whole), strict=True):
        assert row.clips == tuple(full_row.clips[index] for index in (0, 2, 5))


def test_what_is_annotated_in_each_clip_is_known(made_up):
    clip_ids, truths, maps = made_up
    whole = make_batch(range(10), truths, clip_ids)
    counts = [None, 0, 1, 2, 3, 7, 1, 1, 1, 1]
    boxes = tuple(None if count is None else np.zeros((count, 4)) for count in counts)
    whole = replace(whole, bounding_boxes=boxes)
    result = evaluate([whole.part(slice(0, 3)), whole.part(slice(3, 10))], maps)
    areas = truths.sum(axis=(1, 2)).tolist()
    assert result.truths == tuple(map(ClipTruth, areas, counts))
    small = replace(whole, ground_truth_maps=truths[:, ::2, ::2])
    at_half_size = evaluate([small], maps, replace(MEDIAN, map_size=112))
    expected = (4 * truths[:, ::2, ::2].sum(axis=(1, 2))).tolist()
    assert [truth.area for truth in at_half_size.truths] == expected


def test_clip_that_comes_twice_is_refused(made_up):
    _, truths, maps = made_up
    batches = [make_batch([0, 1], truths[:2], ("a", "b")), make_batch([2, 3], truths[2:4], ("c", "a"))]
    with pytest.raises(ValueError, match="came twice"):
        evaluate(batches, maps)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"No clip could be scored \(0 unreadable\)"),
        (
            [make_batch([], None, (), [BrokenClip("torn", "no JPEG in torn.jpg")])],
            r"No clip could be scored \(1 unreadable, first: no JPEG in torn.jpg\)",
        ),
    ],
)
def test_no_clips_are_refused(made_up, batches, message):
    with pytest.raises(ValueError, match=message):
        evaluate(batches, made_up[2])


@pytest.mark.parametrize("num_truths", [None, 1])
def test_clips_without_boxes_are_refused(made_up, num_truths):
    _, truths, maps = made_up
    given = None if num_truths is None else truths[:num_truths]
    with pytest.raises(ValueError, match=r"without boxes cannot be scored, e\.g\. first"):
        evaluate([make_batch([0, 1], given, ("first", "second"))], maps)


def test_model_that_gives_too_few_maps_is_not_scored(made_up):
    _, truths, maps = made_up

    class FirstOnly:
        def localise(self, frames, log_mel_spectrogram):
            return torch.as_tensor(maps[:1])

    batch = make_batch([0, 1, 2], truths[:3], ("a", "b", "c"))
    with pytest.raises((ValueError, AssertionError)):
        evaluate_localisation(FirstOnly(), [batch], look, [MEDIAN])


def test_summary_in_percent():
    clips = [(0.5, True), (0.2, False), (float("nan"), False), (1.0, True)]
    scores = Scores("a name", "model", tuple(ClipScore(str(i), *clip) for i, clip in enumerate(clips)))
    summary = scores.summary()
    assert summary["ciou_at_0.5"] == 50
    assert summary["mean_ciou"] == pytest.approx(100 * 1.7 / 4)
    assert summary["pointing_accuracy"] == 50
    # Thresholds 0 ... .2: three of four clips; up to .5: two; above: one.
    rates = [3] * 5 + [2] * 6 + [1] * 10
    area = 0.05 * (sum(rates) - (rates[0] + rates[-1]) / 2) / 4
    assert summary["auc"] == pytest.approx(100 * area)
    blind = Scores("blind", "baseline", (ClipScore("0", 0.5, None),))
    assert blind.summary()["pointing_accuracy"] is None
