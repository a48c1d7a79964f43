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
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
from utils.files import lock_folder, write_atomically
from utils.options import Options, add_group, build, option
from utils.training import configure_logging, run_command

CLIP_SECONDS = 10  # of VGGSound and Flickr-SoundNet; what lies behind that in a video is not used
SAMPLE_RATE = 16_000  # Hz
MIN_SOUND_SECONDS = 1.0  # a shorter sound would be repeated ten times and more
FORMAT_VERSION = 1  # goes up whenever the same settings give other files
RECORD, FAILURES, STAGING = "prepared.jsonl", "failed.csv", ".partial"


class Layout(NamedTuple):
    """Where a data set has the files of a clip, below OUT, and how much sound its authors keep."""

    frame: str
    sound: str
    sound_seconds: int


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
    frame_geometry: Literal["squash", "short_side"] = "squash"
    """resize to a square, or keep the shape"""
    frame_size: int = option(299, at_least=1)
    """side of the square, or the shorter side; pixels"""
    audio: Literal["authors", "centre_3s", "full_10s"] = "authors"
    """sound of every layout; authors: 3 s for vggsound, 10 s for the others"""
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
            raise ValueError(
                "--frames all numbers the frames as vggsound does, where frame 125 is read: it needs "
                "--layout vggsound and --frame-number 125"
            )

    @property
    def layouts(self) -> list[str]:
        """Names of LAYOUTS."""
        return self.layout.split(",")

    def sound_seconds(self, layout: str) -> int:
        """Return the length of a layout's sounds."""
        return {"authors": LAYOUTS[layout].sound_seconds, "centre_3s": 3, "full_10s": 10}[self.audio]


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
    number, centre = options.frame_number, options.frame_number / FRAME_RATE
    lengths = {options.sound_seconds(name) for name in options.layouts}
    sounds = {}
    try:
        pictures = read_numbered_frames(
            video,
            range(1, CLIP_SECONDS * FRAME_RATE + 1) if options.frames == "all" else [number],
            needed=number,
            frame_size=options.frame_size,
            squash=options.frame_geometry == "squash",
        )
        until = max(max(centre + length / 2, length) for length in lengths)
        sound = read_sound(video, SAMPLE_RATE, until, refuse_cut_off=True).numpy()
        if len(sound) < MIN_SOUND_SECONDS * SAMPLE_RATE:
            words = (
                f"it has {len(sound) / SAMPLE_RATE:.2f} s of sound, at least {MIN_SOUND_SECONDS} s are used"
            )
            raise UnusableVideoError(video, words, "too_short")
        for length in lengths:
            # Around the frame, moved as little as needed to lie inside the sound.
            begin = round((centre - length / 2) * SAMPLE_RATE)
            begin = max(0, min(begin, len(sound) - length * SAMPLE_RATE))
            sounds[length] = sound[begin : begin + length * SAMPLE_RATE]
            loudest = float(np.abs(sounds[length]).max())
            if loudest < SILENCE and not options.keep_silent:
                words = f"no sample of its {length} s reaches {SILENCE:g}, the loudest is {loudest:g}"
                raise UnusableVideoError(video, words, "silent")
    except UnusableVideoError as error:
        return Failure(clip_id, error.kind, error.reason, str(video))
    except FileNotFoundError as error:  # a link to nowhere
        return Failure(clip_id, "unreadable", str(error), str(video))
    # Everything is written beside its place, then moved: frames first, sounds last, as a clip counts only
    # with its sound. A run that is killed between two moves leaves no half of a clip.
    staging = destination / STAGING / clip_id
    shutil.rmtree(staging, ignore_errors=True)
    frame_moves, sound_moves = [], []
    for name in options.layouts:
        frame, folder = destination / LAYOUTS[name].frame.format(clip_id), staging / name
        folder.mkdir(parents=True)
        numbered = pictures if options.frames == "all" and name == "vggsound" else {}
        names = {f"{index:03d}.jpg": index for index in numbered} | {frame.name: number}
        for file_name, index in names.items():
            Image.fromarray(pictures[index]).save(folder / file_name, quality=95)
        # A clip's own folder goes to its place as a whole.
        moved = (folder, frame.parent) if frame.parent.name == clip_id else (folder / frame.name, frame)
        frame_moves.append(moved)
        # Decoders overshoot full scale a little, and 16 bits would wrap around.
        samples, sound_file = sounds[options.sound_seconds(name)].clip(-1, 1), staging / f"{name}.wav"
        with sound_file.open("wb") as file:  # libsndfile takes no names in another encoding
            soundfile.write(file, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        sound_moves.append((sound_file, destination / LAYOUTS[name].sound.format(clip_id)))
    for source, target in (*frame_moves, *sound_moves):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)  # of an earlier run; a folder cannot be moved onto another one
        source.replace(target)
    shutil.rmtree(staging)
    return None


