"""A retrieval from embeddings to its files: summary.json, per_query.csv, table.*, report.html."""

import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from utils.embeddings import Embeddings
from utils.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Interval,
    bootstrap_intervals,
    plain_interval,
)
from utils.files import write_atomically
from utils.reports.report import EvaluationContext
from utils.retrieval import DirectionResult, check_request, evaluate_retrieval
from utils.retrieval_report import Candidate, Example, ExampleGroup, MetricTable, Preview, render_retrieval
from utils.retrieval_tables import facts_of, render_table, score_rows, screen_table
from utils.tables import TABLE_FILES

logger = logging.getLogger(__name__)

RULE = (
    "All clips are the gallery. By class (Acc@k, Prec@k) the query's own clip is left out, in "
    "either modality; by clip (R@k) it is what must be found. Neighbours by cosine, equal ones in "
    "the order of the clip list."
)
POOLING_WORDS = {
    None: "not used",
    "max": "max: maximum of each channel over the positions of the frame's map, then unit norm",
    "mean": "mean: mean of each channel over the positions of the frame's map, then unit norm",
    "positions": "positions: the best of the positions of the frame's map, each of unit norm",
}
NUM_SHOWN = 5
"""Neighbours in per_query.csv and in the pictures."""


class LabelsLike(Protocol):
    """Classes of clips, and where they were read."""

    @property
    def path(self) -> str:
        """The file."""
        ...

    @property
    def sha256(self) -> str:
        """Of the file."""
        ...

    @property
    def form(self) -> str:
        """Of the file."""
        ...

    def of(self, clip_ids: Sequence[str]) -> list[str]:
        """Classes of clips, in their order."""
        ...


@dataclass(frozen=True)
class RetrievalSetting:
    """What is retrieved by which rule: stands beside every number."""

    context: EvaluationContext
    directions: tuple[str, ...]
    ks: tuple[int, ...]
    labels: LabelsLike | None
    image_pooling: str | None

    def labels_of(self, clip_ids: Sequence[str]) -> list[str] | None:
        """Classes of clips, in their order; None without labels."""
        return None if self.labels is None else self.labels.of(clip_ids)

    def identity(self) -> dict[str, Any]:
        """What two results of one folder must have in common, as plain values."""
        return {
            "task": "retrieval",
            "dataset": self.context.benchmark,
            "checkpoint_sha256": self.context.checkpoint["sha256"],
            "clip_list_sha256": self.context.clip_list_sha256,
            "frame_geometry": self.context.frame_geometry,
            "directions": list(self.directions),
            "ks": list(self.ks),
            "labels_sha256": None if self.labels is None else self.labels.sha256,
            "image_pooling": self.image_pooling,
        }

    def check(self, folder: Path, clip_ids: Sequence[str]) -> None:
        """Refuses before the work what could not be scored or written after it.

        Args:
            folder: for the results.
            clip_ids: of all clips.

        Raises:
            FileExistsError: the folder holds another evaluation's results.
            ValueError: there are too few clips, one has no class, classes are needed but not
                named, or the summary in the folder cannot be read.
        """
        self.labels_of(clip_ids)
        check_request(len(clip_ids), self.directions, self.ks, labels_known=self.labels is not None)
        path = folder / "summary.json"
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text()).get("identity", {})
            different = [key for key, value in self.identity().items() if found.get(key) != value]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not a summary of this program; name another --output.") from error
        if different:
            raise FileExistsError(
                f"{path} holds the results of another evaluation (another "
                f"{', '.join(different)}). Name another --output; --embeddings lets it use the "
                "embeddings of this one."
            )


