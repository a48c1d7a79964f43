"""The tables of a report from the summary of an evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from utils.evaluation.metrics import SUCCESS_THRESHOLDS
from utils.evaluation.statistics import SCORE_KEYS, Interval
from utils.groups import FEW_CLIPS
from utils.report_tables import (
    ReportGroup,
    ReportGrouping,
    ReportMetric,
    ReportMetrics,
    ReportRow,
    ReportTable,
)
from utils.scores import ProtocolScores
from utils.success_plot import SuccessCurve
from utils.tables import rule_words


def build_table(
    one: ProtocolScores, plain: Mapping[str, Any], words: Mapping[str, str], extra: Mapping[str, Any] | None
) -> ReportTable:
    """What the page shows of one rule.

    Args:
        one: the scores under the rule, for the curves.
        plain: the rule's entry under `protocols` of a summary.
        words: `groupings` of the summary.
        extra: `extra_metrics` of the summary.
    """
    return ReportTable(
        name=one.protocol.name,
        rule=rule_words(plain),
        rows=[_row(row) for row in plain["rows"]],
        curves=[
            SuccessCurve(scores.name, SUCCESS_THRESHOLDS, [100 * rate for rate in scores.curve], scores.kind)
            for scores in one.rows
        ],
        groupings=[_grouping(name, words[name], groups) for name, groups in plain.get("groups", {}).items()],
        metrics=build_metrics(plain["rows"], extra),
    )


def build_metrics(rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any] | None) -> list[ReportMetrics]:
    """The metrics of a benchmark that every table shows, then the others.

    Args:
        rows: of one rule, as a summary has them.
        extra: `extra_metrics` of the summary; None: the benchmark has none.
    """
    if extra is None:
        return []
    rule = extra["published_under"]
    words = f"Published under the rule {rule}" if rule else "Published numbers are of other maps"
    words += "; in percent [95 % interval]."
    others = [name for name in extra["words"] if name not in extra["shown"]]
    parts = [("Metrics of this benchmark", extra["shown"]), ("At other levels and by size", others)]
    return [
        ReportMetrics(
            title,
            words,
            [row["name"] for row in rows],
            [_metric(name, extra["words"][name], rows) for name in names],
        )
        for title, names in parts
        if names
    ]


def _metric(name: str, words: str, rows: Sequence[Mapping[str, Any]]) -> ReportMetric:
    scores = [row["extra"][name] for row in rows]
    return ReportMetric(
        name,
        words,
        [math.nan if score is None else score for score in scores],
        [row["extra_intervals"].get(name) for row in rows],
    )


def _row(row: Mapping[str, Any]) -> ReportRow:
    ciou_at_0_5, auc, mean_ciou, pointing = _numbers(row)
    return ReportRow(
        row["name"], ciou_at_0_5, auc, mean_ciou, pointing, kind=row["kind"], intervals=_intervals(row)
    )


def _grouping(name: str, words: str, groups: Sequence[Mapping[str, Any]]) -> ReportGrouping:
    """The groups in their order, but classes by their score, the best first."""
    by_score = name == "class"
    ordered = sorted(groups, key=lambda group: -group[SCORE_KEYS[0]]) if by_score else groups
    return ReportGrouping(
        title=f"By {name.replace('_', ' ')}",
        words=f"Groups: {words}. Best blind and ceiling: their cIoU@0.5 on the same clips. Few "
        f"clips: fewer than {FEW_CLIPS}, for which the intervals are too narrow.",
        groups=[
            ReportGroup(
                group["name"],
                group["num_clips"],
                group["few_clips"],
                _numbers(group),
                _intervals(group),
                group["best_blind"],
                group["ceiling"],
            )
            for group in ordered
        ],
    )


def _numbers(row: Mapping[str, Any]) -> list[float]:
    """The headline numbers in percent, NaN where there is none."""
    return [math.nan if row[key] is None else float(row[key]) for key in SCORE_KEYS]


def _intervals(row: Mapping[str, Any]) -> list[Interval | None]:
    return [row["intervals"][key] for key in SCORE_KEYS]
