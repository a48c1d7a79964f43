"""From a visual feature map to what is compared with sounds in retrieval."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoders import global_max_pool

ImagePooling = Literal["max", "mean", "positions"]
"""How a frame's map becomes its embedding; `positions` keeps them all."""


def pool_positions(visual_feature_map: Tensor, pooling: ImagePooling) -> Tensor:
    """Embeddings of frames for retrieval.

    Args:
        visual_feature_map: (B, D, h, w), as the encoder gives it.
        pooling: max: the maximum over positions of each channel, as SSL-TIE pools its sounds; mean:
            their mean; positions: all of them, so that a sound's score with the frame is the
            highest value of their similarity map.

    Returns:
        (B, D) of unit norm; for positions (B, h * w, D), each position of unit norm.

    Raises:
        ValueError: there is no such pooling.
    """
    features = visual_feature_map.to(torch.promote_types(visual_feature_map.dtype, torch.float32))
    if pooling == "max":
        return F.normalize(global_max_pool(features), dim=-1)
    if pooling == "mean":
        return F.normalize(features.mean(dim=(2, 3)), dim=-1)
    if pooling == "positions":
        return F.normalize(features.flatten(2).movedim(1, 2), dim=-1)
    raise ValueError(f"pooling must be one of {', '.join(get_args(ImagePooling))}, got {pooling!r}")
