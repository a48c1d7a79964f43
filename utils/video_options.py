"""Options of `test.py video` and `test.py image`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.visualisation import HEAT_OPACITY


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Which video to localise in, and how its heat maps are made and drawn."""

    checkpoint: Path
    """written by main.py, or a released file (ckpts/README.md)"""
    input: Path
    """video with sound, in any format that FFmpeg reads"""
    output: Path
    """video to write: .mp4, .m4v, .mov or .mkv; a contact sheet and the peaks go beside it"""
    frame_geometry: Literal["squash", "centre_crop"] = "squash"
    """how frames that are not square become so for the model"""
    audio_step: float = 0.2
    """seconds from one encoded sound to the next, of which a frame takes the nearest; 0: each frame
    has its own"""
    smoothing: float = 0.0
    """time constant of the exponential mean over past maps, seconds; 0: none"""
    box: bool = False
    """draw the box around the region of the peak where the map is at least half-way up to it"""
    opacity: float = HEAT_OPACITY
    """of the hottest heat, 0 to 1"""
    batch_size: int = 8
    """frames localised at once; does not change the maps but for rounding"""
    max_seconds: float | None = None
    """stop after so many seconds of the video; none: at its end"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    dry_run: bool = False
    """print all options and stop"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        for flag, value in (("--audio-step", self.audio_step), ("--smoothing", self.smoothing)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{flag} must be 0 or a number of seconds, got {value}")
        check_opacity(self.opacity)
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise ValueError(f"--max-seconds must be above 0, got {self.max_seconds}")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which picture and sound to localise, and how the heat map is drawn."""

    checkpoint: Path
    """written by main.py, or a released file (ckpts/README.md)"""
    image: Path
    """picture of any size, in any format that Pillow reads"""
    sound: Path
    """sound in any format that libsndfile reads: WAV, MP3, FLAC, Ogg …"""
    output: Path
    """PNG to write; the peak goes beside it as CSV"""
    frame_geometry: Literal["squash", "centre_crop"] = "squash"
    """how a picture that is not square becomes so for the model"""
    box: bool = False
    """draw the box around the region of the peak where the map is at least half-way up to it"""
    opacity: float = HEAT_OPACITY
    """of the hottest heat, 0 to 1"""
    max_seconds: float = 600.0
    """longest sound that is decoded whole, as MP3 and Ogg are for a method that hears the middle"""
    max_megapixels: float = 64.0
    """largest picture that is taken, millions of pixels; drawing takes 28 bytes for each"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    dry_run: bool = False
    """print all options and stop"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        check_opacity(self.opacity)
        for flag, value in (("--max-seconds", self.max_seconds), ("--max-megapixels", self.max_megapixels)):
            if not 0 < value < math.inf:
                raise ValueError(f"{flag} must be above 0, got {value}")


def check_opacity(opacity: float) -> None:
    """Refuses an opacity that is none.

    Raises:
        ValueError: it is not within [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"--opacity must be from 0 to 1, got {opacity}")
