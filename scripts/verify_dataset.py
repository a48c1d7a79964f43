"""Decodes every frame and every sound of a data set and reports what is wrong with them.

bash scripts/verify_dataset.sh vggsound data/prepared
bash scripts/verify_dataset.sh vgg_ss data/prepared --clip-list ssl_tie_vgg_ss_4911
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from datasets.annotations import read_mask
from datasets.audio import SILENCE, read_sound
from datasets.benchmarks import DATA_SETS, find_files
from datasets.frames import read_frame
from datasets.hdf5 import HDF5Row, Source, read_stored_sound
from datasets.lists import find_list
from scripts.prepare_videos import SAMPLE_RATE, run_in_processes
from utils.files import BrokenFileError, write_atomically
from utils.options import Options, add_group, build, option
from utils.training import configure_logging, run_command

PROBLEMS = (
    "missing_frame", "missing_sound", "missing_annotation", "unreadable_frame", "unreadable_sound",
    "unreadable_mask", "unreadable_boxes", "silent", "duplicate_frame", "duplicate_sound",
)  # fmt: skip
"""What makes the exit status 1."""

COLUMNS = (
    "clip_id", "frame", "sound", "frame_error", "sound_error", "mask_error", "boxes_error", "width", "height",
    "sample_rate", "channels", "seconds", "loudest", "annotated", "frame_place", "sound_place",
)  # fmt: skip
NUM_EXAMPLES = 5
CRASHED = "the process that worked on it died: a fault in a decoder, or no memory was left"


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """Which clips are looked at."""

    clip_list: str | None = None
    """the clips to expect: a file or an official list; none: every clip found"""
    workers: int = option(len(os.sched_getaffinity(0)), at_least=1)
    """processes"""
    output: Path | None = None
    """write the whole report as JSON"""


class ClipSources(NamedTuple):
    """One clip to look at; None: there is no such file."""

    clip_id: str
    frame: Source | None
    sound: Source | None
    mask: Path | None


def look_at(clip: ClipSources) -> dict[str, Any]:
    """Decode a clip's frame, sound and mask: one row of the table that the report is made of.

    `frame` and `sound` are digests, equal for equal pictures or sounds however they are stored;
    `frame_error`, `sound_error` and `mask_error` say why a file cannot be read.
    """
    row: dict[str, Any] = {"clip_id": clip.clip_id}
    for kind, look in (("frame", _look_at_frame), ("sound", _look_at_sound), ("mask", _look_at_mask)):
        source = getattr(clip, kind)
        try:
            row |= {} if source is None else look(source)
        except BrokenFileError as error:
            row[f"{kind}_error"] = str(error)
    return row


def _look_at_frame(source: Source) -> dict[str, Any]:
    picture = read_frame(source)
    return {"frame": _digest(np.asarray(picture)), "width": picture.width, "height": picture.height}


def _look_at_sound(source: Source) -> dict[str, Any]:
    if isinstance(source, HDF5Row):
        rate, channels, announced = read_stored_sound(source)[1], 1, 0
    else:
        try:
            header = soundfile.info(source)
            rate, channels, announced = header.samplerate, header.channels, header.frames
        except soundfile.LibsndfileError:  # FFmpeg may decode it nevertheless
            rate, channels, announced = SAMPLE_RATE, 1, 0
    samples = read_sound(source, rate).numpy()  # (L,)
    missing = announced - len(samples)
    if rate / 10 < missing < 2**40:  # beyond that the header does not know
        raise BrokenFileError(source, f"it is cut off: {missing / rate:.1f} s of its sound are missing")
    row = {"sound": _digest(samples), "sample_rate": rate, "channels": channels}
    return row | {"seconds": len(samples) / rate, "loudest": float(np.abs(samples).max())}


def _look_at_mask(source: Path) -> dict[str, Any]:
    read_mask(source)
    return {}


def _digest(content: np.ndarray) -> str:
    return hashlib.blake2b(str(content.shape).encode() + content.tobytes(), digest_size=16).hexdigest()


def find_problems(table: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Judge the clips: for each of PROBLEMS clip id -> detail.

    Args:
        table: rows of look_at by clip id, with `boxes_error`, `annotated`, and `frame_place` and
        `sound_place`:
            what clips have in common whose frames, or sounds, are equal by design, as the frames of a video
            share its sound.
    """
    problems: dict[str, dict[str, str]] = {name: {} for name in PROBLEMS}
    is_silent = table.loudest < SILENCE
    silent = table.loudest[is_silent]
    problems["silent"] = {i: f"its loudest sample is {loudest:g}" for i, loudest in silent.items()}
    missing = table.index[~table.annotated]
    problems["missing_annotation"] = dict.fromkeys(missing, "nothing says where its object is")
    for kind in ("frame", "sound", "mask", "boxes"):
        problems[f"unreadable_{kind}"] = table[f"{kind}_error"].dropna().to_dict()
    for kind in ("frame", "sound"):
        missing = table.index[table[kind].isna() & table[f"{kind}_error"].isna()]
        problems[f"missing_{kind}"] = dict.fromkeys(missing, "there is no file")
        # All silent sounds of one length are equal: they have been named already.
        rest = table[~is_silent] if kind == "sound" else table
        for _, group in rest.groupby(kind, sort=False):
            if group[f"{kind}_place"].nunique() > 1:
                words = f"one of {len(group)} that are equal, first: {', '.join(group.index[:NUM_EXAMPLES])}"
                problems[f"duplicate_{kind}"] |= dict.fromkeys(group.index, words)
    return problems


