"""Success curves of the report: share of clips over the consensus-IoU threshold, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

KINDS = ("model", "baseline", "ceiling")

NUM_COLOURS = 5  # .colour-0 … and .dash-0 … of the page's style sheet
NUM_DASHES = 3

PLOT_WIDTH, PLOT_HEIGHT = 640, 400  # of the view box; the page scales it
PLOT_LEFT, PLOT_TOP = 70, 30
PLOT_RIGHT, PLOT_BOTTOM = 620, 340


@dataclass(frozen=True)
class SuccessCurve:
    """Success rates in percent over ascending consensus-IoU thresholds in [0, 1]."""

    name: str
    thresholds: Sequence[float]
    rates: Sequence[float]
    kind: str

    def __post_init__(self) -> None:
        """Refuse what cannot be plotted."""
        check_kind(self.kind, self.name)
        if len(self.thresholds) != len(self.rates):
            raise ValueError(
                f"Success curve {self.name!r} has {len(self.thresholds)} thresholds "
                f"and {len(self.rates)} rates; they must be as many."
            )
        for values, upper, unit in ((self.thresholds, 1, "thresholds"), (self.rates, 100, "rates")):
            if not all(0 <= value <= upper for value in values):
                raise ValueError(
                    f"Success curve {self.name!r}: {unit} must be in [0, {upper}], got {list(values)}."
                )


def check_kind(kind: str, name: str) -> None:
    """Refuses a kind that the page has no style for.

    Args:
        kind: what is claimed.
        name: of the table row or curve, for the message.

    Raises:
        ValueError: it is none of KINDS.
    """
    if kind not in KINDS:
        raise ValueError(f"The kind of {name!r} must be one of {KINDS}, got {kind!r}.")


def render_success_plot(curves: Sequence[SuccessCurve], protocol: str) -> str:
    """Render success curves as a figure of the page; its style sheet is report_page.css.

    Args:
        curves: in the order of the legend; names are escaped here.
        protocol: name of the rule that they were scored by.

    Returns:
        HTML with an SVG inside; empty without curves.
    """
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
    title = f"Success curves, protocol {escape(protocol)}"
    return f"""<figure class="panel curves">
<svg class="plot" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" aria-label="{title}">
{_draw_axes()}{drawn}</svg>
<figcaption><strong>{title}</strong><ul class="legend">{legend}</ul></figcaption>
</figure>
"""


def _curve_style(curve: SuccessCurve, order: int) -> str:
    if curve.kind == "ceiling":
        return "curve ceiling"
    # Colours run out: from then on, models are told apart by their dashes as well.
    dashed = curve.kind == "baseline" or order >= NUM_COLOURS
    dash = f" dash-{order % NUM_DASHES}" if dashed else ""
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
    return f'<polyline class="{style}" points="{line}"><title>{escape(curve.name)}</title></polyline>'
