"""Interactive localisation: the same frame with several sounds, each of which has its own source.

A pair, the clips of one frame, is localised only if each of them is: its consensus IoU is the
smallest among its clips. After SSL-Align (Senocak et al., ICCV 2023; TPAMI 2025), IIoU and IAUC.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pair_cious(cious: ArrayLike, keys: Sequence[str]) -> NDArray[np.float64]:
    """The smallest consensus IoU of each pair.

    Its success rate at 0.5 is IIoU, the area under its success curve IAUC.

    Args:
        cious: (N,) consensus IoU of each clip; NaN is a miss.
        keys: (N,) the frame of each clip; a frame with one clip counts alone.

    Returns:
        (P,), in the order in which the frames first came; NaN where a clip of the pair has NaN.

    Raises:
        ValueError: there are no clips, or another number of keys.
    """
    scores = np.asarray(cious, dtype=np.float64)
    if not len(scores) or len(scores) != len(keys):
        raise ValueError(
            f"Pairs need a key for each clip, and a clip; got {len(scores)} clips and {len(keys)} keys."
        )
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    smallest = np.full(len(numbers), np.inf)
    with np.errstate(invalid="ignore"):
        np.minimum.at(smallest, [numbers[key] for key in keys], scores)
    return smallest


def num_single(keys: Sequence[str]) -> int:
    """How many frames have one clip only, and thus no pair."""
    _, counts = np.unique(np.asarray(keys, dtype=str), return_counts=True)
    return int((counts == 1).sum())
