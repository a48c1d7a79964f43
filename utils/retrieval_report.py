"""One retrieval as one HTML page: scores, and nearest neighbours in pictures; no network needed."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from utils.page import page_style, render_facts, render_warnings
from utils.retrieval_tables import COLUMNS, ScoreRow
from utils.sounds import render_player

PAGE_TEMPLATE = Path(__file__).with_name("retrieval_page.html")
KINDS = {"audio": "sound", "image": "frame"}


@dataclass(frozen=True)
class MetricTable:
    """The scores of one direction."""

    direction: str
    """such as audio_to_image"""
    rows: Sequence[ScoreRow]


@dataclass(frozen=True)
class Preview:
    """What a page shows of a clip."""

    picture: bytes
    """JPEG of its frame"""
    sound: bytes
    """MP3"""


@dataclass(frozen=True)
class Candidate:
    """A clip in a row of pictures."""

    clip_id: str
    label: str
    """its class; empty where it is not known"""
    preview: Preview
    """its sound is played where the clip stands for a sound"""
    score: float | None = None
    """cosine with the query; None for the query itself"""
    hit: bool | None = None
    """of the query's class; None for the query, and without labels"""


@dataclass(frozen=True)
class Example:
    """A query with its nearest neighbours, and its scores in words."""

    query: Candidate
    neighbours: Sequence[Candidate]
    words: str


@dataclass(frozen=True)
class ExampleGroup:
    """A titled list of queries of one direction."""

    title: str
    """starts with the direction"""
    examples: Sequence[Example]


def render_retrieval(
    *,
    title: str,
    rule: str,
    warnings: Sequence[str],
    tables: Sequence[MetricTable],
    groups: Sequence[ExampleGroup],
    facts: Sequence[tuple[str, str]],
) -> str:
    """Renders one self-contained HTML page; all texts are escaped here.

    Args:
        title: of the page.
        rule: what counts as found, in words.
        warnings: what a reader must know first.
        tables: scores of each direction.
        groups: queries with their neighbours.
        facts: what is needed to repeat it, named and in words.
    """
    page = Template(PAGE_TEMPLATE.read_text(encoding="utf-8"))
    return page.substitute(
        style=page_style(),
        title=escape(title),
        rule=escape(rule),
        warnings=render_warnings(warnings),
        tables="\n".join(_render_table(table) for table in tables),
        groups="\n".join(_render_group(group) for group in groups),
        facts=render_facts(facts),
    )


def _render_table(table: MetricTable) -> str:
    rows = []
    for row in table.rows:
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in row.cells)
        rows.append(f'<tr><th scope="row">{row.metric}</th>{numbers}</tr>')
    heads = "".join(f'<th scope="col" class="number">{head.capitalize()}</th>' for head in COLUMNS)
    body = "\n".join(rows)
    return f"""<section>
<h3>{_in_words(table.direction)}</h3>
<div class="panel scroll">
<table class="scores">
<thead><tr><th scope="col">Metric</th>{heads}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
</section>"""


def _in_words(direction: str) -> str:
    queries, gallery = direction.split("_to_")
    return f"{KINDS[gallery].capitalize()}s found by a {KINDS[queries]}"


def _render_group(group: ExampleGroup) -> str:
    direction, _, title = group.title.partition(": ")
    queries, gallery = (KINDS[kind] for kind in direction.split("_to_"))
    rows = "\n".join(_render_example(example, queries, gallery) for example in group.examples)
    heading = f"{_in_words(direction)}: {title}"
    return f'<h3>{escape(heading)}</h3>\n<ul class="queries">\n{rows}\n</ul>'


def _render_example(example: Example, query_kind: str, gallery_kind: str) -> str:
    cells = [_render_candidate(example.query, query_kind, "query: ")]
    cells += [_render_candidate(one, gallery_kind) for one in example.neighbours]
    note = f'<p class="note">{escape(example.words)}</p>'
    return f'<li class="panel"><div class="neighbours">{"".join(cells)}</div>{note}</li>'


def _render_candidate(candidate: Candidate, kind: str, role: str = "") -> str:
    verdicts = {None: ("", ""), True: ("hit", "\N{CHECK MARK} hit"), False: ("miss", "✗ miss")}
    style, verdict = verdicts[candidate.hit]
    first = verdict
    if candidate.score is None:
        style, first = "query", role + kind
    score = "" if candidate.score is None else f"<span>cosine {candidate.score:.3f}</span>"
    label = escape(candidate.label)
    clip_id = escape(candidate.clip_id)
    source = base64.b64encode(candidate.preview.picture).decode()
    name = f"{role}{kind} of {clip_id} {label}"
    player = render_player(candidate.preview.sound, name) if kind == KINDS["audio"] else ""
    return (
        f'<figure class="candidate {style}"><img alt="{name}" '
        f'src="data:image/jpeg;base64,{source}"><figcaption><strong>{first}</strong>'
        f"<span>{label}</span>{score}<code>{clip_id}</code>{player}</figcaption></figure>"
    )
