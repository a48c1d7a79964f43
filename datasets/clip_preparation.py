"""From one video to the files of one clip, in the folders that training and testing read.

What is written follows from a PreparationConfig alone; a clip is moved into place when all its
files are finished.
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from datasets.audio import SILENCE
from datasets.benchmarks import DATA_SETS
from datasets.video import FRAME_RATE, UnusableVideoError, read_numbered_frames, read_sound

CLIP_SECONDS = 10
"""Length of a clip of VGGSound and Flickr-SoundNet; what lies behind it in a video is not used."""

SOUND_SECONDS = {"centre_3s": 3, "full_10s": CLIP_SECONDS}

AUTHORS_SOUNDS = {
    "vggsound": "centre_3s",
    "vgg_ss": "full_10s",
    "flickr": "full_10s",
    "flickr_soundnet": "full_10s",
}
"""Which sound the authors keep in each layout. Layouts that are not here are not made of videos."""

NUMBERED_LAYOUT, NUMBERED_FRAME = "vggsound", 125
"""The layout whose frame's name is its number at 25 frames per second. What Flickr-SoundNet's
00000003 counts was not published: there, the frame that is used gets this name alone."""

SAMPLE_RATE = 16_000
"""Hz of the sounds that are written."""

MIN_SOUND_SECONDS = 1.0
"""A shorter sound is refused; training would have to repeat it ten times and more."""

JPEG_QUALITY = 95

STAGING = ".partial"
"""Folder inside OUT in which clips are put together."""


@dataclass(frozen=True, kw_only=True)
class PreparationConfig:
    """What is made of each video."""

    layouts: tuple[str, ...] = ("vggsound", "vgg_ss")
    """data sets whose folders are written"""
    frames: Literal["used", "all"] = "used"
    """only the frame that is read, or all of the first 10 s at 25 frames per second"""
    frame_number: int = NUMBERED_FRAME
    """the frame that is read, counted from 1 at 25 frames per second"""
    frame_geometry: Literal["squash", "short_side"] = "squash"
    """to a square, or in its own shape"""
    frame_size: int = 299
    """side of the square, or the shorter side; pixels"""
    audio: Literal["authors", "centre_3s", "full_10s"] = "authors"
    """3 s or 10 s around the frame; authors: as they keep it in each layout"""
    keep_silent: bool = False
    """write clips without an audible sample too"""

    def __post_init__(self) -> None:
        """Refuses what cannot be written."""
        unknown = [name for name in self.layouts if name not in AUTHORS_SOUNDS]
        if unknown or not self.layouts or len(set(self.layouts)) < len(self.layouts):
            raise ValueError(
                f"--layout must name some of {', '.join(AUTHORS_SOUNDS)}, each once, got "
                f"{', '.join(self.layouts) or 'none'}"
            )
        if min(self.frame_number, self.frame_size) < 1:
            raise ValueError(
                "--frame-number and --frame-size must be at least 1, got "
                f"{self.frame_number}, {self.frame_size}"
            )
        if self.frames == "all" and (
            NUMBERED_LAYOUT not in self.layouts or self.frame_number != NUMBERED_FRAME
        ):
            raise ValueError(
                f"--frames all numbers the frames as {NUMBERED_LAYOUT} does, where frame "
                f"{NUMBERED_FRAME} is read: it needs --layout {NUMBERED_LAYOUT} and --frame-number "
                f"{NUMBERED_FRAME}"
            )

    def sound_of(self, layout: str) -> str:
        """Key of SOUND_SECONDS for a layout."""
        return AUTHORS_SOUNDS[layout] if self.audio == "authors" else self.audio


@dataclass(frozen=True)
class ClipPlaces:
    """Where one layout has a clip."""

    frame: Path
    """the picture that is read"""
    folder: Path | None
    """the clip's folder of pictures, in layouts that have one"""
    sound: Path


def clip_places(layout: str, destination: Path, clip_id: str) -> ClipPlaces:
    """Paths of a clip's files below a destination folder.

    Args:
        layout: a key of AUTHORS_SOUNDS.
        destination: the folder that --data-root is to name later.
        clip_id: of the clip.
    """
    folders = DATA_SETS[layout].folders[0]
    root = destination / DATA_SETS[layout].roots[-1]
    # Flickr-SoundNet's first folder is named after another format than the one we write.
    sounds = next(name for name in folders.sounds if name != "mp3")
    sound = root / sounds / f"{clip_id}.wav"
    if folders.frame_name is None:
        return ClipPlaces(root / folders.frames / f"{clip_id}.jpg", None, sound)
    folder = root / folders.frames / clip_id
    return ClipPlaces(folder / folders.frame_name, folder, sound)


