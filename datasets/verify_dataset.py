"""Command line: decodes every frame and sound of a data set and reports what is wrong with them.

bash scripts/verify_dataset.sh vggsound data/prepared
bash scripts/verify_dataset.sh vgg_ss data/prepared --clip-list ssl_tie_vgg_ss_4911
"""

import argparse
import hashlib
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.annotations import read_mask
from datasets.audio import SILENCE, check_sound_header
from datasets.benchmarks import DATA_SETS, ClipFiles, find_files
from datasets.clip_preparation import SAMPLE_RATE
from datasets.frames import read_frame
from datasets.hdf5 import HDF5Row, Source, read_stored_sound
from datasets.lists import find_list
from datasets.processes import Crash, num_cores, run_in_processes
from utils.files import BrokenFileError

PROBLEMS = (
    "missing_frame",
    "missing_sound",
    "missing_annotation",
    "unreadable_frame",
    "unreadable_sound",
    "unreadable_mask",
    "silent",
    "duplicate_frame",
    "duplicate_sound",
)
"""What makes the exit status 1."""

NUM_EXAMPLES = 5

Facts = TypeVar("Facts")


@dataclass(frozen=True)
class ClipFilesOf:
    """One clip to look at; None: there is no such file."""

    clip_id: str
    frame: Source | None
    sound: Source | None
    mask: Path | None = None
    scene: str | None = None
    """what clips share that may show the same frame; None: each has its own"""


@dataclass(frozen=True)
class FrameFacts:
    """What a frame is like."""

    width: int
    height: int
    digest: str
    """of its pixels"""


@dataclass(frozen=True)
class SoundFacts:
    """What a sound is like."""

    sample_rate: int
    """Hz"""
    channels: int
    seconds: float
    loudest: float
    """largest absolute sample"""
    digest: str
    """of its samples"""


@dataclass(frozen=True)
class ClipFacts:
    """What was found out about a clip; text says why a file cannot be read."""

    frame: FrameFacts | str | None
    sound: SoundFacts | str | None
    mask: str | None = None
    shared: tuple[str, str] = ("", "")
    """what clips have in common whose frames, and whose sounds, are the same by design"""


def look_at(clip: ClipFilesOf) -> ClipFacts:
    """Decodes a clip's frame, sound and mask completely."""
    return ClipFacts(
        _facts(_look_at_frame, clip.frame),
        _facts(_look_at_sound, clip.sound),
        _complaint_about(clip.mask),
        (clip.scene or str(clip.frame), str(clip.sound)),
    )


def _facts(look: Callable[[Source], Facts], source: Source | None) -> Facts | str | None:
    if source is None:
        return None
    try:
        return look(source)
    except BrokenFileError as error:
        return str(error)


def _look_at_frame(source: Source) -> FrameFacts:
    picture = read_frame(source)
    return FrameFacts(*picture.size, _digest(np.asarray(picture)))


def _complaint_about(mask: Path | None) -> str | None:
    try:
        if mask is not None:
            read_mask(mask)
    except BrokenFileError as error:
        return str(error)
    return None


def _look_at_sound(source: Source) -> SoundFacts:
    if isinstance(source, HDF5Row):
        samples, rate = read_stored_sound(source)
        samples = samples[:, None]
    else:
        check_sound_header(source)
        try:
            samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
        except (OSError, soundfile.LibsndfileError) as error:
            raise BrokenFileError(source, str(error)) from error
    if not len(samples):
        raise BrokenFileError(source, "it holds no audio sample")
    if not np.isfinite(samples).all():
        raise BrokenFileError(source, "it holds samples that are not finite numbers")
    loudest = float(np.abs(samples).max())
    num_samples, channels = samples.shape
    return SoundFacts(rate, channels, num_samples / rate, loudest, _digest(samples))


def _digest(content: NDArray[Any]) -> str:
    """Equal for equal pictures or sounds, however they are stored."""
    shape = str(content.shape).encode()
    return hashlib.blake2b(shape + content.tobytes(), digest_size=16).hexdigest()


