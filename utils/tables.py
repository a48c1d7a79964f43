"""The scores as text: for the screen, and as Markdown, LaTeX and CSV that stand on their own."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from utils.evaluation.statistics import SCORE_KEYS

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
"""as every task writes it"""


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


def escape_markdown(text: str) -> str:
    """Text for Markdown, in one line."""
    marked = "".join(f"\\{letter}" if letter in r"\`*_[]<>|" else letter for letter in text)
    return " ".join(marked.split())
