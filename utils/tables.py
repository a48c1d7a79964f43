"""The scores as text: for the screen, and as Markdown, LaTeX and CSV that stand on their own."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from utils.evaluation.statistics import SCORE_KEYS, Interval

SCORE_NAMES = dict(zip(SCORE_KEYS, ("cIoU@0.5", "AUC", "mean cIoU", "pointing"), strict=True))
SHORT_SHA256 = 12
"""digits of a sha256 where there is little room"""
TABLE_FILES = ("md", "tex", "csv")
"""forms that each evaluation leaves as table.<form>"""
CHARACTERS_OF_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
}  # fmt: skip

Summary = dict[str, Any]
"""as `utils.results.summarise` gives it"""


@dataclass(frozen=True)
class ScoreBlock:
    """Columns that stand in one table."""

    names: Mapping[str, str]
    """key of a score -> its heading"""
    extra: bool = False
    """they are metrics of the benchmark, beside the usual scores"""

    def score(self, row: Mapping[str, Any], key: str) -> float | None:
        """A predictor's score in percent, where it has one."""
        found: float | None = (row["extra"] if self.extra else row)[key]
        return found

    def interval(self, row: Mapping[str, Any], key: str) -> Interval | None:
        """Its interval, where it has one."""
        found: Interval | None = row["extra_intervals" if self.extra else "intervals"].get(key)
        return found


def headline(summary: Summary) -> str:
    """What was scored, in a line."""
    scored, without = summary["num_clips"], summary["num_without_object"]
    words = f"{summary['benchmark']}, {scored} of {summary['num_listed']} listed clips"
    if without:
        words += f", {scored - without} of them with an object, of which cIoU, AUC and pointing are"
    return words


def score_blocks(extra: Mapping[str, Any] | None) -> list[ScoreBlock]:
    """The usual scores, and those metrics of the benchmark that every table shows.

    Args:
        extra: `extra_metrics` of a summary.
    """
    usual = ScoreBlock(SCORE_NAMES)
    return [usual, ScoreBlock({n: n for n in extra["shown"]}, extra=True)] if extra else [usual]


def score_table(
    by_protocol: Sequence[dict[str, Any]], heading: str, extra: Mapping[str, Any] | None = None
) -> str:
    """The scores for the screen: a line for each rule and predictor, then the rules in words.

    Args:
        by_protocol: as `utils.results.summarise_protocols` gives it.
        heading: what was scored; above the first column.
        extra: `extra_metrics` of a summary.
    """
    lines = [heading]
    for block in score_blocks(extra):
        lines += _screen_lines(by_protocol, block)
    lines += [f"{protocol['name']}: {rule_words(protocol)}" for protocol in by_protocol]
    return "\n".join(lines)


def _screen_lines(by_protocol: Sequence[dict[str, Any]], block: ScoreBlock) -> list[str]:
    rows = []
    for protocol in by_protocol:
        for index, row in enumerate(protocol["rows"]):
            scores = [_two_digits(block.score(row, key)) for key in block.names]
            rows.append((protocol["name"] if index == 0 else "", row["name"], *scores))
            if row["kind"] == "model":
                ends = [_range(block.interval(row, key)) for key in block.names]
                rows.append(("", "  95 % interval", *ends))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    widths[0] = max(widths[0], len("protocol"))
    headings = block.names.values()
    room = max(11, *(len(name) + 2 for name in headings))
    lines = []
    for name, predictor, *cells in (("protocol", "in percent", *headings), *rows):
        in_columns = "".join(f"{cell:>{room}}" for cell in cells)
        lines.append(f"{name:<{widths[0]}}  {predictor:<{widths[1]}}{in_columns}")
    return lines


def rule_words(protocol: Mapping[str, Any]) -> str:
    """A rule in words, and whether its authors scored the same clips, where that is known."""
    scored_on = protocol.get("published_list")
    return protocol["description"] + (f"; {scored_on['words']}" if scored_on else "")


def render_table(summary: Summary, form: str) -> str:
    """The scores under every rule with all that must stand beside them.

    Args:
        summary: of an evaluation.
        form: md, tex, csv (a line for each rule and predictor), or json (the whole summary).

    Returns:
        text that ends with a line feed.
    """
    return render_as(
        form,
        summary,
        markdown=partial(_markdown, summary),
        latex=partial(_latex, summary),
        csv_lines=partial(_csv_lines, summary),
    )


