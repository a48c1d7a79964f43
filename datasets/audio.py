"""From a sound file to a waveform, and from waveforms to the spectrograms that the methods hear.

Three front ends: the log-mel spectrogram of SSL-TIE, the log-mel segments that VGGish hears in SSPL, and the
linear log-spectrogram of LVS, EZ-VSL, SLAVC, FNAC and SSL-Align.
"""

import math
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets import SILENCE
from datasets.hdf5 import HDF5Row, Source, read_stored_sound
from utils.files import DAMAGE_SECONDS, MP3_INDEX, decoding, is_cut_off, is_whole_ogg
from utils.options import Options, option

AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg")
"""Formats that are read, in the order in which they are looked for."""
MIN_COMMON_RATE = 25
"""Hz. The filter for resampling grows with rate / gcd(rate, target). Usual rates share 25 Hz or more with
16 kHz; odd ones such as 47,999 Hz would take gigabytes."""
HIGHEST_RATE = 192_000  # Hz that sounds are stored at; more is a damaged or a malicious header
FFMPEG_FORMATS = ("FLAC", "MP3")  # which FFmpeg decodes where their length is not as announced
BEGINNINGS = {"OGG": b"OggS\0\2", "FLAC": b"fLaC\0\0\0"}  # of a sound, of which a file has one
MAX_TAIL = 4096  # bytes of no known kind that may follow a sound; more is sound
MAX_SECONDS = 3600.0  # of the longest sound that is decoded whole to find its middle


# ---------------------------------------------------------------------------------------- files to waveforms


