"""Metrics beside consensus IoU, in families that are computed together; in percent."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.evaluation.statistics import (
    Interval,
    bootstrap_intervals,
    bootstrap_statistics,
    clip_values,
    plain_interval,
)
from utils.extended import IOU_LEVELS, DetectionScores, RankedClips
from utils.groups import SIZE_LIMITS, size_of
from utils.interactive import pair_cious
from utils.scores import ClipTruth, Scores
from utils.segmentation import BATCH, f_avsbench, f_dataset, mean_iou, mean_iou_by_batch


@dataclass(frozen=True)
class ExtraScores:
    """One predictor's further scores under one rule, in percent."""

    scores: dict[str, float | None]
    """by name of the metric; None where it is not defined"""
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """of those that have one"""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, beside those of Scores.summary."""
        return {"extra": self.scores, "extra_intervals": self.intervals}


@dataclass(frozen=True, kw_only=True)
class MetricFamily:
    """Metrics that are computed together."""

    words: Mapping[str, str]
    """name -> what it is, in the order of tables"""
    shown: tuple[str, ...]
    """names that stand in every table; the others in summary.json, table.csv and report.html"""
    score: Callable[[Scores, Sequence[ClipTruth]], ExtraScores]
    """one predictor's clips, with their truth"""


DETECTION_WORDS = {
    "AP": "average precision of localising what sounds and of not being confident where nothing "
    "in the frame does, as SLAVC's program computes it, from about 200 thresholds",
    "max_F1": "largest F1 over the 10 or 11 confidences that SLAVC's program tries",
    "LocAcc": "share of the clips with an object that are localised, whatever the confidence",
    "AP_exact": "average precision from every confidence: the area under the falling envelope of "
    "precision over recall from 0 to 1",
    "max_F1_exact": "largest F1 over every confidence",
    "F1@0.5conf": "F1 where the confidence is at least 0.5; it is of (similarity + 1) / 2 under "
    "SLAVC's rules, of the similarity itself under the others",
    "Precision_all": "share of all clips that are localised, those without an object being missed",
}
"""at a consensus IoU of 0.5"""
PUBLISHED = ("AP", "max_F1", "LocAcc")
"""those that are also computed at other levels and by size"""
SIZES = (*SIZE_LIMITS, "huge")


def _detection_words() -> dict[str, str]:
    """Every name: at the first level, at the others, and by size at each of them."""
    found = dict(DETECTION_WORDS)
    for level in IOU_LEVELS:
        for size in (None, *SIZES):
            of_size = "" if size is None else f", only clips with an object of size '{size}'"
            for name in PUBLISHED:
                words = f"{name} at a consensus IoU of {level}{of_size}"
                found.setdefault(_detection_name(name, level, size), words)
    return found


def _detection_name(name: str, level: float, size: str | None) -> str:
    at = [] if level == IOU_LEVELS[0] else [f"{level}"]
    at += [] if size is None else [size]
    return f"{name}@{','.join(at)}" if at else name


def _score_detection(scores: Scores, truths: Sequence[ClipTruth]) -> ExtraScores:
    found: dict[str, float | None] = dict.fromkeys(DETECTION.words)
    everything = _ranked(scores, truths, range(len(truths)))
    found |= _percent(everything.scores())
    by_size: dict[str | None, list[int]] = {size: [] for size in SIZES}
    for place, truth in enumerate(truths):
        if truth.num_boxes and truth.area:
            by_size[size_of(truth.area)].append(place)
    subsets = {size: _ranked(scores, truths, of_size) for size, of_size in by_size.items() if of_size}
    for size, clips in {None: everything, **subsets}.items():
        for level in IOU_LEVELS:
            values = _percent(clips.scores(level))
            found |= {_detection_name(name, level, size): values[name] for name in PUBLISHED}
    if scores.kind != "model":
        return ExtraScores(found)
    ends = bootstrap_statistics(
        lambda repeats: list(_percent(everything.scores(repeats=repeats)).values()), len(truths)
    )
    return ExtraScores(found, _by_name(DETECTION_WORDS, ends))


