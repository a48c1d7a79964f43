"""The evaluation: the authors' scores on their maps, every clip exactly once, tables and groups of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from golden_inputs import arrays
from pandas.testing import assert_frame_equal
from result_inputs import Replay, batches_of, evaluate, make_batch

from datasets.annotations import consensus_map
from datasets.clips import BrokenClip
from utils.evaluation.localisation import (
    FEW_CLIPS,
    LocalisationResult,
    clip_groups,
    evaluate_localisation,
    group_tables,
    headline_map,
    score_table,
)
from utils.evaluation.metrics import TruthMaps, consensus_iou, pointing_hits
from utils.evaluation.protocols import (
    PROTOCOLS,
    centre_disc,
    centre_gaussian,
    centre_square,
    confidences,
    normalise,
    oracle_cious,
    predict,
    upsample,
)
from utils.evaluation.statistics import SCORE_KEYS, bootstrap_intervals, clip_values

MEDIAN = PROTOCOLS["ssl_tie"]
EVERY_RULE = list(PROTOCOLS.values())
EVERY = pytest.mark.parametrize("protocol", EVERY_RULE, ids=list(PROTOCOLS))


# ------------------------------------------------------------------------------ golden data sets


@pytest.mark.parametrize(("benchmark", "ciou", "auc"), [("vggss", 25.0, 32.125), ("flickr", 10.0, 30.375)])
def test_scores_are_those_of_the_authors_program(benchmark, ciou, auc):
    golden = arrays("evaluation")
    # The authors' ground truth of the 60 clips, which test_annotations.py compares with ours.
    bits = [np.unpackbits(golden[f"{benchmark}/{name}"], axis=1) for name in ("gt_x2", "gt_any")]
    truths = np.mean(bits, axis=0, dtype=np.float32).reshape(-1, 224, 224)
    result = evaluate(batches_of(truths, golden["names"].tolist(), 7), golden["heat"])
    model = result.headline
    assert model["clip_id"].tolist() == golden["names"].tolist()
    np.testing.assert_allclose(model["ciou"], golden[f"{benchmark}/ciou"], rtol=0, atol=1e-12)
    assert result.scores()["ciou_at_0.5"] == pytest.approx(ciou, abs=1e-7)
    assert result.scores()["auc"] == pytest.approx(auc, abs=1e-7)
    maps = upsample(torch.from_numpy(golden["heat"]), MEDIAN).flatten(1).numpy()
    at_peak = truths.reshape(60, -1)[range(60), maps.argmax(axis=1)]
    expected = ((at_peak > 0) & ~np.isnan(maps).any(axis=1)).tolist()
    assert model["pointing"].tolist() == expected and 0 < sum(expected) < 60
    assert result.scores()["pointing_accuracy"] == pytest.approx(100 * np.mean(expected))
    # Maps without ties stay below the ceiling.
    without_ties = golden[f"{benchmark}/pred_area"] == 25_087
    best = result.clips["ciou"][result.clips["kind"] == "ceiling"].to_numpy()
    assert without_ties.sum() > 40 and (model["ciou"] <= best)[without_ties].all()


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


@EVERY
def test_every_predictor_is_scored_as_alone(made_up, protocol):
    clip_ids, truths, maps = made_up
    whole = make_batch(range(10), truths, clip_ids)
    result = evaluate_localisation(Replay(maps), [whole], [protocol], negatives=True)
    groups = dict(iter(result.clips.groupby(["predictor", "kind"], sort=False)))
    assert list(groups) == [
        ("model", "model"),
        ("centre disc (blind)", "baseline"),
        ("centre Gaussian (blind)", "baseline"),
        (f"ceiling of {protocol.name} (maps without ties)", "ceiling"),
    ]
    assert all(one["clip_id"].tolist() == list(clip_ids) for one in groups.values())
    model, disc, gaussian, ceiling = groups.values()
    given = TruthMaps(torch.from_numpy(truths))
    middle = centre_gaussian().repeat(10, 1, 1)
    for table, similarity in ((model, torch.from_numpy(maps)), (gaussian, middle)):
        (alone,) = predict(similarity, [protocol], given.num_annotated)
        assert table["ciou"].tolist() == consensus_iou(alone.masks, given).tolist()
        assert table["pointing"].tolist() == pointing_hits(alone.localisation_maps, given).tolist()
    assert model["confidence"].tolist() == confidences(torch.from_numpy(maps), protocol).tolist()
    assert disc["ciou"].tolist() == consensus_iou(centre_disc(224)[None], given).tolist()
    assert ceiling["ciou"].tolist() == oracle_cious(given, protocol).tolist()
    assert pd.concat([disc, ceiling])[["pointing", "confidence"]].isna().all(axis=None)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_many_rules_in_one_pass_equal_a_pass_for_each_whatever_the_batches(made_up, batch_size):
    clip_ids, truths, maps = made_up
    calls = []

    def localise(batch):
        calls.append(len(batch.clip_ids))
        return Replay(maps)(batch)

    together = evaluate_localisation(localise, batches_of(truths, clip_ids, batch_size), EVERY_RULE)
    assert sum(calls) == 10 and set(calls[:-1]) <= {batch_size}
    np.testing.assert_array_equal(together.maps, maps)
    for protocol in EVERY_RULE:
        alone = evaluate(batches_of(truths, clip_ids, 10), maps, protocol)
        found = together.clips[together.clips["protocol"] == protocol.name].reset_index(drop=True)
        assert_frame_equal(found, alone.clips, check_exact=True)


def test_the_first_rule_is_the_headline_and_is_seen_batch_by_batch(made_up):
    clip_ids, truths, maps = made_up
    seen = []
    rules = [PROTOCOLS["sspl"], MEDIAN, PROTOCOLS["slavc"]]
    result = evaluate(batches_of(truths, clip_ids, 4), maps, *rules, on_batch=lambda *one: seen.append(one))
    assert [len(batch.clip_ids) for batch, _, _ in seen] == [4, 4, 2]
    assert result.headline["protocol"].unique().tolist() == ["sspl"]
    assert [score for _, _, scores in seen for score in scores] == result.headline["ciou"].tolist()
    expected = normalise(upsample(torch.from_numpy(maps), rules[0]), rules[0])
    assert torch.equal(torch.cat([shown for _, shown, _ in seen]), expected)
    assert torch.equal(torch.stack([headline_map(result, place) for place in range(10)]), expected)


def test_baselines_without_a_model_are_those_beside_a_model(made_up):
    clip_ids, truths, maps = made_up
    beside = evaluate(batches_of(truths, clip_ids, 10), maps, *EVERY_RULE).clips
    alone = evaluate_localisation(None, batches_of(truths, clip_ids, 7), EVERY_RULE)
    more = alone.clips["predictor"].isin(["whole frame (blind)", "centre square (blind)"])
    beside = beside[beside["kind"] != "model"].reset_index(drop=True)
    assert_frame_equal(alone.clips[~more].reset_index(drop=True), beside, check_exact=True)
    cious = {name: rows["ciou"].tolist() for name, rows in alone.clips.groupby("predictor")}
    assert cious["whole frame (blind)"] == pytest.approx(len(EVERY_RULE) * truths.mean(axis=(1, 2)).tolist())
    expected = consensus_iou(centre_square(224)[None], TruthMaps(torch.from_numpy(truths)))
    assert cious["centre square (blind)"] == len(EVERY_RULE) * expected.tolist()
    assert alone.maps is None


def test_broken_clips_are_listed_and_not_scored(made_up):
    clip_ids, truths, maps = made_up
    batches = [
        make_batch([0, 2], truths[[0, 2]], ("clip_0", "clip_2"), [BrokenClip("torn", "no JPEG")]),
        make_batch([], None, (), [BrokenClip("silent", "no sound"), BrokenClip("gone", "empty")]),
        make_batch([5], truths[[5]], ("clip_5",)),
    ]
    result = evaluate(batches, maps)
    assert result.unreadable == (("torn", "no JPEG"), ("silent", "no sound"), ("gone", "empty"))
    whole = evaluate(batches_of(truths, clip_ids, 10), maps).clips
    chosen = whole[whole["clip_id"].isin(["clip_0", "clip_2", "clip_5"])]
    assert_frame_equal(result.clips, chosen.reset_index(drop=True), check_exact=True)


def test_annotation_and_maps_without_sense_are_counted(made_up):
    clip_ids, truths, maps = made_up
    counts = [None, 0, 1, 2, 3, 7, 1, 1, 1, 1]
    boxes = tuple(None if count is None else np.zeros((count, 4)) for count in counts)
    truths, maps = truths.copy(), maps.copy()
    truths[3] = 0
    maps[[4, 6], 1, 2] = np.nan
    whole = replace(make_batch(range(10), truths, clip_ids), bounding_boxes=boxes)
    result = evaluate([whole.part(slice(0, 3)), whole.part(slice(3, 10))], maps)
    assert result.headline["area"].tolist() == truths.sum(axis=(1, 2)).tolist()
    assert result.headline["num_boxes"].fillna(-1).tolist() == [-1, *counts[1:]]
    assert (result.num_empty, result.num_non_finite) == (1, 2)
    assert result.headline["has_object"].all()
    extended = evaluate_localisation(Replay(maps), [whole], [MEDIAN], negatives=True)
    assert extended.headline["has_object"].tolist() == [bool(count) for count in counts]


@pytest.mark.parametrize(
    ("clips", "torn", "message"),
    [
        ([], [], r"No clip could be scored \(0 unreadable\)"),
        ([""], [BrokenClip("a", "no JPEG")], r"No clip could be scored \(1 unreadable, first: no JPEG\)"),
        (["ab", "ca"], [], "came twice"),
    ],
)
def test_what_cannot_be_scored_is_refused(made_up, clips, torn, message):
    _, truths, maps = made_up
    batches = [make_batch(range(len(ids)), truths[: len(ids)], tuple(ids), torn) for ids in clips]
    with pytest.raises(ValueError, match=message):
        evaluate(batches, maps)


# ------------------------------------------------------------------------------ tables and groups


def made_up_clips(count=90, area=2000.0):
    """Clips of four predictors under two rules, as an evaluation gives them."""
    rng = np.random.default_rng(0)
    kinds = {"model": "model", "disc": "baseline", "gaussian": "baseline", "c": "ceiling"}
    tables = [
        pd.DataFrame({"protocol": protocol, "predictor": predictor, "kind": kind,
                      "clip_id": [f"clip_{place}" for place in range(count)],
                      "ciou": rng.uniform(0.4 * (kind == "ceiling"), 1, count),
                      "pointing": 1.0 * (rng.random(count) < 0.4), "num_boxes": np.arange(count) % 5.0,
                      "area": area, "has_object": True})
        for protocol in ("ssl_tie", "sspl") for predictor, kind in kinds.items()
    ]  # fmt: skip
    clips = pd.concat(tables, ignore_index=True)
    return clips.assign(pointing=clips["pointing"].where(clips["predictor"].isin(["model", "gaussian"])))


def test_score_table_by_hand():
    clips = made_up_clips(4).query("protocol == 'ssl_tie' and predictor in ['model', 'disc']").copy()
    clips["ciou"] = [0.5, 0.2, np.nan, 1.0] * 2
    clips.loc[clips["kind"] == "model", "pointing"] = [1, 0, 0, 1]
    model, disc = score_table(clips).to_dict("records")
    assert model["ciou_at_0.5"] == 50 and model["pointing_accuracy"] == 50
    assert model["mean_ciou"] == pytest.approx(100 * 1.7 / 4)
    # Thresholds 0 ... .2: three of four clips; up to .5: two; above: one.
    rates = [3] * 5 + [2] * 6 + [1] * 10
    area = 0.05 * (sum(rates) - (rates[0] + rates[-1]) / 2) / 4
    assert model["auc"] == pytest.approx(100 * area)
    assert np.isnan([disc["pointing_accuracy"], disc["pointing_accuracy_low"]]).all()
    result = LocalisationResult((MEDIAN,), clips)
    assert result.scores() == pytest.approx({key: model[key] for key in SCORE_KEYS})


def test_each_row_has_the_interval_of_its_clips():
    clips = made_up_clips()
    for row in score_table(clips).to_dict("records"):
        chosen = clips[(clips["protocol"] == row["protocol"]) & (clips["predictor"] == row["predictor"])]
        ends = 100 * bootstrap_intervals(clip_values(chosen["ciou"], chosen["pointing"]))
        found = [[row[f"{key}_low"], row[f"{key}_high"]] for key in SCORE_KEYS]
        np.testing.assert_allclose(found, ends, rtol=0, atol=1e-9)


def test_clips_without_an_object_count_in_no_score_and_no_group():
    clips = made_up_clips()
    clips["has_object"] = np.tile(np.arange(90) % 3 > 0, 8)
    located = clips[clips["has_object"]]
    assert_frame_equal(score_table(clips), score_table(located))
    for name, table in group_tables(clips).items():
        assert_frame_equal(table, group_tables(located)[name])


def test_groups_are_cut_at_the_published_areas():
    areas = [0, 0.5, 32**2 - 0.5, 32**2, 96**2 - 0.5, 96**2, 144**2 - 0.5, 144**2, 224**2]
    clips = made_up_clips(9, areas).query("protocol == 'sspl' and kind == 'model'")
    clips = clips.assign(**{"class": list("bacabcbac")})
    groups = clip_groups(clips)
    words, sizes = groups["box_size"]
    expected = ["nothing annotated"] + [name for name in ("small", "medium", "large", "huge") for _ in "12"]
    assert sizes.tolist() == expected
    assert "small < 32²" in words and "large < 144²" in words
    counts = ["0", "1", "2", "3 or more", "3 or more"]
    assert groups["number_of_boxes"][1].tolist() == [*counts, *counts[:4]]
    assert groups["class"][1].cat.categories.tolist() == ["a", "b", "c"]
    clips.loc[clips.index[0], "num_boxes"] = np.nan
    assert list(clip_groups(clips)) == ["box_size", "class"]


def test_a_group_scores_as_its_clips_do_alone():
    clips = made_up_clips()
    clips["class"] = np.tile(np.where(np.arange(90) < 20, "few", "many"), 8)
    table = group_tables(clips)["class"]
    assert table["name"].tolist() == ["few", "few", "many", "many"]
    for group in table.to_dict("records"):
        alone = clips[(clips["class"] == group["name"]) & (clips["protocol"] == group["protocol"])]
        scores = score_table(alone)
        for key in scores.columns[3:]:
            assert group[key] == pytest.approx(scores[key][0])
        assert group["best_blind"] == pytest.approx(scores["ciou_at_0.5"][1:3].max())
        assert group["ceiling"] == pytest.approx(scores["ciou_at_0.5"][3])
        assert group["num_clips"] == len(alone) / 4
        assert group["few_clips"] == (group["num_clips"] < FEW_CLIPS)