def find_clips(
    files: ClipFiles, clip_ids: Iterable[str], scene_of: Callable[[str], str] | None = None
) -> list[ClipFilesOf]:
    """Looks up the files of clips.

    Args:
        files: of the data set.
        clip_ids: which clips.
        scene_of: clip id -> what clips share that may show the same frame; None: nothing.
    """

    def find(sources: dict[str, Source], clip_id: str) -> Source | None:
        source = sources.get(clip_id)
        return None if isinstance(source, Path) and not source.is_file() else source

    frames, sounds, masks = dict(files.frames), dict(files.sounds), files.masks or {}
    return [
        ClipFilesOf(i, find(frames, i), find(sounds, i), masks.get(i), scene_of(i) if scene_of else None)
        for i in clip_ids
    ]


def find_problems(facts: dict[str, ClipFacts], annotated: frozenset[str] | None) -> dict[str, dict[str, str]]:
    """Judges what was found out.

    Args:
        facts: by clip id.
        annotated: clips with boxes or a mask of their own; None: none are expected.

    Returns:
        for each of PROBLEMS: clip id -> detail.
    """
    problems: dict[str, dict[str, str]] = {name: {} for name in PROBLEMS}
    for clip_id, clip in facts.items():
        for kind, found in (("frame", clip.frame), ("sound", clip.sound)):
            if found is None:
                problems[f"missing_{kind}"][clip_id] = "there is no file"
            elif isinstance(found, str):
                problems[f"unreadable_{kind}"][clip_id] = found
        if annotated is not None and clip_id not in annotated:
            problems["missing_annotation"][clip_id] = "nothing says where its object is"
        if clip.mask is not None:
            problems["unreadable_mask"][clip_id] = clip.mask
        if isinstance(clip.sound, SoundFacts) and clip.sound.loudest < SILENCE:
            problems["silent"][clip_id] = f"its loudest sample is {clip.sound.loudest:g}"
    # All silent sounds of one length are equal: they have been named already.
    frames = {i: clip.frame.digest for i, clip in facts.items() if isinstance(clip.frame, FrameFacts)}
    sounds = {
        i: clip.sound.digest
        for i, clip in facts.items()
        if isinstance(clip.sound, SoundFacts) and i not in problems["silent"]
    }
    problems["duplicate_frame"] = _duplicates(frames, {i: facts[i].shared[0] for i in frames})
    problems["duplicate_sound"] = _duplicates(sounds, {i: facts[i].shared[1] for i in sounds})
    return problems


def _duplicates(digests: dict[str, str], shared: dict[str, str]) -> dict[str, str]:
    """Clip id -> detail, for each clip that is not the only one with its content.

    Clips that share it by design, as the frames of a video share its sound, are no duplicates.
    """
    groups: dict[str, list[str]] = {}
    for clip_id, digest in digests.items():
        groups.setdefault(digest, []).append(clip_id)
    return {
        clip_id: f"one of {len(group)} that are equal, first: {', '.join(group[:NUM_EXAMPLES])}"
        for group in groups.values()
        if len({shared[clip_id] for clip_id in group}) > 1
        for clip_id in group
    }


def build_report(
    dataset: str, list_name: str | None, files: ClipFiles, facts: dict[str, ClipFacts]
) -> dict[str, Any]:
    """Everything that is known about a data set, ready for JSON.

    Args:
        dataset: a key of DATA_SETS.
        list_name: the clip list; None: every clip found.
        files: of the data set.
        facts: by clip id.
    """
    problems = find_problems(facts, files.annotated)
    frames = [clip.frame for clip in facts.values() if isinstance(clip.frame, FrameFacts)]
    sounds = [clip.sound for clip in facts.values() if isinstance(clip.sound, SoundFacts)]
    found = files.frames.keys() | files.sounds.keys()
    bad = {clip_id for name in PROBLEMS for clip_id in problems[name]}
    seconds: dict[tuple[int, int], list[float]] = {}
    for sound in sounds:
        seconds.setdefault((sound.sample_rate, sound.channels), []).append(sound.seconds)
    sizes = Counter((frame.width, frame.height) for frame in frames)
    return {
        "dataset": dataset,
        "clip_list": list_name,
        "counts": {
            "clips": len(facts),
            "without_problem": len(facts.keys() - bad),
            "frames_read": len(frames),
            "sounds_read": len(sounds),
            "found_but_not_listed": len(found - facts.keys()),
        },
        "problems": problems,
        "non_square": sorted(
            clip_id
            for clip_id, clip in facts.items()
            if isinstance(clip.frame, FrameFacts) and clip.frame.width != clip.frame.height
        ),
        "frame_sizes": [
            {"width": width, "height": height, "clips": count}
            for (width, height), count in sizes.most_common()
        ],
        "sounds": [
            {
                "sample_rate": rate,
                "channels": channels,
                "clips": len(lengths),
                "shortest_seconds": min(lengths),
                "median_seconds": statistics.median(lengths),
                "longest_seconds": max(lengths),
            }
            for (rate, channels), lengths in sorted(seconds.items())
        ],
    }