class AudioWindow(Options):
    """Which part of a sound a method hears: the base of the audio configurations."""

    sample_rate: int  # Hz; other files are resampled
    window_seconds: float
    centred = False  # the window is the middle of the file instead of its beginning
    centres_short = False  # so it is of the repetition of a sound shorter than the window
    left_channel = False  # of stereo is heard, instead of the mean

    @property
    def num_samples(self) -> int:
        """L, samples of the window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def heard(self) -> slice:
        """The samples of the window that reach the encoder."""
        return slice(None)


def load_waveform(source: Source, window: AudioWindow, *, excerpt_seconds: float | None = None) -> Tensor:
    """Read the window of a sound that a method hears: (L,) float32 mono, nominally in [-1, 1].

    Args:
        source: a sound file, or a row of an HDF5 file.
        window: the method's audio configuration: rate, length, beginning or middle of the sound.
        excerpt_seconds: use only the first seconds of the sound; None: all of it.

    Raises:
        BrokenFileError: the sound cannot be decoded, holds no sample, or is too long.
    """
    rate, seconds = window.sample_rate, excerpt_seconds or math.inf
    if not window.centred:
        # A little more than the window, so that its last samples are resampled as those of the whole sound.
        seconds = min(seconds, window.num_samples / rate + 0.01)
    return fit_window(read_sound(source, rate, seconds=seconds, left_channel=window.left_channel), window)


def read_sound(
    source: Source, sample_rate: int, *, seconds: float = math.inf, left_channel: bool = False
) -> Tensor:
    """Read the first seconds of a sound at one rate: (L,) float32, the mean of its channels, L at least 1.

    `left_channel` takes the first one instead.

    Raises:
        BrokenFileError: it cannot be decoded or resampled, holds no sample, or more than MAX_SECONDS of it
            would have to be decoded.
    """
    with decoding(source):
        if isinstance(source, HDF5Row):
            samples, rate = read_stored_sound(source)
        else:
            samples, rate = _decode(source, min(seconds, MAX_SECONDS), sample_rate, left_channel)
        first = samples if seconds == math.inf else samples[: math.ceil(seconds * rate)]
        if seconds > MAX_SECONDS and len(samples) > math.ceil(MAX_SECONDS * rate):
            raise ValueError(f"it is longer than {MAX_SECONDS:g} s and would be decoded to find its middle")
        if len(samples) == 0:
            raise ValueError("it holds no audio sample")
        if not np.isfinite(first).all():
            raise ValueError("it holds samples that are not finite numbers")
        return resample(torch.from_numpy(first), rate, sample_rate)


def _decode(
    path: Path, seconds: float, fallback_rate: int, left_channel: bool
) -> tuple[NDArray[np.float32], int]:
    """Decode a file, a second beyond `seconds` at most: (L,) mono, and its rate.

    libsndfile stops where the header says that the sound ends; where more may follow, FFmpeg decodes it. What
    libsndfile cannot open, such as M4A, FFmpeg resamples to `fallback_rate`.
    """
    rate = fallback_rate
    with suppress(soundfile.LibsndfileError), soundfile.SoundFile(path) as file:
        rate = file.samplerate
        if rate > HIGHEST_RATE:
            raise ValueError(f"{rate} Hz is no sample rate; at most {HIGHEST_RATE} are read")
        content = path.read_bytes() if file.format in ("OGG", *FFMPEG_FORMATS) else b""
        if file.format == "OGG" and not is_whole_ogg(content):
            raise ValueError("it is cut off: its last page is missing")
        if not _is_longer(file, content):
            samples = _read_samples(file, seconds, left_channel)
            is_whole = len(samples) == file.frames or len(samples) > seconds * rate
            if is_whole or file.format not in FFMPEG_FORMATS:
                return samples, rate
    from datasets import video  # noqa: PLC0415 - takes a tenth of a second, which WAV files need not

    return video.read_sound(path, rate, seconds + 1, refuse_cut_off=True, left_channel=left_channel), rate


def _is_longer(file: soundfile.SoundFile, content: bytes) -> bool:
    """Tell whether more sound may lie behind its announced end, as of a recorder that was switched off."""
    if file.format == "MP3":
        indices = MP3_INDEX.findall(content)
        if len(indices) != 1 or not any(indices[0]):  # joined files have several; one may count no frames
            return True
    elif file.format in BEGINNINGS and content.count(BEGINNINGS[file.format]) > 1:
        return True
    behind = re.search(r"(?:Unknown chunk|Have 0) marker .*at position (\d+)", file.extra_info)
    tail = Path(file.name).read_bytes()[int(behind[1]) :].rstrip(b"\0") if behind else b""
    return file.frames == 0 or len(tail) > MAX_TAIL


def _read_samples(file: soundfile.SoundFile, seconds: float, left_channel: bool) -> NDArray[np.float32]:
    """Read (L,), a sample beyond `seconds` at most; refuse what was cut off or is damaged."""
    # libsndfile reads what was cut off up to its end without a word, but notes it.
    noted = re.search(r"^ *(?!RIFF|FORM)\w.*: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    announced, existing = map(int, noted.groups()) if noted else (0, 0)
    length = file.frames / file.samplerate  # seconds
    # What is written into a pipe announces 2 or 4 GiB.
    if announced < 0x7FFF0000 and is_cut_off(announced / max(1, existing) * length, length):
        raise ValueError(f"it is cut off: {announced - existing} bytes of its sound are missing")
    wanted = min(math.ceil(seconds * file.samplerate) + 1, file.frames)
    samples = torch.from_numpy(file.read(wanted, "float32", always_2d=True))  # (L, C)
    missing = (wanted - len(samples)) / file.samplerate  # seconds
    if missing > DAMAGE_SECONDS and file.format not in FFMPEG_FORMATS:
        raise ValueError(f"it is damaged: {missing:.2f} s of its sound cannot be decoded")
    # By torch, whose mean of float32 is the one that earlier versions took.
    return (samples[:, 0] if left_channel or file.channels == 1 else samples.mean(dim=1)).numpy()


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Resample (..., L) float32 from `rate` to `new_rate` Hz: (..., L new_rate / rate), rounded up.

    Raises ValueError where that takes too much memory: see MIN_COMMON_RATE.
    """
    if rate != new_rate and math.gcd(rate, new_rate) < MIN_COMMON_RATE:
        raise ValueError(
            f"sound at a rate of {rate} Hz cannot be resampled to {new_rate} Hz within reasonable memory; "
            "convert it to a usual rate"
        )
    return waveform if rate == new_rate else _resampler(rate, new_rate)(waveform)


