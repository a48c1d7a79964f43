"""The sound of a video piece by piece, without holes, on the clip's time scale."""

from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from datasets.video_tracks import SoundTrack, UnusableVideoError, open_video, words_of

GAP_SECONDS = Fraction(1, 10)
"""A hole in the time stamps from here on is filled with silence; less is rounding."""


class SoundPiece(NamedTuple):
    """Some consecutive samples."""

    place: int
    """of the first sample, counted from the beginning of the clip"""
    samples: NDArray[np.float32]
    """(C, L), C channels, L at least 1, nominally in [-1, 1]"""


def decode_sound(
    path: Path, sample_rate: int, layout: str | None = None
) -> Generator[SoundPiece, None, None]:
    """Decodes the first sound of a video; what precedes the clip is left out.

    Args:
        path: a video.
        sample_rate: Hz, to which the sound is resampled.
        layout: FFmpeg's name of the channels to which it is mixed; None: those that it has.

    Yields:
        pieces, each of which begins where the one before it ends.

    Raises:
        UnusableVideoError: there is no sound, or it cannot be decoded.
    """
    with open_video(path) as container:
        track = SoundTrack(container, 0)
        pipe = _Pipe(sample_rate, layout)
        decode = track.stream.codec_context.decode
        try:
            for packet in container.demux(track.stream):
                if packet.size:  # Ogg has packets that say only that nothing is new
                    for frame in decode(packet):
                        yield from pipe.pieces(frame, track)
            for frame in decode(None):
                yield from pipe.pieces(frame, track)
            yield from pipe.rest()
        except (av.error.FFmpegError, ValueError) as error:
            # ValueError is the resampler's, when the rate or the channels change on the way.
            raise UnusableVideoError(
                "unreadable", f"its sound breaks after {float(pipe.end):.2f} s: {words_of(error)}"
            ) from error


class _Pipe:
    """From decoded frames to pieces at one rate."""

    def __init__(self, sample_rate: int, layout: str | None) -> None:
        self._rate, self._layout = sample_rate, layout
        self._resampler = self._new_resampler()
        self._begun = False
        self._place = 0
        """of the next sample"""
        self._num_channels = 1
        self.end = Fraction(0)
        """of what was decoded, by the number of its samples; seconds of the clip"""

    def pieces(self, frame: av.AudioFrame, track: SoundTrack) -> Generator[SoundPiece, None, None]:
        """What comes out when a frame goes in."""
        time = self.end if frame.pts is None else track.time_of(frame.pts)
        if not self._begun:
            self._begun, self.end = True, time
            self._place = round(time * self._rate)
        elif time - self.end >= GAP_SECONDS:
            yield from self.rest()
            yield from self._silence_until(round(time * self._rate))
            self.end = time
        self.end += Fraction(frame.samples, frame.sample_rate)
        frame.pts = None  # the resampler is to count samples, not stamps that are rounded
        yield from self._pass_on(frame)

    def rest(self) -> Generator[SoundPiece, None, None]:
        """What the resampler still holds."""
        if self._begun:
            yield from self._pass_on(None)
            self._resampler = self._new_resampler()  # after this the old one takes no more

    def _new_resampler(self) -> av.AudioResampler:
        return av.AudioResampler("fltp", self._layout, self._rate)

    def _pass_on(self, frame: av.AudioFrame | None) -> Generator[SoundPiece, None, None]:
        for piece in self._resampler.resample(frame):
            if piece is not None:  # where nothing is to be resampled, flushing gives None
                yield from self._placed(np.asarray(piece.to_ndarray(), np.float32))

    def _silence_until(self, place: int) -> Generator[SoundPiece, None, None]:
        while self._place < place:  # a second at a time: a hole can be of any length
            length = min(self._rate, place - self._place)
            yield from self._placed(np.zeros((self._num_channels, length), np.float32))

    def _placed(self, samples: NDArray[np.float32]) -> Generator[SoundPiece, None, None]:
        early = min(max(0, -self._place), samples.shape[1])
        self._num_channels = len(samples)
        self._place += samples.shape[1]
        if early < samples.shape[1]:
            yield SoundPiece(self._place - samples.shape[1] + early, samples[:, early:])