def run_in_processes(
    work: Callable[[Any], Any], tasks: Sequence[Any], *, num_workers: int
) -> Generator[tuple[Any, Any, bool], None, None]:
    """Yield (task, result, has_crashed) in the order in which the tasks are done.

    When a process dies, of a fault in a decoder, say, the tasks that were under way are done again one by
    one in processes of their own: only those that kill their process are crashes, and have no result.
    """
    waiting, suspects = deque(tasks), deque[Any]()
    while waiting or suspects:
        alone = bool(suspects)
        queue = deque([suspects.popleft()]) if alone else waiting
        running: dict[Future[Any], Any] = {}
        pool = ProcessPoolExecutor(1 if alone else num_workers, initializer=_begin_worker)
        try:
            while queue or running:
                while queue and len(running) < 2 * num_workers:
                    running[pool.submit(work, queue[0])] = queue[0]
                    queue.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result, False
        except BrokenProcessPool:
            if alone:
                yield next(iter(running.values())), None, True
            else:
                suspects += running.values()
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
    for name in ("layout", "clip_list", "workers"):
        del settings[name]
    before = entries[0]["settings"] if entries else settings
    differing = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
    if differing:
        words = ", ".join(f"{name} {before.get(name)} instead of {settings.get(name)}" for name in differing)
        raise ValueError(
            f"{destination} was filled with other settings ({words}). Give the same ones, or another folder."
        )
    if not entries:
        file.write(json.dumps({"settings": settings}) + "\n")
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
        else:
            reason = "several_videos" if paths else "no_video"
            words = (
                f"same name: {', '.join(map(str, paths))}" if paths else "listed, but no video of this name"
            )
            failures.append(Failure(clip_id, reason, words))
    if destination.exists() and not (destination / RECORD).exists() and any(destination.iterdir()):
        raise ValueError(
            f"{destination} is neither empty nor a folder of this program (it has no {RECORD}). "
            "Give another folder."
        )
    destination.mkdir(parents=True, exist_ok=True)
    with lock_folder(destination), (destination / RECORD).open("a+", encoding="utf-8") as record:
        finished = read_record(record, destination, options)
        places = [place for name in options.layouts for place in LAYOUTS[name][:2]]

        def is_finished(task: Task) -> bool:
            size = task.video.stat().st_size if task.video.exists() else None
            files = (destination / place.format(task.clip_id) for place in places)
            return size is not None and finished.get(task.clip_id) == size and all(map(Path.is_file, files))

        unfinished = [task for task in tasks if not is_finished(task)]
        num_before = num_prepared = len(tasks) - len(unfinished)
        shutil.rmtree(destination / STAGING, ignore_errors=True)
        work = run_in_processes(prepare_clip, unfinished, num_workers=options.workers)
        bar = tqdm(total=len(tasks), initial=num_before, unit="clip")
        try:
            with closing(work), bar:  # the processes end before the folder is left
                for task, result, has_crashed in work:
                    if has_crashed:
                        words = (
                            "the process that worked on it died: a fault in a decoder, or no memory was left"
                        )
                        failures.append(Failure(task.clip_id, "crashed", words, str(task.video)))
                    elif result is not None:
                        failures.append(result)
                    else:
                        size = task.video.stat().st_size
                        line = {"clip_id": task.clip_id, "video": str(task.video), "video_bytes": size}
                        record.write(json.dumps(line) + "\n")
                        record.flush()
                        num_prepared += 1
                    bar.set_postfix(failed=len(failures))
                    bar.update()
        finally:
            shutil.rmtree(destination / STAGING, ignore_errors=True)
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([Failure._fields, *sorted(failures)])
            # What a file name has in another encoding is escaped.
            write_atomically(destination / FAILURES, text.getvalue().encode("utf-8", "backslashreplace"))
    report(destination, options, failures, (num_prepared, num_before, len(clip_ids)))
    if num_prepared == 0:
        return 2
    return 1 if failures else 0


def report(
    destination: Path, options: PrepareOptions, failures: list[Failure], counts: tuple[int, int, int]
) -> None:
    """Print what became of the clips; `counts`: prepared, of these before this run, all."""
    say = sys.stdout.write
    num_prepared, num_before, num_clips = counts
    say(f"{destination}: {num_prepared} of {num_clips} clips are prepared ({num_before} were before)")
    say(f" for {', '.join(options.layouts)}\n")
    for reason, count in Counter(failure.reason for failure in failures).most_common():
        say(f"  failed, {reason}: {count}\n")
    for failure in failures[:10]:
        say(f"    {failure.clip_id}: {failure.reason}: {failure.detail}\n")
    if failures:
        say(f"  all {len(failures)} failures: {destination / FAILURES}\n")


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
    values = vars(parser.parse_args(arguments))
    configure_logging()
    for stream in (sys.stdout, sys.stderr):  # file names may be in another encoding than the screen
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # As Ctrl-C: the failures are written, the processes are ended.
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return run_command(
            lambda: prepare(values["videos"], values["destination"], build(PrepareOptions, values))
        )
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
