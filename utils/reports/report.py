"""The files that every evaluation leaves: summary.json, per_clip.csv, table.md, .tex and .csv, report.html.

A task brings its scores as DataFrames and says what stands where (`Report`); the same tables go into the
text files and onto the page, which is one self-contained HTML file that opens from disk.
"""

import base64
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from utils.evaluation.statistics import CONFIDENCE, RESAMPLES, SEED
from utils.files import check_place, decoding, write_atomically

if TYPE_CHECKING:
    import pandas as pd  # imported when results are written

logger = logging.getLogger("report")

LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "±": r"$\pm$", "Δ": r"$\Delta$", "[": "{[}", "*": "{*}",  # the last two mean something after a line's end
})  # fmt: skip
MARKDOWN = str.maketrans({character: f"\\{character}" for character in r"\`*_[]<>|"})

Note = tuple[str, str]  # name and words


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """Provenance that stands beside every number: what was scored, with what."""

    model: str = "model"  # method, run and epochs in words
    benchmark: str
    data_root: str
    clip_list: str
    clip_list_sha256: str
    num_listed: int
    missing: Sequence[str]  # listed clips without files, with the reason
    cut: str | None = None  # which published cut of the benchmark the list is, or that it is none
    frame_geometry: str
    audio: str = "own"  # or shuffled: each frame with another clip's sound
    note: str = ""  # the user's words
    checkpoint: dict[str, Any]  # path, sha256, method, epoch, selection, training list, ...
    leak: dict[str, Any]  # checked, num_clips, first, message
    num_chosen_on: int  # scored clips on which the checkpoint's epoch was chosen as the best
    object_prior: float | None = None  # share of the model's map beside a map of objects
    labels: dict[str, str] | None = None  # path and sha256 of the file with the classes
    classes: dict[str, str] | None = None  # class of each scored clip with an object, by its id
    saved_maps: dict[str, Any] | None = None  # file of the maps, where they come from one
    environment: dict[str, str]
    command: str

    def title(self, num_clips: int) -> str:
        """What was scored on what, which tells results apart; `num_clips` were scored."""
        count = f"{num_clips} of " * (num_clips != self.num_listed) + f"{self.num_listed} clips"
        words = f"{self.model}, on {self.benchmark}: {self.clip_list}, {count}"
        words += "" if self.audio == "own" else ", wrong sound"
        return " ".join(f"{words} ({self.note})".split()) if self.note else words

    def entries(
        self, clip_ids: Sequence[str], unreadable: Sequence[tuple[str, str]], resampled: str = "over clips"
    ) -> dict[str, Any]:
        """Entries of summary.json that all tasks have; unreadable: (clip id, reason)."""
        ids = "\n".join(sorted(clip_ids))
        named_alike = (
            "model", "num_listed", "cut", "labels", "data_root", "frame_geometry", "audio", "object_prior",
            "note", "checkpoint", "environment", "command",
        )  # fmt: skip
        return {
            "num_clips": len(clip_ids),
            "complete": not self.missing and not unreadable,
            "num_missing": len(self.missing),
            "missing": list(self.missing),
            "num_unreadable": len(unreadable),
            "unreadable": [f"{clip_id}: {reason}" for clip_id, reason in unreadable],
            "intervals": {
                "method": f"percentile bootstrap {resampled}",
                "confidence": CONFIDENCE,
                "resamples": RESAMPLES,
                "seed": SEED,
            },
            "clip_list": {"name": self.clip_list, "sha256": self.clip_list_sha256},
            "scored_clips_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "scored_from_maps": self.saved_maps,
            "leak_check": self.leak,
            "num_clips_epoch_was_chosen_on": self.num_chosen_on,
            **{name: getattr(self, name) for name in named_alike},
        }

    def warnings(self, unreadable: Sequence[tuple[str, str]], num_empty: int = 0) -> list[str]:
        """Warnings that a reader must know before trusting numbers; num_empty: clips without annotation."""
        trained = self.checkpoint.get("training_list") or {}
        missing, broken = "".join(self.missing[:1]), "".join(reason for _, reason in unreadable[:1])
        warnings = {
            f"{len(self.missing)} of {self.num_listed} listed clips are missing or broken and not scored, "
            f"first: {missing}": self.missing,
            f"{len(unreadable)} clips could not be decoded and are not scored, first: {broken}": unreadable,
            f"{num_empty} clips have nothing annotated inside the frame: consensus IoU counts as 0 there, "
            "whatever the map.": num_empty,
            f"Trained without {trained.get('num_missing')} of the {trained.get('num_listed')} clips of "
            f"{trained.get('name')}, which were missing.": trained.get("num_missing"),
            self.leak["message"]: not self.leak["checked"] or self.leak["num_clips"],
            "The frozen encoders have random weights (--random-init): this is not the accuracy of the "
            "published method.": self.checkpoint.get("random_encoders"),
            f"The maps are {1 - (self.object_prior or 0):.0%} those of an object prior, which is blind to "
            "the sound; it alone is scored by --object-prior 0.": self.object_prior is not None,
            "CONTROL: each frame was scored with another clip's sound.": self.audio != "own",
            f"CHOSEN ON TEST: this epoch was picked as the best on {self.num_chosen_on} of the clips that "
            "are scored here. An untouched test set would score lower.": self.num_chosen_on,
            "No clip list was given: every clip with a frame, a sound and boxes was scored.": (
                self.clip_list == "every clip found"
            ),
        }
        return [words for words, applies in warnings.items() if applies]


