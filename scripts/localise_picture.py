"""`test.py image`: draws into a picture where a sound comes from; see docs/video.md."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ImageOps

from datasets.audio import load_waveform
from datasets.frames import read_frame, read_frame_size
from datasets.video_windows import is_silent
from models.localiser import Localiser
from scripts.video_localiser import PEAK_COLUMNS, check_output, draw_with_peak, load_for, peak_cells
from utils.files import BrokenFileError, moved_when_whole
from utils.video_options import ImageOptions
from utils.video_overlay import Peak, encode_png

logger = logging.getLogger("test")

PICTURES = "Expected a whole picture that Pillow reads; for a video there is test.py video."
SOUNDS = (
    "Expected a whole sound that libsndfile reads (WAV, MP3, FLAC, Ogg …), of at most --max-seconds; FFmpeg "
    "makes one of any other, and of a video's sound."
)


@dataclass(frozen=True)
class PictureResult:
    """What was written."""

    peak: Peak | None
    """None: the sound is silent, or the map is the same everywhere"""
    silent: bool
    """no sample of the sound is audible: nothing is drawn"""
    output: Path
    peaks: Path
    """CSV of x, y (pixels of the picture), similarity"""


def localise_picture(trained: Localiser, options: ImageOptions) -> PictureResult:
    """Writes a picture with its heat map, and the peak.

    Picture and sound are taken as a benchmark's are, but that the orientation that a camera noted
    is applied.

    Args:
        trained: the model, on its device; `options.checkpoint` and `options.device` are not read.
        options: which picture and sound, where to, and how.

    Raises:
        FileNotFoundError: the picture or the sound is not there.
        ValueError: one of them cannot be read or is too large, or the output cannot be what is
            asked for.
    """
    peaks = options.output.with_name(f"{options.output.stem}_peak.csv")
    sources = [options.image, options.sound, options.checkpoint]
    check_output(options.output, (".png",), [peaks], sources)
    with _errors_naming("--image", options.image, PICTURES):
        _check_size(options)
        picture = ImageOps.exif_transpose(read_frame(options.image))
    with _errors_naming("--sound", options.sound, SOUNDS):
        waveform = load_waveform(options.sound, trained.audio, max_seconds=options.max_seconds)
    localiser = replace(trained, frame_geometry=options.frame_geometry)
    silent = is_silent(waveform)
    similarity_map = None
    if not silent:
        (similarity_map,) = localiser.similarity_maps([picture], localiser.sound_features([waveform]))
    drawn, peak = draw_with_peak(np.asarray(picture), similarity_map, localiser, options)
    lines = (PEAK_COLUMNS, peak_cells(peak))
    with moved_when_whole(peaks) as peaks_file, moved_when_whole(options.output) as picture_file:
        peaks_file.write_bytes("".join(f"{','.join(line)}\r\n" for line in lines).encode())
        picture_file.write_bytes(encode_png(drawn))
    return PictureResult(peak, silent, options.output, peaks)


def _check_size(options: ImageOptions) -> None:
    width, height = read_frame_size(options.image)
    if width * height > 1e6 * options.max_megapixels:
        raise ValueError(
            f"{options.image} has {width} x {height} pixels; at most {options.max_megapixels:g} "
            "million are taken (--max-megapixels). Make it smaller: the model looks at a few "
            "hundred each way."
        )


@contextmanager
def _errors_naming(flag: str, path: Path, expected: str) -> Iterator[None]:
    if not path.is_file():
        raise FileNotFoundError(f"{flag}: there is no file {path}.")
    try:
        yield
    except BrokenFileError as error:
        raise ValueError(f"{flag}: {str(error).rstrip('.')}. {expected}") from error


def run_image(options: ImageOptions) -> int:
    """`test.py image`; returns 0."""
    result = localise_picture(load_for(options), options)
    if result.silent:
        logger.warning("%s is silent; nothing is drawn.", options.sound)
    if result.peak is None:
        sys.stdout.write(f"No peak. {result.output}\n")
    else:
        x, y, similarity = peak_cells(result.peak)
        sys.stdout.write(f"Peak: x {x}, y {y}, similarity {similarity}. {result.output}\n")
    return 0
