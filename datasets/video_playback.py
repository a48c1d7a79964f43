"""All pictures of a video one after the other, as a player shows them, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.reformatter import Colorspace
from PIL import Image

from datasets.video import StoredGeometry, stamped_frames
from datasets.video_tracks import (
    FRAME_RATE,
    PictureTrack,
    SoundTrack,
    UnusableVideoError,
    missing_bytes,
    open_video,
    words_of,
)

PICTURE_FORMATS = frozenset({"image2", "gif", "apng", "webp_anim"})
"""FFmpeg's names of formats that hold pictures; those of single pictures end in _pipe."""


@dataclass(frozen=True)
class ShownFrame:
    """A picture of a video and when it is shown."""

    picture: Image.Image
    """upright, RGB, with square pixels"""
    stamp: int
    """when, counted from the beginning of the clip in `Pictures.time_base`"""
    duration: int
    """how long, likewise; 0: the file does not say"""
    time: float
    """when, in seconds from the beginning of the clip"""


def check_playable(path: Path) -> None:
    """Looks for what a localiser needs, without decoding.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableVideoError: it is no video, lacks pictures or sound, or was cut off.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No video at {path}: there is no such file.")
    if missing := missing_bytes(path):
        raise UnusableVideoError("truncated", f"{missing} bytes are missing at its end")
    try:
        with open_video(path) as container:
            name = container.format.name
            if name.endswith("_pipe") or name in PICTURE_FORMATS:
                raise UnusableVideoError("no_audio_stream", "it is a picture, not a video")
            PictureTrack(container, [Fraction(0)])
            SoundTrack(container, 0)
    except UnusableVideoError:
        raise
    except av.error.InvalidDataError as error:
        words = f"FFmpeg knows no video of that kind ({words_of(error)})"
        raise UnusableVideoError("unreadable", words) from error
    except (av.error.FFmpegError, ValueError) as error:
        raise UnusableVideoError("unreadable", words_of(error)) from error


class Pictures:
    """The pictures of an open video."""

    def __init__(self, container: InputContainer, max_seconds: float | None = None) -> None:
        """Looks for the stream.

        Args:
            container: an open video, of which nothing was read yet; the caller closes it.
            max_seconds: of the clip, where to stop; None: at its end.

        Raises:
            UnusableVideoError: there is no stream of pictures, or no decoder for it.
        """
        self._container = container
        self._track = PictureTrack(container, [Fraction(0)])
        self._max_seconds = max_seconds
        stream = self._track.stream
        stream.thread_type, stream.codec_context.thread_count = "AUTO", 0  # one video, all cores
        self.time_base = self._track.time_base
        rate = stream.average_rate
        # Some formats have no rate; some files have one of many thousands.
        self.rate = rate if rate and 1 <= rate <= 1000 else Fraction(FRAME_RATE)
        self.bt709 = stream.codec_context.colorspace == Colorspace.ITU709
        """whether the file says that its colours are stored as BT.709, as of HD videos"""
        self.announced_seconds: float | None = None
        """when pictures and sound end, as far as the file tells"""
        if container.duration:
            end = Fraction(container.duration, av.time_base)
            # Matroska counts its duration from stamp 0, wherever the content begins.
            late = self._track.origin if container.format.name.startswith("matroska") else 0
            self.announced_seconds = float(end - late)
        self.num_damaged = 0
        """pictures so far that the decoder marks as damaged; it shows what it can"""
        self._end = Fraction(0)

    @property
    def expected_frames(self) -> int | None:
        """How many pictures there will be, as far as the file tells; None where it does not."""
        seconds = self.announced_seconds
        if self._max_seconds is not None:
            seconds = min(self._max_seconds, seconds or self._max_seconds)
        return round(seconds * self.rate) if seconds else None

    def __iter__(self) -> Iterator[ShownFrame]:
        """Decodes; all pictures have the size of the first.

        Raises:
            UnusableVideoError: a picture cannot be decoded, or there is none.
        """
        size: tuple[int, int] | None = None
        last: int | None = None
        origin = round(self._track.origin / self.time_base)
        try:
            for place, frame in stamped_frames(self._container, self._track):
                stamp = place - origin
                time = float(stamp * self.time_base)
                if self._max_seconds is not None and time >= self._max_seconds:
                    break
                if stamp < 0 or (last is not None and stamp <= last):
                    continue  # before the clip, or on screen for no time
                last = stamp
                self.num_damaged += frame.is_corrupt
                picture = self._upright(frame)
                size = size or picture.size
                if picture.size != size:
                    picture = picture.resize(size, Image.Resampling.BICUBIC)
                duration = frame.duration or round(1 / (self.rate * self.time_base))
                self._end = (stamp + duration) * self.time_base
                yield ShownFrame(picture, stamp, duration, time)
        except (av.error.FFmpegError, ValueError) as error:
            # PyAV raises ValueError for what it has no name for, such as an odd pixel format.
            raise UnusableVideoError(
                "unreadable", f"its pictures break after {float(self._end):.2f} s: {words_of(error)}"
            ) from error
        if size is None:
            raise UnusableVideoError("unreadable", "no picture came out of the decoder")

    def _upright(self, frame: av.VideoFrame) -> Image.Image:
        aspect = self._track.stream.sample_aspect_ratio
        shorter = min(max(1, round(frame.width * float(aspect or 1))), frame.height)
        return StoredGeometry(shorter, "short_side").render(frame, aspect)
