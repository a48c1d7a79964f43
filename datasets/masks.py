"""Masks of the benchmarks that outline the object pixel by pixel."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.frames import FrameGeometry
from utils.files import BrokenFileError

COLOUR_MODES = frozenset({"P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes in which a value is no brightness, or has an opacity beside it."""


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Decodes a mask: whatever is not black is the object.

    Args:
        path: a picture; of several channels each counts, opacity does not.

    Returns:
        (H, W), True on the object.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            decoded = picture.convert("RGB") if picture.mode in COLOUR_MODES else picture
            values = np.asarray(decoded)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any type
        raise BrokenFileError(path, str(error) or type(error).__name__) from error
    return np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))


def mask_map(
    path: Path, geometry: FrameGeometry, frame_size: tuple[int, int], size: int
) -> NDArray[np.float32]:
    """Ground-truth map of a mask: 1 on the object, 0 elsewhere.

    The mask covers its frame whatever its own size; it goes the frame's way to the square and on to
    the map's size, each pixel taking the value of the nearest one.

    Args:
        path: of the mask.
        geometry: from the frame on disk to the square.
        frame_size: width and height of the frame on disk, pixels.
        size: side of the map, pixels.

    Returns:
        (size, size) of 0 and 1.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    mask = Image.fromarray(read_mask(path).astype(np.uint8))
    nearest = Image.Resampling.NEAREST
    square = geometry.apply_to_mask(mask.resize(frame_size, nearest))
    return np.asarray(square.resize((size, size), nearest), dtype=np.float32)
