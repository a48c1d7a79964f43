"""Results side by side: several checkpoints on the same clips, each compared with the first.

    bash scripts/compare_models.sh A.pth B.pth C.pth -- --benchmark vgg_ss --data-root data/vgg_ss \
        --output results/comparison

All that follows `--` are options of `test.py localisation`. Each model's results go into a folder of their
own in --output; summary.json, table.md, .tex and .csv, per_clip.csv and report.html of the comparison lie
beside them. A model whose results are there, made by the same command from the same file, is not scored
again. Folders that hold results may stand in place of checkpoints; they are read as they are.
"""

import argparse
import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.evaluation.statistics import SCORE_KEYS, clip_values, compare_paired
from utils.files import file_sha256
from utils.reports.localisation import REFERENCES, SCORE_HEADINGS, rule_words, score_tiles, success_plot
from utils.reports.report import (
    Note,
    Plot,
    Report,
    ScoreTable,
    Section,
    check_results_folder,
    provenance_columns,
    provenance_facts,
    provenance_notes,
    render_table,
    screen_table,
    write_report,
)
from utils.training import configure_logging, run_command

logger = logging.getLogger("collect")

TEST_PROGRAM = Path(__file__).resolve().parents[1] / "test.py"
MUST_AGREE = ("benchmark", "scored_clips_sha256", "frame_geometry", "audio")
"""entries of the summaries without which scores are not those of the same clips"""
OF_A_MODEL = ("checkpoint", "leak check", "note", "warning")
"""notes that name their model even where all have the same"""
DIFFERENCES = {f"delta_{key}": f"Δ {SCORE_HEADINGS[key]}" for key in SCORE_KEYS[:3]}
"""columns that compare with the first model on the same clips; then McNemar's hits gained and lost"""
SHARED_FACTS = ("clips", "data", "clip list", "published cut", "frames", "sound", "intervals", "environment")
"""of the first result, on the page of several"""
WORDLESS = ("last", "best", "latest")
"""file names that say nothing of a model; their folder's name does"""


