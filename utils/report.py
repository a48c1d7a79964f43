"""One evaluation as one HTML page that opens from disk, without a network and without scripts."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from utils.visualisation import write_atomically

KINDS = ("model", "baseline", "ceiling")
KIND_LABELS = {"model": "model", "baseline": "blind baseline", "ceiling": "ceiling"}
HEADLINE_FACTS = ("clips", "protocol")
PAGE_TEMPLATE = Path(__file__).with_name("report_page.html")

NUM_COLOURS = 5  # .colour-0 … and .dash-0 … of the page's style sheet
NUM_DASHES = 3

PLOT_WIDTH, PLOT_HEIGHT = 640, 400  # of the view box; the page scales it
PLOT_LEFT, PLOT_TOP = 70, 30
PLOT_RIGHT, PLOT_BOTTOM = 620, 340


@dataclass(frozen=True)
class ReportRow:
    """One line of the score table; all scores in percent, NaN where there is none."""

    name: str
    ciou_at_0_5: float
    auc: float
    mean_ciou: float
    pointing_accuracy: float
    kind: str

    def __post_init__(self) -> None:
        """Refuse a kind that the page has no style for."""
        _check_kind(self.kind, self.name)


@dataclass(frozen=True)
class SuccessCurve:
    """Success rates in percent over ascending consensus-IoU thresholds in [0, 1]."""

    name: str
    thresholds: Sequence[float]
    rates: Sequence[float]
    kind: str

    def __post_init__(self) -> None:
        """Refuse what cannot be plotted."""
        _check_kind(self.kind, self.name)
        if len(self.thresholds) != len(self.rates):
            raise ValueError(
                f"Success curve {self.name!r} has {len(self.thresholds)} thresholds "
                f"and {len(self.rates)} rates; they must be as many."
            )
        for values, upper, unit in ((self.thresholds, 1, "thresholds"), (self.rates, 100, "rates")):
            if not all(0 <= value <= upper for value in values):
                raise ValueError(
                    f"Success curve {self.name!r}: {unit} must be in [0, {upper}], "
                    f"got {list(values)}."
                )


@dataclass(frozen=True)
class GalleryClip:
    """One clip's JPEG pictures, its consensus IoU in [0, 1] and a few words about it."""

    clip_id: str
    ciou: float
    pictures: Sequence[bytes]
    note: str


@dataclass(frozen=True)
class Gallery:
    """A titled row of clips, such as the best of a benchmark."""

    title: str
    clips: Sequence[GalleryClip]


@dataclass(frozen=True)
class Report:
    """What the page shows; `facts` must have `clips` and `protocol`, which its header repeats."""

    title: str
    facts: Mapping[str, str]
    warnings: Sequence[str]
    rows: Sequence[ReportRow]
    curves: Sequence[SuccessCurve]
    galleries: Sequence[Gallery]

    def __post_init__(self) -> None:
        """Refuse a report whose header would have gaps."""
        missing = [name for name in HEADLINE_FACTS if name not in self.facts]
        if missing:
            raise ValueError(f"Report facts lack {missing}; there are {list(self.facts)}.")
        if not any(row.kind == "model" for row in self.rows):
            raise ValueError(
                f"A report needs a row of kind 'model'; got {[row.kind for row in self.rows]}."
            )


def render_report(report: Report) -> str:
    """Render a report as one self-contained HTML page.

    Args:
        report: scores, curves, pictures and facts; its texts are escaped here.

    Returns:
        The page, with its style, its plot and its pictures inside.
    """
    page = Template(PAGE_TEMPLATE.read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(report.title),
        headline=_render_headline(report),
        warnings=_render_warnings(report.warnings),
        rows="\n".join(_render_row(row) for row in report.rows),
        curves=_render_curves(report.curves),
        galleries=_render_galleries(report.galleries),
        facts="\n".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
            for name, value in report.facts.items()
        ),
    )


def write_report(path: Path, report: Report) -> None:
    """Render a report into a file that is never seen half-written.

    Args:
        path: the HTML file to write or to replace; missing parent folders are made.
        report: what to render.
    """
    write_atomically(path, render_report(report).encode())


def _check_kind(kind: str, name: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"The kind of {name!r} must be one of {KINDS}, got {kind!r}.")


def _number(value: float, digits: int = 1) -> str:
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.{digits}f}"


def _render_headline(report: Report) -> str:
    model = next(row for row in report.rows if row.kind == "model")
    baselines = [row for row in report.rows if row.kind == "baseline"]
    tiles = [
        _score_tile("cIoU@0.5", model.ciou_at_0_5, [row.ciou_at_0_5 for row in baselines]),
        _score_tile("AUC", model.auc, [row.auc for row in baselines]),
        _tile("Clips", escape(report.facts["clips"]), ""),
        _tile("Protocol", escape(report.facts["protocol"]), "words"),
    ]
    return "\n".join(tiles)


def _score_tile(label: str, score: float, baseline_scores: Sequence[float]) -> str:
    known = [value for value in baseline_scores if not math.isnan(value)]
    versus = ""
    if known and not math.isnan(score):
        difference = f"{score - max(known):+.1f}".replace("-", "&minus;")
        versus = f'<dd class="versus">{difference} points against the best blind baseline</dd>'
    return _tile(label, f'{_number(score)}<span class="unit">%</span>', "lead", versus)


def _tile(label: str, value: str, style: str, versus: str = "") -> str:
    value_cell = f'<dd class="value {style}">{value}</dd>'
    return f'<div class="panel"><dt>{label}</dt>{value_cell}{versus}</div>'