def build_report(
    dataset: str, list_name: str | None, table: pd.DataFrame, num_unlisted: int
) -> dict[str, Any]:
    """Collect everything that is known, ready for JSON; `table` as for find_problems."""
    problems = find_problems(table)
    bad = {clip_id for clips in problems.values() for clip_id in clips}
    sizes = table.groupby(["width", "height"]).size().sort_values(ascending=False)
    sounds = table.groupby(["sample_rate", "channels"]).seconds.agg(
        clips="size", shortest_seconds="min", median_seconds="median", longest_seconds="max"
    )

    def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
        whole = rows.columns.intersection(["width", "height", "sample_rate", "channels"])
        return rows.astype(dict.fromkeys(whole, int)).to_dict("records")

    return {
        "dataset": dataset,
        "clip_list": list_name,
        "counts": {
            "clips": len(table),
            "without_problem": len(table) - len(bad),
            "frames_read": int(table.frame.notna().sum()),
            "sounds_read": int(table.sound.notna().sum()),
            "found_but_not_listed": num_unlisted,
        },
        "problems": problems,
        "non_square": sorted(table.index[table.width.notna() & (table.width != table.height)]),
        "frame_sizes": records(sizes.rename("clips").reset_index()),
        "sounds": records(sounds.reset_index()),
    }


def print_report(report: dict[str, Any]) -> None:
    """Write the report for reading."""
    counts, say = report["counts"], sys.stdout.write
    title = f"{report['dataset']} ({report['clip_list'] or 'every clip found'})"
    say(f"{title}: {counts['clips']} clips, {counts['without_problem']} without a problem\n")
    say(f"  frames read: {counts['frames_read']}, sounds read: {counts['sounds_read']}, ")
    say(f"found but not listed: {counts['found_but_not_listed']}\n")
    for problem, clips in report["problems"].items():
        say(f"  {problem}: {len(clips)}\n")
        for clip_id, detail in list(clips.items())[:NUM_EXAMPLES]:
            say(f"    {clip_id}: {detail}\n")
    say(f"  frames that are not square: {len(report['non_square'])}\n")
    for table in (report["frame_sizes"][:NUM_EXAMPLES], report["sounds"]):
        if table:
            say(pd.DataFrame(table).to_string(index=False, float_format="%.2f") + "\n")
    if any((row["sample_rate"], row["channels"]) != (SAMPLE_RATE, 1) for row in report["sounds"]):
        say("  (other sounds than 16 kHz mono are mixed and resampled whenever they are read)\n")


def verify(dataset: str, root: Path, options: VerifyOptions) -> int:
    """Look at all clips and report; returns the exit status."""
    layout = DATA_SETS[dataset]
    if layout.negatives is not None:
        raise ValueError(
            f"{dataset} has no files of its own: verify {dataset.removesuffix('_extended')}, whose folders "
            "hold the frames and sounds of the negatives; without --clip-list all of them are read."
        )
    listed = None if options.clip_list is None else find_list(options.clip_list)
    files = find_files(dataset, root, listed=None if listed is None else listed.clip_ids)
    found = files.frames.keys() | files.sounds.keys()
    clip_ids = sorted(found) if listed is None else listed.clip_ids
    masks, boxes, annotated = files.masks or {}, files.boxes or {}, files.annotated

    def existing(source: Source | None) -> Source | None:
        return None if isinstance(source, Path) and not source.is_file() else source

    clips = [
        ClipSources(i, existing(files.frames.get(i)), existing(files.sounds.get(i)), masks.get(i))
        for i in clip_ids
    ]
    rows = []
    work = run_in_processes(look_at, clips, num_workers=options.workers)
    for clip, result, has_crashed in tqdm(work, "decoding", len(clips), unit="clip", leave=False):
        row = (
            {"clip_id": clip.clip_id, "frame_error": CRASHED, "sound_error": CRASHED}
            if has_crashed
            else result
        )
        row["annotated"] = annotated is None or clip.clip_id in annotated
        try:
            _ = clip.clip_id in boxes and boxes[clip.clip_id]()
        except BrokenFileError as error:
            row["boxes_error"] = str(error)
        row["frame_place"] = layout.pair_key(clip.clip_id) if layout.pair_key else str(clip.frame)
        row["sound_place"] = str(clip.sound)
        rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS).set_index("clip_id").reindex(clip_ids)
    report = build_report(dataset, None if listed is None else listed.name, table, len(found - set(clip_ids)))
    print_report(report)
    if options.output:
        write_atomically(options.output, (json.dumps(report, indent=1) + "\n").encode())
        sys.stdout.write(f"  everything: {options.output}\n")
    return 1 if any(report["problems"].values()) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, see --help."""
    parser = argparse.ArgumentParser(
        "verify_dataset",
        description=(__doc__ or "").splitlines()[0],
        epilog=f"Exit status: 0, nothing is wrong; 1, there are problems ({', '.join(PROBLEMS)}); 2, bad "
        "input; 130, stopped. Frames that are not square and sounds other than 16 kHz mono are reported, but "
        "are no problems.",
    )
    parser.add_argument("dataset", choices=tuple(DATA_SETS), metavar="DATASET", help=", ".join(DATA_SETS))
    parser.add_argument("root", type=Path, metavar="ROOT", help="its folder, the --data-root of main.py")
    add_group(parser, VerifyOptions)
    values = vars(parser.parse_args(arguments))
    configure_logging()
    return run_command(lambda: verify(values["dataset"], values["root"], build(VerifyOptions, values)))


if __name__ == "__main__":
    sys.exit(main())
