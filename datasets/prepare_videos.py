"""Command line: turns a folder of videos into the folders that training and testing read.

    bash scripts/prepare_videos.sh videos data/prepared
    bash scripts/prepare_videos.sh videos data/prepared --layout vgg_ss --clip-list lvs_vgg_ss_5158

OUT/prepared.jsonl records the settings and, line by line, the finished clips: a later run leaves
these alone and tries the others. OUT/failed.csv names every clip of the last run that failed.
"""

import argparse
import csv
import fcntl
import io
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from datasets.clip_preparation import (
    AUTHORS_SOUNDS,
    CLIP_SECONDS,
    STAGING,
    ClipTask,
    Outcome,
    PreparationConfig,
    clip_places,
    prepare_clip,
)
from datasets.lists import find_list
from datasets.processes import Crash, num_cores, run_in_processes
from datasets.video import VIDEO_SUFFIXES

RECORD = "prepared.jsonl"
FAILURES = "failed.csv"
FORMAT_VERSION = 1  # goes up whenever the same settings give other files
FIRST_FAILURES = 10
"""Failures that are named on the screen."""


class Record:
    """What is finished in a destination folder; held open and locked during a run."""

    def __init__(self, file: TextIO, destination: Path, config: PreparationConfig) -> None:
        """Reads the record, and begins it in a new folder.

        Args:
            file: the record, open for reading and appending.
            destination: the folder it stands in.
            config: of this run.

        Raises:
            ValueError: the folder was filled with other settings.
        """
        self._file = file
        self._destination = destination
        self._config = config
        self._finished: dict[str, int] = {}
        wanted = {**asdict(config), "layouts": list(config.layouts), "format": FORMAT_VERSION}
        lines = list(_json_lines(file))
        if not lines:
            file.seek(0)
            file.truncate()
            self._append({"settings": wanted})
            return
        found = lines[0].get("settings", {})
        if found != wanted:
            differences = ", ".join(
                f"{name} {found.get(name)} instead of {wanted.get(name)}"
                for name in sorted(found.keys() | wanted.keys())
                if found.get(name) != wanted.get(name)
            )
            raise ValueError(
                f"{destination} was filled with other settings ({differences}). Give the same "
                "ones, or another folder."
            )
        self._finished = {line["clip_id"]: line["video_bytes"] for line in lines[1:]}

    def has(self, clip_id: str, video: Path) -> bool:
        """Whether a clip is there and was made of a video of this size."""
        try:
            size = video.stat().st_size
        except OSError:  # a link to nowhere, say: reading it says so, and fails this clip alone
            return False
        if self._finished.get(clip_id) != size:
            return False
        places = (clip_places(name, self._destination, clip_id) for name in self._config.layouts)
        return all(place.frame.is_file() and place.sound.is_file() for place in places)

    def add(self, outcome: Outcome) -> None:
        """Notes a clip that is in its place."""
        assert outcome.video is not None
        size = outcome.video.stat().st_size
        line = {"clip_id": outcome.clip_id, "video": str(outcome.video), "video_bytes": size}
        self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _json_lines(file: TextIO) -> Iterator[dict[str, Any]]:
    """The whole lines; what a power cut left of the last one is removed."""
    file.seek(0)
    kept = 0
    for line in file.read().splitlines(keepends=True):
        if not line.endswith("\n"):
            file.truncate(kept)
            break
        kept += len(line.encode())
        yield json.loads(line)
    file.seek(0, os.SEEK_END)


@contextmanager
def open_record(destination: Path, config: PreparationConfig) -> Iterator[Record]:
    """Opens the record of a destination folder, which is made if need be.

    Args:
        destination: where clips are written to.
        config: of this run.

    Raises:
        ValueError: the folder is not one of this program's, was filled with other settings, or
            another run is writing to it.
    """
    path = destination / RECORD
    if destination.exists() and not path.exists() and any(destination.iterdir()):
        raise ValueError(
            f"{destination} is neither empty nor a folder of this program (it has no {RECORD}). "
            "Give another folder."
        )
    destination.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"Another run is writing to {destination}. Wait for it, or give another folder."
            ) from error
        shutil.rmtree(destination / STAGING, ignore_errors=True)
        try:
            yield Record(file, destination, config)
        finally:
            shutil.rmtree(destination / STAGING, ignore_errors=True)