def retrieve(
    folder: Path,
    setting: RetrievalSetting,
    embeddings: Embeddings,
    device: torch.device,
    pictures: tuple[int, Callable[[str], Preview]],
    table: str | None = None,
) -> dict[str, Any]:
    """Searches, scores, writes the files and prints the scores.

    Args:
        folder: for the files.
        setting: of the retrieval.
        embeddings: to be searched.
        device: to search on.
        pictures: see `write_retrieval`.
        table: form of `render_table` in which the scores are printed, and nothing else; None: for
            reading.

    Returns:
        the summary.
    """
    total = len(embeddings.clip_ids) * len(setting.directions)
    with tqdm(total=total, desc="searching", unit="query") as bar:
        results = evaluate_retrieval(
            embeddings,
            setting.labels_of(embeddings.clip_ids),
            setting.directions,
            setting.ks,
            device=device,
            on_queries=bar.update,
        )
    summary = write_retrieval(folder, setting, embeddings, results, pictures)
    for warning in summary["warnings"]:
        logger.warning("%s", warning)
    report = f"Report: {folder / 'report.html'}"
    if table is not None:
        sys.stdout.write(render_table(summary, table))
        logger.info("%s", report)
    else:
        sys.stdout.write(f"{screen_table(summary)}\n{report}\n")
    return summary


def write_retrieval(
    folder: Path,
    setting: RetrievalSetting,
    embeddings: Embeddings,
    results: Sequence[DirectionResult],
    pictures: tuple[int, Callable[[str], Preview]],
) -> dict[str, Any]:
    """Writes summary.json, per_query.csv, table.md, table.tex, table.csv and report.html.

    Args:
        folder: for the files.
        setting: of the retrieval.
        embeddings: that were searched.
        results: of each direction.
        pictures: how many best, median and worst queries are shown, and what is
            shown of a clip.

    Returns:
        the summary.
    """
    labels = setting.labels_of(embeddings.clip_ids)
    summary = _summarise(setting, embeddings, labels, results)
    write_atomically(
        folder / "per_query.csv",
        _per_query_table(embeddings.clip_ids, labels, results, setting.ks[-1]).encode(),
    )
    for form in TABLE_FILES:
        write_atomically(folder / f"table.{form}", render_table(summary, form).encode())
    count, preview_of = pictures
    page = render_retrieval(
        title=f"Retrieval on {setting.context.benchmark}"
        + (f" ({setting.context.note})" if setting.context.note else ""),
        rule=RULE,
        warnings=summary["warnings"],
        tables=[
            MetricTable(result.name, [row for row in score_rows(summary) if row.direction == result.name])
            for result in results
        ],
        groups=[
            group
            for result in results
            for group in _examples(result, embeddings.clip_ids, labels, setting, count, preview_of)
        ],
        facts=[fact for fact in facts_of(summary) if fact[0] != "warning"],
    )
    write_atomically(folder / "report.html", page.encode())
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "summary.json", text.encode())
    return summary