@dataclass(frozen=True)
class ClipTask:
    """One clip to make."""

    clip_id: str
    video: Path
    destination: Path
    config: PreparationConfig


@dataclass(frozen=True)
class Outcome:
    """What became of a clip: prepared, or refused for a reason."""

    clip_id: str
    video: Path | None
    reason: str | None = None
    """of UnusableVideoError, or one of those of the whole run; None: prepared"""
    detail: str = ""


def prepare_clip(task: ClipTask) -> Outcome:
    """Reads a video and writes the clip's files; all of them, or none."""
    config = task.config
    seconds = {name: SOUND_SECONDS[name] for name in map(config.sound_of, config.layouts)}
    number, centre = config.frame_number, config.frame_number / FRAME_RATE
    until = max(max(centre + length / 2, length) for length in seconds.values())
    try:
        pictures = read_numbered_frames(
            task.video,
            range(1, CLIP_SECONDS * FRAME_RATE + 1) if config.frames == "all" else [number],
            needed=number,
            frame_size=config.frame_size,
            squash=config.frame_geometry == "squash",
        )
        sound = read_sound(task.video, SAMPLE_RATE, until).numpy()
        windows = {}
        for name, length in seconds.items():
            # Around the frame, moved as little as needed to lie inside the sound.
            begin = round((centre - length / 2) * SAMPLE_RATE)
            begin = max(0, min(begin, len(sound) - length * SAMPLE_RATE))
            windows[name] = sound[begin : begin + length * SAMPLE_RATE]
            _check_sound(task.video, name, windows[name], keep_silent=config.keep_silent)
    except UnusableVideoError as error:
        return Outcome(task.clip_id, task.video, error.kind, error.reason)
    except FileNotFoundError as error:
        return Outcome(task.clip_id, task.video, "unreadable", str(error))
    jpegs = {number: _jpeg(Image.fromarray(picture)) for number, picture in pictures.items()}
    _write(task, jpegs, {name: _wav(window) for name, window in windows.items()})
    return Outcome(task.clip_id, task.video)


def _check_sound(video: Path, name: str, samples: NDArray[np.float32], *, keep_silent: bool) -> None:
    seconds = len(samples) / SAMPLE_RATE
    if seconds < MIN_SOUND_SECONDS:
        words = f"it has {seconds:.2f} s of sound, at least {MIN_SOUND_SECONDS} s are used"
        raise UnusableVideoError(video, words, "too_short")
    loudest = float(np.abs(samples).max())
    if loudest < SILENCE and not keep_silent:
        words = f"no sample of {name} reaches {SILENCE:g}, the loudest is {loudest:g}"
        raise UnusableVideoError(video, words, "silent")


def _jpeg(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=JPEG_QUALITY)
    return content.getvalue()


def _wav(samples: NDArray[np.float32]) -> bytes:
    content = io.BytesIO()
    # Decoders overshoot full scale a little, and 16 bits would wrap around.
    soundfile.write(content, samples.clip(-1, 1), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    return content.getvalue()


def _write(task: ClipTask, pictures: dict[int, bytes], sounds: dict[str, bytes]) -> None:
    """Writes everything beside its place, then moves it: pictures first, sounds last.

    A clip counts only with its sound, so a run that is killed between two moves leaves no half of
    one. The record of the run names it only after the last move.
    """
    config = task.config
    staging = task.destination / STAGING / task.clip_id
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    moves: list[tuple[Path, Path]] = []
    for layout in config.layouts:
        places = clip_places(layout, task.destination, task.clip_id)
        sound = staging / f"{layout}.wav"
        sound.write_bytes(sounds[config.sound_of(layout)])
        moves.append((sound, places.sound))
        picture = staging / layout
        if places.folder is None:
            picture.write_bytes(pictures[config.frame_number])
            moves.insert(0, (picture, places.frame))
        else:
            picture.mkdir()
            numbered = pictures if config.frames == "all" and layout == NUMBERED_LAYOUT else {}
            for number, content in numbered.items():
                (picture / f"{number:03d}.jpg").write_bytes(content)
            (picture / places.frame.name).write_bytes(pictures[config.frame_number])
            moves.insert(0, (picture, places.folder))
    for source, target in moves:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)  # of an earlier run; a folder cannot be moved onto another one
        source.replace(target)
    staging.rmdir()