def facts_of(summary: Summary) -> list[tuple[str, str]]:
    """What must stand beside the scores, named and in words."""
    checkpoint, listed = summary["checkpoint"], summary["clip_list"]
    facts = [(f"protocol {one['name']}", rule_words(one)) for one in summary["protocols"]]
    if summary["extra_metrics"]:
        shown = summary["extra_metrics"]["shown"]
        facts += [(name, summary["extra_metrics"]["words"][name]) for name in shown]
    facts += [
        ("clips", f"{summary['num_clips']} scored of {summary['num_listed']} listed"),
        ("missing", f"{summary['num_missing']} without files, {summary['num_unreadable']} unreadable"),
        ("clip list", f"{listed['name']} (sha256 {listed['sha256'][:SHORT_SHA256]})"),
        ("scored clips", f"sha256 {summary['scored_clips_sha256'][:SHORT_SHA256]}"),
        ("leak check", summary["leak_check"]["message"]),
        (
            "checkpoint",
            f"{checkpoint['method']}, {checkpoint['epoch']} epochs "
            f"(sha256 {checkpoint['sha256'][:SHORT_SHA256]})",
        ),
        ("frames, sound", f"{summary['frame_geometry']}, {summary['audio']}"),
        interval_fact(summary),
    ]
    facts += [("published cut", summary["cut"])] if summary["cut"] else []
    return facts + remarks(summary)


def interval_fact(summary: Summary) -> tuple[str, str]:
    """How the intervals were made."""
    words = "{confidence:.0%}, {method}, {resamples} resamples, seed {seed}"
    return "intervals", words.format(**summary["intervals"])


def remarks(summary: Summary) -> list[tuple[str, str]]:
    """The user's note, and what a reader must know first."""
    note = [("note", summary["note"])] if summary["note"] else []
    return note + [("warning", warning) for warning in summary["warnings"]]


def identity_columns(summary: Summary) -> dict[str, Any]:
    """Columns of a CSV that say which clips were scored, and what is known of the model."""
    leak, checkpoint, listed = (summary[name] for name in ("leak_check", "checkpoint", "clip_list"))
    return {
        "clip_list": listed["name"],
        "clip_list_sha256": listed["sha256"],
        "scored_clips_sha256": summary["scored_clips_sha256"],
        "leak_checked": int(leak["checked"]),
        "num_leaked": "" if leak["num_clips"] is None else leak["num_clips"],
        "num_clips_epoch_was_chosen_on": summary["num_clips_epoch_was_chosen_on"],
        "method": checkpoint["method"],
        "checkpoint": checkpoint["path"],
        "checkpoint_sha256": checkpoint["sha256"],
        "frame_geometry": summary["frame_geometry"],
        "note": summary["note"],
        "warnings": " | ".join(summary["warnings"]),
    }


def render_as(
    form: str,
    summary: Summary,
    *,
    markdown: Callable[[], str],
    latex: Callable[[], str],
    csv_lines: Callable[[], list[dict[str, Any]]],
) -> str:
    """One of the forms that `--table` takes.

    Args:
        form: md, tex, csv or json (the whole summary).
        summary: of any task.
        markdown: writes the first.
        latex: writes the second.
        csv_lines: lines of the third, at least one, all with the same columns.
    """
    if form == "csv":
        lines = csv_lines()
        text = io.StringIO()
        table = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
        return text.getvalue()
    if form == "json":
        return json.dumps(summary, indent=2, allow_nan=False) + "\n"
    return {"md": markdown, "tex": latex}[form]()


@dataclass(frozen=True)
class ScoreTable:
    """Words in lines and columns, and what must stand below them."""

    title: str
    headings: Sequence[str]
    num_names: int
    """first columns that hold names; the rest is numbers"""
    lines: Sequence[Sequence[str]]
    facts: Sequence[tuple[str, str]]

    def markdown(self) -> str:
        """As Markdown."""
        rules = " --- |" * self.num_names + " ---: |" * (len(self.headings) - self.num_names)
        lines = [f"{escape_markdown(self.title)}, in percent", "",
                 f"| {' | '.join(self.headings)} |", f"|{rules}"]  # fmt: skip
        for line in self.lines:
            names = map(escape_markdown, line[: self.num_names])
            lines.append(f"| {' | '.join([*names, *line[self.num_names :]])} |")
        return "\n".join([*lines, "", *markdown_facts(self.facts)]) + "\n"

    def latex(self) -> str:
        """A table that needs no package; its file is in UTF-8."""
        columns = "l" * self.num_names + "r" * (len(self.headings) - self.num_names)
        cells = [map(escape_latex, line) for line in (self.headings, *self.lines)]
        rows = [" & ".join(line) + r" \\" for line in cells]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(self.title)}, in percent.}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            rows[0],
            r"\hline",
            *rows[1:],
            r"\hline",
            r"\end{tabular}",
            "",
            r"\smallskip",
        ]
        return "\n".join([*lines, *latex_facts(self.facts), r"\end{table}"]) + "\n"


