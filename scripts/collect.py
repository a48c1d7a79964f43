"""Results side by side: several checkpoints on the same clips, each compared with the first.

    bash scripts/compare_models.sh ours=runs/a/last.pth A.pth B.pth -- --benchmark vgg_ss \
        --data-root data/vgg_ss --output results/comparison

`name=` before a file names its model; without it the run's folder or the file does. All that follows `--`
are options of `test.py localisation`. Each model's results go into a folder of their own in --output;
summary.json, table.md, .tex and .csv, per_clip.csv and report.html of the comparison lie beside them. A model
whose results are there, made by the same command from the same file, is not scored again. Folders that hold
results may stand in place of checkpoints; they are read as they are. The page shows the clips on which the
models differ most where each folder has maps.npz (`--save-maps`) and the options name the data.
"""

import argparse
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import opts
from datasets.audio import AudioConfig
from datasets.benchmarks import build_clips
from datasets.clips import AudioVisualClips, BrokenClip
from datasets.frames import FrameGeometry, to_picture
from utils.evaluation.localisation import read_maps
from utils.evaluation.protocols import DISC
from utils.evaluation.statistics import SCORE_KEYS, clip_values, compare_paired
from utils.files import decoding, file_sha256
from utils.options import run_command
from utils.reports.localisation import REFERENCES, SCORE_HEADINGS, rule_words, score_tiles, success_plot
from utils.reports.report import (
    Card,
    Gallery,
    Report,
    ScoreTable,
    Section,
    check_results_folder,
    provenance_columns,
    provenance_facts,
    provenance_notes,
    write_and_show,
)
from utils.reports.visualisation import GALLERY_SIDE, draw_row, encode_mp3, similarity_range

logger = logging.getLogger("collect")

ROOT = Path(__file__).resolve().parents[1]
MAPS = "maps.npz"  # in each model's folder
NUM_SHOWN = 6  # clips on the page
MUST_AGREE = ("benchmark", "scored_clips_sha256", "frame_geometry", "audio")
"""entries of the summaries without which scores are not those of the same clips"""
DIFFERENCES = {f"delta_{key}": f"Δ {SCORE_HEADINGS[key]}" for key in SCORE_KEYS[:3]}
CLIPS_HINT = (
    "Each frame with its annotated boxes, then with each model's similarity map, on one scale for the frame. "
    "A hit has a consensus IoU of 0.5 or more under the first protocol."
)
TESTED = {"gained": "hits gained", "lost": "hits lost", "p": "p"}
"""columns that compare with the first model on the same clips; p is McNemar's of the hits gained and lost"""


