"""One negative-audio evaluation as one HTML page that opens from disk, without a network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from utils.evaluation.negatives import EXTREMES, NEGATIVES, OWN
from utils.negative_audio_tables import COLUMNS, KIND_WORDS, ScoreRow, score_rows, threshold_words, title_of
from utils.page import page_style, render_facts, render_tile, render_warnings

PAGE_TEMPLATE = Path(__file__).with_name("negative_audio_page.html")
PLOT_WIDTH, PLOT_LEFT, PLOT_RIGHT = 640, 190, 615
ROW_HEIGHT, PLOT_TOP = 24, 34
NUM_STEPS = 4
"""lines of the plot's scale, but for the first"""


def render_negative_audio(summary: Mapping[str, Any], facts: Sequence[tuple[str, str]]) -> str:
    """Renders one self-contained HTML page; all texts are escaped here.

    Args:
        summary: as `utils.negative_audio_results.summarise` gives it.
        facts: what is needed to repeat it, named and in words.
    """
    page = Template(PAGE_TEMPLATE.read_text(encoding="utf-8"))
    rows = score_rows(dict(summary))
    return page.substitute(
        style=page_style(),
        title=escape(title_of(dict(summary))),
        headline=_render_headline(rows, summary),
        warnings=render_warnings(summary["warnings"]),
        heads="".join(
            f'<th scope="col"{_number(place)}>{escape(head)}</th>' for place, head in enumerate(COLUMNS)
        ),
        rows="\n".join(map(_render_row, rows)),
        plot=_render_plot(summary["similarities"], summary["threshold"]),
        facts=render_facts(fact for fact in facts if fact[0] != "warning"),
    )


def _number(place: int) -> str:
    return ' class="number"' if place else ""


def _render_headline(rows: Sequence[ScoreRow], summary: Mapping[str, Any]) -> str:
    by_key = {row.key: row for row in rows}
    tiles = []
    for key in ("f_loc", "f_auc", "sensitivity_ciou_at_0.5"):
        row = by_key[key]
        versus = ""
        if row.interval is not None:
            versus = '<dd class="versus">95 % interval {:.1f} to {:.1f}</dd>'.format(*row.interval)
        if row.deaf is not None:
            versus += f'<dd class="versus">{row.deaf:.1f} with the own map for every sound</dd>'
        value = f'{row.mean:.1f}<span class="unit">%</span>'
        tiles.append(render_tile(row.label, value, "lead", versus))
    threshold = f"{summary['threshold']['value']:.4f}"
    words = f'<dd class="versus">{escape(threshold_words(dict(summary)))}</dd>'
    return "\n".join([*tiles, render_tile("Universal threshold", threshold, "lead", words)])


def _render_row(row: ScoreRow) -> str:
    cells = "".join(f"<td{_number(p)}>{escape(cell)}</td>" for p, cell in enumerate(row.cells))
    return f'<tr><th scope="row">{escape(row.label)}</th>{cells}</tr>'


def _render_plot(
    similarities: Mapping[str, Mapping[str, Sequence[float]]], threshold: Mapping[str, Any]
) -> str:
    """Boxes over maps of their lowest, middle and highest similarity, for each kind of sound."""
    kinds = (OWN, *NEGATIVES)
    values = [v for of_kind in similarities.values() for five in of_kind.values() for v in five]
    lowest, highest = min(*values, threshold["value"]), max(*values, threshold["value"])
    span = (highest - lowest) or 1.0

    def x_of(value: float) -> float:
        return round(PLOT_LEFT + (value - lowest) / span * (PLOT_RIGHT - PLOT_LEFT), 2)

    boxes, scale, y = [], [], PLOT_TOP
    for extreme in EXTREMES:
        for order, kind in enumerate(kinds):
            label = f"{extreme}, {KIND_WORDS[kind]}"
            boxes.append(_draw_box(label, order, similarities[kind][extreme], x_of, y))
            y += ROW_HEIGHT
        y += ROW_HEIGHT // 2
    for step in range(NUM_STEPS + 1):
        value = lowest + span * step / NUM_STEPS
        scale.append(
            f'<path class="grid" d="M{x_of(value)} {PLOT_TOP - 14}V{y - 14}"/>'
            f'<text x="{x_of(value)}" y="{y + 6}" text-anchor="middle">{value:.2f}</text>'
        )
    line = x_of(threshold["value"])
    scale.append(
        f'<path class="limit" d="M{line} {PLOT_TOP - 14}V{y - 14}"/>'
        f'<text x="{line}" y="{PLOT_TOP - 19}" text-anchor="middle">threshold</text>'
    )
    title = f"Lowest, middle and highest similarity of the maps, {threshold['similarity']}"
    drawn = "\n".join([*scale, *boxes])
    return f"""<figure class="panel curves">
<svg class="plot" viewBox="0 0 {PLOT_WIDTH} {y + 16}" role="img" aria-label="{escape(title)}">
{drawn}</svg>
<figcaption><strong>{escape(title)}</strong></figcaption>
</figure>"""


def _draw_box(label: str, order: int, five: Sequence[float], x_of: Any, y: int) -> str:  # noqa: ANN401
    """Whiskers from the 5th to the 95th percentile, a box between the quartiles, the median."""
    whisker, box, middle, end, last = map(x_of, five)
    numbers = ", ".join(f"{value:.3f}" for value in five)
    return (
        f'<g class="box-{order}"><title>{escape(label)}: {numbers}</title>'
        f'<text x="{PLOT_LEFT - 10}" y="{y + 5}" text-anchor="end">{escape(label)}</text>'
        f'<path class="whisker" d="M{whisker} {y}H{last}"/>'
        f'<rect x="{box}" y="{y - 7}" width="{max(end - box, 1):.2f}" height="14"/>'
        f'<path class="middle" d="M{middle} {y - 7}V{y + 7}"/></g>'
    )
