"""Videos with new pictures and the old sound, each picture and each sample at its old time."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from numpy.typing import NDArray

from datasets.video_sound import decode_sound
from datasets.video_tracks import SoundTrack, open_video

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""FFmpeg's names of the formats that are written, by extension."""

_FITTING_MOV = frozenset({"aac", "mp3", "mp3float"})
_FITTING = _FITTING_MOV | {"opus", "libopus", "flac"}
COPIED_CODECS = {"mp4": _FITTING, "mov": _FITTING_MOV, "matroska": _FITTING}
"""Sounds that go into a format as they are; others become AAC."""

MIN_MP3_RATE = 16_000
"""Hz, the least in MP4, whose number for MP3 leaves out MPEG 2.5."""

VIDEO_OPTIONS = {"preset": "veryfast", "crf": "20", "bf": "0"}
"""Of x264. Without pictures between later ones, no player has to start before time 0."""

BT709, LIMITED_RANGE = 1, 1
"""FFmpeg's numbers of these."""

AAC_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Hz, those at which other sounds stay as they are."""


class CopiedSound:
    """The first sound of a video on its way into another file as it is stored."""

    def __init__(self, source: Path, destination: OutputContainer) -> None:
        """Adds the stream to the file.

        Args:
            source: a video whose sound fits the file.
            destination: to which nothing has been written yet.
        """
        self._destination = destination
        self._input: InputContainer = open_video(source)
        self._track = SoundTrack(self._input, 0)
        self._stream = destination.add_stream_from_template(self._track.stream)
        self._packets = self._input.demux(self._track.stream)

    def write_next(self) -> float:
        """Writes a little more; returns when that is heard, seconds, infinity at the end."""
        packet = next(self._packets, None)
        if packet is None:
            return float("inf")
        stamp = packet.dts if packet.pts is None else packet.pts
        if not packet.size or stamp is None:
            return float("-inf")
        origin = round(self._track.origin / self._track.time_base)
        packet.pts, packet.dts = stamp - origin, (packet.dts or stamp) - origin
        packet.stream = self._stream
        self._destination.mux(packet)
        return float(self._track.time_of(stamp))

    def finish(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Closes the source."""
        self._input.close()


class EncodedSound:
    """The first sound of a video on its way into another file as AAC, mono or stereo."""

    def __init__(self, source: Path, destination: OutputContainer, sound: AudioStream) -> None:
        """Adds the stream to the file.

        Args:
            source: a video.
            destination: to which nothing has been written yet.
            sound: of the source, for its rate and its channels.
        """
        self._destination = destination
        self._rate = sound.rate if sound.rate in AAC_RATES else max(AAC_RATES)
        self._layout = "mono" if sound.channels == 1 else "stereo"
        self._stream = destination.add_stream("aac", self._rate, layout=self._layout)
        self._pieces = decode_sound(source, self._rate, self._layout)

    def write_next(self) -> float:
        """Writes a little more; returns when that is heard, seconds, infinity at the end."""
        piece = next(self._pieces, None)
        if piece is None:
            return float("inf")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.samples), "fltp", self._layout)
        frame.sample_rate, frame.time_base = self._rate, Fraction(1, self._rate)
        frame.pts = piece.place
        self._destination.mux(self._stream.encode(frame))
        return piece.place / self._rate

    def finish(self) -> None:
        """Writes what the encoder holds."""
        self._destination.mux(self._stream.encode(None))

    def close(self) -> None:
        """Closes the source."""
        self._pieces.close()


def build_sound(source: Path, destination: OutputContainer) -> CopiedSound | EncodedSound:
    """The way of a video's sound into another file: as it is if the file takes it so."""
    with open_video(source) as container:
        stream = SoundTrack(container, 0).stream
        codec, kind = stream.codec_context.name, destination.format.name
        too_slow = kind == "mp4" and codec.startswith("mp3") and stream.rate < MIN_MP3_RATE
        if codec not in COPIED_CODECS[kind] or too_slow:
            return EncodedSound(source, destination, stream)
    return CopiedSound(source, destination)


class VideoWriter:
    """Writes H.264 pictures one after the other, and beside them the sound of another video.

    Use as a context manager; the file is whole when it is left.
    """

    def __init__(
        self,
        path: Path,
        container_format: str,
        source: Path,
        *,
        time_base: Fraction,
        rate: Fraction,
        bt709: bool,
        max_seconds: float | None = None,
    ) -> None:
        """Opens the file.

        Args:
            path: of the file.
            container_format: one of the values of CONTAINERS.
            source: the video whose sound is taken.
            time_base: seconds that a picture's time stamp counts.
            rate: usual number of pictures a second, for the encoder.
            bt709: store colours as BT.709 and say so; otherwise as BT.601, without a word.
            max_seconds: where the sound ends; None: at its own end.
        """
        # The index at the beginning lets browsers play before they have the whole file.
        options = {} if container_format == "matroska" else {"movflags": "+faststart"}
        self._container = av.open(str(path), "w", format=container_format, options=options)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.codec_context.time_base = time_base
        self._stream.options = {**VIDEO_OPTIONS}
        self._stream.pix_fmt = "yuv420p"
        self._colours = "ITU601"
        if bt709:
            context, self._colours = self._stream.codec_context, "ITU709"
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
        self._time_base = time_base
        self._sound = build_sound(source, self._container)
        self._max_seconds = float("inf") if max_seconds is None else max_seconds
        self._heard = float("-inf")
        """until when sound was written, seconds of the clip; infinity: all of it"""
        self.sound_end = 0.0
        """about when the sound that was written ends, seconds of the clip"""
        self._durations: dict[int, int] = {}
        self._begun = False

    def write(self, picture: NDArray[np.uint8], stamp: int, duration: int) -> None:
        """Appends a picture, and the sound up to it.

        Args:
            picture: uint8 RGB (H, W, 3), all of one size; an odd side grows by a copy of its last
                line, as the encoder halves the colour.
            stamp: when it is shown, in time_base.
            duration: how long, likewise.
        """
        height, width = picture.shape[:2]
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if not self._begun:
            self._stream.height, self._stream.width = picture.shape[:2]
            self._begun = True
        frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
            format="yuv420p", dst_colorspace=self._colours
        )
        frame.pts, frame.time_base = stamp, self._time_base
        self._durations[stamp] = duration
        self._mux(self._stream.encode(frame))
        self._write_sound(float(stamp * self._time_base))

    def _write_sound(self, seconds: float) -> None:
        while self._heard < min(seconds, self._max_seconds):
            self._heard = max(self._heard, self._sound.write_next())
            if self._heard < float("inf"):
                self.sound_end = max(self.sound_end, self._heard)

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            # The length of the last picture is known to nobody else.
            packet.duration = self._durations.pop(packet.pts or 0, 0)
            self._container.mux(packet)

    def __enter__(self) -> "VideoWriter":
        """The open file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes what the encoders still hold, unless something went wrong, and closes."""
        try:
            if kind is None:
                self._mux(self._stream.encode(None))
                self._write_sound(float("inf"))
                self._sound.finish()
        finally:
            self._sound.close()
            self._container.close()
