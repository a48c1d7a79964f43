"""From a waveform to the linear log-spectrogram that LVS, EZ-VSL, SLAVC, FNAC and SSL-Align hear.

All take scipy's spectrogram of 512 samples (Tukey window of shape 0.25, each segment's mean
removed, power density), ln(power + 1e-7) / 12. They differ in which part of the sound is taken and
in the overlap. Differences from the authors' programs, which are not known in full:

1. Every sound is resampled to 16 kHz. Theirs keep a file's own rate, so that the width and the
   frequencies of the input follow the file; the published sizes are those of 16 kHz.
2. Sounds are decoded by libsndfile to [-1, 1]. EZ-VSL, SLAVC and FNAC decode to 16 bits by PyAV.
3. How EZ-VSL, SLAVC and FNAC repeat a sound that is too short is not known: it is done as
   `datasets.audio.centre_clip` says.
"""

from dataclasses import dataclass

import scipy
import torch
from torch import Tensor, nn

SEGMENT_SAMPLES = 512
TUKEY_SHAPE = 0.25
POWER_OFFSET = 1e-7
LOG_SCALE = 12.0


@dataclass(frozen=True, kw_only=True)
class SpectrogramConfig:
    """How sound becomes LVS's input: the first 10 s, cut to [-1, 1]; stored in the checkpoint."""

    sample_rate: int = 16_000
    """Hz; other files are resampled"""
    window_seconds: float = 10.0
    """sound that is read, seconds: short clips are repeated, long ones cut"""
    centred: bool = False
    """read the middle of the file instead of its beginning"""
    excerpt_start: float = 0.0
    """where in the window the sound given to the encoder begins, seconds"""
    excerpt_seconds: float = 10.0
    """sound given to the encoder, seconds"""
    overlap: int = 274
    """samples that two spectrogram frames share, of 512"""
    cut: bool = True
    """cut samples to [-1, 1]"""

    @property
    def num_samples(self) -> int:
        """L, samples of the window."""
        return round(self.window_seconds * self.sample_rate)

    def build_front_end(self) -> "LogSpectrogram":
        """What turns waveforms (B, L) into the audio encoder's input."""
        return LogSpectrogram(self)


@dataclass(frozen=True, kw_only=True)
class MiddleSpectrogramConfig(SpectrogramConfig):
    """How sound becomes the input of EZ-VSL, SLAVC and FNAC: the middle 3 s."""

    window_seconds: float = 3.0
    centred: bool = True
    excerpt_seconds: float = 3.0
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class AlignSpectrogramConfig(SpectrogramConfig):
    """How sound becomes SSL-Align's input: seconds 3.5 to 6.5 of the first 10.

    Whether samples are cut to [-1, 1], as in the program of LVS that it builds on, is not known;
    they are not.
    """

    excerpt_start: float = 3.5
    excerpt_seconds: float = 3.0
    overlap: int = 353
    cut: bool = False


class LogSpectrogram(nn.Module):
    """Waveforms -> log-spectrograms, batched, on any device; computed in float64, as scipy does."""

    window: Tensor

    def __init__(self, config: SpectrogramConfig) -> None:
        """Builds the window.

        Args:
            config: which part of the sound, and the overlap.
        """
        super().__init__()
        rate = config.sample_rate
        self.first = round(config.excerpt_start * rate)
        self.end = self.first + round(config.excerpt_seconds * rate)
        self.hop = SEGMENT_SAMPLES - config.overlap
        self.cut = config.cut
        # Not imported by name: scipy.signal takes a second, and few programs come here.
        window = torch.from_numpy(scipy.signal.get_window(("tukey", TUKEY_SHAPE), SEGMENT_SAMPLES))
        # Density: power per Hz. The root goes into the window, which enters squared.
        density = window / (rate * window.square().sum()).sqrt()
        self.register_buffer("window", density, persistent=False)

    def power(self, waveforms: Tensor) -> Tensor:
        """(B, L), nominally in [-1, 1] -> spectrograms (B, 257, T) float64, power per Hz."""
        samples = waveforms[:, self.first : self.end].double()
        if self.cut:
            samples = samples.clamp(-1, 1)
        segments = samples.unfold(1, SEGMENT_SAMPLES, self.hop)  # (B, T, 512)
        segments = segments - segments.mean(dim=-1, keepdim=True)
        power = torch.fft.rfft(segments * self.window).abs().square()
        power[..., 1:-1] *= 2  # one side stands for both, but for 0 Hz and half the sample rate
        return power.transpose(1, 2)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, L), nominally in [-1, 1] -> (B, 1, 257, T) float32, at least ln(1e-7) / 12."""
        scaled = torch.log(self.power(waveforms) + POWER_OFFSET) / LOG_SCALE
        return scaled.float()[:, None]
