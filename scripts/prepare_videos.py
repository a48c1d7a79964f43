"""Turns a folder of videos into the folders that training and testing read.

    bash scripts/prepare_videos.sh videos data/prepared
    bash scripts/prepare_videos.sh videos data/prepared --layout vgg_ss --clip-list lvs_vgg_ss_5158

The clip id is the file's name without its extension; the first 10 s of a video are the clip.
OUT/prepared.jsonl records the settings and, line by line, the finished clips: a later run leaves these
alone and tries the others. OUT/failed.csv names every clip of the last run that failed.
"""

import argparse
import csv
import io
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
import soundfile
import torch
from PIL import Image
from tqdm import tqdm

from datasets.audio import SILENCE
from datasets.lists import find_list
from datasets.video import FRAME_RATE, VIDEO_SUFFIXES, UnusableVideoError, read_numbered_frames, read_sound
from utils.files import lock_folder, moved_when_whole, write_atomically
from utils.options import Options, add_group, build, option, refuse_dropped
from utils.training import configure_logging, run_command

CLIP_SECONDS = 10  # of VGGSound and Flickr-SoundNet; what lies behind that in a video is not used
SAMPLE_RATE = 16_000  # Hz
MIN_SOUND_SECONDS = 1.0  # a shorter sound would be repeated ten times and more
FORMAT_VERSION = 1  # goes up whenever the same settings give other files
CRASHED = "crashed", "the process that worked on it died: a fault in a decoder, or no memory was left"
RECORD, FAILURES = "prepared.jsonl", "failed.csv"
DROPPED = {
    "--frame-geometry": "Frames are squashed to a square, as the authors' are.",
    "--audio": "Sounds are as long as the authors keep them.",
}


class Layout(NamedTuple):
    """Where a data set has the files of a clip, below OUT, and how much sound its authors keep."""

    frame: str
    sound: str
    sound_seconds: int

    def places(self, destination: Path, clip_id: str) -> tuple[Path, Path]:
        """Return the files of a clip's frame and sound."""
        return destination / self.frame.format(clip_id), destination / self.sound.format(clip_id)


LAYOUTS = {
    "vggsound": Layout("VGGSound/total_video_frames/{}/125.jpg", "VGGSound/total_video_3s_audio/{}.wav", 3),
    "vgg_ss": Layout("VGGSound_test/frame/{}.jpg", "VGGSound_test/audio/{}.wav", 10),
    # What Flickr-SoundNet's 00000003 counts was not published: the frame that is used gets this name.
    "flickr": Layout("Flickr/frames/{}/00000003.jpg", "Flickr/wav/{}.wav", 10),
    "flickr_soundnet": Layout("Flickr_test/frame/{}.jpg", "Flickr_test/audio/{}.wav", 10),
}


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Options):
    """What is made of each video."""

    layout: str = "vggsound,vgg_ss"
    """data sets whose folders are written, of vggsound, vgg_ss, flickr, flickr_soundnet; with commas"""
    clip_list: str | None = None
    """only these clips: a file of ids or an official list"""
    frames: Literal["used", "all"] = "used"
    """only the frame that is read, or 001.jpg, 002.jpg … at 25 frames per second, which takes longer"""
    frame_number: int = option(125, at_least=1)
    """the frame that is read, counted from 1 at 25 frames per second; sounds are cut around it"""
    frame_size: int = option(299, at_least=1)
    """side of the square, pixels"""
    keep_silent: bool = False
    """silent clips are no failures"""
    workers: int = option(len(os.sched_getaffinity(0)), at_least=1)
    """processes"""

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        super().__post_init__()
        if set(self.layouts) - LAYOUTS.keys() or len(set(self.layouts)) < len(self.layouts):
            names = ", ".join(LAYOUTS)
            raise ValueError(f"--layout must name some of {names}, each once, got {self.layout}")
        if self.frames == "all" and ("vggsound" not in self.layouts or self.frame_number != 125):
            raise ValueError("--frames all is of VGGSound: give --layout vggsound, and no --frame-number")

    @property
    def layouts(self) -> list[str]:
        """Names of LAYOUTS."""
        return self.layout.split(",")


class Task(NamedTuple):
    """One clip to make."""

    clip_id: str
    video: Path
    destination: Path
    options: PrepareOptions


class Failure(NamedTuple):
    """A clip that cannot be made; the columns of failed.csv."""

    clip_id: str
    reason: str
    detail: str
    video: str = ""