@lru_cache(maxsize=16)
def _resampler(rate: int, new_rate: int) -> torchaudio.transforms.Resample:
    # In float32, as torchaudio.functional.resample computes its filters for a float32 waveform.
    return torchaudio.transforms.Resample(rate, new_rate, dtype=torch.float32)


def fit_window(waveform: Tensor, window: AudioWindow) -> Tensor:
    """Cut a sound (L',) to a method's window (L,): its beginning or its middle; repeat it if it is too short.

    For the middle, a sound is repeated floor(L / L') + 1 times if it is shorter than the window, which then
    begins L / 2 before the middle, as SSPL's authors do; L is even. The peers' begins with the sound.
    """
    length, wanted = len(waveform), window.num_samples
    repeated = waveform if length >= wanted else waveform.repeat(wanted // length + 1)
    centred = window.centred and (length >= wanted or window.centres_short)
    start = len(repeated) // 2 - wanted // 2 if centred else 0
    return repeated[start : start + wanted]


def sound_around(sound: Tensor, seconds: float, audio: AudioWindow) -> Tensor:
    """Cut the window (L,) that a method hears around a moment of a video, from its whole sound (L',).

    The window is moved as little as needed to lie inside the sound. Of a method that hears an excerpt of its
    window, that excerpt is centred, and the rest is zero. A sound that is shorter than the window is repeated
    as in a test, and is the same at each moment.
    """
    if len(sound) < audio.num_samples:
        return fit_window(sound, audio)
    first, end, _ = audio.heard.indices(audio.num_samples)
    length = end - first
    begin = round(seconds * audio.sample_rate) - length // 2
    begin = max(0, min(begin, len(sound) - length))
    window = torch.zeros(audio.num_samples)
    window[first:end] = sound[begin : begin + length]
    return window


def is_silent(waveform: Tensor) -> bool:
    """Tell whether no sample of a waveform reaches SILENCE."""
    return float(waveform.abs().max()) < SILENCE


# ------------------------------------------------------------------------------------- log-mel of SSL-TIE


@dataclass(frozen=True, kw_only=True)
class AudioConfig(AudioWindow):
    """How sound becomes SSL-TIE's input; stored in the checkpoint."""

    sample_rate: int = option(16_000, at_least=1, hidden=True)  # Hz; other files are resampled
    window_seconds: float = option(10.0, above=0)
    """sound given to the encoder, seconds: short clips are tiled, long ones cut"""
    fft_size: int = option(512, at_least=1)  # window of the spectrogram, samples
    hop_length: int = option(239, at_least=1)  # step of the spectrogram, samples
    mel_bins: int = option(257, at_least=1)  # F, filters of the mel scale

    def __post_init__(self) -> None:
        """Refuse sizes that give no spectrogram."""
        super().__post_init__()
        if self.num_samples < self.fft_size:
            raise ValueError(
                f"--window-seconds {self.window_seconds} is shorter than one --fft-size of "
                f"{self.fft_size} samples"
            )

    @property
    def num_frames(self) -> int:
        """T, frames of the spectrogram."""
        return self.num_samples // self.hop_length + 1

    def build_front_end(self) -> "LogMelSpectrogram":
        """Build what turns waveforms (B, L) into the audio encoder's input."""
        return LogMelSpectrogram(self)


class LogMelSpectrogram(nn.Module):
    """Waveforms (B, L) in [-1, 1] -> log-mel spectrograms (B, 1, F, T) in dB, at least -100, on any device.

    Power spectrogram of a Hann window divided by its energy, HTK mel filters, 10 log10 with a floor of
    1e-10. At 16 kHz, 28 of the 257 filters are narrower than a bin and constant at -100 dB; the released
    weights expect them.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # Known and wanted: see the class docstring.
            warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero")
            self.mel = torchaudio.transforms.MelSpectrogram(  # (B, L) -> (B, F, T), power
                config.sample_rate, config.fft_size, hop_length=config.hop_length, n_mels=config.mel_bins,
                normalized=True,
            )  # fmt: skip
        self.decibels = torchaudio.transforms.AmplitudeToDB("power")

    def to_decibels(self, power: Tensor) -> Tensor:
        """(B, F, T) -> (B, 1, F, T) in dB."""
        return self.decibels(power)[:, None]

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, L) -> (B, 1, F, T) in dB."""
        return self.to_decibels(self.mel(waveforms))


# --------------------------------------------------------------------------- log-mel segments of VGGish, SSPL

VGGISH_RATE = 16_000  # Hz
VGGISH_WINDOW, VGGISH_HOP, VGGISH_FFT = 400, 160, 512  # samples
VGGISH_MEL_BINS, VGGISH_LOG_OFFSET = 64, 0.01
VGGISH_HZ = (125.0, 7500.0)  # lowest and highest edge of the mel filters
SEGMENT_FRAMES = 96  # spectrogram frames of a segment, 0.96 s
SEGMENT_SAMPLES = VGGISH_WINDOW + (SEGMENT_FRAMES - 1) * VGGISH_HOP  # samples that these cover


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(AudioWindow):
    """How sound becomes SSPL's input; stored in the checkpoint."""

    segment_seconds: float = option(3.0, at_least=SEGMENT_SAMPLES / VGGISH_RATE)
    """middle of the sound given to VGGish, seconds: short clips are repeated, long ones cut"""

    sample_rate = VGGISH_RATE
    centred = centres_short = True

    @property
    def num_samples(self) -> int:
        """L, samples of the window, even."""
        return 2 * round(self.segment_seconds * VGGISH_RATE / 2)

    def build_front_end(self) -> "LevelledLogMel":
        """Build what turns waveforms (B, L) into the audio encoder's input."""
        return LevelledLogMel()


def level_waveform(waveforms: Tensor) -> Tensor:
    """Stretch each waveform (..., L) from its own minimum and maximum to [-1, 1), as SSPL does.

    That discards loudness and adds a constant, which leaks into the lowest mel bins; weights trained on it
    expect it. Silence becomes -1 throughout.
    """
    shifted = waveforms - waveforms.amin(dim=-1, keepdim=True)
    # The 1e-3 keeps silence finite.
    return 2 * (shifted / (shifted.amax(dim=-1, keepdim=True) + 1e-3) - 0.5)


def mel_matrix() -> Tensor:
    """Build VGGish's mel filters (257, 64) float64: triangles of height 1, straight in mel and not in Hz."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hertz / 700)

    bins = mel(torch.linspace(0, VGGISH_RATE / 2, VGGISH_FFT // 2 + 1, dtype=torch.float64))[:, None]
    lowest, highest = mel(torch.tensor(VGGISH_HZ, dtype=torch.float64))
    edges = lowest + (highest - lowest) * torch.linspace(0, 1, VGGISH_MEL_BINS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return torch.minimum(rising, falling).clamp_min(0)


class VGGishLogMel(nn.Module):
    """Waveforms -> the log-mel segments that VGGish hears (Hershey et al., ICASSP 2017).

    Magnitude spectrum of a periodic Hann window without padding, mel filters, ln(mel + 0.01); in float64 and
    cast at the end, as the authors' program does.
    """

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(VGGISH_WINDOW, periodic=True, dtype=torch.float64)
        self.window = nn.Buffer(window, persistent=False)
        self.filters = nn.Buffer(mel_matrix(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, L) at 16 kHz, levelled (see level_waveform) -> (B, S, 1, 96, 64) float32, at least ln 0.01.

        S = 3 for L = 48,000; spectrogram frames after the last full segment are left out.
        """
        frames = waveforms.double().unfold(1, VGGISH_WINDOW, VGGISH_HOP)  # (B, T, 400)
        magnitude = torch.fft.rfft(frames * self.window, n=VGGISH_FFT).abs()  # (B, T, 257)
        log_mel = torch.log(magnitude @ self.filters + VGGISH_LOG_OFFSET)  # (B, T, 64)
        num_segments = log_mel.shape[1] // SEGMENT_FRAMES
        segments = log_mel[:, : num_segments * SEGMENT_FRAMES].float()
        return segments.unflatten(1, (num_segments, SEGMENT_FRAMES))[:, :, None]  # (B, S, 1, 96, 64)


class LevelledLogMel(VGGishLogMel):
    """Waveforms (B, L) of any level -> log-mel segments (B, S, 1, 96, 64), as SSPL hears them."""

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, L) -> (B, S, 1, 96, 64)."""
        return super().forward(level_waveform(waveforms))


# -------------------------------------------------------------------- linear log-spectrogram of the peers

PEER_FFT = 512  # samples
TUKEY_SHAPE, POWER_OFFSET, LOG_SCALE = 0.25, 1e-7, 12.0


@dataclass(frozen=True, kw_only=True)
class SpectrogramConfig(AudioWindow):
    """How sound becomes LVS's input: the first 10 s; stored in the checkpoint."""

    sample_rate: int = option(16_000, hidden=True)  # Hz; other files are resampled
    window_seconds: float = option(10.0, hidden=True)  # read: short clips are repeated, long ones cut
    centred: bool = option(False, hidden=True)  # read the middle of the file instead of its beginning
    excerpt_start: float = option(0.0, hidden=True)  # where in the window the encoder's sound begins, seconds
    excerpt_seconds: float = option(10.0, hidden=True)  # sound given to the encoder
    overlap: int = option(274, at_least=0, at_most=511)  # samples that two spectrogram frames share, of 512

    @property
    def heard(self) -> slice:
        """The samples of the excerpt."""
        first = round(self.excerpt_start * self.sample_rate)
        return slice(first, first + round(self.excerpt_seconds * self.sample_rate))

    def build_front_end(self) -> "LogSpectrogram":
        """Build what turns waveforms (B, L) into the audio encoder's input."""
        return LogSpectrogram(self)


