"""Where objects are, whatever sounds: the prior of EZ-VSL's object-guided localisation.

Mo and Morgado: "Localizing Visual Sounds the Easy Way", ECCV 2022. ResNet-18 as trained on ImageNet
answers wherever it sees something; the mean size of its last features over the channels is a map
that never hears the sound. Mixed with a model's map it scores higher, without any better hearing:
how much of a result is its doing is seen by scoring it alone.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoders import ResNet18Encoder
from models.official_weights import convert_strictly

CLASSIFIER = frozenset({"fc.weight", "fc.bias"})
"""Tensors of torchvision's file behind the last features."""


class ObjectPrior(nn.Module):
    """ResNet-18 of ImageNet, as a map."""

    def __init__(self) -> None:
        """Builds the network, randomly initialised; it needs the published weights."""
        super().__init__()
        self.encoder = ResNet18Encoder(3, last_stride=2)

    def object_maps(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) -> mean activation (B, H/32, W/32), never negative."""
        return self.encoder(frames).abs().mean(dim=1)


def convert_resnet18(official: Any, source: Path) -> dict[str, Tensor]:  # noqa: ANN401
    """State dict of torchvision's ResNet-18 -> that of ObjectPrior.encoder.

    Args:
        official: the file's content; its classifier is left out. Counters of batches, which only
            training needs, may be missing, as in files from before PyTorch 0.4.1.
        source: of the file, for messages.

    Returns:
        state dict that ObjectPrior.encoder loads strictly.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    with torch.device("meta"):  # names and shapes only
        expected = ResNet18Encoder(3, last_stride=2).state_dict()
    counters = [name for name in expected if name.endswith("num_batches_tracked")]
    if isinstance(official, dict):
        official = {name: torch.tensor(0) for name in counters} | official
    return convert_strictly(
        official,
        source,
        expected=expected,
        renamed={},
        is_ignored=CLASSIFIER.__contains__,
        what="ResNet-18 of torchvision",
    )
