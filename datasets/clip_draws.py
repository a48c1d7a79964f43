"""Random numbers that belong to a clip: a function of its seed, whatever the batch around it."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a counter, mixed well. One generator object for
# each clip would take longer than all its numbers.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_FIRST_SHIFT, _SECOND_SHIFT, _LAST_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)
_UNUSED_BITS = np.uint64(11)
"""A float64 holds 53 of the 64 bits."""


def uniform_draws(seeds: Sequence[int], purpose: str, count: int) -> NDArray[np.float64]:
    """Draws numbers for each clip.

    Args:
        seeds: B seeds, one a clip, each below 2**62.
        purpose: what the numbers are for; other purposes draw independent ones, so that switching
            one thing off does not change another.
        count: n, numbers for each clip; the first ones do not depend on it.

    Returns:
        (B, n), uniform in [0, 1).
    """
    streams = np.array(seeds, dtype=np.uint64) ^ _mix(_as_array(zlib.crc32(purpose.encode())))
    places = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    bits = _mix(_mix(streams)[:, None] + places)
    return (bits >> _UNUSED_BITS).astype(np.float64) * 2.0**-53


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of the input moves about half of the output's."""
    numbers = (numbers ^ (numbers >> _FIRST_SHIFT)) * _FIRST_FACTOR
    numbers = (numbers ^ (numbers >> _SECOND_SHIFT)) * _SECOND_FACTOR
    return numbers ^ (numbers >> _LAST_SHIFT)


def _as_array(number: int) -> NDArray[np.uint64]:
    # An array, as numpy warns of the wanted overflow of scalars.
    return np.array([number], dtype=np.uint64)
