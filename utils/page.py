"""What all pages of results have in common."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE_FILE = Path(__file__).with_name("report_page.css")


def page_style() -> str:
    """The style sheet of every page."""
    return STYLE_FILE.read_text(encoding="utf-8")


def render_warnings(warnings: Sequence[str]) -> str:
    """What a reader must know first; nothing where there is nothing."""
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="warnings" role="alert"><strong>Read first</strong><ul>{items}</ul></div>'


def render_tile(label: str, value: str, style: str, versus: str = "") -> str:
    """One of the figures at the top of a page.

    Args:
        label: its name.
        value: HTML.
        style: lead, words or nothing.
        versus: HTML of what the figure is compared with, `dd` elements.
    """
    cell = f'<dd class="value {style}">{value}</dd>'
    return f'<div class="panel"><dt>{escape(label)}</dt>{cell}{versus}</div>'


def render_facts(facts: Iterable[tuple[str, str]]) -> str:
    """The section with all that is needed to repeat an evaluation, named and in words."""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(words)}</td></tr>' for name, words in facts
    )
    return f"""<section>
<h2>How these numbers were made</h2>
<p class="hint">Everything needed to repeat this evaluation.</p>
<div class="panel">
<table class="facts">
<tbody>
{rows}
</tbody>
</table>
</div>
</section>"""