def read_result(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read what test.py localisation left: summary.json, and per_clip.csv in the order of its ids."""
    with decoding(folder, "remove it and score the model anew"):
        clips = pd.read_csv(folder / "per_clip.csv", dtype={"clip_id": str})
        summary = json.loads((folder / "summary.json").read_text())
        if summary["num_clips"] != len(clips) or summary["identity"]["task"] != "localisation":
            raise ValueError("its files do not fit each other")
    return summary, clips.sort_values("clip_id", ignore_index=True)


def score_rows(summary: Mapping[str, Any], name: str) -> pd.DataFrame:
    """List the scores of a summary in percent: a row for each rule and predictor, `name` is the model.

    Columns: protocol, predictor, kind, each score x, and of localisation x_low and x_high. Directions of
    retrieval stand for rules, and so does the cost of a training step.
    """
    if "case" in summary:
        cost = {key: summary[key] for key in ("gflop_per_sample", "samples_per_s", "peak_mib")}
        return pd.DataFrame([{"protocol": "training step", "predictor": name, "kind": "model", **cost}])
    if "directions" in summary:
        rows = [
            {"protocol": direction, "predictor": predictor, "kind": kind}
            | {metric: one[key] for metric, one in metrics.items()}
            for direction, metrics in summary["directions"].items()
            for predictor, kind, key in ((name, "model", "value"), ("chance", "baseline", "chance"))
        ]
        return pd.DataFrame(rows)
    if "protocols" not in summary:  # of negatives; the deaf guess is left out, it is another for each model
        rows = [
            {"predictor": name, "kind": "model", **{k: one["mean"] for k, one in summary["scores"].items()}},
            {"predictor": DISC, "kind": "baseline", **summary["without_ears"][DISC]},
        ]
        return pd.DataFrame(rows).assign(protocol="universal threshold")
    rows = []
    for rule in summary["protocols"]:
        for row in rule["rows"]:
            predictor = name if row["kind"] == "model" else row["name"]
            flat = {"protocol": rule["name"], "predictor": predictor, "kind": row["kind"]}
            ends = {**row["intervals"], **row.get("extra_intervals", {})}
            for key, score in {**{key: row[key] for key in SCORE_KEYS}, **row.get("extra", {})}.items():
                low, high = ends.get(key) or (np.nan, np.nan)
                flat |= {key: np.nan if score is None else score, f"{key}_low": low, f"{key}_high": high}
            rows.append(flat)
    return pd.DataFrame(rows)


def compare_results(
    folders: Mapping[str, Path], command: str, options: opts.LocalisationOptions | None = None
) -> Report:
    """Put results of `test.py localisation` side by side; each is compared with the first, clip by clip.

    `folders` are the results of each model by its name, two or more; `command` is for the record; `options`
    say where the clips are, to be shown on the page.
    """
    summaries, clips = {}, {}
    for name, folder in folders.items():
        summaries[name], clips[name] = read_result(folder)
    (first_name, first), *others = summaries.items()
    first_clips, rules = clips[first_name], rules_of(first)
    for name, summary in others:
        different = [key for key in MUST_AGREE if summary[key] != first[key]]
        different += ["protocols"] if rules_of(summary) != rules else []
        # A blind mask's consensus IoU follows from the boxes alone.
        if not different and not clips[name].filter(like=":disc").equals(first_clips.filter(like=":disc")):
            different = ["boxes"]
        if different:
            raise ValueError(
                f"{first_name} and {name} cannot be compared: their results differ in "
                f"{', '.join(different)}. Score all on the same clips, with the same options."
            )

    found = pd.concat([score_rows(summary, name) for name, summary in summaries.items()])
    found = found.drop_duplicates(["protocol", "predictor"])  # blind baselines are the same for all
    found = found.sort_values("kind", key=lambda kinds: kinds != "model", kind="stable")
    extra = {name: name for name in (first["extra_metrics"] or {"shown": ()})["shown"]}
    hint = f"All compared with {first_name} on the same clips; p is McNemar's, of the hits gained and lost."
    sections, parts, comparisons = [Section("Scores", hint)], [], []
    columns = {predictor: column for column, predictor in REFERENCES.items()} | dict.fromkeys(clips, "ciou")
    for rule in rules:
        protocol, rows, curves = rule["name"], [], []
        for row in found[found["protocol"] == protocol].to_dict("records"):
            name, tested = row["predictor"], dict.fromkeys((*TESTED, "note"), "")
            if row["kind"] == "model" and name != first_name:
                pair = compare_paired(values_of(clips[name], protocol), values_of(first_clips, protocol))
                comparisons.append({"protocol": protocol, "model": name, "compared_with": first_name, **pair})
                tested = difference(pair, first_name)
            rows.append(row | tested)
            cious = clips.get(name, first_clips)[f"{protocol}:{columns.get(name, 'ceiling')}"]
            curve = {"predictor": name, "kind": row["kind"], "ciou": cious, "has_object": cious.notna()}
            curves.append(pd.DataFrame(curve))
        parts.append(pd.DataFrame(rows))
        headings = {**SCORE_HEADINGS, **TESTED, "gained": "gained", "lost": "lost", **extra}
        table = ScoreTable(parts[-1], headings, {"predictor": "Name"}, bar=SCORE_KEYS[0])
        plot = success_plot(pd.concat(curves), protocol)
        sections.append(Section("Protocol", rule_words(rule), [table, plot], level=3, code=protocol))
    if galleries := draw_differences(folders, clips, rules[0]["name"], options) if options else []:
        sections.append(Section("Clips on which the models differ most", CLIPS_HINT, galleries))
    scores, names = pd.concat(parts, ignore_index=True), {"protocol": "protocol", "predictor": "model"}
    headings, on = {**SCORE_HEADINGS, **DIFFERENCES, **TESTED}, first["benchmark"]
    tables = [ScoreTable(scores, headings, names, latex=SCORE_KEYS[:2], scored_on=on)]
    tables += [ScoreTable(scores, extra, names, latex=[*extra], scored_on=on)] if extra else []

    noted: dict[tuple[str, str], list[str]] = {}  # what is the same for all is said once
    for name, summary in summaries.items():
        for note in provenance_notes(summary):
            noted.setdefault(note, []).append(name)
    shared = [note for note, of in noted.items() if len(of) == len(summaries)]
    own = [(f"{what} of {', '.join(of)}", w) for (what, w), of in noted.items() if (what, w) not in shared]
    origins = [summaries.get(name, first) for name in scores["predictor"]]
    beside = [{"num_clips": one["num_clips"], **provenance_columns(one)} for one in origins]
    facts = {name: provenance_facts(one) for name, one in summaries.items()}
    title = f"{first_name} compared with {', '.join(name for name, _ in others)}, on {first['benchmark']}: "
    title += f"{first['clip_list']['name']}, {first['num_clips']} clips"
    return Report(
        title=title,
        caption=f"Sound localisation: {title}",
        eyebrow="Visual sound source localisation",
        summary={
            "identity": {"task": "comparison"},
            **{key: first[key] for key in ("num_clips", "num_without_object", "intervals", *MUST_AGREE)},
            "compared_with": first_name,
            "protocols": rules,
            "rows": json.loads(scores.to_json(orient="records")),
            "comparisons": comparisons,
            "models": [{"name": name, **one["checkpoint"]} for name, one in summaries.items()],
            "warnings": [f"{name}: {words}" for name, one in summaries.items() for words in one["warnings"]],
            "command": command,
        },
        clips=pd.concat(clips, names=["model"]).reset_index("model"),
        tables=tables,
        csv=scores.drop(columns="note").join(pd.DataFrame(beside)),
        notes=[(f"protocol {rule['name']}", rule_words(rule)) for rule in rules] + shared + own,
        rules=[f"{rule['name']}: {rule['published_list']['words']}" for rule in rules],
        facts={
            **{name: f"{one['trained']}; {one['checkpoint']}" for name, one in facts.items()},
            **dict(shared),
            "command": command,
        },
        tiles=score_tiles(scores, f"{first['num_clips']}, the same for all", rules[0]["name"]),
        sections=sections,
    )


def draw_differences(
    folders: Mapping[str, Path],
    clips: Mapping[str, pd.DataFrame],
    rule: str,
    options: opts.LocalisationOptions,
) -> list[Gallery]:
    """Draw the clips whose consensus IoUs under a rule differ most, a row each: frame, heat of each model."""
    lacking = [str(folder) for folder in folders.values() if not (folder / MAPS).is_file()]
    if lacking:
        logger.info("No clips on the page: there is no %s of --save-maps in %s.", MAPS, ", ".join(lacking))
        return []
    stored = [read_maps(folder / MAPS) for folder in folders.values()]
    scored = {name: one.set_index("clip_id") for name, one in clips.items()}
    cious = pd.DataFrame({name: one[f"{rule}:ciou"] for name, one in scored.items()}).fillna(0)
    spread = cious.max(axis=1) - cious.min(axis=1)  # 0 where there is no object
    chosen = spread[spread > 0].nlargest(NUM_SHOWN).index
    which = {name: getattr(options, name) for name in opts.WHICH_CLIPS}
    clips_there = build_clips(options.benchmark, options.data_root, **which).clips
    of_id = {clip.clip_id: clip for clip in clips_there}
    if not of_id.keys() >= {*cious.index}:
        raise ValueError("The options after `--` name other clips than those that were scored.")
    scored_as = stored[0][0]["context"]  # all alike, see compare_results
    geometry = FrameGeometry(GALLERY_SIDE, scored_as["frame_geometry"])
    samples = AudioVisualClips([of_id[name] for name in chosen], geometry=geometry, audio=AudioConfig())
    galleries, classes = [], next(iter(scored.values())).get("class", {})
    for place, clip_id in enumerate(chosen):
        sample = samples[place]
        if isinstance(sample, BrokenClip):
            continue  # broken since it was scored
        maps = [arrays[places[clip_id]] for _, places, arrays, _ in stored]
        frame, boxes, scale = to_picture(sample.frame), sample.bounding_boxes, similarity_range(maps)
        picture, *heat = draw_row(frame, boxes, maps, scale)
        mp3 = encode_mp3(sample.waveform.numpy(), samples.audio.sample_rate)
        sound = mp3 if scored_as["audio"] == "own" else None
        cards = [Card(clip_id, "frame", [picture], sound, classes.get(clip_id, ""), "query")]
        for (name, one), overlay in zip(scored.items(), heat, strict=True):
            style = "hit" if one.at[clip_id, f"{rule}:success"] else "miss"
            words = f"{name}: cIoU {cious.at[clip_id, name]:.2f}, {style}"
            cards.append(Card("", words, [overlay], style=style))
        note = "heat: similarity from {:.2f} to {:.2f}".format(*scale) if scale else ""
        galleries.append(Gallery(cards, row=True, note=note))
    return galleries


def rules_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rules of a result, without its scores."""
    return [{k: v for k, v in one.items() if k not in ("rows", "groups")} for one in summary["protocols"]]


def values_of(clips: pd.DataFrame, rule: str) -> np.ndarray:
    """Values (N, 4) of `clip_values`, without pointing; clips without an object are left out."""
    located = clips[clips[f"{rule}:success"].notna()]
    cious, misses = located[f"{rule}:ciou"], located[f"{rule}:success"] == 0
    return clip_values(cious.mask(misses, cious.clip(upper=0.4999999)))  # rounded up to 0.5 in the file


def difference(pair: Mapping[str, Any], first_name: str) -> dict[str, Any]:
    """Result of `compare_paired` as columns of a ScoreTable."""
    words = f"{pair['differences']['ciou_at_0.5']:+.1f} points against {first_name}"
    flat: dict[str, Any] = {"gained": str(pair["only_first"]), "lost": str(pair["only_second"])}
    flat |= {"p": f"{pair['p_value']:.2g}", "note": words}
    for key in SCORE_KEYS[:3]:
        low, high = pair["intervals"][key] or (np.nan, np.nan)
        flat |= {f"delta_{key}": pair["differences"][key], f"delta_{key}_low": low, f"delta_{key}_high": high}
    return flat


# ------------------------------------------------------------------------------------- command line


def run_program(command: Sequence[str]) -> int:
    """Run main.py or test.py to its end, and hand signals on to it; return its exit status."""
    words = [sys.executable, str(ROOT / command[0]), *command[1:]]
    # In a session of its own a terminal's Ctrl-C does not reach it twice, which would end it at once.
    process = subprocess.Popen(words, stdout=sys.stderr, start_new_session=True)
    handlers = {
        number: signal.signal(number, lambda number, _: process.send_signal(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    status = process.wait()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def score(checkpoint: Path, folder: Path, options: Sequence[str]) -> None:
    """Score a checkpoint, unless the folder holds the results of this very command and file."""
    command = ["test.py", "localisation", *options, "--checkpoint", str(checkpoint), "--output", str(folder)]
    command += ["--save-maps", str(folder / MAPS)]
    try:
        summary = json.loads((folder / "summary.json").read_text())
        same_command = summary["command"].endswith(shlex.join(command))
        if same_command and summary["checkpoint"]["sha256"] == file_sha256(checkpoint):
            logger.info("%s has been scored: %s", checkpoint, folder)
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # test.py looks closer, and refuses a folder that is not this model's
    if status := run_program(command):
        raise ValueError(
            f"Scoring {checkpoint} ended with status {status}; its message stands above. Models that were "
            "scored before it are kept: mend it and call again."
        )


def read_models(words: Sequence[str]) -> dict[str, Path]:
    """Read words `name=path` or `path`: paths by name, by default that of their folder or file."""
    named = ["=" in word and not Path(word).exists() for word in words]
    parts = [word.split("=", 1) if has else ("", word) for word, has in zip(words, named, strict=True)]
    paths = [Path(path) for _, path in parts]
    places = [p.absolute().parent if p.name == "last.pth" else p.absolute() for p in paths]
    shared = os.path.commonpath([place.parent for place in places]) if places else ""
    relative = [str(place.relative_to(shared)).replace("/", "_") for place in places]
    defaults = [re.sub(r"\.pth?(\.\w+)?$", "", name) for name in relative]
    names = [name or default for (name, _), default in zip(parts, defaults, strict=True)]
    models = dict(zip(names, paths, strict=True))
    if len({folder_name(name) for name in names}) < max(2, len(names)):
        raise ValueError(
            "A comparison takes two checkpoints or more, each once and under a name of its own, got "
            f"{', '.join(names) or 'none'}."
        )
    return models


def folder_name(name: str) -> str:
    """Name of a model, fit for a folder."""
    return re.sub(r"^\.|[^\w.+-]", "_", name)


def compare_models(given: Sequence[str]) -> int:
    """Score checkpoints one after the other and write the comparison with the first; return 0."""
    usage = "compare_models.sh A.pth B.pth ... -- --output DIR [options of test.py localisation]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, allow_abbrev=False)
    end = given.index("--") if "--" in given else len(given)
    about = "checkpoints, or folders with results; name=path names one"
    parser.add_argument("models", nargs="*", metavar="[NAME=]PATH", help=about)
    models = read_models(parser.parse_args(given[:end]).models)
    after = argparse.ArgumentParser(usage=usage, allow_abbrev=False)
    after.add_argument("--output", type=Path, required=True)
    after.add_argument("--table", choices=("md", "tex", "csv", "json"))
    own, options = after.parse_known_args(given[end + 1 :])
    if {"--checkpoint", "--save-maps"} & {word.split("=")[0] for word in options}:
        raise ValueError(
            "Checkpoints stand before `--`, without --checkpoint; the maps of each are kept as "
            f"{MAPS} beside its results."
        )
    check_results_folder(own.output, {"task": "comparison"})
    first, *_ = map(str, models.values())
    words = ["localisation", *options, "--checkpoint", first, "--output", str(own.output)]
    parsed: Any = opts.parse_test_options(words) if options else None
    folders = {}
    for place, (name, path) in enumerate(models.items(), start=1):
        logger.info("%d of %d: %s", place, len(models), path)
        folders[name] = path
        if not (path / "summary.json").is_file():
            folders[name] = own.output / folder_name(name)
            score(path, folders[name], options)
    report = compare_results(folders, "bash scripts/compare_models.sh " + shlex.join(given), parsed)
    write_and_show(own.output, report, own.table)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 for bad input."""
    return run_command(lambda: compare_models(sys.argv[1:] if arguments is None else list(arguments)))


if __name__ == "__main__":
    sys.exit(main())
