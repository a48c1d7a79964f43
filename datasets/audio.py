"""From a sound file to a log-mel spectrogram."""

import math
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets.errors import BrokenFileError
from datasets.hdf5 import HDF5Row, Source, read_stored_sound
from datasets.resampling import middle_part, resample

AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg")
"""Formats that are read, in the order in which they are looked for."""


MIN_COMMON_RATE = 25
"""Hz. The filter for resampling grows with rate / gcd(rate, target); the usual rates share 25 Hz or
more with 16 kHz, odd ones such as 47,999 Hz would take gigabytes."""

HIGHEST_RATE = 192_000
"""Hz that sounds are stored at; more is a damaged or a malicious header."""

MARGIN = 0.01
"""Seconds that are read beyond a window, so that its last samples are resampled as the whole's."""

EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC")
"""libsndfile's names of formats that tell their length and can be read from any sample on."""

STREAMED_BYTES = 0x7FFF0000
"""Programs that write WAV into a pipe announce about 2 or 4 GiB, as they cannot know the size."""


class AudioWindow(Protocol):
    """Which part of a sound a method hears."""

    @property
    def sample_rate(self) -> int:
        """Hz; other files are resampled."""
        ...

    @property
    def num_samples(self) -> int:
        """L, samples of the window."""
        ...

    @property
    def centred(self) -> bool:
        """The middle of the file instead of its beginning."""
        ...


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """How sound becomes SSL-TIE's input; stored in the checkpoint."""

    sample_rate: int = 16_000
    """Hz; other files are resampled"""
    window_seconds: float = 10.0
    """sound given to the encoder, seconds: short clips are tiled, long ones cut"""
    fft_size: int = 512
    """window of the spectrogram, samples"""
    hop_length: int = 239
    """step of the spectrogram, samples"""
    mel_bins: int = 257
    """F, filters of the mel scale"""

    def __post_init__(self) -> None:
        """Refuses sizes that give no spectrogram."""
        if min(self.sample_rate, self.fft_size, self.hop_length, self.mel_bins) < 1:
            raise ValueError(
                "--sample-rate, --fft-size, --hop-length and --mel-bins must be at least 1, got "
                f"{self.sample_rate}, {self.fft_size}, {self.hop_length}, {self.mel_bins}"
            )
        if not math.isfinite(self.window_seconds):
            raise ValueError(f"--window-seconds must be a number, got {self.window_seconds}")
        if self.num_samples < self.fft_size:
            raise ValueError(
                f"--window-seconds {self.window_seconds} is shorter than one --fft-size of "
                f"{self.fft_size} samples"
            )

    @property
    def num_samples(self) -> int:
        """L, samples of the window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def centred(self) -> bool:
        """The window is the beginning of the file."""
        return False

    @property
    def num_frames(self) -> int:
        """T, frames of the spectrogram."""
        return self.num_samples // self.hop_length + 1

    def build_front_end(self) -> "LogMelSpectrogram":
        """What turns waveforms (B, L) into the audio encoder's input."""
        return LogMelSpectrogram(self)


def centre_clip(waveforms: Tensor, num_samples: int) -> Tensor:
    """The middle of each waveform; a shorter one is repeated first.

    A waveform of L samples is repeated floor(num_samples / L) + 1 times if it is shorter than the
    clip; the clip then starts num_samples / 2 before the middle.

    Args:
        waveforms: (..., L).
        num_samples: of the clip, even.

    Returns:
        (..., num_samples).

    Raises:
        ValueError: the waveforms hold no sample.
    """
    length = waveforms.shape[-1]
    if length == 0:
        raise ValueError("a waveform must hold at least one sample, got none")
    copies = num_samples // length + 1 if length < num_samples else 1
    start = length * copies // 2 - num_samples // 2
    positions = torch.arange(start, start + num_samples, device=waveforms.device)
    return waveforms[..., positions % length]


