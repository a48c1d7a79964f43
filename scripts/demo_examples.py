"""Examples for the demo: the user's own files, clips of a stamps set, or drawn ones."""

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from datasets.audio import AUDIO_SUFFIXES
from datasets.frames import FRAME_SUFFIXES
from scripts.stamps.compose import compose_clip
from scripts.stamps.material import SAMPLE_RATE, make_procedural_material

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
NUM_PAIRS = 4
CLIPS_PER_VIDEO = 2
DRAWN_CLASSES = 6
DRAWN_SIDE = 256
"""Pixels."""
FRAME_RATE = 10
SEED = 1

Examples = dict[str, list[list[str]]]


def make_examples(folder: Path, source: Path | None) -> Examples:
    """Puts examples into a folder.

    Args:
        folder: that is there, and empty.
        source: a stamps set, or a folder with videos and with pictures and sounds of the same name;
            None: clips are drawn and synthesised.

    Returns:
        videos: [path] each; pairs: [picture, sound] each; those of a stamps set and drawn ones as
            both.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds nothing to show.
    """
    if source is None:
        pairs = _draw(folder)
    elif (source / "stamps.json").is_file():
        pairs = _of_stamps(source)
    else:
        return _copy(folder, source)
    videos = []
    for first in range(0, len(pairs), CLIPS_PER_VIDEO):
        video = folder / f"video_{first // CLIPS_PER_VIDEO + 1}.mp4"
        write_slides(video, pairs[first : first + CLIPS_PER_VIDEO])
        videos.append([str(video)])
    kept = [[_copied(file, folder) for file in pair] for pair in pairs]
    return {"videos": videos, "pairs": kept}


def _draw(folder: Path) -> list[tuple[Path, Path]]:
    material = make_procedural_material(DRAWN_CLASSES, DRAWN_SIDE)
    pairs = []
    for index in range(NUM_PAIRS):
        frame, waveform, _ = compose_clip(material, "test", index, seed=SEED, frame_size=DRAWN_SIDE)
        picture, sound = folder / f"drawn_{index + 1}.png", folder / f"drawn_{index + 1}.wav"
        frame.save(picture)
        soundfile.write(sound, waveform, SAMPLE_RATE)
        pairs.append((picture, sound))
    return pairs


def _of_stamps(source: Path) -> list[tuple[Path, Path]]:
    """The first test clips with two objects, of which one sounds."""
    listed = source / "test_two_objects.txt"
    ids = (listed if listed.is_file() else source / "test.txt").read_text().split()[:NUM_PAIRS]
    test = source / "VGGSound_test"
    return [(test / "frame" / f"{name}.jpg", test / "audio" / f"{name}.wav") for name in ids]


def _copy(folder: Path, source: Path) -> Examples:
    if not source.is_dir():
        raise FileNotFoundError(f"--examples: there is no folder {source}.")
    files = sorted(path for path in source.iterdir() if path.is_file())
    sounds = {path.stem: path for path in files if path.suffix.lower() in AUDIO_SUFFIXES}
    pictures = [path for path in files if path.suffix.lower() in FRAME_SUFFIXES]
    pairs = [(path, sounds[path.stem]) for path in pictures if path.stem in sounds]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos and not pairs:
        raise ValueError(
            f"--examples: {source} holds neither a video ({', '.join(VIDEO_SUFFIXES)}), nor a "
            "picture and a sound of the same name, nor a stamps set."
        )
    return {
        "videos": [[_copied(path, folder)] for path in videos],
        "pairs": [[_copied(path, folder) for path in pair] for pair in pairs],
    }


def _copied(file: Path, folder: Path) -> str:
    """Path of the file in the folder, which alone is shown to others."""
    return str(file if file.parent == folder else shutil.copy(file, folder))


def write_slides(path: Path, clips: Sequence[tuple[Path, Path]]) -> None:
    """Writes a video (H.264 and AAC) that shows each picture as long as its sound.

    Args:
        path: MP4 to write.
        clips: pictures of the same size with sides of whole pairs of pixels, and sounds.
    """
    sounds = [_read_mono(sound) for _, sound in clips]
    with av.open(str(path), "w") as container:
        pictures = [np.asarray(Image.open(picture).convert("RGB")) for picture, _ in clips]
        shown = container.add_stream("h264", rate=FRAME_RATE)
        shown.height, shown.width = pictures[0].shape[:2]
        shown.pix_fmt = "yuv420p"
        heard = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for pixels, sound in zip(pictures, sounds, strict=True):
            for _ in range(round(len(sound) / SAMPLE_RATE * FRAME_RATE)):
                container.mux(shown.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(shown.encode(None))
        samples = np.concatenate(sounds)[None]
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(heard.encode(block))
        container.mux(heard.encode(None))


def _read_mono(path: Path) -> NDArray[np.float32]:
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1)