def prepare_clip(task: Task) -> Failure | None:
    """Read a video and write the clip's files: all of them, or none. None: it is done."""
    clip_id, video, destination, options = task
    try:
        pictures, sounds = _read_clip(video, options)
    except (UnusableVideoError, FileNotFoundError) as error:  # a link to nowhere
        reason, detail = getattr(error, "kind", "unreadable"), getattr(error, "reason", str(error))
        return Failure(clip_id, reason, detail, str(video))
    places = {name: LAYOUTS[name].places(destination, clip_id) for name in options.layouts}
    for _, sound_file in places.values():
        sound_file.unlink(missing_ok=True)  # of an earlier video
    # Sounds last, as a clip counts only with its sound: a run that is killed leaves no half of a clip.
    for name, (frame, _) in places.items():
        names = {frame.name: options.frame_number}
        if options.frames == "all" and name == "vggsound":
            shutil.rmtree(frame.parent, ignore_errors=True)
            names |= {f"{number:03d}.jpg": number for number in pictures}
        for file_name, number in names.items():
            with moved_when_whole(frame.with_name(file_name)) as path:
                Image.fromarray(pictures[number]).save(path, "JPEG", quality=95)
    for name, (_, sound_file) in places.items():
        samples = sounds[LAYOUTS[name].sound_seconds]
        # libsndfile takes no names in another encoding.
        with moved_when_whole(sound_file) as path, path.open("wb") as file:
            soundfile.write(file, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    return None


def _read_clip(video: Path, options: PrepareOptions) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Return pictures (S, S, 3) by frame number, and sounds (L,) by the seconds they are meant to last."""
    number, centre = options.frame_number, options.frame_number / FRAME_RATE
    numbers = range(1, CLIP_SECONDS * FRAME_RATE + 1) if options.frames == "all" else [number]
    pictures = read_numbered_frames(video, numbers, needed=number, frame_size=options.frame_size)
    lengths = {LAYOUTS[name].sound_seconds for name in options.layouts}
    until = max(max(centre + length / 2, length) for length in lengths)
    sound = read_sound(video, SAMPLE_RATE, until, refuse_cut_off=True).numpy()
    seconds = len(sound) / SAMPLE_RATE
    if seconds < MIN_SOUND_SECONDS:
        words = f"it has {seconds:.2f} s of sound, at least {MIN_SOUND_SECONDS} s are used"
        raise UnusableVideoError(video, words, "too_short")
    sounds = {}
    for length in lengths:
        # Around the frame, moved as little as needed to lie inside the sound.
        begin = max(0, round(min(centre - length / 2, seconds - length) * SAMPLE_RATE))
        # Decoders overshoot full scale a little, and 16 bits would wrap around.
        sounds[length] = sound[begin : begin + length * SAMPLE_RATE].clip(-1, 1)
        loudest = float(np.abs(sounds[length]).max())
        if loudest < SILENCE and not options.keep_silent:
            words = f"no sample of its {length} s reaches {SILENCE:g}, the loudest is {loudest:g}"
            raise UnusableVideoError(video, words, "silent")
    return pictures, sounds


def run_in_processes(
    work: Callable[[Any], Any], tasks: Sequence[Any], *, num_workers: int, at_once: int = 500
) -> Generator[tuple[Any, Any, bool], None, None]:
    """Yield (task, result, has_crashed) in the order in which the tasks are done.

    When a process dies, of a fault in a decoder, say, the tasks that were under way are done again one by
    one in processes of their own: only those that kill their process are crashes, and have no result.
    """
    for first in range(0, len(tasks), at_once):
        unfinished = list(tasks[first : first + at_once])
        pool = ProcessPoolExecutor(num_workers, initializer=_begin_worker)
        try:
            futures = {pool.submit(work, task): task for task in unfinished}
            for future in as_completed(futures):
                result, task = future.result(), futures[future]
                unfinished.remove(task)
                yield task, result, False
        except BrokenProcessPool:
            if len(tasks) == 1:
                yield unfinished[0], None, True
            else:
                yield from run_in_processes(work, unfinished, num_workers=1, at_once=1)
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    torch.set_num_threads(1)  # the workers share the cores, and a forked OpenMP pool would wait for ever
    # Signals are the main process's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def find_videos(folder: Path) -> dict[str, list[Path]]:
    """Find the videos of each clip id, sub-folders included, hidden files not.

    Raises:
        FileNotFoundError: there is no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder of videos at {folder}.")
    videos: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in VIDEO_SUFFIXES and not hidden and not path.is_dir():
            videos.setdefault(path.stem, []).append(path)
    if not videos:
        raise FileNotFoundError(f"No video in {folder}. Expected {' '.join(sorted(VIDEO_SUFFIXES))}.")
    return videos


def read_record(file: TextIO, destination: Path, options: PrepareOptions) -> dict[str, int]:
    """Read the size in bytes of each finished clip's video; begin the record of a new folder.

    Raises:
        ValueError: the folder was filled with other settings.
    """
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # as a power cut leaves it
        file.truncate(sum(len(line.encode()) for line in lines[:-1]))
        lines.pop()
    entries = [json.loads(line) for line in lines]
    settings = {**asdict(options), "layouts": options.layouts, "format": FORMAT_VERSION}
    settings |= {"audio": "authors", "frame_geometry": "squash"}  # which were options once
    for name in ("layout", "clip_list", "workers"):
        del settings[name]
    if not entries:
        file.write(json.dumps({"settings": settings}) + "\n")
        return {}
    before = entries[0]["settings"]
    differing = [f"{name} {before.get(name)} instead of {new}" for name, new in settings.items()
                 if before.get(name) != new]  # fmt: skip
    if differing:
        words = f"{destination} was filled with other settings ({', '.join(differing)})."
        raise ValueError(f"{words} Give the same ones, or another folder.")
    return {entry["clip_id"]: entry["video_bytes"] for entry in entries[1:]}


def prepare(source: Path, destination: Path, options: PrepareOptions) -> int:
    """Prepare the clips that are not finished yet, and report; returns the exit status."""
    videos = find_videos(source)
    clip_ids = find_list(options.clip_list).clip_ids if options.clip_list else list(videos)
    failures, tasks = [], []
    for clip_id in clip_ids:
        paths = videos.get(clip_id, [])
        if len(paths) == 1:
            tasks.append(Task(clip_id, paths[0], destination, options))
        elif paths:
            failures.append(Failure(clip_id, "several_videos", ", ".join(map(str, paths))))
        else:
            failures.append(Failure(clip_id, "no_video", "listed, but no video of this name"))
    if destination.exists() and not (destination / RECORD).exists() and any(destination.iterdir()):
        raise ValueError(
            f"{destination} is neither empty nor a folder of this program (it has no {RECORD}). "
            "Give another folder."
        )
    destination.mkdir(parents=True, exist_ok=True)
    with lock_folder(destination), (destination / RECORD).open("a+", encoding="utf-8") as record:
        finished = read_record(record, destination, options)

        def is_finished(task: Task) -> bool:
            size = task.video.stat().st_size if task.video.exists() else None
            places = [LAYOUTS[name].places(destination, task.clip_id) for name in options.layouts]
            is_whole = all(path.is_file() for pair in places for path in pair)
            return is_whole and size is not None and finished.get(task.clip_id) == size

        unfinished = [task for task in tasks if not is_finished(task)]
        num_before = num_prepared = len(tasks) - len(unfinished)
        work = run_in_processes(prepare_clip, unfinished, num_workers=options.workers)
        bar = tqdm(total=len(tasks), initial=num_before, unit="clip")
        try:
            with closing(work), bar:  # the processes end before the folder is left
                for task, result, has_crashed in work:
                    failure = Failure(task.clip_id, *CRASHED, str(task.video)) if has_crashed else result
                    if failure is not None:
                        failures.append(failure)
                    else:
                        size = task.video.stat().st_size
                        line = {"clip_id": task.clip_id, "video": str(task.video), "video_bytes": size}
                        record.write(json.dumps(line) + "\n")
                        record.flush()
                        num_prepared += 1
                    bar.set_postfix(failed=len(failures))
                    bar.update()
        finally:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([Failure._fields, *sorted(failures)])
            # What a file name has in another encoding is escaped.
            write_atomically(destination / FAILURES, text.getvalue().encode("utf-8", "backslashreplace"))
    done = f"{num_prepared} of {len(clip_ids)} clips are prepared ({num_before} were before)"
    lines = [f"{destination}: {done} for {', '.join(options.layouts)}"]
    counts = Counter(failure.reason for failure in failures).most_common()
    lines += [f"  failed, {reason}: {count}" for reason, count in counts]
    lines += [f"    {failure.clip_id}: {failure.reason}: {failure.detail}" for failure in failures[:10]]
    if failures:
        lines.append(f"  all {len(failures)} failures: {destination / FAILURES}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 2 if num_prepared == 0 else 1 if failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, see --help."""
    parser = argparse.ArgumentParser(
        "prepare_videos",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=(__doc__ or "").splitlines()[0],
        epilog="Call it again to go on after a stop or to try failed clips again. Exit status: 0, every clip "
        "is prepared; 1, some failed, see OUT/failed.csv; 2, none could be prepared, or bad input; 130 and "
        "143, stopped.",
    )
    parser.add_argument("videos", type=Path, metavar="IN", help="folder of videos, sub-folders included")
    parser.add_argument("destination", type=Path, metavar="OUT", help="folder to fill, later the --data-root")
    add_group(parser, PrepareOptions)
    configure_logging()
    for stream in (sys.stdout, sys.stderr):  # file names may be in another encoding than the screen
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # As Ctrl-C: the failures are written, the processes are ended.
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

    def command() -> int:
        refuse_dropped(DROPPED, sys.argv[1:] if arguments is None else arguments)
        values = vars(parser.parse_args(arguments))
        return prepare(values["videos"], values["destination"], build(PrepareOptions, values))

    try:
        return run_command(command)
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
