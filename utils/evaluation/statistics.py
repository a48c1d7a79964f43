"""How sure a score is: bootstrap intervals over clips, and paired tests between two models.

Every headline number is a mean over clips, AUC too (of each clip's own area), so a resample of the
clips is one weighted mean. Clips are taken to be independent draws, and the model as given: the
spread between training runs is not in these intervals.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.evaluation.metrics import SUCCESS_THRESHOLDS

SCORE_KEYS = ("ciou_at_0.5", "auc", "mean_ciou", "pointing_accuracy")
"""headline numbers; the columns of `clip_values`"""
RESAMPLES = 2000
"""resamples of the clips behind each interval"""
SIGN_FLIPS = 9999
"""random sign flips of a test; 2**n instead where n clips differ and that is no more"""
CONFIDENCE = 0.95
"""share of intervals that hold the true value, in the long run and for many clips"""
SEED = 0
CHUNK_BYTES = 1 << 24
"""most bytes of the drawn clips that are held at once"""

Interval = tuple[float, float]
"""lower and upper end"""


def clip_values(cious: ArrayLike, pointing: ArrayLike | None = None) -> NDArray[np.float64]:
    """What each clip adds to each headline number: their means over clips are these numbers.

    Args:
        cious: (N,) consensus IoU in [0, 1]; NaN is a miss.
        pointing: (N,) booleans; None where there is no peak.

    Returns:
        (N, 4) in [0, 1], in the order of SCORE_KEYS; NaN in the last column without a peak.
    """
    scores = np.asarray(cious, dtype=np.float64)
    hits = np.full(len(scores), np.nan) if pointing is None else np.asarray(pointing)
    reached = scores[:, None] >= SUCCESS_THRESHOLDS
    areas = np.trapezoid(reached.astype(np.float64), SUCCESS_THRESHOLDS, axis=1)
    return np.stack([scores >= 0.5, areas, np.nan_to_num(scores), hits], axis=1)


def bootstrap_intervals(
    values: NDArray[np.float64],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    chunk_bytes: int = CHUNK_BYTES,
) -> NDArray[np.float64]:
    """Percentile bootstrap intervals of means over clips (Efron and Tibshirani, 1993, chapter 13).

    All columns share the same resamples, so what is compared is compared on the same clips.

    Args:
        values: (N, K), a clip per row.
        resamples: drawn with replacement, N clips each.
        seed: of the draws.
        chunk_bytes: see CHUNK_BYTES; does not change the result.

    Returns:
        (K, 2) lower and upper ends. NaN where a column holds NaN, or the same value for each clip:
        clips that agree say nothing about how far others would stray.

    Raises:
        ValueError: there are no clips.
    """
    num_clips, num_columns = values.shape
    means = np.empty((resamples, num_columns))
    done = 0
    for repeats in _resample(num_clips, resamples, seed, chunk_bytes):
        means[done : done + len(repeats)] = repeats @ values / num_clips
        done += len(repeats)
    ends = _percentiles(means)
    ends[~(np.ptp(values, axis=0) > 0)] = np.nan
    return ends


def bootstrap_statistics(
    statistics: Callable[[NDArray[np.int64]], Sequence[float]],
    num_clips: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> NDArray[np.float64]:
    """Percentile bootstrap intervals of numbers that are no means over clips.

    Args:
        statistics: how often each clip counts, (N,) -> K numbers; `bootstrap_intervals` of as many
            clips draws the same resamples.
        num_clips: N.
        resamples: drawn with replacement, N clips each.
        seed: of the draws.

    Returns:
        (K, 2) lower and upper ends; NaN where a number is NaN, or the same in each resample.

    Raises:
        ValueError: there are no clips.
    """
    chunks = _resample(num_clips, resamples, seed, CHUNK_BYTES)
    values = np.array([statistics(repeats) for chunk in chunks for repeats in chunk], np.float64)
    ends = _percentiles(values)
    ends[~(np.ptp(values, axis=0) > 0)] = np.nan
    return ends


def _resample(num_clips: int, resamples: int, seed: int, chunk_bytes: int) -> Iterator[NDArray[np.int64]]:
    """Chunks (R, N) of how often each clip was drawn."""
    if not num_clips:
        raise ValueError("An interval needs at least one clip, got none.")
    rng = np.random.default_rng(seed)
    rows = max(1, chunk_bytes // (8 * num_clips))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(num_clips, size=(count, num_clips))
        drawn += num_clips * np.arange(count)[:, None]
        repeats = np.bincount(drawn.ravel(), minlength=count * num_clips)
        yield repeats.reshape(count, num_clips)


def _percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, K) of resamples -> (K, 2)."""
    outside = (1 - CONFIDENCE) / 2
    return np.quantile(values, [outside, 1 - outside], axis=0).T


def plain_interval(ends: ArrayLike) -> Interval | None:
    """Two ends as plain numbers, for JSON; None where they are NaN."""
    lower, upper = np.asarray(ends, dtype=np.float64).tolist()
    return None if np.isnan(lower) or np.isnan(upper) else (lower, upper)


