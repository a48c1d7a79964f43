"""From a waveform to the log-mel segments that VGGish hears, as SSPL prepares them.

The front end is VGGish's own (Hershey et al., ICASSP 2017), but SSPL first stretches each clip to
[-1, 1] by its minimum and maximum. That discards loudness and adds a constant, which leaks into the
lowest mel bins; weights trained on it expect it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SAMPLE_RATE = 16_000
"""Hz."""
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SIZE = 512
MEL_BINS = 64
LOWEST_HZ, HIGHEST_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01
SEGMENT_FRAMES = 96
"""Spectrogram frames of a segment, 0.96 s."""
SEGMENT_SAMPLES = WINDOW_SAMPLES + (SEGMENT_FRAMES - 1) * HOP_SAMPLES
"""Samples that the frames of a segment cover."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How sound becomes SSPL's input; stored in the checkpoint."""

    segment_seconds: float = 3.0
    """middle of the sound given to VGGish, seconds: short clips are repeated, long ones cut"""

    def __post_init__(self) -> None:
        """Refuses a window without a segment."""
        if not (math.isfinite(self.segment_seconds) and self.num_samples >= SEGMENT_SAMPLES):
            raise ValueError(
                f"--segment-seconds must be at least {SEGMENT_SAMPLES / SAMPLE_RATE}, one segment "
                f"of VGGish, got {self.segment_seconds}"
            )

    @property
    def sample_rate(self) -> int:
        """Hz; other files are resampled."""
        return SAMPLE_RATE

    @property
    def num_samples(self) -> int:
        """L, samples of the window, even."""
        return 2 * round(self.segment_seconds * SAMPLE_RATE / 2)

    @property
    def centred(self) -> bool:
        """The window is the middle of the file."""
        return True

    @property
    def num_segments(self) -> int:
        """S, full segments in the window."""
        frames = (self.num_samples - WINDOW_SAMPLES) // HOP_SAMPLES + 1
        return frames // SEGMENT_FRAMES

    def build_front_end(self) -> "LevelledLogMel":
        """What turns waveforms (B, L) into the audio encoder's input."""
        return LevelledLogMel()


def level_waveform(waveforms: Tensor) -> Tensor:
    """Stretches each waveform from its own minimum and maximum to [-1, 1).

    Args:
        waveforms: (..., L), any scale; silence becomes -1 throughout.

    Returns:
        (..., L); the smallest sample is -1, the largest just under 1.
    """
    shifted = waveforms - waveforms.amin(dim=-1, keepdim=True)
    # The 1e-3 keeps silence finite.
    return 2 * (shifted / (shifted.amax(dim=-1, keepdim=True) + 1e-3) - 0.5)


def mel_matrix() -> Tensor:
    """VGGish's mel filters: triangles of height 1 whose sides are straight in mel, not in Hz.

    Returns:
        (257, 64) float64, frequency bin to mel bin; the bin of 0 Hz reaches none.
    """
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1, dtype=torch.float64)
    bins = _hertz_to_mel(frequencies)[:, None]
    lowest, highest = _hertz_to_mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64))
    edges = lowest + (highest - lowest) * torch.linspace(0, 1, MEL_BINS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    return torch.minimum(rising, falling).clamp_min(0)


def _hertz_to_mel(frequencies: Tensor) -> Tensor:
    return 1127 * torch.log1p(frequencies / 700)


class VGGishLogMel(nn.Module):
    """Waveforms -> log-mel segments, batched, on any device that has float64.

    Magnitude spectrum of a periodic Hann window without padding, mel filters, ln(mel + 0.01). The
    spectrogram is computed in float64 and cast at the end, as the authors' is.
    """

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        """Builds window and filters."""
        super().__init__()
        window = torch.hann_window(WINDOW_SAMPLES, periodic=True, dtype=torch.float64)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", mel_matrix(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Computes the segments.

        Args:
            waveforms: (B, L) at 16 kHz, levelled (see level_waveform), L at least 15,600.

        Returns:
            (B, S, 1, 96, 64) float32, natural logarithm, at least ln 0.01; S = 3 for L = 48,000.
            Spectrogram frames after the last full segment are left out.

        Raises:
            ValueError: the waveforms are not (B, L), or too short for one segment.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] < SEGMENT_SAMPLES:
            raise ValueError(
                f"waveforms must be (B, L) with at least {SEGMENT_SAMPLES} samples, "
                f"got {tuple(waveforms.shape)}"
            )
        frames = waveforms.double().unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)  # (B, T, 400)
        magnitude = torch.fft.rfft(frames * self.window, n=FFT_SIZE).abs()
        log_mel = torch.log(magnitude @ self.filters + LOG_OFFSET)  # (B, T, 64)
        num_segments = log_mel.shape[1] // SEGMENT_FRAMES
        segments = log_mel[:, : num_segments * SEGMENT_FRAMES].float()
        return segments.unflatten(1, (num_segments, SEGMENT_FRAMES))[:, :, None]


class LevelledLogMel(VGGishLogMel):
    """Waveforms (B, L) of any level -> log-mel segments (B, S, 1, 96, 64), as SSPL hears them."""

    def forward(self, waveforms: Tensor) -> Tensor:
        """Levels each waveform, then computes its segments; see VGGishLogMel."""
        return super().forward(level_waveform(waveforms))