def _render_warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="warnings" role="alert"><strong>Read first</strong><ul>{items}</ul></div>'


def _render_row(row: ReportRow) -> str:
    fill = 0 if math.isnan(row.ciou_at_0_5) else row.ciou_at_0_5
    bar = (
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none"><rect class="track" width="100" '
        f'height="8"/><rect class="fill" width="{fill:.1f}" height="8"/></svg>'
    )
    others = "".join(
        f'<td class="number">{_number(value)}</td>'
        for value in (row.auc, row.mean_ciou, row.pointing_accuracy)
    )
    return (
        f'<tr class="{row.kind}"><th scope="row">{escape(row.name)}'
        f'<span class="kind">{KIND_LABELS[row.kind]}</span></th>'
        f'<td class="number">{_number(row.ciou_at_0_5)}</td>'
        f'<td class="bar" aria-hidden="true">{bar}</td>{others}</tr>'
    )


def _render_curves(curves: Sequence[SuccessCurve]) -> str:
    if not curves:
        return ""
    styles = [_curve_style(curve, order) for order, curve in enumerate(curves)]
    # Models last, so that they lie on top; the legend keeps the caller's order.
    layers = sorted(zip(curves, styles, strict=True), key=lambda layer: layer[0].kind == "model")
    drawn = "".join(_draw_curve(curve, style) for curve, style in layers)
    legend = "".join(
        f'<li><svg viewBox="0 0 38 10" aria-hidden="true"><path class="{style}" d="M2 5H36"/></svg>'
        f'<span class="{curve.kind}-name">{escape(curve.name)}</span></li>'
        for curve, style in zip(curves, styles, strict=True)
    )
    return f"""<section>
<h2>Success curve</h2>
<p class="hint">Share of clips whose consensus IoU reaches the threshold. The dotted vertical is
cIoU@0.5; the area under a curve is its AUC.</p>
<figure class="panel">
<svg class="plot" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" aria-label="Success curve">
{_draw_axes()}{drawn}</svg>
<figcaption><ul class="legend">{legend}</ul></figcaption>
</figure>
</section>"""


def _curve_style(curve: SuccessCurve, order: int) -> str:
    if curve.kind == "ceiling":
        return "curve ceiling"
    dash = f" dash-{order % NUM_DASHES}" if curve.kind == "baseline" else ""
    return f"curve {curve.kind} colour-{order % NUM_COLOURS}{dash}"


def _plot_x(threshold: float) -> float:
    return round(PLOT_LEFT + threshold * (PLOT_RIGHT - PLOT_LEFT), 2)


def _plot_y(rate: float) -> float:
    return round(PLOT_BOTTOM - rate / 100 * (PLOT_BOTTOM - PLOT_TOP), 2)


def _draw_axes() -> str:
    parts = []
    for step in range(6):
        x, y = _plot_x(step / 5), _plot_y(step * 20)
        parts += [
            f'<path class="grid" d="M{x} {PLOT_TOP}V{PLOT_BOTTOM}M{PLOT_LEFT} {y}H{PLOT_RIGHT}"/>',
            f'<text x="{x}" y="{PLOT_BOTTOM + 21}" text-anchor="middle">{step / 5:.1f}</text>',
            f'<text x="{PLOT_LEFT - 9}" y="{y + 5}" text-anchor="end">{step * 20}</text>',
        ]
    x, y = _plot_x(0.5), _plot_y(50)
    parts += [
        f'<path class="axis" fill="none" d="M{PLOT_LEFT} {PLOT_TOP}V{PLOT_BOTTOM}H{PLOT_RIGHT}"/>',
        f'<path class="reference" d="M{x} {PLOT_TOP}V{PLOT_BOTTOM}"/>',
        f'<text x="{x}" y="{PLOT_TOP - 9}" text-anchor="middle">cIoU@0.5</text>',
        f'<text x="{x}" y="{PLOT_HEIGHT - 10}" text-anchor="middle">threshold on cIoU</text>',
        f'<text x="20" y="{y}" text-anchor="middle" '
        f'transform="rotate(-90 20 {y})">clips that reach it (%)</text>',
    ]
    return "\n".join(parts)


def _draw_curve(curve: SuccessCurve, style: str) -> str:
    points = [(_plot_x(x), _plot_y(y)) for x, y in zip(curve.thresholds, curve.rates, strict=True)]
    line = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline class="{style}" points="{line}"><title>{escape(curve.name)}</title></polyline>'
    )


def _render_galleries(galleries: Sequence[Gallery]) -> str:
    if not galleries:
        return ""
    blocks = []
    for gallery in galleries:
        cards = "\n".join(_render_card(clip) for clip in gallery.clips)
        blocks.append(f'<h3>{escape(gallery.title)}</h3>\n<ul class="cards">\n{cards}\n</ul>')
    hint = "Heat is the localisation map, shown only where it is high; cyan boxes are annotated."
    joined = "\n".join(blocks)
    return f'<section>\n<h2>Clips</h2>\n<p class="hint">{hint}</p>\n{joined}\n</section>'


def _render_card(clip: GalleryClip) -> str:
    clip_id = escape(clip.clip_id)
    pictures = "".join(
        f'<img alt="{clip_id}" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
        for picture in clip.pictures
    )
    note = f'<p class="note">{escape(clip.note)}</p>' if clip.note else ""
    return (
        f'<li class="card panel"><div class="pictures">{pictures}</div><div class="about">'
        f'<code>{clip_id}</code><span class="score">cIoU {_number(clip.ciou, 2)}</span>{note}'
        "</div></li>"
    )
