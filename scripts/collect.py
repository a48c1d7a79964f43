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
OF_A_MODEL = ("checkpoint", "trained", "leak check", "note", "warning")
"""notes that name their model even where all have the same"""
DIFFERENCES = {f"delta_{key}": f"Δ {SCORE_HEADINGS[key]}" for key in SCORE_KEYS[:3]}
TESTED = {"gained": "hits gained", "lost": "hits lost", "p": "p"}
"""columns that compare with the first model on the same clips; p is McNemar's of the hits gained and lost"""
WORDLESS = ("last", "best", "latest")
"""file names that say nothing of a model; their folder's name does"""


def read_result(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read what test.py left: summary.json, and per_clip.csv in the order of its ids.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file cannot be read, or the two do not fit.
    """
    try:
        clips = pd.read_csv(folder / "per_clip.csv", dtype={"clip_id": str})
        summary = json.loads((folder / "summary.json").read_text())
        if summary["num_clips"] != len(clips) or summary["identity"]["task"] != "localisation":
            raise ValueError("its files do not fit each other")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} cannot be read ({error!r}): remove it and score the model anew."
        ) from error
    return summary, clips.sort_values("clip_id", ignore_index=True)


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
    (first_name, (first, first_clips)), *others = results.items()
    for name, (summary, clips) in others:
        different = [key for key in MUST_AGREE if summary[key] != first[key]]
        different += ["protocols"] if rules_of(summary) != rules_of(first) else []
        # A blind mask's consensus IoU follows from the boxes alone.
        if not different and not clips.filter(like=":disc").equals(first_clips.filter(like=":disc")):
            different = ["boxes"]
        if different:
            raise ValueError(
                f"{first_name} and {name} cannot be compared: their results differ in "
                f"{', '.join(different)}. Score all on the same clips, with the same options."
            )

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
    scores = pd.DataFrame(rows).fillna(dict.fromkeys((*TESTED, "note"), ""))
    all_curves = pd.concat(curves, ignore_index=True)

    extra = {name: name for name in (first["extra_metrics"] or {"shown": ()})["shown"]}
    names = {"protocol": "protocol", "predictor": "model"}
    tables = [ScoreTable(scores, {**SCORE_HEADINGS, **DIFFERENCES, **TESTED}, names)]
    tables += [ScoreTable(scores, extra, names)] if extra else []
    hint = f"All compared with {first_name} on the same clips; p is McNemar's, of the hits gained and lost."
    sections = [Section("Scores", hint)]
    for one in first["protocols"]:
        of_rule = scores[scores["protocol"] == one["name"]]
        headings = {**SCORE_HEADINGS, **TESTED, **extra}
        table = ScoreTable(of_rule, headings, {"predictor": "Name"}, bar=SCORE_KEYS[0])
        plot = success_plot(all_curves[all_curves["protocol"] == one["name"]], one["name"])
        sections.append(Section("Protocol", rule_words(one), [table, plot], level=3, code=one["name"]))

    noted = {name: provenance_notes(summary) for name, summary in summaries.items()}
    shared = [
        note
        for note in noted[first_name]
        if note[0] not in OF_A_MODEL and all(note in notes for notes in noted.values())
    ]
    notes = [(f"protocol {one['name']}", rule_words(one)) for one in first["protocols"]] + shared
    for name, of_model in noted.items():
        notes += [(f"{what} of {name}", words) for what, words in of_model if (what, words) not in shared]
    columns = {
        name: {"num_clips": one["num_clips"], **provenance_columns(one)} for name, one in summaries.items()
    }
    beside = pd.DataFrame([columns.get(name, columns[first_name]) for name in scores["predictor"]])
    cious = [
        clips.set_index("clip_id").filter(like=":ciou").add_prefix(f"{name}:")
        for name, (_, clips) in results.items()
    ]
    left_out = ("rows", "protocols", "groupings", "protocol")
    return Report(
        title=f"{first_name} compared with {', '.join(name for name, _ in others)} on {first['benchmark']}",
        caption=f"Sound localisation on {first['benchmark']}, {first['num_clips']} clips",
        eyebrow="Visual sound source localisation",
        summary={
            "identity": {"task": "comparison"},
            **{key: first[key] for key in ("num_clips", "num_without_object", "intervals", *MUST_AGREE)},
            "compared_with": first_name,
            "protocols": rules_of(first),
            "rows": json.loads(scores.to_json(orient="records")),
            "comparisons": comparisons,
            "models": [
                {"name": name, **{key: one[key] for key in one if key not in left_out}}
                for name, one in summaries.items()
            ],
            "warnings": [f"{name}: {words}" for name, one in summaries.items() for words in one["warnings"]],
            "command": command,
        },
        clips=pd.concat(cious, axis=1).reset_index(),
        tables=tables,
        csv=scores.drop(columns="note").join(beside),
        notes=notes,
        facts={
            **{name: provenance_facts(one)["checkpoint"] for name, one in summaries.items()},
            **{name: words for name, words in shared if name != "command"},
            "command": command,
        },
        tiles=score_tiles(scores, f"{first['num_clips']}, the same for all", first["protocols"][0]["name"]),
        sections=sections,
    )


def rules_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rules of a result, without its scores."""
    return [{k: v for k, v in one.items() if k not in ("rows", "groups")} for one in summary["protocols"]]


def values_of(clips: pd.DataFrame, rule: str) -> np.ndarray:
    """Values (N, 4) of `clip_values`, without pointing; clips without an object are left out."""
    located = clips[clips[f"{rule}:success"].notna()]
    misses = located[f"{rule}:success"] == 0
    # What was rounded up to a hit in the file is none.
    return clip_values(located[f"{rule}:ciou"].where(~misses, np.minimum(located[f"{rule}:ciou"], 0.4999999)))


def curve_of(cious: pd.Series, rule: str, name: str, kind: str) -> pd.DataFrame:
    """Rows for `success_plot`; clips without an object have no consensus IoU."""
    columns = {"protocol": rule, "predictor": name, "kind": kind, "ciou": cious, "has_object": cious.notna()}
    return pd.DataFrame(columns)


def flat_row(row: Mapping[str, Any], rule: str, name: str) -> dict[str, Any]:
    """Row of a summary as one of a ScoreTable."""
    ends = {**row["intervals"], **row.get("extra_intervals", {})}
    flat: dict[str, Any] = {"protocol": rule, "predictor": name, "kind": row["kind"]}
    for key, score in {**{key: row[key] for key in SCORE_KEYS}, **row.get("extra", {})}.items():
        low, high = ends.get(key) or (np.nan, np.nan)
        flat |= {key: np.nan if score is None else score, f"{key}_low": low, f"{key}_high": high}
    return flat


def flat_difference(found: Mapping[str, Any], first_name: str) -> dict[str, Any]:
    """Result of `compare_paired` as columns of a ScoreTable."""
    words = f"{found['differences']['ciou_at_0.5']:+.1f} points against {first_name}"
    flat: dict[str, Any] = {"gained": str(found["only_first"]), "lost": str(found["only_second"])}
    flat |= {"p": f"{found['p_value']:.2g}", "note": words}
    for key in SCORE_KEYS[:3]:
        low, high = found["intervals"][key] or (np.nan, np.nan)
        ends = {f"delta_{key}_low": low, f"delta_{key}_high": high}
        flat |= {f"delta_{key}": found["differences"][key], **ends}
    return flat


# ------------------------------------------------------------------------------------- command line


def score(checkpoint: Path, folder: Path, options: Sequence[str], *, printed: bool) -> None:
    """Score a checkpoint, in a process of its own, unless the folder holds the results of this very command.

    Raises:
        ValueError: the evaluation failed; it has said why.
    """
    arguments = ["localisation", "--checkpoint", str(checkpoint), "--output", str(folder), *options]
    try:
        summary = json.loads((folder / "summary.json").read_text())
        same_command = summary["command"] == "python test.py " + shlex.join(arguments)
        if same_command and summary["checkpoint"]["sha256"] == file_sha256(checkpoint):
            logger.info("%s has been scored: %s", checkpoint, folder)
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # test.py looks closer, and refuses a folder that is not this model's
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
    refusals = {
        f"A comparison takes two checkpoints or more, got {len(given)}.": len(given) < 2,
        "Checkpoints stand before `--`, without --checkpoint.": found.checkpoint is not None,
        "--save-maps names one file, which each model would write over the one before; save the maps of each "
        "by `test.py localisation`.": found.save_maps is not None,
        "--output is missing: name a folder for the comparison, after `--`.": found.output is None,
    }
    for words, applies in refusals.items():
        if applies:
            raise ValueError(words)
    check_results_folder(found.output, {"task": "comparison"})
    folders = {}
    for place, (path, name) in enumerate(zip(given, distinct_names(given), strict=True), start=1):
        logger.info("%d of %d: %s", place, len(given), path)
        has_results = (path / "summary.json").is_file()
        folders[name] = path if has_results else found.output / name
        if not has_results:
            score(path, folders[name], rest, printed=found.table is None)
    report = compare_results(folders, command)
    write_report(found.output, report)
    words = f"Report: {found.output / 'report.html'}"
    if found.table is not None:
        sys.stdout.write(render_table(report, found.table))
        logger.info("%s", words)
    else:
        sys.stdout.write(f"{screen_table(report.caption, report.tables, report.notes)}\n{words}\n")
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
    parser.add_argument("models", nargs="+", type=Path, help="checkpoints or results")
    end = given.index("--") if "--" in given else len(given)
    models = parser.parse_args(given[:end]).models
    command = "bash scripts/compare_models.sh " + shlex.join(given)
    return run_command(lambda: compare_models(models, given[end + 1 :], command))


if __name__ == "__main__":
    sys.exit(main())
