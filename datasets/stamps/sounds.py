"""Sounds: one recording becomes three seconds, never twice the same."""

import numpy as np
from scipy.signal import lfilter

from datasets.stamps.material import SAMPLE_RATE

DURATION = 3 * SAMPLE_RATE  # samples
_CROP_TRIES = 8


def compose_waveform(recording: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes three seconds from a recording: speed, crop or repeats, gain, noise.

    Args:
        recording: (L,) mono at `SAMPLE_RATE`, any length.
        rng: Source of chance.

    Returns:
        float32 (3 s,) in [−1, 1].
    """
    speed = rng.uniform(0.94, 1.06)
    positions = np.arange(0, len(recording) - 1, speed)
    recording = np.interp(positions, np.arange(len(recording)), recording).astype(np.float32)
    waveform = _crop(recording, rng) if len(recording) >= DURATION else _repeat(recording, rng)
    peak = 10 ** (rng.uniform(-14, -3) / 20)
    waveform *= peak / np.abs(waveform).max()

    noise = lfilter([1], [1, -rng.uniform(0, 0.97)], rng.standard_normal(DURATION))
    signal_to_noise = 10 ** (rng.uniform(12, 35) / 20)
    noise *= _root_mean_square(waveform) / (signal_to_noise * _root_mean_square(noise))
    return np.clip(waveform + noise, -1, 1).astype(np.float32)


def _crop(recording: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cuts a random part, not one of the recording's pauses."""
    audible = 0.3 * _root_mean_square(recording)
    part = recording[:DURATION]
    for _ in range(_CROP_TRIES):
        start = int(rng.integers(len(recording) - DURATION + 1))
        part = recording[start : start + DURATION]
        if _root_mean_square(part) >= audible:
            break
    return part.copy()


def _repeat(recording: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeats a short call with pauses of random length, as animals do."""
    waveform = np.zeros(DURATION, np.float32)
    start = int(rng.integers(max(1, min(DURATION - len(recording), DURATION // 3)) + 1))
    while start < DURATION:
        part = recording[: DURATION - start]
        waveform[start : start + len(part)] = part
        start += len(part) + int(rng.uniform(0.15, 0.9) * SAMPLE_RATE)
    return waveform


def _root_mean_square(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
