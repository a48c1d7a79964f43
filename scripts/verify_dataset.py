"""Reads every clip of a data set as test.py does, and reports what is wrong with them.

bash scripts/verify_dataset.sh vggsound data/prepared
bash scripts/verify_dataset.sh vgg_ss data/prepared --clip-list ssl_tie_vgg_ss_4911
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from datasets import SILENCE
from datasets.audio import AudioConfig
from datasets.benchmarks import DATA_SETS, build_clips
from datasets.clips import AudioVisualClips, BrokenClip, Clip
from datasets.frames import FrameGeometry
from utils.files import check_place, write_atomically
from utils.options import CRASHED, NUM_CORES, Parser, run_command, run_in_processes

PROBLEMS = {
    "missing": "a file is not there or empty, or the boxes cannot be read",
    "unreadable": "frame, sound or mask cannot be decoded",
    "silent": f"no sample of the first 10 s reaches {SILENCE:g}",
    "duplicate_frame": "other clips show the same",
    "duplicate_sound": "other clips sound the same",
}
"""What makes the exit status 1."""
NUM_EXAMPLES = 5


def look_at(clip: Clip) -> dict[str, Any]:
    """Read a clip: digests of frame and sound, and the loudest sample; or why it cannot be read."""
    sample = AudioVisualClips([clip], geometry=FrameGeometry(224), audio=AudioConfig())[0]
    if isinstance(sample, BrokenClip):
        return {"unreadable": sample.reason}
    parts = {"frame": sample.frame, "sound": sample.waveform}
    digests = {name: hashlib.blake2b(part.numpy().tobytes()).hexdigest() for name, part in parts.items()}
    return {**digests, "loudest": float(sample.waveform.abs().max())}


def find_problems(clips: Sequence[Clip], rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Judge what look_at returned: problem -> clip id -> detail."""
    columns = ["unreadable", "frame", "sound", "loudest"]
    table = pd.DataFrame(rows, [clip.clip_id for clip in clips], columns)
    silent = table["loudest"][table["loudest"] < SILENCE]
    problems: dict[str, dict[str, str]] = {name: {} for name in PROBLEMS}
    problems["unreadable"] = table["unreadable"].dropna().to_dict()
    problems["silent"] = {i: f"its loudest sample is {loudest:g}" for i, loudest in silent.items()}
    # What clips share by design is no duplicate: the frames of a video its sound, a pair its scene.
    places = {"frame": [clip.scene for clip in clips], "sound": [clip.sound for clip in clips]}
    for kind, of_clips in places.items():
        # All silent sounds are equal; they have been named already.
        rest = table.assign(place=of_clips).drop(silent.index if kind == "sound" else [])
        for _, group in rest.groupby(kind, sort=False):
            if group["place"].nunique() > 1:
                words = f"one of {len(group)} that are equal, first: {', '.join(group.index[:NUM_EXAMPLES])}"
                problems[f"duplicate_{kind}"] |= dict.fromkeys(group.index, words)
    return problems


def verify(options: argparse.Namespace) -> int:
    """Look at all clips and report; return the exit status."""
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    if options.output is not None:
        if options.output.is_dir():
            raise ValueError(f"--output {options.output} is a folder; name a file.")
        check_place(options.output.parent, f"--output {options.output}")
    chosen = {name: getattr(options, name) for name in ("clip_list", "annotations", "negatives")}
    clip_set = build_clips(options.dataset, options.root, **chosen, allow_missing=True, keep_incomplete=True)
    work = run_in_processes(look_at, clip_set.clips, num_workers=options.workers)
    results = {}
    for clip, row, has_crashed in tqdm(work, "decoding", len(clip_set.clips), unit="clip", leave=False):
        results[clip.clip_id] = {"unreadable": CRASHED} if has_crashed else row
    problems = find_problems(clip_set.clips, [results[clip_id] for clip_id in clip_set.clip_ids])
    for line in clip_set.missing:
        clip_id, _, problems["missing"][clip_id] = line.partition(": ")
    bad = {clip_id for of_clips in problems.values() for clip_id in of_clips}
    report = {
        "dataset": options.dataset,
        "clip_list": clip_set.list_name,
        "num_clips": clip_set.num_listed,
        "num_without_problem": clip_set.num_listed - len(bad),
        "problems": problems,
    }
    say = sys.stdout.write
    say(f"{options.dataset} ({clip_set.list_name}): {clip_set.num_listed} clips, ")
    say(f"{report['num_without_problem']} without a problem\n")
    for name, of_clips in problems.items():
        say(f"  {name}: {len(of_clips)}\n")
        for clip_id, detail in list(of_clips.items())[:NUM_EXAMPLES]:
            say(f"    {clip_id}: {detail}\n")
    if options.output is not None:
        write_atomically(options.output, (json.dumps(report, indent=1) + "\n").encode())
        say(f"  everything: {options.output}\n")
    return 1 if bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, see --help."""
    problems = "; ".join(f"{name}: {meaning}" for name, meaning in PROBLEMS.items())
    parser = Parser(
        "verify_dataset",
        description=(__doc__ or "").splitlines()[0],
        epilog=f"Exit status: 0, nothing is wrong; 1, there are problems ({problems}); 2, bad input.",
    )
    add = parser.add_argument
    add("dataset", choices=tuple(DATA_SETS), metavar="DATASET", help=", ".join(DATA_SETS))
    add("root", type=Path, metavar="ROOT", help="its folder, the --data-root of main.py")
    add("--clip-list", metavar="LIST", help="a file or an official list; none: every clip with any file")
    add("--negatives", metavar="LIST", help="of the extended benchmarks, the same; none: SLAVC's")
    add("--annotations", type=Path, metavar="PATH", help="JSON or CSV of boxes, or folder of <id>.xml")
    add("--workers", type=int, metavar="N", default=NUM_CORES, help="processes (default: %(default)s)")
    add("--output", type=Path, metavar="JSON", help="write the whole report there")
    options = parser.parse_args(arguments)
    return run_command(lambda: verify(options))


if __name__ == "__main__":
    sys.exit(main())