def find_videos(folder: Path) -> dict[str, list[Path]]:
    """Clip id (file name without extension) -> videos of that name, sub-folders included.

    Args:
        folder: of videos; hidden files are left out.

    Raises:
        FileNotFoundError: there is no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder of videos at {folder}.")
    found: dict[str, list[Path]] = {}
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in VIDEO_SUFFIXES:
                found.setdefault(path.stem, []).append(path)
    if not found:
        raise FileNotFoundError(
            f"No video in {folder}. Expected files with one of the extensions "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}."
        )
    return found


def plan(videos: dict[str, list[Path]], clip_ids: Sequence[str]) -> tuple[dict[str, Path], list[Outcome]]:
    """Finds the one video of each clip.

    Args:
        videos: all that there are, by clip id.
        clip_ids: which clips are wanted.

    Returns:
        clip id -> video, and the failures of clips without a video or with several.
    """
    chosen, failures = {}, []
    for clip_id in clip_ids:
        paths = videos.get(clip_id, [])
        if len(paths) == 1:
            chosen[clip_id] = paths[0]
        elif paths:
            names = ", ".join(map(str, paths))
            failures.append(Outcome(clip_id, None, "several_videos", f"same name: {names}"))
        else:
            failures.append(Outcome(clip_id, None, "no_video", "listed, but no video of this name"))
    return chosen, failures


def prepare(
    videos: dict[str, Path], destination: Path, config: PreparationConfig, record: Record, *, num_workers: int
) -> Generator[Outcome, None, None]:
    """Prepares the clips that are not finished yet, and records them one by one.

    Args:
        videos: clip id -> video.
        destination: where clips are written to.
        config: what is made of each video.
        record: of the destination.
        num_workers: processes.

    Yields:
        what became of each clip, in the order in which they are ready.
    """
    unfinished = [
        ClipTask(clip_id, video, destination, config)
        for clip_id, video in videos.items()
        if not record.has(clip_id, video)
    ]
    with tqdm(total=len(videos), initial=len(videos) - len(unfinished), unit="clip") as bar:
        num_failed = 0
        for task, result in run_in_processes(prepare_clip, unfinished, num_workers=num_workers):
            if isinstance(result, Crash):
                outcome = Outcome(task.clip_id, task.video, "crashed", result.detail)
            else:
                outcome = result
            if outcome.reason is None:
                record.add(outcome)
            else:
                num_failed += 1
                bar.set_postfix(failed=num_failed)
            bar.update()
            yield outcome


def write_failures(path: Path, failures: Sequence[Outcome]) -> None:
    """Writes the report of failed clips, at once.

    Args:
        path: of the CSV, in UTF-8; what a file name has in another encoding is escaped.
        failures: in any order; without any, only the header is written.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip_id", "reason", "detail", "video"])
    for failure in sorted(failures, key=lambda outcome: outcome.clip_id):
        writer.writerow([failure.clip_id, failure.reason, failure.detail, failure.video or ""])
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        unfinished.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _run(options: argparse.Namespace) -> int:
    config = PreparationConfig(
        **{field.name: getattr(options, field.name) for field in fields(PreparationConfig)}
    )
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    videos = find_videos(options.videos)
    clip_ids = find_list(options.clip_list).clip_ids if options.clip_list else list(videos)
    chosen, failures = plan(videos, clip_ids)
    num_prepared = 0
    with open_record(options.destination, config) as record:
        work = prepare(chosen, options.destination, config, record, num_workers=options.workers)
        try:
            with closing(work):  # the processes end before the folder is left
                for outcome in work:
                    if outcome.reason is None:
                        num_prepared += 1
                    else:
                        failures.append(outcome)
        finally:
            write_failures(options.destination / FAILURES, failures)
    num_before = len(clip_ids) - num_prepared - len(failures)
    _report(options.destination, config, failures, (num_prepared, num_before, len(clip_ids)))
    if num_prepared + num_before == 0:
        return 2
    return 1 if failures else 0


