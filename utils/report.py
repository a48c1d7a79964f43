"""One evaluation as one HTML page that opens from disk, without a network.

Its only script sorts tables; the page's policy names that script's hash and lets no other run.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from utils.evaluation.statistics import Interval
from utils.files import write_atomically
from utils.page import page_style, render_facts, render_tile, render_warnings
from utils.report_tables import ReportTable, format_score, render_table
from utils.sounds import render_player

HEADLINE_FACTS = ("clips", "protocol")
PAGE_TEMPLATE = Path(__file__).with_name("report_page.html")
PAGE_SCRIPT = Path(__file__).with_name("report_page.js")


@dataclass(frozen=True)
class GalleryClip:
    """One clip's JPEG pictures, its consensus IoU in [0, 1] and a few words about it."""

    clip_id: str
    ciou: float
    pictures: Sequence[bytes]
    note: str
    sound: bytes | None = None
    """MP3 of what the model heard; None: no player"""


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
    tables: Sequence[ReportTable]
    """one for each rule; the header shows the first"""
    galleries: Sequence[Gallery]

    def __post_init__(self) -> None:
        """Refuse a report whose header would have gaps."""
        missing = [name for name in HEADLINE_FACTS if name not in self.facts]
        if missing:
            raise ValueError(f"Report facts lack {missing}; there are {list(self.facts)}.")
        if not self.tables:
            raise ValueError("A report needs a table of scores.")


def render_report(report: Report) -> str:
    """Render a report as one self-contained HTML page.

    Args:
        report: scores, curves, pictures and facts; its texts are escaped here.

    Returns:
        The page, with its style, its plot and its pictures inside.
    """
    page = Template(PAGE_TEMPLATE.read_text(encoding="utf-8"))
    script = PAGE_SCRIPT.read_text(encoding="utf-8")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page.substitute(
        title=escape(report.title),
        style=page_style(),
        script=script,
        script_hash=script_hash,
        headline=_render_headline(report),
        warnings=render_warnings(report.warnings),
        tables="\n".join(map(render_table, report.tables)),
        galleries=_render_galleries(report.galleries),
        facts=render_facts(report.facts.items()),
    )


def write_report(path: Path, report: Report) -> None:
    """Render a report into a file that is never seen half-written.

    Args:
        path: the HTML file to write or to replace; missing parent folders are made.
        report: what to render.
    """
    write_atomically(path, render_report(report).encode())


def _render_headline(report: Report) -> str:
    rows = report.tables[0].rows
    model = next(row for row in rows if row.kind == "model")
    baselines = [row for row in rows if row.kind == "baseline"]
    ciou_interval, auc_interval, *_ = model.intervals
    of_baselines = [row.ciou_at_0_5 for row in baselines]
    tiles = [
        _score_tile("cIoU@0.5", model.ciou_at_0_5, ciou_interval, of_baselines),
        _score_tile("AUC", model.auc, auc_interval, [row.auc for row in baselines]),
        render_tile("Clips", escape(report.facts["clips"]), ""),
        render_tile("Protocol", escape(report.facts["protocol"]), "words"),
    ]
    return "\n".join(tiles)


def _score_tile(label: str, score: float, interval: Interval | None, baseline_scores: Sequence[float]) -> str:
    known = [value for value in baseline_scores if not math.isnan(value)]
    versus = ""
    if interval is not None:
        lower, upper = map(format_score, interval)
        versus = f'<dd class="versus">95 % interval {lower}\N{EN DASH}{upper}</dd>'
    if known and not math.isnan(score):
        difference = f"{score - max(known):+.1f}".replace("-", "&minus;")
        versus += f'<dd class="versus">{difference} points against the best blind baseline</dd>'
    return render_tile(label, f'{format_score(score)}<span class="unit">%</span>', "lead", versus)


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
    if clip.sound is not None:
        note += render_player(clip.sound, f"sound of {clip_id}")
    return (
        f'<li class="card panel"><div class="pictures">{pictures}</div><div class="about">'
        f'<code>{clip_id}</code><span class="score">cIoU {format_score(clip.ciou, 2)}</span>{note}'
        "</div></li>"
    )