def read_result(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read what test.py left: summary.json, and per_clip.csv in the order of its ids.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file cannot be read, or the two do not fit.
    """
    clips = pd.read_csv(folder / "per_clip.csv", dtype={"clip_id": str}).sort_values(
        "clip_id", ignore_index=True
    )
    try:
        summary = json.loads((folder / "summary.json").read_text())
        fits = summary["num_clips"] == len(clips) and "identity" in summary
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}/summary.json cannot be read ({error!r}): score the model anew."
        ) from error
    if not fits:
        raise ValueError(
            f"{folder}: summary.json and per_clip.csv do not fit each other, or are of another version of "
            "the program. Remove the folder and score the model anew."
        )
    return summary, clips


def check_alike(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse results that are not of the same clips and rules.

    Raises:
        ValueError: they differ; the message says in what.
    """
    (first_name, first), *others = summaries.items()
    for name, summary in others:
        different = [key for key in MUST_AGREE if summary.get(key) != first.get(key)]
        different += ["protocols"] if rules_of(summary) != rules_of(first) else []
        if different:
            raise ValueError(
                f"{first_name} and {name} cannot be compared: their results differ in "
                f"{', '.join(different)}. Score all on the same clips, with the same options."
            )


def rules_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rules of a localisation result, without its scores."""
    scores = ("rows", "groups")
    return [{k: v for k, v in one.items() if k not in scores} for one in summary.get("protocols", [])]


# ------------------------------------------------------------------------- several models, clip by clip


def compare_results(folders: Mapping[str, Path], command: str) -> Report:
    """Put results of `test.py localisation` side by side; each is compared with the first, clip by clip.

    Args:
        folders: name of a model -> its results, two or more.
        command: that makes the comparison, for the record.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file cannot be read, or the results are not of the same clips, boxes and rules.
    """
    results = {name: read_result(folder) for name, folder in folders.items()}
    summaries = {name: summary for name, (summary, _) in results.items()}
    check_alike(summaries)
    (first_name, (first, first_clips)), *others = results.items()
    disc = f"{first['protocols'][0]['name']}:disc"
    for name, (_, clips) in others:
        # A blind mask's consensus IoU follows from the boxes alone.
        if not clips[disc].equals(first_clips[disc]):
            raise ValueError(f"{first_name} and {name} cannot be compared: their results differ in boxes.")

    rows, curves, comparisons = [], [], []
    for place, protocol in enumerate(first["protocols"]):
        rule = protocol["name"]
        for name, (summary, clips) in results.items():
            row = flat_row(summary["protocols"][place]["rows"][0], rule, name)
            if name != first_name:
                found = compare_paired(values_of(clips, rule), values_of(first_clips, rule))
                comparisons.append({"protocol": rule, "model": name, "compared_with": first_name, **found})
                row |= flat_difference(found, first_name)
            rows.append(row)
            curves.append(curve_of(clips[f"{rule}:ciou"], rule, name, "model"))
        for row in protocol["rows"][1:]:
            rows.append(flat_row(row, rule, row["name"]))
            column = next((c for c, blind in REFERENCES.items() if blind == row["name"]), "ceiling")
            curves.append(curve_of(first_clips[f"{rule}:{column}"], rule, row["name"], row["kind"]))
    tested = {"gained": "hits gained", "lost": "hits lost", "p": "p"}
    scores = pd.DataFrame(rows).fillna(dict.fromkeys((*tested, "note"), ""))

    headings = {**SCORE_HEADINGS, **DIFFERENCES, **tested}
    tables = [ScoreTable(scores, headings, {"protocol": "protocol", "predictor": "model"})]
    if first["extra_metrics"] is not None:
        shown = {name: name for name in first["extra_metrics"]["shown"]}
        tables.append(ScoreTable(scores, shown, tables[0].names))
    hint = f"All compared with {first_name} on the same clips; p is McNemar's, of the hits gained and lost."
    sections, all_curves = [Section("Scores", hint)], pd.concat(curves, ignore_index=True)
    for one in first["protocols"]:
        of_rule = [table[table["protocol"] == one["name"]] for table in (scores, all_curves)]
        items: list[ScoreTable | Plot] = [
            ScoreTable(of_rule[0], {**SCORE_HEADINGS, **tested}, {"predictor": "Name"}, bar=SCORE_KEYS[0]),
            *(ScoreTable(of_rule[0], table.headings, {"predictor": "Name"}) for table in tables[1:]),
            success_plot(of_rule[1], one["name"]),
        ]
        sections.append(Section("Protocol", rule_words(one), items, level=3, code=one["name"]))

    models = summaries.items()
    notes = [(f"protocol {one['name']}", rule_words(one)) for one in first["protocols"]]
    notes += join_notes({name: provenance_notes(summary) for name, summary in models})
    kept = (
        "checkpoint", "object_prior", "clip_list", "cut", "num_listed", "complete", "num_missing", "missing",
        "num_unreadable", "unreadable", "leak_check", "num_clips_epoch_was_chosen_on", "note", "warnings",
        "command",
    )  # fmt: skip
    shared = ("num_clips", "num_without_object", "intervals", "extra_metrics", *MUST_AGREE)
    columns = {name: {"num_clips": one["num_clips"], **provenance_columns(one)} for name, one in models}
    beside = pd.DataFrame([columns.get(name, columns[first_name]) for name in scores["predictor"]])
    cious = [
        clips.set_index("clip_id").filter(like=":ciou").add_prefix(f"{name}:")
        for name, (_, clips) in results.items()
    ]
    return Report(
        title=f"{first_name} compared with {', '.join(name for name, _ in others)} on {first['benchmark']}",
        caption=f"Sound localisation on {first['benchmark']}, {first['num_clips']} clips",
        eyebrow="Visual sound source localisation",
        summary={
            "identity": {"task": "comparison"},
            **{key: first[key] for key in shared},
            "compared_with": first_name,
            "protocols": rules_of(first),
            "rows": json.loads(scores.to_json(orient="records")),
            "comparisons": comparisons,
            "models": [{"name": name, **{key: summary[key] for key in kept}} for name, summary in models],
            "warnings": [f"{name}: {warning}" for name, summary in models for warning in summary["warnings"]],
            "command": command,
        },
        clips=pd.concat(cious, axis=1).reset_index(),
        tables=tables,
        csv=pd.concat([scores, beside], axis=1),
        notes=notes,
        facts={
            **{name: "{path} (sha256 {sha256})".format(**summary["checkpoint"]) for name, summary in models},
            **{name: words for name, words in provenance_facts(first).items() if name in SHARED_FACTS},
            "command": command,
        },
        tiles=score_tiles(scores, f"{first['num_clips']}, the same for all", first["protocols"][0]["name"]),
        sections=sections,
    )


def values_of(clips: pd.DataFrame, rule: str) -> np.ndarray:
    """Values (N, 4) of `clip_values`, without pointing; clips without an object are left out."""
    located = clips[clips[f"{rule}:success"].notna()]
    cious = located[f"{rule}:ciou"].to_numpy()
    # What was rounded up to a hit in the file is none.
    misses = located[f"{rule}:success"].to_numpy() == 0
    return clip_values(np.where(misses, np.minimum(cious, np.nextafter(0.5, 0)), cious))


def curve_of(cious: pd.Series, rule: str, name: str, kind: str) -> pd.DataFrame:
    """Rows for `success_plot`; clips without an object have no consensus IoU."""
    has_object = cious.notna()
    return pd.DataFrame(
        {"protocol": rule, "predictor": name, "kind": kind, "ciou": cious, "has_object": has_object}
    )


def flat_row(row: Mapping[str, Any], rule: str, name: str) -> dict[str, Any]:
    """Row of a summary as one of a ScoreTable."""
    scores = {**{key: row[key] for key in SCORE_KEYS}, **row.get("extra", {})}
    ends = {**row["intervals"], **row.get("extra_intervals", {})}
    flat: dict[str, Any] = {"protocol": rule, "predictor": name, "kind": row["kind"]}
    for key, score in scores.items():
        low, high = ends.get(key) or (np.nan, np.nan)
        flat |= {key: np.nan if score is None else score, f"{key}_low": low, f"{key}_high": high}
    return flat


def flat_difference(found: Mapping[str, Any], first_name: str) -> dict[str, Any]:
    """Result of `compare_paired` as columns of a ScoreTable."""
    flat: dict[str, Any] = {}
    for key in DIFFERENCES:
        score = key.removeprefix("delta_")
        low, high = found["intervals"][score] or (np.nan, np.nan)
        flat |= {key: found["differences"][score], f"{key}_low": low, f"{key}_high": high}
    gained, lost, p_value = found["only_first"], found["only_second"], f"{found['p_value']:.2g}"
    difference = f"{found['differences']['ciou_at_0.5']:+.1f} points against {first_name}"
    return flat | {"gained": str(gained), "lost": str(lost), "p": p_value, "note": difference}


def join_notes(by_model: Mapping[str, Sequence[Note]]) -> list[Note]:
    """Notes once where all models agree, else with the model's name."""
    first, *others = by_model.values()
    shared = [note for note in first if note[0] not in OF_A_MODEL and all(note in notes for notes in others)]
    own = [(f"{name} of {model}", words) for model, notes in by_model.items() for name, words in notes
           if (name, words) not in shared]  # fmt: skip
    return shared + own


# ------------------------------------------------------------------------------------- command line


def is_scored(folder: Path, checkpoint: Path, arguments: Sequence[str]) -> bool:
    """Tell whether a folder holds the results of this very command, from a file with this content."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        same_command = summary["command"] == "python test.py " + shlex.join(arguments)
        sha256 = summary["checkpoint"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # test.py looks closer, and refuses a folder that is not this model's
    return bool(same_command and sha256 == file_sha256(checkpoint))


def score(checkpoint: Path, folder: Path, options: Sequence[str], *, printed: bool) -> None:
    """Score a checkpoint, in a process of its own, unless that is done.

    Args:
        checkpoint: to score.
        folder: for the results.
        options: of `test.py localisation`, without checkpoint and folder.
        printed: what it prints goes to standard output; else to the messages.

    Raises:
        ValueError: the evaluation failed; it has said why.
    """
    arguments = ["localisation", "--checkpoint", str(checkpoint), "--output", str(folder), *options]
    if is_scored(folder, checkpoint, arguments):
        logger.info("%s has been scored: %s", checkpoint, folder)
        return
    program = [sys.executable, str(TEST_PROGRAM), *arguments]
    finished = subprocess.run(program, check=False, stdout=None if printed else sys.stderr.fileno())
    if finished.returncode:
        raise ValueError(
            f"Scoring {checkpoint} ended with status {finished.returncode}; its message stands above. Models "
            "that were scored before it are kept: mend it and call again."
        )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name checkpoints, fit for folders: by the file, and its folder where that says nothing."""
    stems = [path.name.split(".pt")[0] for path in paths]
    names: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        clear = stem not in WORDLESS and stems.count(stem) == 1
        name = re.sub(r"[^\w.+-]", "_", stem if clear else f"{path.absolute().parent.name}_{stem}")
        numbered = (f"{name}-{number}" for number in range(2, len(paths) + 2))
        names.append(name if name not in names else next(one for one in numbered if one not in names))
    return names


def compare_models(given: Sequence[Path], options: Sequence[str], command: str) -> int:
    """Score checkpoints one after the other and write the comparison; return 0.

    Args:
        given: two or more checkpoints, or folders with results; all are compared with the first.
        options: of `test.py localisation`, with --output, without --checkpoint.
        command: for the record.

    Raises:
        ValueError: the options do not fit, an evaluation failed, or the results are not of the same clips.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--output", type=Path)
    own.add_argument("--checkpoint")
    own.add_argument("--save-maps")
    own.add_argument("--table", choices=("md", "tex", "csv", "json"))
    try:
        found, rest = own.parse_known_args(options)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if len(given) < 2:
        raise ValueError(f"A comparison takes two checkpoints or more, got {len(given)}.")
    if found.checkpoint is not None:
        raise ValueError("Checkpoints stand before `--`, without --checkpoint.")
    if found.save_maps is not None:
        raise ValueError(
            "--save-maps names one file, which each model would write over the one before; save the maps of "
            "each by `test.py localisation`."
        )
    if found.output is None:
        raise ValueError("--output is missing: name a folder for the comparison, after `--`.")
    check_results_folder(found.output, {"task": "comparison"})
    folders = {}
    for place, (path, name) in enumerate(zip(given, distinct_names(given), strict=True), start=1):
        logger.info("%d of %d: %s", place, len(given), path)
        if (path / "summary.json").is_file():
            folders[name] = path
        else:
            folders[name] = found.output / name
            score(path, folders[name], rest, printed=found.table is None)
    report = compare_results(folders, command)
    write_report(found.output, report)
    path_words = f"Report: {found.output / 'report.html'}"
    if found.table is not None:
        sys.stdout.write(render_table(report, found.table))
        logger.info("%s", path_words)
    else:
        sys.stdout.write(f"{screen_table(report.caption, report.tables, report.notes)}\n{path_words}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 for bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    configure_logging()
    parser = argparse.ArgumentParser(
        prog="compare_models.sh",
        usage="%(prog)s A.pth B.pth ... -- [options of test.py localisation]",
        description="Scores several checkpoints on the same clips: one table, one report.",
    )
    parser.add_argument(
        "models", nargs="+", type=Path, help="checkpoints or results; compared with the first"
    )
    end = given.index("--") if "--" in given else len(given)
    models = parser.parse_args(given[:end]).models
    command = "bash scripts/compare_models.sh " + shlex.join(given)
    return run_command(lambda: compare_models(models, given[end + 1 :], command))


if __name__ == "__main__":
    sys.exit(main())