def provenance_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """Facts at the end of every page: all that is needed to repeat an evaluation."""
    checkpoint, labels, maps = summary["checkpoint"], summary["labels"], summary["scored_from_maps"]
    intervals = summary["intervals"]
    sound = "each clip's own" if summary["audio"] == "own" else "another clip's"
    facts = {
        "clips": f"{summary['num_clips']} of {summary['num_listed']} listed",
        "missing": f"{summary['num_missing']} without files, {summary['num_unreadable']} unreadable",
        "data": summary["data_root"],
        "clip list": "{name} (sha256 {sha256})".format(**summary["clip_list"]),
        "scored clips": f"sha256 {summary['scored_clips_sha256']}",
        "published cut": summary["cut"],
        "classes": labels and "{path} (sha256 {sha256})".format(**labels),
        "frames, sound": f"{summary['frame_geometry']}, {sound}",
        "checkpoint": f"{checkpoint['path']} (sha256 {checkpoint['sha256']})",
        "trained": training_words(checkpoint),
        "start": checkpoint.get("start"),
        "maps": maps and "saved in {path} (sha256 {sha256}) by: {made_by}".format(**maps),
        "leak check": summary["leak_check"]["message"],
        "intervals": "{confidence:.0%}, {method}, {resamples} resamples, seed {seed}".format_map(intervals),
        "environment": ", ".join(f"{name} {value}" for name, value in summary["environment"].items()),
        "note": summary["note"],
        "command": summary["command"],
    }
    return {name: words for name, words in facts.items() if words}


def training_words(checkpoint: Mapping[str, Any]) -> str:
    """How a checkpoint's weights came about, in words."""
    selection, trained = checkpoint["selection"], checkpoint.get("training_list") or {}
    words = f"{checkpoint['method']}, {checkpoint['epoch']} epoch{'s' * (checkpoint['epoch'] != 1)}"
    if trained:
        words += f" on {trained['name']} ({trained['num_listed']} clips, sha256 {trained['sha256']})"
    chosen = {
        "last": "weights of the last epoch",
        "best": "weights of the best epoch on {benchmark}, {list_name}",
        "released file": "released weights",
    }
    return f"{words}, {chosen.get(selection.get('kind'), 'selection unknown').format_map(selection)}"


