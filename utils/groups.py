"""Scores with their intervals, of all clips and of groups of them: box size, boxes, class."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.evaluation.statistics import SCORE_KEYS, Interval, bootstrap_intervals, clip_values, plain_interval
from utils.scores import ClipTruth, ProtocolScores, Scores

SIZE_LIMITS = {"small": 32**2, "medium": 96**2, "large": 144**2}
"""SLAVC's classes: the annotated area is below this many pixels of 224 x 224; else huge"""
MOST_BOXES = 3
"""clips with so many boxes or more are one group"""
FEW_CLIPS = 30
"""a group of fewer clips is marked: the percentile interval is too narrow there"""


@dataclass(frozen=True)
class Grouping:
    """Clips by one property."""

    name: str
    """key in summary.json"""
    words: str
    """what it groups by"""
    positions: Mapping[str, NDArray[np.int64]]
    """group -> the places of its clips, at least one; in the order of the table"""


@dataclass(frozen=True)
class GroupScores:
    """The model's scores on a group of clips, and what they stand beside; in percent."""

    name: str
    num_clips: int
    few_clips: bool
    """fewer than FEW_CLIPS"""
    scores: dict[str, float | None]
    """by name of SCORE_KEYS"""
    intervals: dict[str, Interval | None]
    """likewise"""
    best_blind: float
    """cIoU@0.5 of the blind baseline that does best in this group"""
    ceiling: float
    """cIoU@0.5 of the rule's ceiling"""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the scores named as in Scores.summary."""
        plain = asdict(self)
        return {"name": plain.pop("name"), **plain.pop("scores"), **plain}


@dataclass(frozen=True)
class ScoresInDetail:
    """What belongs to the scores under one rule."""

    intervals: tuple[dict[str, Interval | None], ...]
    """of each row, by name of SCORE_KEYS, in percent"""
    groups: dict[str, tuple[GroupScores, ...]]
    """by the grouping's name"""


def groupings_of(truths: Sequence[ClipTruth], classes: Sequence[str] | None = None) -> tuple[Grouping, ...]:
    """The groupings that the known properties of the clips allow.

    Args:
        truths: of the scored clips; none: no sizes and no numbers of boxes.
        classes: of the scored clips, in the same order; None: not known.
    """
    found = []
    if truths:
        limits = ", ".join(f"{name} < {limit**0.5:.0f}²" for name, limit in SIZE_LIMITS.items())
        sizes = [size_of(truth.area) for truth in truths]
        words = f"annotated pixels of 224 x 224: {limits}, otherwise huge"
        order = (*SIZE_LIMITS, "huge", "nothing annotated")
        found.append(Grouping("box_size", words, _positions(sizes, order)))
    counts = [truth.num_boxes for truth in truths if truth.num_boxes is not None]
    if truths and len(counts) == len(truths):
        names = [_boxes_of(count) for count in counts]
        order = tuple(dict.fromkeys(map(_boxes_of, range(MOST_BOXES + 1))))
        words = "number of boxes, those of all annotators"
        found.append(Grouping("number_of_boxes", words, _positions(names, order)))
    if classes is not None:
        found.append(Grouping("class", "class", _positions(classes, sorted(set(classes)))))
    return tuple(found)


def detail_scores(
    by_protocol: Sequence[ProtocolScores], groupings: Sequence[Grouping] = ()
) -> tuple[ScoresInDetail, ...]:
    """Intervals of every row, and the model's scores by group.

    Args:
        by_protocol: rules with the same predictors, on the same clips in the same order.
        groupings: of these clips; only where each rule's first row is the model.

    Returns:
        one for each rule.

    Raises:
        ValueError: predictors were scored on different numbers of clips.
    """
    values = np.stack([[_values_of(row) for row in one.rows] for one in by_protocol], axis=0)
    ends = _intervals(values)
    by_group: list[dict[str, tuple[GroupScores, ...]]] = [{} for _ in by_protocol]
    for grouping in groupings:
        of_groups = [
            _score_group(by_protocol, name, values[:, :, places])
            for name, places in grouping.positions.items()
        ]
        for found, column in zip(by_group, zip(*of_groups, strict=True), strict=True):
            found[grouping.name] = column
    return tuple(
        ScoresInDetail(tuple(map(_by_key, ends[index])), by_group[index]) for index in range(len(by_protocol))
    )


def _score_group(
    by_protocol: Sequence[ProtocolScores], name: str, values: NDArray[np.float64]
) -> list[GroupScores]:
    """Values of a group's clips (P rules, R rows, N, 4) -> its scores under each rule."""
    num_clips = values.shape[2]
    means, ends = 100 * values.mean(axis=2), _intervals(values[:, :1])
    found = []
    for index, one in enumerate(by_protocol):
        rates: dict[str, list[float]] = {"model": [], "baseline": [], "ceiling": []}
        for row, rate in zip(one.rows, means[index, :, 0].tolist(), strict=True):
            rates[row.kind].append(rate)
        scores = dict(zip(SCORE_KEYS, map(_known, means[index, 0].tolist()), strict=True))
        found.append(
            GroupScores(
                name,
                num_clips,
                num_clips < FEW_CLIPS,
                scores,
                _by_key(ends[index, 0]),
                best_blind=max(rates["baseline"]),
                ceiling=max(rates["ceiling"]),
            )
        )
    return found


def _values_of(scores: Scores) -> NDArray[np.float64]:
    """(N, 4), see `clip_values`."""
    hits = [clip.pointing for clip in scores.clips if clip.pointing is not None]
    return clip_values(scores.cious, hits if len(hits) == len(scores.clips) else None)


def _intervals(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, R, N, 4) -> (P, R, 4, 2) in percent; all from the same resamples."""
    num_rules, num_rows, num_clips, num_scores = values.shape
    columns = values.transpose(2, 0, 1, 3).reshape(num_clips, -1)
    return 100 * bootstrap_intervals(columns).reshape(num_rules, num_rows, num_scores, 2)


def _by_key(ends: NDArray[np.float64]) -> dict[str, Interval | None]:
    return dict(zip(SCORE_KEYS, map(plain_interval, ends), strict=True))


def _known(score: float) -> float | None:
    return None if np.isnan(score) else score


def size_of(area: float) -> str:
    """SLAVC's class of an annotated area, pixels of 224 x 224."""
    if not area:
        return "nothing annotated"
    return next((name for name, limit in SIZE_LIMITS.items() if area < limit), "huge")


def _boxes_of(count: int) -> str:
    return f"{MOST_BOXES} or more" if count >= MOST_BOXES else str(count)


def _positions(names: Sequence[str], order: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Group -> places of its clips, for groups with clips."""
    places: dict[str, list[int]] = {name: [] for name in order}
    for place, name in enumerate(names):
        places[name].append(place)
    return {name: np.array(found) for name, found in places.items() if found}
