"""Scores of extended benchmarks, which add frames whose sound has no source in them.

A model must say whether anything sounds at all: each clip has a confidence beside its map. At a
confidence threshold t a clip with an object is a true positive if it reaches t and its consensus
IoU reaches the level, a false positive if it only reaches t, and a false negative below t; a clip
without an object is a false positive if it reaches t. A clip that was localised badly is thus never
a false negative, so recall always ends at 1. After SLAVC (Mo and Morgado, NeurIPS 2022), whose
program takes every (M // 200)-th threshold only; the same without strides has names of its own.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

IOU_LEVELS = (0.5, 0.75)
"""consensus IoU that a localised object must reach"""
PRECISION_STEPS = 200
"""about so many thresholds lie under SLAVC's average precision"""
F1_STEPS = 10
"""about so many lie under its largest F1"""
HALF_CONFIDENCE = 0.5

Counts = NDArray[np.int64]
Rates = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """Scores at one level of the consensus IoU, each in [0, 1]."""

    average_precision: float
    """as SLAVC's program: strided thresholds without the largest; what recall gains from one to the
    next is paid at the envelope of the former, and the recall of the first is not paid"""
    average_precision_exact: float
    """area under the falling envelope of precision over recall from 0 to 1, every threshold"""
    max_f1: float
    """as SLAVC's program: the largest F1 of 10 thresholds or a few more"""
    max_f1_exact: float
    """the largest F1 of every threshold"""
    f1_at_half: float
    """F1 at the confidence 0.5"""
    localisation_accuracy: float
    """share of the clips with an object that are localised, whatever their confidence"""
    precision_all: float
    """the same share of all clips, those without an object counting as missed"""


class RankedClips:
    """Clips in the order of their confidence, scored by one sort and cumulative sums."""

    def __init__(self, confidences: ArrayLike, cious: ArrayLike, has_object: ArrayLike) -> None:
        """Sorts the clips.

        Args:
            confidences: (M,); NaN stands below every number.
            cious: (M,) consensus IoU in [0, 1], NaN a miss; of clips without an object not read.
            has_object: (M,) whether anything in the frame sounds.

        Raises:
            ValueError: the lengths differ, or no clip has an object.
        """
        given = np.asarray(confidences, dtype=np.float64)
        ious = np.asarray(cious, dtype=np.float64)
        positive = np.asarray(has_object, dtype=bool)
        if not len(given) == len(ious) == len(positive) or not positive.any():
            raise ValueError(
                "Average precision needs the confidence, the consensus IoU and the truth of each "
                f"clip, and a clip with an object; got {len(given)}, {len(ious)} and "
                f"{len(positive)}, of these {int(positive.sum())} with an object."
            )
        known = np.where(np.isnan(given), -np.inf, given)
        self._order = np.argsort(known, kind="stable")
        ascending = known[self._order]
        self._cious, self._positive = ious[self._order], positive[self._order]
        self._first_of_tie = np.searchsorted(ascending, ascending)
        self._downwards = np.unique(self._first_of_tie)[::-1]
        self._first_at_half = np.searchsorted(ascending, [HALF_CONFIDENCE])

    def scores(self, iou: float = IOU_LEVELS[0], repeats: NDArray[np.int64] | None = None) -> DetectionScores:
        """Scores at a level of the consensus IoU.

        Args:
            iou: the level, in [0, 1].
            repeats: (M,) how often each clip counts, in the order in which they were given, such
                as those of a bootstrap resample; None: each once.
        """
        times = np.ones(len(self._order), np.int64) if repeats is None else repeats[self._order]
        sums = _Sums(times, self._positive, self._positive & (self._cious >= iou))
        last = sums.num_clips - 1
        strided = np.arange(last - 1, -1, -max(1, sums.num_clips // PRECISION_STEPS))
        coarse = np.arange(0, last + 1, max(1, sums.num_clips // F1_STEPS))
        every = self._downwards[sums.predicted[self._downwards] > 0]
        precision, recall = sums.at(self._first_of_tie[sums.places(strided)])
        all_precision, all_recall = sums.at(every)
        return DetectionScores(
            average_precision=float(_envelope(precision)[:-1] @ np.diff(recall)),
            average_precision_exact=float(_envelope(all_precision) @ np.diff(all_recall, prepend=0)),
            max_f1=float(_f1(*sums.at(self._first_of_tie[sums.places(coarse)])).max()),
            max_f1_exact=float(_f1(all_precision, all_recall).max()),
            f1_at_half=float(_f1(*sums.at(self._first_at_half))[0]),
            localisation_accuracy=float(_ratio(sums.hit[:1], sums.positive[:1])[0]),
            precision_all=float(sums.hit[0] / sums.num_clips),
        )


class _Sums:
    """How many clips stand at a place or above it, for places 0 to M of ascending confidences."""

    def __init__(self, times: Counts, positive: NDArray[np.bool_], hit: NDArray[np.bool_]) -> None:
        self.num_clips = int(times.sum())
        self._up_to = np.cumsum(times)
        self.predicted, self.positive, self.hit = (
            np.concatenate([np.cumsum(counted[::-1])[::-1], [0]])
            for counted in (times, times * positive, times * hit)
        )

    def places(self, positions: Counts) -> Counts:
        """Places of the clips at these positions of the ascending list with all repeats."""
        return np.searchsorted(self._up_to, positions, side="right")

    def at(self, places: Counts) -> tuple[Rates, Rates]:
        """Precision and recall where every clip from a place on reaches the threshold."""
        hit, missed = self.hit[places], self.positive[0] - self.positive[places]
        return _ratio(hit, self.predicted[places]), _ratio(hit, hit + missed)


def _ratio(part: Counts, whole: Counts) -> Rates:
    """1 where both are 0."""
    return np.where(whole == 0, 1.0, part / np.maximum(whole, 1))


def _f1(precision: Rates, recall: Rates) -> Rates:
    both = precision + recall
    return np.where(both == 0, 0.0, 2 * precision * recall / np.where(both == 0, 1.0, both))


def _envelope(precision: Rates) -> Rates:
    """The largest precision at this or any lower threshold."""
    return np.maximum.accumulate(precision[::-1])[::-1]
