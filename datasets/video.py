"""From a video file to the frames and the sound of a clip, decoding no more than these need.

Convention. Clips are numbered as by the authors, who dumped every video at 25 frames per second:
frame n, counted from 1, is what a player shows just before t = (n - 1/2) / 25 s, the middle of its
slot. That is the rule of FFmpeg's filter `fps=25`, and frame 125 of a video at 25 frames per second
is its 125th. Time 0 is where the file's first stream begins. The sound of frame n is centred on
n / 25 s; for frame 125 that is 5.0 s, the middle of 10 s.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.container import InputContainer
from PIL import Image

from datasets.video_tracks import (
    FRAME_RATE,
    ClipSound,
    PictureTrack,
    SoundTrack,
    UnusableVideoError,
    missing_bytes,
    open_video,
    read_packets,
    words_of,
)

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .webm .mkv .avi .mpg .mpeg .ts .flv .wmv .ogv .3gp".split())
"""Extensions by which videos are found in a folder."""

SKIPPING_CODECS = frozenset({"h264", "mpeg4", "mpeg1video", "mpeg2video"})
"""Codecs in which a picture marked as no reference is never needed to decode another one. HEVC's
mark holds within one temporal layer only; the other codecs have no such mark."""


@dataclass(frozen=True)
class StoredGeometry:
    """Size of the frames that are written.

    squash resizes to the square, whatever the shape, as the authors' frames were; short_side keeps
    the shape.
    """

    frame_size: int
    """side of the square, or the shorter side; pixels"""
    mode: Literal["squash", "short_side"] = "squash"

    def render(self, frame: av.VideoFrame, sample_aspect_ratio: Fraction | None) -> Image.Image:
        """Decoded frame -> upright RGB picture, bicubic.

        Args:
            frame: of any pixel format; a rotation in its metadata is applied.
            sample_aspect_ratio: width / height of one pixel; None: square.
        """
        turns = round(frame.rotation / 90) % 4  # quarter turns, anticlockwise
        width, height = self._size(frame.width * float(sample_aspect_ratio or 1), frame.height)
        rgb = frame.reformat(
            width=width,
            height=height,
            format="rgb24",
            interpolation="BICUBIC",
            threads=1,  # the clips are already worked on in parallel
        )
        return Image.fromarray(np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns)))

    def _size(self, width: float, height: float) -> tuple[int, int]:
        if self.mode == "squash":
            return self.frame_size, self.frame_size
        scale = self.frame_size / min(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class VideoClip:
    """What was read from one video."""

    pictures: dict[int, Image.Image]
    """by frame number"""
    sound: ClipSound


def shown_at(frame_number: int) -> Fraction:
    """The moment just before which a frame of that number is on screen, seconds."""
    return Fraction(2 * frame_number - 1, 2 * FRAME_RATE)


def read_clip(
    path: Path,
    *,
    frame_number: int,
    geometry: StoredGeometry,
    sound_seconds: float,
    num_frames: int | None = None,
) -> VideoClip:
    """Reads a frame, or the first frames, and the sound.

    All packets are looked at, few are decoded: of the sound, those up to the end of its window; of
    the pictures, those from the key frame before the first wanted frame to the last wanted frame,
    and where the codec marks them, no others that no picture refers to.

    Args:
        path: any video that FFmpeg reads.
        frame_number: frame that the clip must have, counted from 1 at FRAME_RATE.
        geometry: size of the pictures.
        sound_seconds: length of the longest window that will be taken around the frame.
        num_frames: read frames 1 to this number instead, as far as the video goes.

    Returns:
        the pictures by number, and the sound.

    Raises:
        UnusableVideoError: a stream is missing, the file is damaged or cut off, or the pictures end
            before the frame.
    """
    wanted = [frame_number] if num_frames is None else range(1, num_frames + 1)
    sound_until = max(frame_number / FRAME_RATE + sound_seconds / 2, sound_seconds)
    try:
        with open_video(path) as container:
            pictures = PictureTrack(container, [shown_at(number) for number in wanted])
            sound = SoundTrack(container, sound_until)
            read_packets(container, pictures, sound)
            _check_length(pictures, frame_number)
            numbers = [number for number in wanted if shown_at(number) <= pictures.end]
            times = [shown_at(number) for number in numbers]
            frames = _decode_few(pictures, times, geometry) or _decode_all(path, times, geometry)
            return VideoClip(dict(zip(numbers, frames, strict=True)), sound.sound())
    except UnusableVideoError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        # PyAV raises ValueError for what it has no name for, such as an odd pixel format.
        missing = missing_bytes(path) if isinstance(error, av.error.InvalidDataError) else 0
        if missing:
            raise UnusableVideoError("truncated", f"{missing} bytes are missing") from error
        raise UnusableVideoError("unreadable", words_of(error)) from error


def _check_length(pictures: PictureTrack, frame_number: int) -> None:
    if pictures.end < shown_at(frame_number):
        raise UnusableVideoError(
            "too_short",
            f"its pictures end at {float(pictures.end):.2f} s, frame {frame_number} is shown at "
            f"{float(shown_at(frame_number)):.2f} s",
        )


def _decode_few(
    track: PictureTrack, times: Sequence[Fraction], geometry: StoredGeometry
) -> list[Image.Image] | None:
    """Decodes the kept packets; None if a picture did not come out of them as expected."""
    stamps = track.stamps_shown(times)
    if stamps is None:
        return None
    wanted = set(stamps)
    context = track.stream.codec_context
    context.open(strict=False)  # some decoders would take skip_frame for the whole stream
    final = max(place for place, packet in enumerate(track.packets) if packet.pts in wanted)
    skips = context.name in SKIPPING_CODECS
    pictures = {}
    for packet in [*track.packets[: final + 1], None]:
        if skips and packet is not None:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in context.decode(packet):
            if frame.pts in wanted:
                pictures[frame.pts] = _render(frame, track, geometry)
    return [pictures[stamp] for stamp in stamps] if pictures.keys() == wanted else None


def _render(frame: av.VideoFrame, track: PictureTrack, geometry: StoredGeometry) -> Image.Image:
    if frame.is_corrupt:
        raise UnusableVideoError("unreadable", "a picture that is needed is damaged")
    return geometry.render(frame, track.stream.sample_aspect_ratio)


def _decode_all(path: Path, times: Sequence[Fraction], geometry: StoredGeometry) -> list[Image.Image]:
    """Decodes from the beginning, for files whose packets do not tell when they are shown."""
    with open_video(path) as container:
        track = PictureTrack(container, times)
        limits = [track.stamp_before(time) for time in times]
        frames = list(_on_screen(stamped_frames(container, track), limits, geometry, track))
    if len(frames) < len(times):
        raise UnusableVideoError("unreadable", "no picture came out of the decoder")
    return frames


def stamped_frames(container: InputContainer, track: PictureTrack) -> Iterator[tuple[int, av.VideoFrame]]:
    """All pictures in the order of showing; the k-th takes the k-th packet's stamp if need be."""
    stamps: list[int] = []
    num_frames = 0
    for packet in _with_content(container, track):
        if packet is not None:
            stamps.append(len(stamps) if packet.dts is None else packet.dts)
        for frame in track.stream.codec_context.decode(packet):
            stamp = frame.pts if track.stamped else None
            yield stamps[num_frames] if stamp is None else stamp, frame
            num_frames += 1


def _with_content(container: InputContainer, track: PictureTrack) -> Iterator[av.Packet | None]:
    """The stream's packets, then None; without those that Ogg repeats a picture by."""
    for packet in container.demux(track.stream):
        if packet.size:
            yield packet
    yield None


def _on_screen(
    frames: Iterable[tuple[int, av.VideoFrame]],
    limits: Sequence[int],
    geometry: StoredGeometry,
    track: PictureTrack,
) -> Iterator[Image.Image]:
    """For each limit the last picture not beyond it; the first one stands in for what precedes."""
    remaining = deque(limits)
    shown: av.VideoFrame | None = None
    for stamp, frame in frames:
        while shown is not None and remaining and stamp > remaining[0]:
            remaining.popleft()
            yield _render(shown, track, geometry)
        if not remaining:
            return
        shown = frame
    if shown is not None:
        for _ in remaining:
            yield _render(shown, track, geometry)
