"""AVSBench's layout: short videos with one sound each, of which several frames have a mask.

The archive itself was not at hand: the folders are those that its authors' program reads, written
down from memory (docs/data.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.audio import AUDIO_SUFFIXES
from datasets.clip_files import ClipFiles, files_by_id
from datasets.frames import FRAME_SUFFIXES


@dataclass(frozen=True)
class VideoNames:
    """How the files of a video are called below the folders of frames, sounds and masks."""

    masks: str
    """folder of <video>/<video>_<k>.png, k = 1, 2 …"""
    by_category: bool
    """the videos lie in a folder for each category"""
    frame_infix: str = ""
    """what stands in a frame's name between the video's and _<k>"""


def list_video_frames(root: Path, frames: str, sounds: str, names: VideoNames) -> ClipFiles:
    """Lists the frames that have a mask, each with the sound of its whole video.

    Args:
        root: of the data set.
        frames: folder of the videos' frames.
        sounds: folder of the videos' sounds.
        names: of the rest.

    Returns:
        the files by clip id, which is <video>_<k>.

    Raises:
        FileNotFoundError: the folder of masks is not there.
        ValueError: a mask has a name of another form, or two videos have one name.
    """
    folder = root / names.masks
    if not folder.is_dir():
        raise FileNotFoundError(f"No masks: expected the folder {folder}. See docs/data.md.")
    masks: dict[str, Path] = {}
    frame_of: dict[str, Path] = {}
    sound_of: dict[str, Path] = {}
    for place in _video_folders(folder, by_category=names.by_category):
        pictures = root / frames / place.relative_to(folder)
        there = files_by_id([pictures], FRAME_SUFFIXES) if pictures.is_dir() else {}
        sound = _sound_of(root / sounds / place.relative_to(folder))
        for mask in _visible(place):
            clip_id = _checked_id(mask, place.name, masks)
            masks[clip_id] = mask
            number = clip_id.removeprefix(place.name)
            if (frame := there.get(f"{place.name}{names.frame_infix}{number}")) is not None:
                frame_of[clip_id] = frame
            if sound is not None:
                sound_of[clip_id] = sound
    middle = "<category>/<video>" if names.by_category else "<video>"
    expected = {
        "frame": f"{root / frames / middle}/<video>{names.frame_infix}_<k>.png for <id>",
        "audio": f"{root / sounds / middle}.wav for <id>",
        "annotation": f"{folder / middle}/<id>.png",
    }
    return ClipFiles(frame_of, sound_of, None, expected, masks=masks)


def _video_folders(folder: Path, *, by_category: bool) -> Iterator[Path]:
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _video_folders(entry, by_category=False) if by_category else (entry,)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _checked_id(mask: Path, video: str, known: dict[str, Path]) -> str:
    start, _, number = mask.stem.rpartition("_")
    if start != video or not number.isdecimal():
        raise ValueError(f"{mask}: expected a mask called {video}_<k>.png, k = 1, 2 …")
    if mask.stem in known:
        raise ValueError(f"{known[mask.stem]} and {mask} have the same name; expected each once.")
    return mask.stem


def _sound_of(place: Path) -> Path | None:
    """The sound called like the video; names may hold dots."""
    sounds = (place.with_name(place.name + suffix) for suffix in AUDIO_SUFFIXES)
    return next((sound for sound in sounds if sound.is_file()), None)
