"""Resampling of sounds, and which part of a sound a stretch of the resampled one comes from."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torchaudio
from torch import Tensor

ZERO_CROSSINGS = 6
ROLLOFF = 0.99
"""Of torchaudio's filter: it reaches ZERO_CROSSINGS periods of ROLLOFF times the lower rate."""


class Part(NamedTuple):
    """Samples to read so that resampling them gives a wanted stretch."""

    first: int
    """sample of the file to begin with"""
    length: int
    """samples to read"""
    skip: int
    """samples of the result that come before the stretch"""


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """torchaudio.functional.resample, with filters that are kept from one call to the next.

    Args:
        waveform: float32 (..., L).
        rate: Hz.
        new_rate: Hz.

    Returns:
        (..., L new_rate / rate), rounded up.
    """
    return waveform if rate == new_rate else _filters(rate, new_rate)(waveform)


def resampled_length(length: int, rate: int, new_rate: int) -> int:
    """Samples of the resampled sound, in torchaudio's arithmetic, which is that of float32."""
    common = math.gcd(rate, new_rate)
    exact = torch.as_tensor(new_rate // common * length / (rate // common))
    return int(torch.ceil(exact).long())


def middle_part(length: int, rate: int, new_rate: int, num_samples: int) -> Part | None:
    """The part of a sound that the middle of the resampled sound comes from.

    Args:
        length: samples of the file.
        rate: of the file, Hz.
        new_rate: Hz.
        num_samples: of the middle, after resampling.

    Returns:
        the part, or None if the resampled sound is shorter than that.
    """
    total = resampled_length(length, rate, new_rate)
    if total < num_samples:
        return None
    start = total // 2 - num_samples // 2
    common = math.gcd(rate, new_rate)
    # The filters repeat every `old` samples of the file, which become `new` of the result.
    old, new = rate // common, new_rate // common
    reach = math.ceil(ZERO_CROSSINGS * old / (ROLLOFF * min(old, new)))
    first_block = max(0, start // new - math.ceil(reach / old))
    last_block = (start + num_samples - 1) // new
    first = first_block * old
    end = min(length, (last_block + 1) * old + reach)
    return Part(first, end - first, start - first_block * new)


@lru_cache(maxsize=16)
def _filters(rate: int, new_rate: int) -> torchaudio.transforms.Resample:
    # In float32, as torchaudio.functional.resample computes them for a float32 waveform.
    return torchaudio.transforms.Resample(
        rate, new_rate, lowpass_filter_width=ZERO_CROSSINGS, rolloff=ROLLOFF, dtype=torch.float32
    )