def write_text(report: dict[str, Any], write: Callable[[str], Any]) -> None:
    """Writes the report for reading.

    Args:
        report: of build_report.
        write: takes pieces of text.
    """
    counts = report["counts"]
    name = report["clip_list"] or "every clip found"
    write(f"{report['dataset']} ({name}): {counts['clips']} clips, ")
    write(f"{counts['without_problem']} without a problem\n")
    write(f"  frames read: {counts['frames_read']}, sounds read: {counts['sounds_read']}, ")
    write(f"found but not listed: {counts['found_but_not_listed']}\n")
    for problem, clips in report["problems"].items():
        write(f"  {problem}: {len(clips)}\n")
        for clip_id, detail in list(clips.items())[:NUM_EXAMPLES]:
            write(f"    {clip_id}: {detail}\n")
    write(f"  frames that are not square: {len(report['non_square'])}\n")
    for size in report["frame_sizes"][:NUM_EXAMPLES]:
        write(f"    {size['width']} x {size['height']}: {size['clips']}\n")
    write("  sounds: rate, channels, clips, seconds (shortest, median, longest)\n")
    for row in report["sounds"]:
        times = (row["shortest_seconds"], row["median_seconds"], row["longest_seconds"])
        write(f"    {row['sample_rate']} Hz, {row['channels']}, {row['clips']}, ")
        write("{:.2f}, {:.2f}, {:.2f}\n".format(*times))
        if row["sample_rate"] != SAMPLE_RATE or row["channels"] != 1:
            write("      (mixed to mono and resampled whenever it is read)\n")


def _run(options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    layout = DATA_SETS[options.dataset]
    if layout.negatives is not None:
        base = options.dataset.removesuffix("_extended")
        raise ValueError(
            f"{options.dataset} has no files of its own: verify {base}, in whose folders the "
            "frames and sounds of the negatives lie; without --clip-list all of them are read."
        )
    listed = None if options.clip_list is None else find_list(options.clip_list)
    files = find_files(options.dataset, options.root, listed=None if listed is None else listed.clip_ids)
    found = sorted(files.frames.keys() | files.sounds.keys())
    clip_ids = found if listed is None else listed.clip_ids
    clips = find_clips(files, clip_ids, layout.pair_key)
    facts: dict[str, ClipFacts] = {clip.clip_id: ClipFacts(None, None) for clip in clips}
    work = run_in_processes(look_at, clips, num_workers=options.workers)
    for clip, result in tqdm(work, "decoding", len(clips), unit="clip", leave=False):
        crashed = isinstance(result, Crash)
        facts[clip.clip_id] = ClipFacts(result.detail, result.detail) if crashed else result
    report = build_report(options.dataset, None if listed is None else listed.name, files, facts)
    write_text(report, sys.stdout.write)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        partial = options.output.with_name(f".{options.output.name}.partial")
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        partial.replace(options.output)
        sys.stdout.write(f"  everything: {options.output}\n")
    return 1 if any(report["problems"].values()) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, see --help."""
    parser = argparse.ArgumentParser(
        prog="verify_dataset",
        description="Decodes every frame and every sound of a data set and reports what is wrong.",
        epilog=(
            f"Exit status: 0, nothing is wrong; 1, there are problems ({', '.join(PROBLEMS)}); 2, "
            "bad input; 130, stopped. Frames that are not square and sounds other than 16 kHz "
            "mono are reported, but are no problems."
        ),
    )
    add = parser.add_argument
    add("dataset", choices=tuple(DATA_SETS), metavar="DATASET", help=", ".join(DATA_SETS))
    add("root", type=Path, metavar="ROOT", help="its folder, the --data-root of main.py")
    add("--clip-list", metavar="LIST", help="the clips to expect: a file or an official list")
    add("--workers", type=int, default=num_cores(), metavar="W", help="processes")
    add("--output", type=Path, metavar="FILE", help="write the whole report as JSON")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"verify_dataset: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("verify_dataset: stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