@dataclass(frozen=True, kw_only=True)
class MiddleSpectrogramConfig(SpectrogramConfig):
    """How sound becomes the input of EZ-VSL, SLAVC and FNAC: the middle 3 s."""

    window_seconds: float = option(3.0, hidden=True)
    centred: bool = option(True, hidden=True)
    excerpt_seconds: float = option(3.0, hidden=True)


@dataclass(frozen=True, kw_only=True)
class AlignSpectrogramConfig(SpectrogramConfig):
    """How sound becomes SSL-Align's input: seconds 3.5 to 6.5 of the first 10, of stereo the left channel."""

    excerpt_start: float = option(3.5, hidden=True)
    excerpt_seconds: float = option(3.0, hidden=True)
    overlap: int = option(353, at_least=0, at_most=511)

    left_channel = True


class LogSpectrogram(nn.Module):
    """Waveforms (B, L), cut to [-1, 1] -> (B, 1, 257, T) float32, at least ln(1e-7) / 12.

    scipy's spectrogram of 512 samples in float64 (Tukey window of shape 0.25, each segment's mean removed,
    power density), ln(power + 1e-7) / 12. Differences from the authors' programs:

    1. Every sound is resampled to 16 kHz; theirs keep a file's own rate. Published sizes are those of 16 kHz.
    2. EZ-VSL, SLAVC and FNAC decode to 16 bits by PyAV and divide by 32,767: 5e-6 in the spectrogram.
    3. LVS's program fails on stereo, which is mixed down here.
    """

    def __init__(self, config: SpectrogramConfig) -> None:
        super().__init__()
        self.heard, self.hop = config.heard, PEER_FFT - config.overlap
        # Not imported by name: scipy.signal takes a second, and few programs come here.
        window = torch.from_numpy(scipy.signal.get_window(("tukey", TUKEY_SHAPE), PEER_FFT))
        # Density: power per Hz. The root goes into the window, which enters squared.
        density = window / (config.sample_rate * window.square().sum()).sqrt()
        self.window = nn.Buffer(density, persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, L) -> (B, 1, 257, T)."""
        samples = waveforms[:, self.heard].double().clamp(-1, 1)
        segments = samples.unfold(1, PEER_FFT, self.hop)  # (B, T, 512)
        segments = segments - segments.mean(dim=-1, keepdim=True)
        power = torch.fft.rfft(segments * self.window).abs().square()  # (B, T, 257), power per Hz
        power[..., 1:-1] *= 2  # one side stands for both, but for 0 Hz and half the sample rate
        scaled = torch.log(power + POWER_OFFSET) / LOG_SCALE
        return scaled.transpose(1, 2).float()[:, None]  # (B, 1, 257, T)
