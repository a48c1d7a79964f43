"""Half-precision networks, full-precision heads."""

import torch
from torch import Tensor


def at_least_float32(features: Tensor) -> Tensor:
    """Features of any floating type -> the same in float32, or in their own if that is wider."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
