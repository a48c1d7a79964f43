"""Tables of the report page: scores under one rule, and by group of clips. Plain HTML, escaped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from utils.evaluation.statistics import Interval
from utils.success_plot import SuccessCurve, check_kind, render_success_plot

KIND_LABELS = {"model": "model", "baseline": "blind baseline", "ceiling": "ceiling"}
MOST_ROWS_OPEN = 10
"""longer tables of groups are folded"""
NO_INTERVALS: tuple[Interval | None, ...] = (None,) * 4


@dataclass(frozen=True)
class ReportRow:
    """One line of the score table; all scores in percent, NaN where there is none."""

    name: str
    ciou_at_0_5: float
    auc: float
    mean_ciou: float
    pointing_accuracy: float
    kind: str
    intervals: Sequence[Interval | None] = NO_INTERVALS
    """of the four scores, in their order"""
    note: str = ""
    """a few words below the name"""

    def __post_init__(self) -> None:
        """Refuse a kind that the page has no style for."""
        check_kind(self.kind, self.name)


@dataclass(frozen=True)
class ReportGroup:
    """The model's scores on a group of clips, in percent; NaN where there is none."""

    name: str
    num_clips: int
    few_clips: bool
    """too few for its intervals: marked"""
    scores: Sequence[float]
    """cIoU@0.5, AUC, mean cIoU, pointing"""
    intervals: Sequence[Interval | None]
    """of the scores, in their order"""
    best_blind: float
    """cIoU@0.5"""
    ceiling: float
    """cIoU@0.5"""


@dataclass(frozen=True)
class ReportGrouping:
    """Clips by one property."""

    title: str
    words: str
    """what it groups by, and how to read it"""
    groups: Sequence[ReportGroup]


@dataclass(frozen=True)
class ReportMetric:
    """One metric of the benchmark, of each predictor, in percent; NaN where there is none."""

    name: str
    words: str
    """what it is"""
    scores: Sequence[float]
    intervals: Sequence[Interval | None]


@dataclass(frozen=True)
class ReportMetrics:
    """What the benchmark is scored by beside consensus IoU."""

    title: str
    words: str
    predictors: Sequence[str]
    """whose scores each metric has, in their order"""
    metrics: Sequence[ReportMetric]


@dataclass(frozen=True)
class ReportTable:
    """The scores under one rule, named and in words."""

    name: str
    rule: str
    rows: Sequence[ReportRow]
    curves: Sequence[SuccessCurve]
    groupings: Sequence[ReportGrouping] = ()
    metrics: Sequence[ReportMetrics] = ()

    def __post_init__(self) -> None:
        """Refuse a table without the model."""
        if not any(row.kind == "model" for row in self.rows):
            raise ValueError(
                f"A table needs a row of kind 'model'; that of {self.name!r} has "
                f"{[row.kind for row in self.rows]}."
            )


def format_score(value: float, digits: int = 1) -> str:
    """A number, or a dash for NaN."""
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.{digits}f}"


def render_table(table: ReportTable) -> str:
    """Render the scores under one rule: table, success curves, groups.

    Args:
        table: names and words are escaped here.

    Returns:
        HTML; its style sheet is report_page.css.
    """
    rows = "\n".join(_render_row(row) for row in table.rows)
    head = _render_head(("Name", False), ("cIoU@0.5", True), ("", False), *_OTHER_SCORES)
    groupings = "\n".join(map(_render_grouping, table.groupings))
    metrics = "\n".join(map(_render_metrics, table.metrics))
    return f"""<section>
<h3>Protocol <code>{escape(table.name)}</code></h3>
<p class="hint">{escape(table.rule)}</p>
<div class="panel scroll">
<table class="scores sortable">
{head}
<tbody>
{rows}
</tbody>
</table>
</div>
{metrics}{render_success_plot(table.curves, table.name)}{groupings}</section>"""


_OTHER_SCORES = (("AUC", True), ("mean cIoU", True), ("Pointing", True))


