"""The sound around each moment of a video, decoded as it is needed and forgotten afterwards."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.audio import AudioWindow, SpectrogramConfig, centre_clip, tile
from datasets.clip_preparation import SILENCE
from datasets.video_sound import decode_sound
from datasets.video_tracks import UnusableVideoError


def heard_part(audio: AudioWindow) -> slice:
    """Which samples of its window a method hears: all, but for those that cut an excerpt."""
    if isinstance(audio, SpectrogramConfig):
        first = round(audio.excerpt_start * audio.sample_rate)
        return slice(first, first + round(audio.excerpt_seconds * audio.sample_rate))
    return slice(0, audio.num_samples)


class SoundWindows:
    """A method's window of sound around moments of a video, in rising order.

    The part of the window that the method hears is centred on the moment, and moved as little as
    needed to lie inside the sound. A sound that is shorter than the window is treated as in test,
    and is the same at each moment. No more than a window and what one read brings is kept.
    """

    def __init__(self, path: Path, audio: AudioWindow) -> None:
        """Nothing is decoded yet.

        Args:
            path: a video with sound.
            audio: rate and length of the window.
        """
        self._audio = audio
        self._heard = heard_part(audio)
        self._length = self._heard.stop - self._heard.start
        self._pieces = decode_sound(path, audio.sample_rate)
        self._samples = np.zeros(0, np.float32)
        self._begin = 0
        """place of the first kept sample"""
        self._ended = False
        self._whole: Tensor | None = None
        """the one window of a sound that is shorter than it"""
        self._started = False

    def close(self) -> None:
        """Closes the file."""
        self._pieces.close()

    def around(self, seconds: float) -> Tensor:
        """The window around a moment, not before that of the last call.

        Args:
            seconds: of the clip.

        Returns:
            (L,) float32.

        Raises:
            UnusableVideoError: the sound cannot be decoded, or holds no sample.
        """
        if not self._started:
            self._start()
        if self._whole is not None:
            return self._whole
        begin = round(seconds * self._audio.sample_rate) - self._length // 2
        self._read_until(begin + self._length)
        end = self._begin + len(self._samples)
        begin = max(self._begin, min(begin, end - self._length))
        self._samples, self._begin = self._samples[begin - self._begin :], begin
        window = torch.zeros(self._audio.num_samples)
        window[self._heard] = torch.from_numpy(self._samples[: self._length])
        return window

    def _start(self) -> None:
        self._started = True
        self._read_until(0)  # to the first sample, wherever that is
        self._read_until(self._begin + self._audio.num_samples)
        num_samples = len(self._samples)
        if num_samples == 0:
            raise UnusableVideoError("no_audio_stream", "its sound holds no sample")
        if num_samples >= self._audio.num_samples:
            return
        whole = torch.from_numpy(self._samples)
        if self._audio.centred:
            self._whole = centre_clip(whole, self._audio.num_samples)
        else:
            self._whole = tile(whole[None], [num_samples], self._audio.num_samples)[0]

    def _read_until(self, place: int) -> None:
        """Decodes until there is a sample and the sound reaches a place, or ends."""
        kept, held = [self._samples], len(self._samples)
        while not self._ended and (held == 0 or self._begin + held < place):
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            # The mean of the channels, as when sound files are read.
            samples = piece.samples.mean(axis=0, dtype=np.float32)
            if held == 0:
                self._begin = piece.place
            kept.append(samples)
            held += len(samples)
        self._samples = np.concatenate(kept)


def is_silent(window: Tensor) -> bool:
    """Whether no sample reaches SILENCE."""
    return float(window.abs().max()) < SILENCE