def _ranked(scores: Scores, truths: Sequence[ClipTruth], places: Sequence[int]) -> RankedClips:
    """A ceiling knows what sounds, without ties; a blind mask is as confident of every clip."""
    clips, positive = [scores.clips[place] for place in places], []
    confidences = []
    for place, clip in zip(places, clips, strict=True):
        positive.append(bool(truths[place].num_boxes))
        if clip.confidence is not None:
            confidences.append(clip.confidence)
        elif scores.kind == "ceiling":
            confidences.append((1 if positive[-1] else -1) + place / len(truths))
        else:
            confidences.append(1.0)
    return RankedClips(confidences, [clip.ciou for clip in clips], positive)


def _percent(scores: DetectionScores) -> dict[str, float]:
    values = (
        scores.average_precision,
        scores.max_f1,
        scores.localisation_accuracy,
        scores.average_precision_exact,
        scores.max_f1_exact,
        scores.f1_at_half,
        scores.precision_all,
    )
    return {name: 100 * value for name, value in zip(DETECTION_WORDS, values, strict=True)}


def _score_pairs(scores: Scores, truths: Sequence[ClipTruth]) -> ExtraScores:
    keys = [truth.pair_key for truth in truths if truth.pair_key is not None]
    values = clip_values(pair_cious(scores.cious, keys))[:, :2]
    means = (100 * values.mean(axis=0)).tolist()
    ends = 100 * bootstrap_intervals(values)
    return ExtraScores(dict(zip(PAIRS.words, means, strict=True)), _by_name(PAIRS.words, ends))


def _score_masks(scores: Scores, truths: Sequence[ClipTruth]) -> ExtraScores:
    del truths  # the maps were compared with it when they were made
    masks = [clip.mask for clip in scores.clips if clip.mask is not None]
    if len(masks) < len(scores.clips):
        return ExtraScores(dict.fromkeys(MASKS.words))
    ious = np.array([mask.iou for mask in masks])
    curves = np.stack([mask.f_curve for mask in masks]).astype(np.float64)
    values = (mean_iou(ious), f_dataset(curves), mean_iou_by_batch(ious), f_avsbench(curves))
    percent = [None if math.isnan(value) else 100 * value for value in values]
    known = ~np.isnan(curves[:, 0])
    curves[~known] = 0

    def statistics(repeats: NDArray[np.int64]) -> list[float]:
        num_known = int(repeats @ known)
        best = float((repeats @ curves).max()) / num_known if num_known else math.nan
        return [100 * float(repeats @ ious) / len(ious), 100 * best]

    # The others depend on which clips share a batch, which a resample would tear apart.
    ends = bootstrap_statistics(statistics, len(ious))
    return ExtraScores(dict(zip(MASKS.words, percent, strict=True)), _by_name(("mIoU", "F_dataset"), ends))


def _by_name(names: Iterable[str], ends: NDArray[np.float64]) -> dict[str, Interval | None]:
    return dict(zip(names, map(plain_interval, ends), strict=True))


DETECTION = MetricFamily(words=_detection_words(), shown=tuple(DETECTION_WORDS), score=_score_detection)
"""Is there a source in the frame at all, and where?"""

_PAIR_WORDS = {
    "IIoU": "share of the frames of which each sound is localised: the smallest consensus IoU of "
    "the frame's clips is at least 0.5",
    "IAUC": "area under that share over thresholds 0, 0.05 … 1, by trapezoids",
}
PAIRS = MetricFamily(words=_PAIR_WORDS, shown=tuple(_PAIR_WORDS), score=_score_pairs)
"""Several sounds of one frame."""

_MASK_WORDS = {
    "mIoU": "mean over clips of the IoU of the pixels above 0.5 with the mask; where nothing is "
    "annotated, of the pixels that both leave out",
    "F_dataset": "largest F (β² = 0.3) over 255 thresholds of the mean over clips with anything annotated",
    f"mIoU_batch{BATCH}": f"mIoU as the mean of the means of batches of {BATCH} clips",
    f"F_avsbench_batch{BATCH}": f"F as the mean of the largest F of batches of {BATCH} clips: a "
    "threshold for each batch",
}
MASKS = MetricFamily(words=_MASK_WORDS, shown=tuple(_MASK_WORDS), score=_score_masks)
"""The truth is a mask."""
