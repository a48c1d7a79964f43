"""Turns videos, in folders or archives, into the folders that training and testing read.

    bash scripts/prepare_videos.sh videos data/prepared
    bash scripts/prepare_videos.sh vggsound_*.tar.gz data/prepared --layout vgg_ss --clip-list lvs_vgg_ss_5158

The clip id is the file's name without its extension; the first 10 s of a video are the clip. Archives are
not unpacked: a few of their videos at a time are in memory. OUT/prepared.jsonl records the settings and, line
by line, the finished clips and what is in whole archives: a later run leaves finished clips alone and tries
the others. OUT/failed.csv names every clip of the last run that failed, and what damaged archives have lost.
"""

import argparse
import csv
import gzip
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import IO, Any, Literal, NamedTuple, TextIO, cast

import numpy as np
import soundfile
from tqdm import tqdm

from datasets import SILENCE
from datasets.lists import clip_id_in, find_list
from datasets.video import (
    FRAME_RATE,
    VIDEO_SUFFIXES,
    UnusableVideoError,
    encode_squares,
    numbered_frames,
    open_video,
    read_sound,
)
from utils.files import SYSTEM_FOLDERS, decoding, lock_folder, moved_when_whole, write_atomically
from utils.options import (
    CRASHED,
    NUM_CORES,
    Options,
    Parser,
    add_group,
    build,
    option,
    run_command,
    run_in_processes,
)

MIDDLE = 125  # number of the frame at 5 s
CLIP_SECONDS = 10  # of VGGSound and Flickr-SoundNet; what lies behind that in a video is not used
SAMPLE_RATE = 16_000  # Hz
MIN_SOUND_SECONDS = 1.0  # a shorter sound would be repeated ten times and more
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
DAMAGED = "damaged_archive"
FORMAT_VERSION = 2  # goes up whenever the same settings give other files
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
    frame_number: int = MIDDLE

    def number(self, options: "PrepareOptions") -> int:
        """Return the number of the frame that is written: the one asked for, or else its own."""
        return options.frame_number or self.frame_number

    def places(self, destination: Path, clip_id: str) -> tuple[Path, Path]:
        """Return the files of a clip's frame and sound."""
        return destination / self.frame.format(clip_id), destination / self.sound.format(clip_id)


LAYOUTS = {
    "vggsound": Layout("VGGSound/total_video_frames/{}/125.jpg", "VGGSound/total_video_3s_audio/{}.wav", 3),
    "vgg_ss": Layout("VGGSound_test/frame/{}.jpg", "VGGSound_test/audio/{}.wav", 10),
    # SoundNet's frames are numbered 3, 8, 13 …: seconds, most likely, and the middle of each 5.
    "flickr": Layout("Flickr/frames/{}/00000003.jpg", "Flickr/wav/{}.wav", 10, frame_number=63),
    "flickr_soundnet": Layout("Flickr_test/frame/{}.jpg", "Flickr_test/audio/{}.wav", 10),
}


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Options):
    """What is made of each video."""

    layout: str = "vggsound,vgg_ss"
    """data sets whose folders are written, of vggsound, vgg_ss, flickr, flickr_soundnet; with commas"""
    clip_list: str | None = None  # only these clips: a file of ids or an official list
    frames: Literal["used", "all"] = "used"
    """only the frame that is read, or 001.jpg, 002.jpg … at 25 frames per second, which takes longer"""
    frame_number: int | None = option(None, at_least=1)
    """the frame that is read, counted from 1 at 25 frames per second, around which sounds are cut; none: 125,
    the middle of 10 s, but for flickr frame 63 (2.5 s)"""
    frame_size: int = option(299, at_least=1)  # side of the square, pixels
    keep_silent: bool = False  # silent clips are no failures
    workers: int = option(NUM_CORES, at_least=1)  # processes

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        super().__post_init__()
        if set(self.layouts) - LAYOUTS.keys() or len(set(self.layouts)) < len(self.layouts):
            names = ", ".join(LAYOUTS)
            raise ValueError(f"--layout must name some of {names}, each once, got {self.layout}")
        if self.frames == "all" and ("vggsound" not in self.layouts or self.frame_number is not None):
            raise ValueError("--frames all is of VGGSound: give --layout vggsound, and no --frame-number")

    @property
    def layouts(self) -> list[str]:
        """Names of LAYOUTS."""
        return self.layout.split(",")