def load_waveform(source: Source, window: AudioWindow, *, excerpt_seconds: float | None = None) -> Tensor:
    """Reads the beginning or the middle of a sound, mono, at one rate, tiled to the window.

    Args:
        source: any file that libsndfile reads (WAV, MP3, FLAC, Ogg), or a row of an HDF5 file.
        window: rate, length and place of what is wanted.
        excerpt_seconds: use only the first seconds of the sound; None: as many as the window needs.

    Returns:
        (L,) float32, nominally in [-1, 1].

    Raises:
        BrokenFileError: the sound cannot be decoded or holds no sample.
    """
    waveform = read_window(source, window, excerpt_seconds=excerpt_seconds)
    return tile(waveform[None], [len(waveform)], window.num_samples)[0]


def tile(waveforms: Tensor, lengths: Sequence[int], num_samples: int) -> Tensor:
    """Repeats each sound from its beginning until it fills the window, on any device.

    Args:
        waveforms: (B, L').
        lengths: B numbers of samples, L' at most, that are sound; the rest is padding.
        num_samples: L.

    Returns:
        (B, L).
    """
    if waveforms.shape[1] == num_samples == min(lengths):
        return waveforms
    periods = torch.tensor(lengths).to(waveforms.device, non_blocking=True)
    places = torch.arange(num_samples, device=waveforms.device)
    return waveforms.gather(1, places % periods[:, None])


def read_window(source: Source, window: AudioWindow, *, excerpt_seconds: float | None = None) -> Tensor:
    """Reads what load_waveform tiles: at most (L,).

    A centred window is always full, as what is in the middle of a short sound depends on how often
    it is repeated.
    """
    if window.centred and excerpt_seconds is None and isinstance(source, Path):
        middle = _read_middle(source, window)
        if middle is not None:
            return middle
    needed = math.inf if window.centred else window.num_samples / window.sample_rate + MARGIN
    seconds = min(excerpt_seconds or math.inf, needed)
    waveform = read_sound(source, window.sample_rate, seconds=seconds)
    if window.centred:
        return centre_clip(waveform, window.num_samples)
    return waveform[: window.num_samples]


def read_sound(source: Source, sample_rate: int, *, seconds: float = math.inf) -> Tensor:
    """Reads a sound as it is long, mono, at one rate.

    Args:
        source: any file that libsndfile reads, or a row of an HDF5 file.
        sample_rate: Hz, of the result.
        seconds: read only the first seconds.

    Returns:
        (L,) float32, nominally in [-1, 1], L at least 1.

    Raises:
        BrokenFileError: the sound cannot be decoded, holds no sample, or cannot be resampled.
    """
    if isinstance(source, HDF5Row):
        stored, rate = read_stored_sound(source)
        samples = stored[: _num_frames(seconds, rate), None]
    else:
        with _opened(source) as file:
            rate = file.samplerate
            frames = _num_frames(seconds, rate)
            samples = file.read(-1 if frames is None else frames, "float32", always_2d=True)
    return _mono(samples, rate, sample_rate, source)


def decoded_seconds(path: Path, window: AudioWindow) -> float:
    """How much of a sound load_waveform decodes for a window, by what the file announces; seconds.

    That is all of it where the middle is wanted and the format does not tell where that is, else
    the window at most. Rates above HIGHEST_RATE count as that, so that the answer bounds the cost.

    Raises:
        BrokenFileError: it cannot be opened.
    """
    with _opened(path) as file:
        whole = file.frames / min(file.samplerate, HIGHEST_RATE)
        if window.centred and file.format not in EXACT_FORMATS:
            return whole
        return min(whole, window.num_samples / window.sample_rate)


def _read_middle(path: Path, window: AudioWindow) -> Tensor | None:
    """The middle of a long sound, of which nothing else is decoded: (L,) as load_waveform's.

    None if the sound is shorter than the window, or its format does not tell its exact length.
    """
    with _opened(path) as file:
        if file.format not in EXACT_FORMATS:
            return None
        rate = file.samplerate
        part = middle_part(file.frames, rate, window.sample_rate, window.num_samples)
        if part is None:
            return None
        file.seek(part.first)
        samples = file.read(part.length, "float32", always_2d=True)
    if len(samples) < part.length:
        return None
    waveform = _mono(samples, rate, window.sample_rate, path)
    return waveform[part.skip : part.skip + window.num_samples]


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """A sound file to read from.

    Raises:
        BrokenFileError: it cannot be opened, or not be read within the `with` block.
    """
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except (OSError, soundfile.LibsndfileError) as error:
        raise BrokenFileError(path, str(error)) from error


