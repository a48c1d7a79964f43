"""The pictures and the sound of a video file as packets, on the clip's time scale."""

import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

FRAME_RATE = 25
"""Frames per second of the numbering."""

SAMPLE_RATE = 16_000
"""Hz of the sound."""

CUT_OFF_SECONDS = 0.5
"""A file that ends this much before its announced end was cut off; less is rounding."""

FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "asf", "ogg", "rm",
    "dv", "nut", "mxf", "gxf", "wtv", "swf", "nsv", "ivf", "h264", "hevc", "obu", "m4v", "h263",
    "mjpeg", "yuv4mpegpipe", "amr", "mp3", "wav", "w64", "flac", "aac", "aiff", "caf", "au", "gif",
    "apng", "webp_anim", "jpeg_pipe", "png_pipe", "webp_pipe", "tiff_pipe", "bmp_pipe",
)  # fmt: skip
"""FFmpeg's names of what is read, of pictures and sounds to say that they are no video. Playlists
and their like (HLS, DASH, concat, numbered pictures) are left out: they make FFmpeg read other
files, so that an upload could show any video of the computer that a page runs on."""

Reason = Literal["no_video_stream", "no_audio_stream", "silent", "truncated", "too_short", "unreadable"]


class UnusableVideoError(ValueError):
    """A video from which no clip can be made."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Keeps both apart, for counting and for reading.

        Args:
            reason: one of the few kinds.
            detail: what was found and what was expected.
        """
        super().__init__(reason, detail)  # both, so that it survives pickling between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class ClipSound:
    """Mono sound at SAMPLE_RATE with its place in the clip."""

    waveform: NDArray[np.float32]
    """(L,), nominally in [-1, 1]"""
    start_seconds: float
    """time of the first sample"""

    def window(self, centre_seconds: float, seconds: float) -> NDArray[np.float32]:
        """The part around a moment, moved as little as needed to lie inside the sound.

        Args:
            centre_seconds: the moment.
            seconds: length; a shorter sound is returned whole.

        Returns:
            (L,), at most seconds * SAMPLE_RATE samples.
        """
        length = round(seconds * SAMPLE_RATE)
        begin = round((centre_seconds - seconds / 2 - self.start_seconds) * SAMPLE_RATE)
        begin = max(0, min(begin, len(self.waveform) - length))
        return self.waveform[begin : begin + length]


def words_of(error: Exception) -> str:
    """FFmpeg's own words, without number and path."""
    return getattr(error, "strerror", None) or str(error)


def open_video(path: Path) -> InputContainer:
    """Opens a file of one of FORMATS; the caller closes it.

    Raises:
        UnusableVideoError: it is of another format.
        av.error.FFmpegError: it cannot be read.
    """
    try:
        # A title in another encoding than UTF-8 is no reason to refuse a video.
        return av.open(str(path), metadata_errors="replace", options={"format_whitelist": ",".join(FORMATS)})
    except av.error.ArgumentError as error:
        detail = (
            "it is not of a format that is read here (MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, "
            "ASF, Ogg …); what only names other files, as playlists do, is not"
        )
        raise UnusableVideoError("unreadable", detail) from error


def missing_bytes(path: Path) -> int:
    """How much of an MP4, MOV or AVI lies beyond the end of the file; 0 for other formats.

    Without the index at its end FFmpeg cannot tell a cut-off MP4 from a damaged one, and it makes
    the announced length of an AVI fit the file.
    """
    size = path.stat().st_size
    begin = 0
    with path.open("rb") as file:
        if file.read(4) == b"RIFF":
            return max(0, 8 + int.from_bytes(file.read(4), "little") - size)
        file.seek(0)
        while len(header := file.read(16)) >= 8:
            length, kind = struct.unpack(">I4s", header[:8])
            if length == 1 and len(header) == 16:
                length = int.from_bytes(header[8:], "big")
            first_kinds = {b"ftyp", b"moov", b"wide"}
            if length < 8 or (begin == 0 and kind not in first_kinds):  # 0: up to the end
                return 0
            begin += length
            file.seek(begin)
    return max(0, begin - size)


