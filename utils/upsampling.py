"""Up-sampling of similarity maps, as the field's programs do it, on any device."""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Upsampling = Literal["cv2_linear", "bilinear_align_corners", "bicubic", "bicubic_align_corners"]

UPSAMPLING_WORDS: dict[Upsampling, str] = {
    "cv2_linear": "cv2 bilinear, half-pixel centres",
    "bilinear_align_corners": "bilinear, corners aligned",
    "bicubic": "bicubic, half-pixel centres",
    "bicubic_align_corners": "bicubic, corners aligned",
}


def upsample_maps(maps: Tensor, upsampling: Upsampling, map_size: int) -> Tensor:
    """Resizes maps to squares.

    cv2_linear gives the bits of cv2.resize(…, interpolation=cv2.INTER_LINEAR) on float32 maps; the
    others are PyTorch's own, whose last bit can differ between devices.

    Args:
        maps: (B, h, w) of any floating type.
        upsampling: how.
        map_size: M, side of the result, pixels.

    Returns:
        (B, M, M) float32, on the device of the maps.
    """
    maps = maps.float()
    size = (map_size, map_size)
    if upsampling == "cv2_linear":
        columns_first = _along_rows(maps.mT.contiguous(), map_size).mT.contiguous()
        return _along_rows(columns_first, map_size)
    mode, _, corners = upsampling.partition("_")
    return F.interpolate(maps[:, None], size, mode=mode, align_corners=bool(corners))[:, 0]


def _along_rows(maps: Tensor, size: int) -> Tensor:
    """(B, h, w) -> (B, size, w), linear between the two nearest rows, constant beyond the edge.

    cv2 rounds once after multiplying and adding; in float64 products of float32 are exact.
    """
    above, share = (torch.from_numpy(part).to(maps.device) for part in _places(maps.shape[1], size))
    step = torch.diff(maps, dim=1, append=maps[:, -1:]).double()
    resized = maps.double().index_select(1, above)
    return resized.addcmul_(step.index_select(1, above), share[:, None]).float()


@lru_cache(maxsize=16)
def _places(small: int, large: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(large,) row before each place, and its share (large,) of the way to the next one."""
    places = (np.arange(large) + 0.5) * (small / large) - 0.5
    before = np.floor(places)
    share = (places - before).astype(np.float32)
    share[(before < 0) | (before >= small - 1)] = 0
    return before.clip(0, small - 1).astype(np.int64), share.astype(np.float64)
