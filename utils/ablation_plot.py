"""The plot of an ablation: a panel for each score, a row for each variant, as SVG."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

ROW_HEIGHT, PANEL_WIDTH, GAP = 26, 190, 50  # of the view box
NAME_WIDTH, TOP, BOTTOM = 210, 74, 46
NUM_TICKS = 4
STEPS = (1, 2, 5, 10, 20, 25, 50)
"""Distances of ticks, percent."""
STYLE = (
    "text{font:13px sans-serif;fill:#222}.small{font-size:11px;fill:#555}.grid{stroke:#ddd}"
    ".reference{stroke:#b05a00;stroke-dasharray:4 3}.reference-name{fill:#b05a00;font-size:11px}"
    ".deviation{stroke:#1f5fa8;stroke-width:2}.mean{fill:#1f5fa8}.run{fill:none;stroke:#1f5fa8}"
)


def render_plot(result: Mapping[str, Any]) -> str:
    """Means, deviations and single runs under the first rule; the best blind guess as a line.

    Args:
        result: as `utils.ablation.gather` gives it.

    Returns:
        an SVG document.
    """
    sheets = result["sheets"]
    rows = sheets[0]["rows"] if sheets else []
    headings = sheets[0]["headings"] if sheets else {}
    keys = [key for key in headings if any(row["scores"][key]["values"] for row in rows)]
    width = NAME_WIDTH + max(len(keys), 1) * (PANEL_WIDTH + GAP)
    height = TOP + ROW_HEIGHT * len(rows) + BOTTOM
    what = f"{sheets[0]['benchmark']}, {sheets[0]['rule']}" if sheets else "nothing scored yet"
    title = escape(f"Ablation {result['grid']['name']}: {what}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/><text x="12" y="24">{title}</text>',
        '<text class="small" x="12" y="42">percent; dot: mean, bar: ± sample deviation over seeds, '
        "rings: single runs</text>",
    ]
    for place, row in enumerate(rows):
        name = escape(f"{row['variant']} (n = {row['n']})")
        y = _row_y(place) + 4
        parts.append(f'<text x="{NAME_WIDTH - 14}" y="{y}" text-anchor="end">{name}</text>')
    for place, key in enumerate(keys):
        blind = _best_blind(sheets[0]["references"], key)
        scores = [row["scores"][key] for row in rows]
        axis = _Axis.around(scores, blind, left=NAME_WIDTH + place * (PANEL_WIDTH + GAP))
        parts += _frame(axis, headings[key], height - BOTTOM)
        parts += _blind_line(axis, blind, height - BOTTOM)
        for row_place, score in enumerate(scores):
            parts += _row(axis, score, _row_y(row_place))
    return "\n".join([*parts, "</svg>\n"])


@dataclass(frozen=True)
class _Axis:
    """From percent to places in a panel."""

    low: float
    high: float
    step: float
    """between two ticks"""
    left: float

    @classmethod
    def around(
        cls, scores: Sequence[Mapping[str, Any]], blind: tuple[str, float] | None, left: float
    ) -> "_Axis":
        """The axis that shows all of them, from tick to tick."""
        shown = [value for score in scores for value in score["values"] if value is not None]
        for score in scores:
            if score["deviation"] is not None:
                shown += [score["mean"] + sign * score["deviation"] for sign in (-1, 1)]
        shown += [] if blind is None else [blind[1]]
        span = max(max(shown) - min(shown), 1)
        step = next((step for step in STEPS if span / step <= NUM_TICKS), STEPS[-1])
        low = math.floor(min(shown) / step) * step
        high = max(math.ceil(max(shown) / step) * step, low + step)
        return cls(low, high, step, left)

    def x(self, value: float) -> float:
        """Of a score in percent."""
        return round(self.left + (value - self.low) / (self.high - self.low) * PANEL_WIDTH, 1)

    def ticks(self) -> list[float]:
        """From end to end."""
        return [self.low + self.step * n for n in range(round((self.high - self.low) / self.step) + 1)]


def _row_y(place: int) -> float:
    return TOP + ROW_HEIGHT * (place + 0.5)


def _best_blind(references: Mapping[str, Mapping[str, float | None]], key: str) -> tuple[str, float] | None:
    """The blind guess that scores highest, with its name; the ceiling is none."""
    known = [
        (name, scores[key])
        for name, scores in references.items()
        if "blind" in name and scores.get(key) is not None
    ]
    return max(known, key=lambda guess: guess[1], default=None)  # type: ignore[arg-type, return-value]


def _frame(axis: _Axis, heading: str, bottom: float) -> Iterator[str]:
    """Grid, tick labels and heading of a panel."""
    yield f'<text x="{axis.left}" y="{TOP - 10}">{escape(heading)}</text>'
    for tick in axis.ticks():
        x = axis.x(tick)
        yield f'<path class="grid" d="M{x} {TOP}V{bottom}"/>'
        yield f'<text class="small" x="{x}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>'


def _blind_line(axis: _Axis, blind: tuple[str, float] | None, bottom: float) -> Iterator[str]:
    if blind is not None:
        name, x = escape(blind[0]), axis.x(blind[1])
        yield f'<path class="reference" d="M{x} {TOP}V{bottom}"><title>{name}</title></path>'
        yield f'<text class="reference-name" x="{axis.left}" y="{bottom + 32}">- - {name}</text>'


def _row(axis: _Axis, score: Mapping[str, Any], y: float) -> Iterator[str]:
    """A variant's mean, deviation and runs."""
    mean, deviation = score["mean"], score["deviation"]
    if deviation is not None:
        first, last = axis.x(mean - deviation), axis.x(mean + deviation)
        yield f'<path class="deviation" d="M{first} {y}H{last}"/>'
    for value in score["values"]:
        if value is not None:
            yield f'<circle class="run" cx="{axis.x(value)}" cy="{y}" r="3"/>'
    if mean is not None:
        yield f'<circle class="mean" cx="{axis.x(mean)}" cy="{y}" r="4.5"/>'