class _Track:
    """A stream of an open file on the clip's time scale."""

    def __init__(self, container: InputContainer, stream: VideoStream | AudioStream) -> None:
        if stream.codec_context is None:
            raise UnusableVideoError("unreadable", f"there is no decoder for its {stream.type}")
        self.index = stream.index
        self.origin = Fraction(container.start_time or 0, av.time_base)
        self.time_base = stream.time_base or Fraction(1, FRAME_RATE)
        self._last = 0
        self._usual_duration = 0
        """of a packet that does not say, in time stamps"""
        self.announced: Fraction | None = None
        """end of the stream as the header has it, seconds"""
        if stream.duration:
            self.announced = self.time_of((stream.start_time or 0) + stream.duration)

    def time_of(self, stamp: int) -> Fraction:
        """Time stamp -> seconds of the clip."""
        return stamp * self.time_base - self.origin

    def stamp_before(self, seconds: Fraction) -> int:
        """The last time stamp before a moment of the clip."""
        return math.ceil((seconds + self.origin) / self.time_base) - 1

    def note_end(self, packet: av.Packet) -> None:
        """Whole numbers only: fractions for each packet would take longer than reading it."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            self._last = max(self._last, stamp + (packet.duration or self._usual_duration))

    @property
    def end(self) -> Fraction:
        """Where the last packet that was read ends, seconds."""
        return self.time_of(self._last)


class PictureTrack(_Track):
    """Keeps the packets from the key frame before the first wanted moment to the last one."""

    def __init__(self, container: InputContainer, times: Sequence[Fraction]) -> None:
        """Looks for the stream.

        Args:
            container: an open video.
            times: wanted moments of the clip in rising order, seconds.

        Raises:
            UnusableVideoError: there is no stream of pictures, or no decoder for it.
        """
        self.stream = _picture_stream(container)
        super().__init__(container, self.stream)
        if self.stream.average_rate:
            self._usual_duration = round(1 / (self.stream.average_rate * self.time_base))
        self.packets: list[av.Packet] = []
        # The order of showing is not written into AVI; its stamps are those of decoding.
        self.stamped = container.format.name != "avi"
        self._first, self._final = self.stamp_before(times[0]), self.stamp_before(times[-1])
        self._complete = False

    def add(self, packet: av.Packet) -> None:
        """Takes the next packet of the stream."""
        self.note_end(packet)
        if packet.is_keyframe and packet.pts is not None and packet.pts <= self._first:
            self.packets.clear()
        # Nothing is shown before it is decoded: all pictures from here on are too late.
        self._complete |= packet.dts is not None and packet.dts > self._final
        if not self._complete:
            self.packets.append(packet)

    def stamps_shown(self, times: Sequence[Fraction]) -> list[int] | None:
        """For each moment the stamp of the picture on screen; None if the packets do not tell."""
        known = self.stamped and self.packets and self.packets[0].is_keyframe
        shown = sorted(p.pts for p in self.packets if p.pts is not None and not p.is_discard)
        if not known or not shown or any(packet.pts is None for packet in self.packets):
            return None
        places = [bisect_right(shown, self.stamp_before(time)) - 1 for time in times]
        return [shown[max(place, 0)] for place in places]


class SoundTrack(_Track):
    """Decodes as far as the sound is wanted."""

    def __init__(self, container: InputContainer, seconds: float) -> None:
        """Looks for the stream.

        Args:
            container: an open video.
            seconds: of the clip, how far to decode.

        Raises:
            UnusableVideoError: there is no stream of sound, or no decoder for it.
        """
        if not container.streams.audio:
            raise UnusableVideoError("no_audio_stream", "the file has no sound")
        self.stream = container.streams.audio[0]
        super().__init__(container, self.stream)
        self._seconds = seconds + 1  # more, for a sound that begins before the clip
        # Thousands of short frames: one after the other they would take longer than all at once.
        self._frames = av.AudioFifo()
        self._start: Fraction | None = None
        self._complete = False
        self.failure: UnusableVideoError | None = None

    def add(self, packet: av.Packet) -> None:
        """Takes the next packet of the stream."""
        self.note_end(packet)
        if not self._complete:
            self._decode(packet)

    def finish(self) -> None:
        """Takes what the decoder still holds."""
        if self.failure is None:
            self._decode(None)

    def _decode(self, packet: av.Packet | None) -> None:
        try:
            for frame in self.stream.codec_context.decode(packet):
                if self._start is None:
                    self._start = self.time_of(frame.pts or 0)
                frame.pts = None  # the queue would refuse stamps that are rounded
                self._frames.write(frame)
                # The decoder's rate: the header of HE-AAC may tell half of it.
                self._complete = self._frames.samples >= self._seconds * frame.sample_rate
        except (av.error.FFmpegError, ValueError) as error:
            # ValueError is the queue's, when the rate or the channels change on the way. The
            # reading goes on: if the file turns out to be cut off, that is the better answer.
            self.failure = UnusableVideoError("unreadable", f"its sound: {words_of(error)}")
            self._complete = True

    def sound(self) -> ClipSound:
        """What was decoded, from time 0 on."""
        start = self._start or Fraction(0)
        waveform = np.zeros(0, np.float32)
        if self._frames.samples:
            resampler = av.AudioResampler("fltp", rate=SAMPLE_RATE)
            pieces = [*resampler.resample(self._frames.read()), *resampler.resample(None)]
            # Where nothing is to be resampled, flushing gives None.
            samples = [piece.to_ndarray() for piece in pieces if piece is not None]
            # The mean of the channels, as when sound files are read.
            waveform = np.concatenate(samples, axis=1).mean(axis=0, dtype=np.float32)
        early = max(0, round(-start * SAMPLE_RATE))
        return ClipSound(waveform[early:], max(0.0, float(start)))


def _picture_stream(container: InputContainer) -> VideoStream:
    """The first moving picture; the cover of a music file is a video stream too."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is not None:
                stream.codec_context.thread_count = 1  # clips are worked on in parallel
                stream.thread_type = "NONE"
            return stream
    raise UnusableVideoError("no_video_stream", "the file has no moving picture")


