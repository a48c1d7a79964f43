"""What some benchmarks are scored by beside consensus IoU: a row of BENCHMARK_METRICS each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from utils.interactive import num_single
from utils.metric_families import DETECTION, MASKS, PAIRS, ExtraScores, MetricFamily
from utils.scores import LocalisationResult, ProtocolScores, Scores
from utils.segmentation import BATCH


@dataclass(frozen=True, kw_only=True)
class BenchmarkMetrics:
    """How a benchmark differs from those that are scored by consensus IoU alone."""

    family: MetricFamily
    headline: str
    """rule under which its numbers are published, a key of PROTOCOLS; it is scored first"""
    is_published: bool = True
    """False: published numbers are of maps that no rule makes, such as a network's masks"""
    has_negatives: bool = False
    """clips without a box are frames whose sound has no source in them, not misses"""


USUAL_PROTOCOLS = "ssl_tie,sspl"
"""A rule that predicts half of the frame, and one that does not."""

_EXTENDED = BenchmarkMetrics(family=DETECTION, headline="slavc", has_negatives=True)
_OUTLINED = BenchmarkMetrics(family=MASKS, headline="ssl_align", is_published=False)

BENCHMARK_METRICS: dict[str, BenchmarkMetrics] = {
    "vgg_ss_extended": _EXTENDED,
    "flickr_soundnet_extended": _EXTENDED,
    "is3": BenchmarkMetrics(family=PAIRS, headline="ssl_align_adaptive"),
    "avsbench_s4": _OUTLINED,
    "avsbench_ms3": _OUTLINED,
}
"""Benchmarks with further metrics, by name; what they mean: docs/evaluation.md."""


def default_protocols(benchmark: str) -> str:
    """Names of the rules under which a benchmark is scored unless others are named."""
    metrics = BENCHMARK_METRICS.get(benchmark)
    return USUAL_PROTOCOLS if metrics is None else f"{metrics.headline},{USUAL_PROTOCOLS}"


def extra_scores(benchmark: str, result: LocalisationResult) -> list[list[ExtraScores]] | None:
    """Further scores of a benchmark.

    Args:
        benchmark: its name.
        result: of all its clips, also those without an object.

    Returns:
        of each rule and each of its rows; None where consensus IoU is all there is.

    Raises:
        ValueError: its clips lack what the metrics need.
    """
    metrics = BENCHMARK_METRICS.get(benchmark)
    if metrics is None:
        return None
    _check(benchmark, metrics, result)
    # Rules that differ in name only have the same scores.
    by_rule = {one.protocol.rule: one for one in result.by_protocol}
    found = {
        rule: [metrics.family.score(row, result.truths) for row in one.rows] for rule, one in by_rule.items()
    }
    return [found[one.protocol.rule] for one in result.by_protocol]


def describe_extra_metrics(benchmark: str) -> dict[str, Any] | None:
    """What the further scores of a benchmark are, as plain values; None where there are none."""
    if benchmark not in BENCHMARK_METRICS:
        return None
    metrics = BENCHMARK_METRICS[benchmark]
    return {
        "published_under": metrics.headline if metrics.is_published else None,
        "shown": list(metrics.family.shown),
        "words": dict(metrics.family.words),
    }


def extra_warnings(benchmark: str, result: LocalisationResult) -> list[str]:
    """What a reader must know before trusting the further scores, where there are any."""
    metrics = BENCHMARK_METRICS.get(benchmark)
    if metrics is None or not result.by_protocol:
        return []
    found = []
    rules = [one.protocol.name for one in result.by_protocol]
    if metrics.is_published and metrics.headline not in rules:
        found.append(
            f"{' and '.join(metrics.family.shown[:2])} of {benchmark} are published under the rule "
            f"{metrics.headline}, which was not scored (--protocol {metrics.headline})."
        )
    if metrics.family is MASKS:
        found += _warnings_of_masks(benchmark, [clip.clip_id for clip in result.model.clips])
    keys = [truth.pair_key for truth in result.truths if truth.pair_key is not None]
    if metrics.family is PAIRS and num_single(keys):
        found.append(
            f"{num_single(keys)} of {len(set(keys))} frames were scored with one sound only: IIoU "
            "and IAUC take such a clip alone for its frame."
        )
    return found


def _warnings_of_masks(benchmark: str, clip_ids: Sequence[str]) -> list[str]:
    """Clips <video>_<k>: whose truth they have, and whether a batch is a video."""
    found = [
        f"Consensus IoU of {benchmark} is with masks; SSL-Align's published one is with boxes, and "
        "other authors' mIoU and F are of masks that a network gave: compare with neither."
    ]
    videos = [clip_id.rpartition("_")[0] for clip_id in clip_ids]
    batches = [videos[start : start + BATCH] for start in range(0, len(videos), BATCH)]
    num_others = sum(len(batch) < BATCH or len(set(batch)) > 1 for batch in batches)
    if num_others:
        found.append(
            f"{num_others} of {len(batches)} batches of {BATCH} clips are not the {BATCH} frames "
            "of a video (some are missing, or the list has another order): scores by batch differ."
        )
    return found


def clip_columns(benchmark: str, result: LocalisationResult) -> dict[str, list[str]]:
    """What the model's further scores are made of, clip by clip, for tables; name -> (N,)."""
    metrics = BENCHMARK_METRICS.get(benchmark)
    columns: dict[str, list[str]] = {}
    if metrics is None:
        return columns
    if metrics.family is PAIRS:
        columns["pair"] = [truth.pair_key or "" for truth in result.truths]
    for one in result.by_protocol:
        clips, name = one.rows[0].clips, one.protocol.name
        if metrics.family is DETECTION:
            columns[f"{name}:confidence"] = [str(clip.confidence) for clip in clips]
        if metrics.family is MASKS:
            columns[f"{name}:iou"] = [f"{clip.mask.iou:.6f}" if clip.mask else "nan" for clip in clips]
    return columns


def _check(benchmark: str, metrics: BenchmarkMetrics, result: LocalisationResult) -> None:
    num_alone = sum(truth.pair_key is None for truth in result.truths)
    if metrics.family is PAIRS and num_alone:
        raise ValueError(f"{benchmark} is scored in pairs, but {num_alone} clips have no key of their frame.")
    if metrics.has_negatives and not any(truth.num_boxes for truth in result.truths):
        raise ValueError(
            f"{benchmark}: none of the {len(result.truths)} scored clips has a box, so that there "
            "is nothing to be localised. Score clips with and without an object (--clip-list)."
        )


def with_object_only(benchmark: str, result: LocalisationResult) -> LocalisationResult:
    """The result without the clips whose sound has no source in the frame.

    Consensus IoU, pointing and groups say nothing of such clips.

    Args:
        benchmark: its name.
        result: of all its clips.

    Returns:
        `result` itself, unless the benchmark has such clips.
    """
    metrics = BENCHMARK_METRICS.get(benchmark)
    if metrics is None or not metrics.has_negatives:
        return result
    places = [place for place, truth in enumerate(result.truths) if truth.num_boxes]

    def chosen(row: Scores) -> Scores:
        return replace(row, clips=tuple(row.clips[place] for place in places))

    by_protocol: Sequence[ProtocolScores] = [
        replace(one, rows=tuple(map(chosen, one.rows))) for one in result.by_protocol
    ]
    truths = tuple(result.truths[place] for place in places)
    return replace(
        result,
        by_protocol=tuple(by_protocol),
        truths=truths,
        num_empty=sum(truth.area == 0 for truth in truths),
    )