def markdown_facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of what stands below a table."""
    return [f"- {name}: {escape_markdown(words)}" for name, words in facts]


def latex_facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of what stands below a table, in a box of the text's width."""
    words = [escape_latex(f"{name}: {words}") for name, words in facts]
    return [r"\parbox{\linewidth}{\footnotesize", "\\\\\n".join(words) + "}"]


def escape_latex(text: str) -> str:
    """Text for LaTeX, in one line."""
    return " ".join("".join(CHARACTERS_OF_LATEX.get(c, c) for c in text).split())


def _markdown(summary: Summary) -> str:
    lines = [f"Sound localisation on {escape_markdown(headline(summary))}, in percent [95 % interval]"]
    for block in score_blocks(summary["extra_metrics"]):
        headings = map(escape_markdown, block.names.values())
        lines += [
            "",
            f"| protocol | predictor | {' | '.join(headings)} |",
            "| --- | --- |" + " ---: |" * len(block.names),
        ]
        for protocol, row in _rows(summary):
            cells = [_with_interval(block, row, key, "{} [{}, {}]") for key in block.names]
            names = [escape_markdown(name) for name in (protocol["name"], row["name"])]
            lines.append(f"| {' | '.join([*names, *cells])} |")
    return "\n".join([*lines, "", *markdown_facts(facts_of(summary))]) + "\n"


def _latex(summary: Summary) -> str:
    """A table that needs no package; its file is in UTF-8."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{Sound localisation on {escape_latex(headline(summary))}, in percent "
        r"[95\,\% interval].}",
    ]
    for block in score_blocks(summary["extra_metrics"]):
        lines += [*_latex_rows(summary, block), r"\smallskip"]
    return "\n".join([*lines, *latex_facts(facts_of(summary)), r"\end{table}"]) + "\n"


def _latex_rows(summary: Summary, block: ScoreBlock) -> list[str]:
    columns = [escape_latex(name) for name in ("protocol", "predictor", *block.names.values())]
    lines = [r"\begin{tabular}{ll" + "r" * len(block.names) + "}", r"\hline", " & ".join(columns) + r" \\"]
    for protocol, row in _rows(summary):
        form = r"{} {{\tiny [{}, {}]}}"
        cells = [_with_interval(block, row, key, form) for key in block.names]
        names = [escape_latex(name) for name in (protocol["name"], row["name"])]
        first = row is protocol["rows"][0]
        lines += [r"\hline"] if first else []
        lines.append(" & ".join([names[0] if first else "", names[1], *cells]) + r" \\")
    return [*lines, r"\hline", r"\end{tabular}", ""]


def _csv_lines(summary: Summary) -> list[dict[str, Any]]:
    """A line for each rule and predictor; everything else is repeated in each of them."""
    shared = {
        "num_without_object": summary["num_without_object"],
        "num_listed": summary["num_listed"],
        "num_missing": summary["num_missing"],
        "num_unreadable": summary["num_unreadable"],
        "cut": summary["cut"] or "",
        "audio": summary["audio"],
        **identity_columns(summary),
    }
    extra = summary["extra_metrics"]
    blocks = score_blocks(extra and {**extra, "shown": list(extra["words"])})
    lines = []
    for protocol, row in _rows(summary):
        line: dict[str, Any] = {
            "benchmark": summary["benchmark"],
            "protocol": protocol["name"],
            "rule": protocol["description"],
            "list_of_rule": protocol["published_list"]["words"],
            "predictor": row["name"],
            "kind": row["kind"],
            "num_clips": summary["num_clips"],
        }
        for block in blocks:
            for key in block.names:
                values = (block.score(row, key), *(block.interval(row, key) or (None, None)))
                for suffix, value in zip(("", "_low", "_high"), values, strict=True):
                    line[key + suffix] = "" if value is None else f"{value:.4f}"
        lines.append(line | shared)
    return lines


def _rows(summary: Summary) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each rule with each of its predictors."""
    return [(protocol, row) for protocol in summary["protocols"] for row in protocol["rows"]]


def _with_interval(block: ScoreBlock, row: dict[str, Any], key: str, form: str) -> str:
    """A score with its interval where it has one; `form` takes the three numbers."""
    score, interval = block.score(row, key), block.interval(row, key)
    if interval is None:
        return _two_digits(score)
    return form.format(*map(_two_digits, (score, *interval)))


def _two_digits(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1f}-{interval[1]:.1f}"


def escape_markdown(text: str) -> str:
    """Text for Markdown, in one line."""
    marked = "".join(f"\\{letter}" if letter in r"\`*_[]<>|" else letter for letter in text)
    return " ".join(marked.split())
