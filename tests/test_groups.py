"""Scores by box size, number of boxes and class: the same numbers as of those clips alone."""

import json

import numpy as np
import pytest
from result_inputs import make_scores

from utils.evaluation.protocols import PROTOCOLS
from utils.evaluation.statistics import SCORE_KEYS
from utils.groups import FEW_CLIPS, Grouping, detail_scores, groupings_of
from utils.scores import ClipTruth, ProtocolScores


def places_of(grouping):
    return {name: places.tolist() for name, places in grouping.positions.items()}


def test_sizes_are_cut_at_the_published_areas():
    areas = [0.5, 32**2 - 0.5, 32**2, 96**2 - 0.5, 96**2, 144**2 - 0.5, 144**2, 224**2]
    (sizes,) = groupings_of([ClipTruth(area, None) for area in areas])
    assert sizes.name == "box_size"
    assert places_of(sizes) == {"small": [0, 1], "medium": [2, 3], "large": [4, 5], "huge": [6, 7]}
    assert "small < 32²" in sizes.words and "large < 144²" in sizes.words


def test_clips_without_annotated_pixels_are_a_group_of_their_own():
    (sizes,) = groupings_of([ClipTruth(0, None), ClipTruth(2000, None)])
    assert places_of(sizes) == {"medium": [1], "nothing annotated": [0]}


def test_numbers_of_boxes_and_classes():
    truths = [ClipTruth(10.0, count) for count in (3, 1, 0, 2, 7, 1)]
    _, boxes, classes = groupings_of(truths, ["b", "a", "b", "c", "a", "a"])
    assert places_of(boxes) == {"0": [2], "1": [1, 5], "2": [3], "3 or more": [0, 4]}
    assert places_of(classes) == {"a": [1, 4, 5], "b": [0, 2], "c": [3]}
    assert [grouping.name for grouping in (boxes, classes)] == ["number_of_boxes", "class"]
    unknown = [*truths, ClipTruth(1.0, None)]
    assert [grouping.name for grouping in groupings_of(unknown)] == ["box_size"]
    assert groupings_of([]) == ()


def make_rule(name, seed, count):
    rng = np.random.default_rng(seed)
    hits = (rng.random(count) < 0.4).tolist()
    rows = (
        make_scores("model", "model", rng.random(count).tolist(), hits),
        make_scores("disc", "baseline", rng.random(count).tolist()),
        make_scores("gaussian", "baseline", rng.random(count).tolist(), hits[::-1]),
        make_scores("ceiling", "ceiling", rng.uniform(0.4, 1, count).tolist()),
    )
    return ProtocolScores(PROTOCOLS[name], rows)


def part_of(one, places):
    rows = []
    for row in one.rows:
        clips = [row.clips[place] for place in places]
        cious, hits = ([getattr(clip, key) for clip in clips] for key in ("ciou", "pointing"))
        rows.append(make_scores(row.name, row.kind, cious, hits))
    return ProtocolScores(one.protocol, tuple(rows))


@pytest.fixture(scope="module")
def rules():
    return [make_rule("ssl_tie", 0, 90), make_rule("sspl", 1, 90)]


def test_a_group_scores_as_its_clips_do_alone(rules):
    positions = {"few": np.arange(0, 40, 2), "many": np.array([1, 3, 5, *range(40, 90)])}
    details = detail_scores(rules, [Grouping("class", "class", positions)])
    for index, one in enumerate(rules):
        for group, places in zip(details[index].groups["class"], positions.values(), strict=True):
            alone = part_of(one, places)
            summaries = [row.summary() for row in alone.rows]
            for key in SCORE_KEYS:
                assert group.scores[key] == pytest.approx(summaries[0][key])
            (of_alone,) = detail_scores([alone])
            for key in SCORE_KEYS:
                assert group.intervals[key] == pytest.approx(of_alone.intervals[0][key])
                lower, upper = group.intervals[key]
                assert lower < group.scores[key] < upper
            rates = [summary["ciou_at_0.5"] for summary in summaries]
            assert group.best_blind == pytest.approx(max(rates[1:3]))
            assert group.ceiling == pytest.approx(rates[3])
            assert group.num_clips == len(places)
            assert group.few_clips == (len(places) < FEW_CLIPS)
    assert [group.few_clips for group in details[0].groups["class"]] == [True, False]


def test_rules_do_not_change_each_other_s_intervals(rules):
    together = detail_scores(rules)
    for one, found in zip(rules, together, strict=True):
        (alone,) = detail_scores([one])
        for of_row, expected in zip(found.intervals, alone.intervals, strict=True):
            for key in SCORE_KEYS:
                assert of_row[key] == pytest.approx(expected[key])
        assert found.groups == {}
    model, disc, *_ = together[0].intervals
    assert disc["pointing_accuracy"] is None and model["pointing_accuracy"] is not None


def test_groups_are_plain_values_for_json(rules):
    grouping = Grouping("class", "class", {"dog": np.array([4])})
    (group,) = detail_scores(rules[:1], [grouping])[0].groups["class"]
    plain = group.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain)[:2] == ["name", "ciou_at_0.5"]
    assert plain["few_clips"] is True and plain["num_clips"] == 1
    assert set(plain["intervals"].values()) == {None}