@dataclass(frozen=True)
class McNemar:
    """McNemar's test: of the clips that only one model hits, is either model's share too large?"""

    only_first: int
    """clips that only the first model hits"""
    only_second: int
    p_value: float
    """two-sided, exact: binomial with a half"""


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact test of two success rates on the same clips (McNemar, 1947).

    Args:
        first: (N,) whether the first model hits each clip.
        second: (N,) the second model, the clips in the same order.

    Raises:
        ValueError: the models have different numbers of clips, or none.
    """
    hits, others = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    _check_paired(len(hits), len(others))
    only_first, only_second = int((hits & ~others).sum()), int((others & ~hits).sum())
    num_discordant, fewer = only_first + only_second, min(only_first, only_second)
    # Whole numbers: neither rounding nor underflow, however many clips there are.
    combinations = tail = 1
    for index in range(fewer):
        combinations = combinations * (num_discordant - index) // (index + 1)
        tail += combinations
    p_value = min(1.0, 2 * tail / (1 << num_discordant))
    return McNemar(only_first, only_second, p_value)


def sign_flip_test(
    differences: ArrayLike, *, num_flips: int = SIGN_FLIPS, seed: int = SEED, chunk_bytes: int = CHUNK_BYTES
) -> float:
    """Two-sided permutation test of a mean difference of 0 on the same clips.

    Were the two models alike, each clip's difference could as well have the other sign. With few
    clips that differ every choice of signs is tried, otherwise a random sample; the p value is then
    at least 1 / (num_flips + 1).

    Args:
        differences: (N,), the first model's value minus the second's.
        num_flips: choices of signs to draw.
        seed: of the draws.
        chunk_bytes: see CHUNK_BYTES; does not change the result.

    Returns:
        the p value, in (0, 1].

    Raises:
        ValueError: there are no clips, or a difference is not finite.
    """
    given = np.asarray(differences, dtype=np.float64)
    if not len(given) or not np.isfinite(given).all():
        raise ValueError("A paired test needs a finite difference for each clip, and a clip.")
    moved = given[given != 0]
    # Flips that only differ in the order of summation are as extreme as what was observed.
    extreme = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()
    if 2 ** min(len(moved), 64) <= num_flips + 1:
        signs = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        return float(np.mean(np.abs(_flipped_sums(signs, moved)) >= extreme))
    rng = np.random.default_rng(seed)
    rows = max(1, chunk_bytes // (8 * len(moved)))
    as_extreme = 0
    for start in range(0, num_flips, rows):
        shape = (min(rows, num_flips - start), len(moved))
        sums = _flipped_sums(rng.integers(2, size=shape), moved)
        as_extreme += int((np.abs(sums) >= extreme).sum())
    return (1 + as_extreme) / (1 + num_flips)


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same clips; differences are the first's scores minus the second's."""

    num_clips: int
    differences: dict[str, float]
    """by name of SCORE_KEYS, in points of percent; pointing only where both have it"""
    intervals: dict[str, Interval | None]
    """of the differences, likewise; None where no clip differs"""
    success: McNemar
    """at a consensus IoU of 0.5"""
    mean_ciou_p_value: float
    """of `sign_flip_test` on the consensus IoU"""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def compare_paired(
    first_cious: ArrayLike,
    second_cious: ArrayLike,
    first_pointing: ArrayLike | None = None,
    second_pointing: ArrayLike | None = None,
    *,
    seed: int = SEED,
) -> PairedComparison:
    """Compares two models, or two rules, on the same clips.

    Args:
        first_cious: (N,) consensus IoU in [0, 1] of the first model; NaN is a miss.
        second_cious: (N,) of the second model, the clips in the same order.
        first_pointing: (N,) whether the first model's peak lies on the object, where known.
        second_pointing: (N,) likewise.
        seed: of the resamples and of the sign flips.

    Raises:
        ValueError: the models have different numbers of clips, or none.
    """
    first = clip_values(first_cious, first_pointing)
    second = clip_values(second_cious, second_pointing)
    _check_paired(len(first), len(second))
    gains = first - second
    means, ends = 100 * gains.mean(axis=0), 100 * bootstrap_intervals(gains, seed=seed)
    known = [index for index in range(len(SCORE_KEYS)) if not np.isnan(means[index])]
    return PairedComparison(
        num_clips=len(gains),
        differences={SCORE_KEYS[index]: float(means[index]) for index in known},
        intervals={SCORE_KEYS[index]: plain_interval(ends[index]) for index in known},
        success=mcnemar(first[:, 0], second[:, 0]),
        mean_ciou_p_value=sign_flip_test(gains[:, 2], seed=seed),
    )


def _flipped_sums(signs: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, N) of 0 for minus and 1 for plus -> (R,) sums."""
    return 2 * (signs @ values) - values.sum()


def _check_paired(num_first: int, num_second: int) -> None:
    if num_first != num_second or not num_first:
        raise ValueError(
            "A paired test needs the same clips of both models, one or more, in the same order; "
            f"got {num_first} and {num_second}."
        )