def read_packets(container: InputContainer, pictures: PictureTrack, sound: SoundTrack) -> None:
    """One pass through the file; finds out whether all of it is there.

    Raises:
        UnusableVideoError: it ends before its announced end, or its sound cannot be decoded.
        av.error.FFmpegError: it cannot be read.
    """
    failure: Exception | None = None
    try:
        for packet in container.demux(pictures.stream, sound.stream):
            if packet.size:
                (pictures if packet.stream_index == pictures.index else sound).add(packet)
    except av.error.FFmpegError as error:
        failure = error
    ends = [("pictures end", pictures.end, pictures.announced)]
    ends.append(("sound ends", sound.end, sound.announced))
    content_end = max(pictures.end, sound.end)
    if pictures.announced is None and sound.announced is None and container.duration:
        # Matroska counts its duration from stamp 0, wherever the content begins.
        whole = Fraction(container.duration, av.time_base) - max(pictures.origin, Fraction(0))
        ends.append(("content ends", content_end, whole))
    if container.format.name == "avi":
        path = Path(container.name)
        missing_share = Fraction(missing_bytes(path), path.stat().st_size)
        ends.append(("content ends", content_end, content_end * (1 + missing_share)))
    for what, end, announced in ends:
        if announced is not None and end < announced - Fraction(CUT_OFF_SECONDS):
            raise UnusableVideoError(
                "truncated", f"{float(announced):.2f} s are announced, its {what} at {float(end):.2f} s"
            )
    sound.finish()
    failure = failure or sound.failure
    if failure is not None:
        raise failure