def provenance_notes(summary: Mapping[str, Any]) -> list[Note]:
    """Notes below the tables of every task: the facts and the warnings."""
    own = ("data", "maps", "environment", "command")  # of this machine: they stay on the page
    notes = [fact for fact in provenance_facts(summary).items() if fact[0] not in own]
    return notes + [("warning", warning) for warning in summary["warnings"]]


def provenance_columns(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that each line of a table.csv repeats: the clips, and what is known of the model."""
    leak, checkpoint, listed = (summary[name] for name in ("leak_check", "checkpoint", "clip_list"))
    return {
        "num_listed": summary["num_listed"],
        "num_missing": summary["num_missing"],
        "num_unreadable": summary["num_unreadable"],
        "cut": summary["cut"] or "",
        "audio": summary["audio"],
        "clip_list": listed["name"],
        "clip_list_sha256": listed["sha256"],
        "scored_clips_sha256": summary["scored_clips_sha256"],
        "leak_checked": int(leak["checked"]),
        "num_leaked": "" if leak["num_clips"] is None else leak["num_clips"],
        "num_clips_epoch_was_chosen_on": summary["num_clips_epoch_was_chosen_on"],
        "method": checkpoint["method"],
        "epoch": checkpoint["epoch"],
        "checkpoint": checkpoint["path"],
        "checkpoint_sha256": checkpoint["sha256"],
        "frame_geometry": summary["frame_geometry"],
        "note": summary["note"],
        "warnings": " | ".join(summary["warnings"]),
    }


def check_results_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another evaluation's results: a summary with another `identity`."""
    check_place(folder, f"--output {folder}")
    path = folder / "summary.json"
    if not path.exists():
        return
    with decoding(path, "it is not a summary of this version of the program; name another --output"):
        existing = json.loads(path.read_text())["identity"]
        different = [name for name, value in identity.items() if existing.get(name) != value]
    if different:
        raise FileExistsError(
            f"{path} holds the results of another evaluation (another {', '.join(different)}). Name another "
            "--output."
        )


# ------------------------------------------------------------------------------ parts of a report


@dataclass(frozen=True)
class ScoreTable:
    """Rows of a DataFrame as a table of texts and of the page.

    A score `x` (percent, NaN: none) has the ends of its interval in the columns `x_low` and `x_high`, if
    they are known. On the page `kind` (model, baseline, ceiling) and `note` stand below the last name.
    """

    scores: "pd.DataFrame"
    headings: dict[str, str]  # column -> heading, in order
    names: dict[str, str] = field(default_factory=lambda: {"protocol": "protocol", "predictor": "predictor"})
    title: str = ""  # by which the page opens and closes it; without, it is always open
    hint: str = ""  # below the title
    bar: str | None = None  # column that the page also shows as a bar
    latex: Sequence[str] = ()  # its columns in LaTeX, the best of each in bold; none: all, and none in bold
    scored_on: str = ""  # the set, above the columns in LaTeX

    def text(self, style: str, escape: Callable[[str], str] = str) -> str:
        """Set the table by tabulate: 58.50 [51.20, 65.30], and a dash where there is no score."""
        from tabulate import tabulate  # noqa: PLC0415

        cells = [
            [*(escape(str(row[name])) for name in self.names), *(_cell(row, key) for key in self.headings)]
            for row in self.scores.to_dict("records")
        ]
        heads = [escape(head) for head in (*self.names.values(), *self.headings.values())]
        sides = ["left"] * len(self.names) + ["right"] * len(self.headings)
        return tabulate(cells, heads, tablefmt=style, disable_numparse=True, colalign=sides)

    def in_latex(self) -> str:
        """Set the table with booktabs and without intervals; the first of two names heads a block."""
        *block, name = self.names
        columns = [*(self.latex or self.headings)]
        width, lines = len(columns) + 1, [r"\toprule"]
        if self.scored_on:
            words = rf"\multicolumn{{{width - 1}}}{{c@{{}}}}{{{escape_latex(self.scored_on)}}}"
            lines.append(rf" & {words} \\ \cmidrule(l){{2-{width}}}")
        lines.append("".join(f" & {escape_latex(self.headings[key])}" for key in columns) + r" \\")
        for title, rows in self.scores.groupby(block[0], sort=False) if block else [("", self.scores)]:
            words = escape_latex(f"{self.names[block[0]]} {title}") if block else ""
            lines += [r"\midrule", rf"\multicolumn{{{width}}}{{@{{}}l@{{}}}}{{{words}}} \\"][: 1 + len(block)]
            best = rows[rows["kind"] != "ceiling"][[*self.latex]].max() if self.latex else {}
            for row in rows.to_dict("records"):
                is_rival = row.get("kind") != "ceiling"
                cells = [escape_latex(str(row[name])) if is_rival else "ceiling"]
                for key in columns:
                    cell = escape_latex(_cell(row | {f"{key}_low": np.nan}, key))
                    is_best = is_rival and key in best and cell == escape_latex(_cell(best, key)) != "-"
                    cells.append(rf"\textbf{{{cell}}}" if is_best else cell)
                lines.append(" & ".join(cells) + r" \\")
        body = "\n".join([*lines, r"\bottomrule"])
        return f"\\begin{{tabular}}{{@{{}}l{'r' * len(columns)}@{{}}}}\n{body}\n\\end{{tabular}}"


def _cell(row: Mapping[Any, Any], key: str) -> str:
    score, low, high = row[key], row.get(f"{key}_low", np.nan), row.get(f"{key}_high", np.nan)
    if not isinstance(score, float):
        return str(score)
    if np.isnan(score):
        return "-"
    return f"{score:.2f}" if np.isnan(low) else f"{score:.2f} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Plot:
    """A figure of the page."""

    title: str
    svg: str  # its colours are variables of the page, so that they follow its light or dark mode
    legend: Sequence[tuple[str, str, str]] = ()  # name, kind, and style as SVG's, of each line


@dataclass(frozen=True)
class Card:
    """A clip on the page."""

    clip_id: str
    score: str  # in words
    pictures: Sequence[bytes]  # JPEG
    sound: bytes | None = None  # MP3; None: no player
    note: str = ""
    style: str = ""  # query, hit or miss, in a row


@dataclass(frozen=True)
class Gallery:
    """Clips side by side; in one row: a query with its neighbours."""

    cards: Sequence[Card]
    title: str = ""
    row: bool = False
    note: str = ""  # below a row


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page."""

    label: str
    value: str
    unit: str = ""
    style: str = ""  # lead: in colour; words: smaller
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    hint: str = ""
    items: Sequence[ScoreTable | Plot | Gallery] = ()
    level: int = 2  # of its heading
    code: str = ""  # name behind the title, in the letters of code


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that an evaluation writes."""

    title: str  # of the page
    caption: str  # of the tables
    eyebrow: str  # of the page: the task
    summary: dict[str, Any]  # summary.json; has `warnings`
    clips: "pd.DataFrame"  # per_clip.csv, as it is written
    clips_file: str = "per_clip.csv"
    tables: Sequence[ScoreTable]  # of table.md, table.tex and the screen
    csv: "pd.DataFrame"  # table.csv
    notes: Sequence[Note]  # below the tables
    facts: Mapping[str, str]  # at the end of the page
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()
    rules: Sequence[str] = ()  # a line each below the tables on the screen

    def with_provenance(self) -> "Report":
        """Add what the summary of a task says of clips and model: columns, notes and facts."""
        return replace(
            self,
            csv=self.csv.assign(**provenance_columns(self.summary)),
            notes=[*self.notes, *provenance_notes(self.summary)],
            facts={**self.facts, **provenance_facts(self.summary)},
        )


def write_report(folder: Path, report: Report) -> None:
    """Write all files of an evaluation; summary.json comes last and says that all are there."""
    contents = {report.clips_file: report.clips.to_csv(index=False, lineterminator="\n")}
    contents |= {f"table.{form}": render_table(report, form) for form in ("md", "tex", "csv")}
    contents |= {"report.html": render_page(report, folder), "summary.json": render_table(report, "json")}
    for name, content in contents.items():  # paths may be in another encoding
        write_atomically(folder / name, content.encode("utf-8", "backslashreplace"))


def write_and_show(folder: Path, report: Report, form: str | None) -> None:
    """Write the results; print the scores for reading, or as --table asks, and log the warnings."""
    for warning in report.summary["warnings"]:
        logger.warning("%s", warning)
    write_report(folder, report)
    path = f"Report: {folder / 'report.html'}"
    if form is not None:
        sys.stdout.write(render_table(report, form))
        logger.info("%s", path)
    else:
        sys.stdout.write(f"{screen_table(report.caption, report.tables, report.rules)}\n{path}\n")


def render_table(report: Report, form: str) -> str:
    """Scores with all that must stand beside them, as --table's md, tex (booktabs, UTF-8), csv or json."""
    if form == "json":
        return json.dumps(report.summary, indent=2, allow_nan=False) + "\n"
    if form == "csv":
        return report.csv.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    if form == "md":
        notes = (f"- {escape_markdown(f'{name}: {words}')}" for name, words in report.notes)
        return f"{markdown_tables(report)}\n" + "\n".join(notes) + "\n"
    notes = (" ".join(f"% {name}: {words}".split()) for name, words in report.notes)
    lines = [f"% {report.caption}; needs the package booktabs", *notes, r"\begin{table}", r"\centering\small"]
    lines.append(rf"\caption{{{escape_latex(report.caption)}, in percent.}}")
    lines += ["\n\n\\smallskip\n".join(table.in_latex() for table in report.tables), r"\end{table}"]
    return "\n".join(lines) + "\n"


def markdown_tables(report: Report) -> str:
    """Caption and tables of a report without the notes, for a page of one's own."""
    tables = (table.text("pipe", escape_markdown) for table in report.tables)
    return "\n\n".join([f"{escape_markdown(report.caption)}, in percent [95 % interval]", *tables]) + "\n"


def screen_table(caption: str, tables: Sequence[ScoreTable], rules: Sequence[str]) -> str:
    """Scores for the screen: the caption, each table, then a line for each rule."""
    caption = f"{caption}, in percent [95 % interval]"
    return "\n".join([caption, *(table.text("plain") for table in tables), *rules])


def escape_markdown(text: str) -> str:
    """Text for Markdown, in one line."""
    return " ".join(text.translate(MARKDOWN).split())


def escape_latex(text: str) -> str:
    """Text for LaTeX, in one line."""
    return " ".join(text.translate(LATEX).split())


# --------------------------------------------------------------------------------------- the page


def render_page(report: Report, folder: Path | None = None) -> str:
    """Page that opens from disk and loads nothing; its policy lets its own script run and no other.

    In its folder it links to what lies there and to pages in folders beside and below.
    """
    import jinja2  # noqa: PLC0415

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "base64": lambda content: base64.b64encode(content).decode(),
        "sha256": lambda text: hashlib.sha256(text.encode()).digest(),
        "known": lambda value: isinstance(value, float) and not np.isnan(value),
    }
    files = [report.clips_file, "table.csv", "table.md", "table.tex", "summary.json"]
    if folder is not None and (folder / "overlays").is_dir():
        files.append("overlays")
    return templates.get_template("report.html.j2").render(
        report=report,
        files=files,
        neighbours=[] if folder is None else find_neighbours(folder),
        texts={"LaTeX": render_table(report, "tex"), "Markdown": markdown_tables(report)},
    )


def find_neighbours(folder: Path) -> list[tuple[str, str]]:
    """Find the pages in folders below and beside a page's own: name and relative address of each."""
    folder = folder.resolve()
    pages = [*sorted(folder.glob("*/report.html")), *sorted(folder.parent.glob("*/report.html"))]
    others = [page for page in pages if page.parent != folder]
    return [(page.parent.name, quote(os.path.relpath(page, folder))) for page in others]