class Task(NamedTuple):
    """One clip to make."""

    clip_id: str
    video: Path  # of a video in an archive: the archive's path and the one in it
    destination: Path
    options: PrepareOptions
    content: bytes | None = None  # of the video, where it comes from an archive


class Failure(NamedTuple):
    """A clip that cannot be made, or a damaged archive; the columns of failed.csv."""

    clip_id: str
    reason: str
    detail: str
    video: str = ""


def prepare_clip(task: Task) -> Failure | None:
    """Read a video and write the clip's files: all of them, or none. None: it is done."""
    clip_id, video, destination, options, _ = task
    try:
        pictures, sounds = _read_clip(task)
    except (UnusableVideoError, FileNotFoundError) as error:  # a link to nowhere
        reason, detail = getattr(error, "kind", "unreadable"), getattr(error, "reason", str(error))
        return Failure(clip_id, reason, detail, str(video))
    places = {name: LAYOUTS[name].places(destination, clip_id) for name in options.layouts}
    for _, sound_file in places.values():
        sound_file.unlink(missing_ok=True)  # of an earlier video
    # Sounds last, as a clip counts only with its sound: a run that is killed leaves no half of a clip.
    for name, (frame, _) in places.items():
        names = {frame.name: LAYOUTS[name].number(options)}
        if options.frames == "all" and name == "vggsound":
            shutil.rmtree(frame.parent, ignore_errors=True)
            names |= {f"{number:03d}.jpg": number for number in pictures}
        frame.parent.mkdir(parents=True, exist_ok=True)
        for file_name, number in names.items():
            frame.with_name(file_name).write_bytes(pictures[number])
    for name, (_, sound_file) in places.items():
        samples = sounds[LAYOUTS[name].sound_seconds]
        # libsndfile takes no names in another encoding.
        with moved_when_whole(sound_file) as path, path.open("wb") as file:
            soundfile.write(file, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    return None


def _read_clip(task: Task) -> tuple[dict[int, bytes], dict[int, np.ndarray]]:
    """Return JPEG pictures by frame number, and sounds (L,) by the seconds they are meant to last."""
    options = task.options
    centre = (options.frame_number or MIDDLE) / FRAME_RATE  # seconds
    used = {LAYOUTS[name].number(options) for name in options.layouts}
    numbers = range(1, CLIP_SECONDS * FRAME_RATE + 1) if options.frames == "all" else sorted(used)
    lengths = {LAYOUTS[name].sound_seconds for name in options.layouts}
    until = max(max(centre + length / 2, length) for length in lengths)
    with open_video(task.video, task.content) as video:
        sound = read_sound(video, SAMPLE_RATE, until, refuse_cut_off=True)
        frames = numbered_frames(video, numbers, needed=max(used))
        pictures = dict(encode_squares(frames, options.frame_size))
    seconds = len(sound) / SAMPLE_RATE
    if seconds < MIN_SOUND_SECONDS:
        words = f"it has {seconds:.2f} s of sound, at least {MIN_SOUND_SECONDS} s are used"
        raise UnusableVideoError(task.video, words, "too_short")
    sounds = {}
    for length in lengths:
        # Around the frame, moved as little as needed to lie inside the sound.
        begin = max(0, round(min(centre - length / 2, seconds - length) * SAMPLE_RATE))
        # Decoders overshoot full scale a little, and 16 bits would wrap around.
        sounds[length] = sound[begin : begin + length * SAMPLE_RATE].clip(-1, 1)
        loudest = float(np.abs(sounds[length]).max())
        if loudest < SILENCE and not options.keep_silent:
            words = f"no sample of its {length} s reaches {SILENCE:g}, the loudest is {loudest:g}"
            raise UnusableVideoError(task.video, words, "silent")
    return pictures, sounds


def find_videos(sources: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Find videos and archives, those in sub-folders and behind links too, hidden ones not.

    Raises:
        FileNotFoundError: a source is not there, or there is nothing in them.
    """
    videos: list[Path] = []
    archives: list[Path] = []
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"No folder of videos and no archive at {source}.")
        inside, seen = [], set()
        for folder, below, names in os.walk(source, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # a link leads back to where it lies
                below[:], names[:] = [], []
            seen.add(real)
            inside += [Path(folder, name) for name in names]
        for path in sorted(inside) or [source]:
            if _is_hidden(path.relative_to(source)):
                continue
            if path.name.lower().endswith(ARCHIVE_SUFFIXES):
                archives.append(path)
            elif path.suffix.lower() in VIDEO_SUFFIXES:
                videos.append(path)
    if not videos and not archives:
        expected = " ".join([*ARCHIVE_SUFFIXES, *sorted(VIDEO_SUFFIXES)])
        raise FileNotFoundError(f"No video in {', '.join(map(str, sources))}. Expected {expected}.")
    return videos, archives


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") or part in SYSTEM_FOLDERS for part in path.parts)


def videos_in(file: io.BufferedReader) -> Iterator[tuple[PurePath, int, IO[bytes] | None]]:
    """Yield path, bytes and content, None of links, of the videos in a .tar or .tar.gz file, read on the way.

    Where it is damaged or cut off, whatever tarfile, gzip and zlib raise.
    """
    is_gzip = file.peek(2)[:2] == b"\x1f\x8b"  # whatever its name says
    stream: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = PurePath(member.name)
            if path.suffix.lower() in VIDEO_SUFFIXES and not _is_hidden(path) and not member.isdir():
                yield path, member.size, archive.extractfile(member) if member.isreg() else None
        end = cast(Any, archive).fileobj.read(2**20)  # zeros, and behind them the check sum of gzip
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError("what follows is neither a file nor its end")


@dataclass
class Run:
    """What is known of the clips."""

    destination: Path
    record: TextIO
    options: PrepareOptions
    wanted: dict[str, None] | None  # ids of --clip-list; None: every video is wanted
    # Bytes of the videos of which clips were made, and of those that were met now, by clip id.
    finished: dict[str, int] = field(default_factory=dict)
    met: dict[str, int] = field(default_factory=dict)
    # By name: the bytes of an archive that was read to its end, and of each video in it.
    archives: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    num_before: int = 0

    def is_finished(self, clip_id: str, size: int) -> bool:
        """Tell whether a clip was made of a video of this many bytes, and is still there."""
        places = [LAYOUTS[name].places(self.destination, clip_id) for name in self.options.layouts]
        return self.finished.get(clip_id) == size and all(path.is_file() for pair in places for path in pair)

    def is_wanted(self, clip_id: str) -> bool:
        """Tell whether a clip is listed."""
        return self.wanted is None or clip_id in self.wanted

    def meet(self, clip_id: str, size: int, video: Path) -> bool:
        """Count a video; tell whether its clip has to be made."""
        if not self.is_wanted(clip_id):
            return False
        if clip_id in self.met:
            if self.met[clip_id] != size:
                self.fail(clip_id, "several_videos", "one of another size was met before, and used", video)
            return False
        self.met[clip_id] = size
        is_finished = self.is_finished(clip_id, size)
        self.num_before += is_finished
        return not is_finished

    def fail(self, clip_id: str, reason: str, detail: str, video: Path | str = "") -> None:
        """Add a line to the failures."""
        self.failures.append(Failure(clip_id, reason, detail, str(video)))

    def note(self, entry: dict[str, Any]) -> None:
        """Add a line to the record."""
        self.record.write(json.dumps(entry) + "\n")
        self.record.flush()

    def tasks(self, videos: Sequence[Path], archives: Sequence[Path]) -> Iterator[Task]:
        """Yield the clips to make; archives are read on the way, and those without damage noted."""
        for video in videos:
            size = video.stat().st_size if video.exists() else -1  # a link to nowhere
            clip_id = clip_id_in(video.name)
            if self.meet(clip_id, size, video):
                yield Task(clip_id, video, self.destination, self.options)
        for archive in archives:
            known = self.archives.get(archive.name, {"archive_bytes": -1, "videos": {}})
            is_done = all(self.is_finished(*v) for v in known["videos"].items() if self.is_wanted(v[0]))
            if known["archive_bytes"] == archive.stat().st_size and is_done:
                for clip_id, size in known["videos"].items():
                    self.meet(clip_id, size, archive)
            else:
                yield from self.read_archive(archive)

    def read_archive(self, path: Path) -> Iterator[Task]:
        """Yield the clips to make of an archive, up to its end or to where it is damaged."""
        sizes: dict[str, int] = {}
        last, unread, damage = "none", "", ""
        with path.open("rb") as file:
            try:
                for name, size, content in videos_in(file):
                    last = clip_id = clip_id_in(name.name)
                    sizes[clip_id] = size
                    if not self.meet(clip_id, size, path / name):
                        continue
                    if content is None:
                        words = "it is a link in an archive: unpack that, and give the folder"
                        self.fail(clip_id, "unreadable", words, path / name)
                        continue
                    unread = clip_id
                    video = content.read()
                    if len(video) < size:
                        raise EOFError("it ends too early")
                    unread = ""
                    yield Task(clip_id, path / name, self.destination, self.options, video)
            except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
                damage = str(error)
            num_lost = path.stat().st_size - file.tell()
        if unread:
            del self.met[unread]
            self.fail(unread, DAMAGED, f"{path.name} is damaged or cut off within it", path)
        if damage:
            words = f"it is damaged or cut off ({damage}): {len(sizes)} videos were met, the last is {last}, "
            words += f"and {num_lost / 1e6:.1f} MB are lost. Fetch it again, or a repaired copy"
            self.fail(path.name, DAMAGED, words, path)
        else:
            self.note({"archive": path.name, "archive_bytes": path.stat().st_size, "videos": sizes})

    def read_record(self) -> None:
        """Read what earlier runs noted; begin the record of a new folder.

        Raises:
            ValueError: the folder was filled with other settings.
        """
        self.record.seek(0)
        lines = self.record.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # as a power cut leaves it
            self.record.truncate(sum(len(line.encode()) for line in lines[:-1]))
            lines.pop()
        names = ("layouts", "frames", "frame_number", "frame_size", "keep_silent")
        settings = {name: getattr(self.options, name) for name in names} | {"format": FORMAT_VERSION}
        if not lines:
            self.note({"settings": settings})
            return
        with decoding(self.destination / RECORD, "it is no record of this program; name another folder"):
            before, *entries = map(json.loads, lines)
            old = before["settings"]
        changed = (name for name in settings if old.get(name) != settings[name])
        if differing := [f"{name} {old.get(name)} instead of {settings[name]}" for name in changed]:
            words = f"{self.destination} was filled with other settings ({', '.join(differing)})."
            raise ValueError(f"{words} Give the same ones, or another folder.")
        self.finished = {entry["clip_id"]: entry["video_bytes"] for entry in entries if "clip_id" in entry}
        self.archives = {  # earlier versions noted file names without their last ending
            entry["archive"]: entry | {"videos": {clip_id_in(n): size for n, size in entry["videos"].items()}}
            for entry in entries
            if "archive" in entry
        }

    def make(self, tasks: Iterator[Task], bar: "tqdm[Any]") -> int:
        """Make the clips, and return of how many it succeeded; name what is listed and was not met."""
        num_made = 0
        work = run_in_processes(prepare_clip, tasks, num_workers=self.options.workers)
        with closing(work), bar:  # the processes end before the folder is left
            for task, failure, has_crashed in work:
                if has_crashed:
                    self.fail(task.clip_id, "crashed", CRASHED, task.video)
                elif failure is not None:
                    self.failures.append(failure)
                else:
                    entry = {"clip_id": task.clip_id, "video": str(task.video)}
                    self.note({**entry, "video_bytes": self.met[task.clip_id]})
                    num_made += 1
                bar.set_postfix(failed=len(self.failures))
                bar.update(self.num_before + num_made - bar.n)
        # A video that one archive has lost may have been in another one.
        self.failures = [f for f in self.failures if f.reason != DAMAGED or f.clip_id not in self.met]
        named = {failure.clip_id for failure in self.failures} | self.met.keys()
        for clip_id in self.wanted or ():
            if clip_id not in named:
                self.fail(clip_id, "no_video", "listed, but no video of this name")
        return num_made

    def write_failures(self) -> None:
        """Write failed.csv."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Failure._fields, *sorted(self.failures)])
        # What a file name has in another encoding is escaped.
        write_atomically(self.destination / FAILURES, text.getvalue().encode("utf-8", "backslashreplace"))


def prepare(sources: Sequence[Path], destination: Path, options: PrepareOptions) -> int:
    """Prepare the clips that are not finished yet, and report; returns the exit status."""
    videos, archives = find_videos(sources)
    wanted = dict.fromkeys(find_list(options.clip_list).clip_ids) if options.clip_list else None
    if destination.exists() and not (destination / RECORD).exists() and any(destination.iterdir()):
        raise ValueError(
            f"{destination} is neither empty nor a folder of this program (it has no {RECORD}). "
            "Give another folder."
        )
    destination.mkdir(parents=True, exist_ok=True)
    with lock_folder(destination), (destination / RECORD).open("a+", encoding="utf-8") as record:
        run = Run(destination, record, options, wanted)
        run.read_record()
        total = None if archives and wanted is None else len(videos if wanted is None else wanted)
        try:
            num_made = run.make(run.tasks(videos, archives), tqdm(total=total, unit="clip"))
        finally:
            run.write_failures()
    num_prepared, num_clips = run.num_before + num_made, len(run.met if wanted is None else wanted)
    done = f"{num_prepared} of {num_clips} clips are prepared ({run.num_before} were before)"
    lines = [f"{destination}: {done} for {', '.join(options.layouts)}"]
    counts = Counter(failure.reason for failure in run.failures).most_common()
    lines += [f"  failed, {reason}: {count}" for reason, count in counts]
    shown = sorted(run.failures, key=lambda failure: failure.reason != DAMAGED)[:10]
    lines += [f"    {failure.clip_id}: {failure.reason}: {failure.detail}" for failure in shown]
    if run.failures:
        lines.append(f"  all {len(run.failures)} failures: {destination / FAILURES}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 2 if num_prepared == 0 else 1 if run.failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, see --help."""
    parser = Parser(
        "prepare_videos",
        dropped=DROPPED,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=(__doc__ or "").splitlines()[0],
        epilog="Call it again to go on after a stop or to try failed clips again. Exit status: 0, every clip "
        "is prepared; 1, some failed, see OUT/failed.csv; 2, none could be prepared, or bad input; 130 and "
        "143, stopped.",
    )
    words = "folders of videos and archives, sub-folders included, or single ones (.tar, .tar.gz, .tgz)"
    parser.add_argument("sources", type=Path, metavar="IN", nargs="+", help=words)
    parser.add_argument("destination", type=Path, metavar="OUT", help="folder to fill, later the --data-root")
    add_group(parser, PrepareOptions)

    def command() -> int:
        values = vars(parser.parse_args(arguments))
        return prepare(values["sources"], values["destination"], build(PrepareOptions, values))

    return run_command(command)


if __name__ == "__main__":
    # As Ctrl-C: the failures are written, the processes are ended.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