def _summarise(
    setting: RetrievalSetting,
    embeddings: Embeddings,
    labels: list[str] | None,
    results: Sequence[DirectionResult],
) -> dict[str, Any]:
    context = setting.context
    source = None
    if setting.labels is not None and labels is not None:
        source = {
            "path": setting.labels.path,
            "sha256": setting.labels.sha256,
            "form": setting.labels.form,
            "num_classes": len(set(labels)),
        }
    return {
        "identity": setting.identity(),
        "dataset": context.benchmark,
        "rule": RULE,
        "image_embedding": POOLING_WORDS[setting.image_pooling],
        "directions": {
            result.name: {
                metric.name: {**metric.summary(), "interval": interval}
                for metric, interval in zip(result.metrics, intervals, strict=True)
            }
            for result, intervals in zip(results, score_intervals(results), strict=True)
        },
        "intervals": {
            "method": "percentile bootstrap over queries, the gallery as given",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "num_clips": len(embeddings.clip_ids),
        "num_listed": context.num_listed,
        "complete": not context.missing and not embeddings.unreadable,
        "missing": list(context.missing),
        "unreadable": [f"{clip_id}: {reason}" for clip_id, reason in embeddings.unreadable],
        "labels": source,
        "clip_list": {"name": context.clip_list, "sha256": context.clip_list_sha256},
        "scored_clips_sha256": context.entries(embeddings.clip_ids, ())["scored_clips_sha256"],
        "data_root": context.data_root,
        "frame_geometry": context.frame_geometry,
        "note": context.note,
        "checkpoint": context.checkpoint,
        "leak_check": context.leak,
        "num_clips_epoch_was_chosen_on": context.num_chosen_on,
        # Localisation's warnings are of clips and checkpoint, not of its scores.
        "warnings": context.warnings(embeddings.unreadable),
        "environment": context.environment,
        "command": context.command,
    }


def score_intervals(results: Sequence[DirectionResult]) -> list[list[Interval | None]]:
    """95 % intervals in percent, of each direction's metrics in their order.

    Queries are drawn again, the same for every score; their neighbours stay, so the gallery is
    taken as given.

    Args:
        results: of each direction, of the same queries.

    Returns:
        None in place of an interval where each query scores the same.
    """
    values = np.stack([m.per_query for result in results for m in result.metrics], axis=1)
    ends = iter(100 * bootstrap_intervals(values))
    return [[plain_interval(next(ends)) for _ in result.metrics] for result in results]


def _per_query_table(
    clip_ids: Sequence[str], labels: Sequence[str] | None, results: Sequence[DirectionResult], largest_k: int
) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = list(dict.fromkeys(metric.name for result in results for metric in result.metrics))
    shown = min(NUM_SHOWN, largest_k)
    heads = [f"{kind}_{place}" for place in range(1, shown + 1) for kind in ("neighbour", "score")]
    table.writerow(["direction", "clip_id", "label", "own_rank", *names, *heads])
    for result in results:
        columns = {metric.name: metric.per_query for metric in result.metrics}
        for row, clip_id in enumerate(clip_ids):
            rank = 0 if result.own_ranks is None else int(result.own_ranks[row])
            scores = [f"{columns[name][row]:g}" if name in columns else "" for name in names]
            neighbours: list[str] = []
            for place in range(shown):
                index, score = result.others.indices[row, place], result.others.scores[row, place]
                neighbours += [clip_ids[index], f"{score:.6f}"]
            label = "" if labels is None else labels[row]
            table.writerow([result.name, clip_id, label, rank or "", *scores, *neighbours])
    return text.getvalue()


def _examples(
    result: DirectionResult,
    clip_ids: Sequence[str],
    labels: Sequence[str] | None,
    setting: RetrievalSetting,
    count: int,
    preview_of: Callable[[str], Preview],
) -> list[ExampleGroup]:
    def candidate(index: int, score: float | None = None, hit: bool | None = None) -> Candidate:
        clip_id = clip_ids[index]
        label = "" if labels is None else labels[index]
        return Candidate(clip_id, label, preview_of(clip_id), score, hit)

    def example(query: int) -> Example:
        shown = min(NUM_SHOWN, setting.ks[-1])
        neighbours = [
            candidate(
                int(result.others.indices[query, place]),
                float(result.others.scores[query, place]),
                None if result.relevant is None else bool(result.relevant[query, place]),
            )
            for place in range(shown)
        ]
        words = [f"{m.name} {100 * m.per_query[query]:.0f}" for m in result.metrics]
        return Example(candidate(query), neighbours, ", ".join(words))

    return [
        ExampleGroup(f"{result.name}: {title}", [example(query) for query in queries])
        for title, queries in _choose(_quality(result, setting.ks[-1]), count).items()
    ]


def _quality(result: DirectionResult, largest_k: int) -> NDArray[np.float64]:
    """How well each query did, in [0, 1]: Prec@k, without labels 1 / the own clip's place."""
    if result.relevant is not None:
        return result.relevant[:, :largest_k].mean(axis=1)
    assert result.own_ranks is not None, "one modality is scored with labels only"
    return np.where(result.own_ranks > 0, 1 / np.maximum(result.own_ranks, 1), 0.0)


def _choose(quality: NDArray[np.float64], count: int) -> dict[str, list[int]]:
    """Best, median and worst queries, each once; fewer where there are not enough."""
    order = np.argsort(-quality, kind="stable").tolist()
    count = min(count, len(order) // 3)
    middle = (len(order) - count) // 2
    chosen = {
        "best queries": order[:count],
        "queries around the median": order[middle : middle + count],
        "worst queries": order[::-1][:count],
    }
    return {title: queries for title, queries in chosen.items() if queries}