def _write_on(stream: TextIO, text: str) -> None:
    """Writes what the stream's encoding lacks, such as file names in another one, as escapes."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))


def _report(
    destination: Path, config: PreparationConfig, failures: Sequence[Outcome], counts: tuple[int, int, int]
) -> None:
    num_prepared, num_before, num_clips = counts
    write = partial(_write_on, sys.stdout)
    write(f"{destination}: {num_prepared + num_before} of {num_clips} clips are prepared")
    write(f" ({num_before} were before) for {', '.join(config.layouts)}\n")
    if not failures:
        return
    for reason, count in Counter(failure.reason for failure in failures).most_common():
        write(f"  failed, {reason}: {count}\n")
    for failure in failures[:FIRST_FAILURES]:
        write(f"    {failure.clip_id}: {failure.reason}: {failure.detail}\n")
    write(f"  all {len(failures)} failures: {destination / FAILURES}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = PreparationConfig()
    parser = argparse.ArgumentParser(
        prog="prepare_videos",
        description=(
            "Turns a folder of videos into the folders that training and testing read. The clip id "
            f"is the file's name without its extension; the first {CLIP_SECONDS} s of a video are "
            "the clip. Call it again to go on after a stop, or to try failed clips again."
        ),
        epilog=(
            "Exit status: 0, every clip is prepared; 1, some failed, see OUT/failed.csv; 2, none "
            "could be prepared, or bad input; 130 and 143, stopped."
        ),
    )
    add = parser.add_argument
    add("videos", type=Path, metavar="IN", help="folder of videos, sub-folders included")
    add("destination", type=Path, metavar="OUT", help="folder to fill, later the --data-root")
    add(
        "--layout",
        dest="layouts",
        type=lambda text: tuple(text.split(",")),
        default=defaults.layouts,
        metavar="NAME[,NAME]",
        help=f"of {', '.join(AUTHORS_SOUNDS)} (default: {','.join(defaults.layouts)})",
    )
    add("--clip-list", metavar="LIST", help="only these clips: a file of ids or an official list")
    add(
        "--frames",
        choices=("used", "all"),
        default=defaults.frames,
        help="only the frame that is read, or 001.jpg, 002.jpg … at 25 frames per second, which "
        "takes longer (default: %(default)s)",
    )
    add(
        "--frame-number",
        type=int,
        default=defaults.frame_number,
        metavar="N",
        help="the frame that is read, counted from 1 at 25 frames per second; sounds are cut "
        "around it (default: %(default)s, in the middle of 10 s)",
    )
    add(
        "--frame-geometry",
        choices=("squash", "short_side"),
        default=defaults.frame_geometry,
        help="resize to a square, or keep the shape (default: %(default)s)",
    )
    add(
        "--frame-size",
        type=int,
        default=defaults.frame_size,
        metavar="PIXELS",
        help="side of the square, or the shorter side (default: %(default)s)",
    )
    add(
        "--audio",
        choices=("authors", "centre_3s", "full_10s"),
        default=defaults.audio,
        help="sound of every layout; authors: 3 s for vggsound, 10 s for the others (default: %(default)s)",
    )
    add("--keep-silent", action="store_true", help="silent clips are no failures")
    add(
        "--workers", type=int, default=num_cores(), metavar="W", help="processes (default: one for each core)"
    )
    return parser.parse_args(arguments)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """SIGTERM ends the run as Ctrl-C does: the failures are written, the processes are ended."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, see --help."""
    options = _parse(arguments)
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        return _run(options)
    except (ValueError, OSError) as error:
        _write_on(sys.stderr, f"prepare_videos: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("prepare_videos: stopped; the same command goes on from here\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