def _render_head(*columns: tuple[str, bool]) -> str:
    """Names of columns, and whether they hold numbers; a column without a name holds bars."""
    cells = []
    for name, is_number in columns:
        style = ' class="number"' if is_number else ""
        cells.append(
            f'<th scope="col"{style}>{escape(name)}</th>'
            if name
            else '<th class="bar" aria-hidden="true"></th>'
        )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _render_number(value: float, interval: Interval | None = None) -> str:
    ends = ""
    if interval is not None:
        lower, upper = map(format_score, interval)
        ends = f'<span class="interval">{lower}\N{EN DASH}{upper}</span>'
    ordered = "" if math.isnan(value) else f' data-value="{value:.6f}"'
    return f'<td class="number"{ordered}>{format_score(value)}{ends}</td>'


def _render_bar(value: float, interval: Interval | None) -> str:
    fill = 0 if math.isnan(value) else value
    spread = ""
    if interval is not None:
        lower, upper = interval
        spread = f'<rect class="spread" x="{lower:.1f}" y="3" width="{upper - lower:.1f}" height="2"/>'
    return (
        '<td class="bar" aria-hidden="true"><svg viewBox="0 0 100 8" preserveAspectRatio="none">'
        '<rect class="track" width="100" height="8"/>'
        f'<rect class="fill" width="{fill:.1f}" height="8"/>{spread}</svg></td>'
    )


def _render_row(row: ReportRow) -> str:
    first, *others = row.intervals
    scores = (row.auc, row.mean_ciou, row.pointing_accuracy)
    note = f'<span class="kind">{escape(row.note)}</span>' if row.note else ""
    return (
        f'<tr class="{row.kind}"><th scope="row">{escape(row.name)}'
        f'<span class="kind">{KIND_LABELS[row.kind]}</span>{note}</th>'
        f"{_render_number(row.ciou_at_0_5, first)}{_render_bar(row.ciou_at_0_5, first)}"
        f"{''.join(map(_render_number, scores, others))}</tr>"
    )


def _render_grouping(grouping: ReportGrouping) -> str:
    head = _render_head(
        ("Group", False),
        ("Clips", True),
        ("cIoU@0.5", True),
        ("", False),
        ("Best blind", True),
        ("Ceiling", True),
        *_OTHER_SCORES,
    )
    rows = "\n".join(map(_render_group, grouping.groups))
    return _render_fold(grouping.title, grouping.words, head, rows, len(grouping.groups))


def _render_fold(title: str, words: str, head: str, rows: str, num_rows: int) -> str:
    opened = " open" if num_rows <= MOST_ROWS_OPEN else ""
    return f"""<details class="panel groups"{opened}>
<summary>{escape(title)}</summary>
<p class="hint">{escape(words)}</p>
<div class="scroll">
<table class="scores sortable">
{head}
<tbody>
{rows}
</tbody>
</table>
</div>
</details>
"""


def _render_metrics(block: ReportMetrics) -> str:
    head = _render_head(("Metric", False), *((name, True) for name in block.predictors))
    rows = "\n".join(
        f'<tr><th scope="row">{escape(metric.name)}<span class="kind">{escape(metric.words)}</span>'
        f"</th>{''.join(map(_render_number, metric.scores, metric.intervals))}</tr>"
        for metric in block.metrics
    )
    return _render_fold(block.title, block.words, head, rows, len(block.metrics))


def _render_group(group: ReportGroup) -> str:
    first, *others = group.intervals
    few = '<span class="kind few">few clips</span>' if group.few_clips else ""
    rate = group.scores[0]
    return (
        f'<tr><th scope="row">{escape(group.name)}{few}</th>'
        f'<td class="number" data-value="{group.num_clips}">{group.num_clips}</td>'
        f"{_render_number(rate, first)}{_render_bar(rate, first)}"
        f"{_render_number(group.best_blind)}{_render_number(group.ceiling)}"
        f"{''.join(map(_render_number, group.scores[1:], others))}</tr>"
    )
