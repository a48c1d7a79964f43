"""Silence and noise as sounds that no training frame shows.

The idea is that of SSL-SaN (BMVC 2025); its formulas are not known to us, and this is our own
formulation, in three numbers:

1. Silence is a waveform of zeros, hence the floor of the spectrogram everywhere, -100 dB.
2. Noise is Gaussian and white; its standard deviation is drawn between two levels, evenly on a
   logarithmic scale, and its samples are not clipped, as in tests with negative sounds.
3. Both go through the front end of the training sounds, without SpecAugment.

What is drawn is a function of a step's seed alone: all processes and all parts of a batch have the
same negative sounds. What the loss does with them is in models/negative_sounds.py.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.audio import AudioConfig, LogMelSpectrogram

KINDS = ("silence", "noise")


@dataclass(frozen=True, kw_only=True)
class NegativeSoundConfig:
    """Sounds that no frame shows, as further negatives of SSL-TIE's contrast; none by default."""

    negative_sounds: str | None = None
    """silence, noise or both with a comma between: contrasted with every frame; none: neither"""
    noise_sounds: int = 1
    """noises in a step; silence is always one"""
    noise_quietest: float = 0.01
    """smallest standard deviation of a noise; full scale is 1"""
    noise_loudest: float = 1.0
    """largest standard deviation of a noise"""

    def __post_init__(self) -> None:
        """Refuses unknown sounds and levels without meaning."""
        if self.negative_sounds is not None:
            kinds = [kind.strip() for kind in self.negative_sounds.split(",")]
            if len(set(kinds)) != len(kinds) or not set(kinds) <= set(KINDS):
                raise ValueError(
                    f"--negative-sounds takes silence, noise or silence,noise, got {self.negative_sounds!r}"
                )
        if self.noise_sounds < 1:
            raise ValueError(f"--noise-sounds must be at least 1, got {self.noise_sounds}")
        if not 0 < self.noise_quietest <= self.noise_loudest < math.inf:
            raise ValueError(
                "--noise-quietest must be above 0 and not above --noise-loudest, got "
                f"{self.noise_quietest} and {self.noise_loudest}"
            )
        noise = (self.noise_sounds, self.noise_quietest, self.noise_loudest)
        if noise != (1, 0.01, 1.0) and "noise" not in self.kinds:
            raise ValueError(
                "--noise-sounds, --noise-quietest and --noise-loudest need --negative-sounds noise."
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of KINDS that are wanted, in its order."""
        wanted = {kind.strip() for kind in (self.negative_sounds or "").split(",")}
        return tuple(kind for kind in KINDS if kind in wanted)


def negative_waveforms(config: NegativeSoundConfig, num_samples: int, seed: int) -> Tensor:
    """The negative sounds of a step.

    Args:
        config: which, at least one.
        num_samples: L, of the window.
        seed: of the step.

    Returns:
        float32 (K, L), silence first.
    """
    sounds = []
    if "silence" in config.kinds:
        sounds.append(torch.zeros(1, num_samples))
    if "noise" in config.kinds:
        generator = torch.Generator().manual_seed(seed)
        quietest, loudest = math.log(config.noise_quietest), math.log(config.noise_loudest)
        draws = torch.rand(config.noise_sounds, 1, generator=generator)
        levels = (quietest + (loudest - quietest) * draws).exp()
        noise = torch.randn(config.noise_sounds, num_samples, generator=generator)
        sounds.append(levels * noise)
    return torch.cat(sounds)


def negative_spectrograms(
    config: NegativeSoundConfig,
    audio: AudioConfig,
    front_end: LogMelSpectrogram,
    seed: int,
    device: torch.device,
) -> Tensor:
    """The negative sounds of a step as the audio encoder hears them.

    Args:
        config: which, at least one.
        audio: window of the training sounds.
        front_end: of the training sounds, on the device.
        seed: of the step; the sounds are drawn on the CPU, the same for every device.
        device: of the result.

    Returns:
        (K, 1, F, T), dB.
    """
    return front_end(negative_waveforms(config, audio.num_samples, seed).to(device))