def _mono(samples: NDArray[np.float32], rate: int, sample_rate: int, source: Source) -> Tensor:
    """Samples (L, channels) as they were read -> their mean at another rate, (L',).

    Raises:
        BrokenFileError: there are none, or they cannot be resampled.
    """
    if len(samples) == 0:
        raise BrokenFileError(source, "it holds no audio sample")
    if not np.isfinite(samples).all():
        raise BrokenFileError(source, "it holds samples that are not finite numbers")
    if rate != sample_rate and math.gcd(rate, sample_rate) < MIN_COMMON_RATE:
        raise BrokenFileError(
            source,
            f"its sample rate of {rate} Hz cannot be resampled to {sample_rate} Hz within "
            "reasonable memory; convert the file to a usual rate",
        )
    channels = torch.from_numpy(samples)
    waveform = channels[:, 0] if channels.shape[1] == 1 else channels.mean(dim=1)
    return resample(waveform, rate, sample_rate)


def _num_frames(seconds: float, rate: int) -> int | None:
    """Samples a channel in so many seconds; None: all there are."""
    return None if math.isinf(seconds) else math.ceil(seconds * rate)


def check_sound_header(path: Path) -> None:
    """Reads a sound file's header only.

    Raises:
        BrokenFileError: it cannot be read, announces no sample, or is a WAV that was cut off.
    """
    try:
        frames = soundfile.info(path).frames
        missing = _missing_wav_bytes(path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise BrokenFileError(path, str(error)) from error
    if frames == 0:
        raise BrokenFileError(path, "it holds no audio sample")
    if missing:
        raise BrokenFileError(path, f"it is cut off: {missing} bytes of its sound are missing")


def _missing_wav_bytes(path: Path) -> int:
    """How much of a WAV's announced sound lies beyond the end of the file; 0 for other formats.

    libsndfile reads such files without a word, up to their end.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] != b"WAVE":
            return 0
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                return 0 if length >= STREAMED_BYTES else max(0, file.tell() + length - size)
            file.seek(length + length % 2, 1)  # chunks begin at even places
    return 0


class LogMelSpectrogram(nn.Module):
    """Waveforms -> log-mel spectrograms, batched, on any device.

    Power spectrogram of a Hann window divided by its energy, HTK mel filters, 10 log10 with a
    floor of 1e-10, hence -100 dB. At 16 kHz, 28 of the 257 filters are narrower than a bin and
    constant at -100 dB; the released weights expect them.
    """

    def __init__(self, config: AudioConfig) -> None:
        """Builds the filters.

        Args:
            config: rate, window and filters.
        """
        super().__init__()
        with warnings.catch_warnings():
            # Known and wanted: see the class docstring.
            warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero")
            self.mel = torchaudio.transforms.MelSpectrogram(
                sample_rate=config.sample_rate,
                n_fft=config.fft_size,
                hop_length=config.hop_length,
                n_mels=config.mel_bins,
                normalized=True,
            )
        self.decibels = torchaudio.transforms.AmplitudeToDB("power")

    def power(self, waveforms: Tensor) -> Tensor:
        """(B, L) in [-1, 1] -> mel power spectrograms (B, F, T), at least 0."""
        return self.mel(waveforms)

    def to_decibels(self, power: Tensor) -> Tensor:
        """(B, F, T) -> the encoder's input (B, 1, F, T) in dB, at least -100."""
        return self.decibels(power)[:, None]

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, L) in [-1, 1] -> (B, 1, F, T) in dB, at least -100."""
        return self.to_decibels(self.power(waveforms))
