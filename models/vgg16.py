"""VGG-16 up to its last convolution: the frozen image encoder of SSPL."""

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

NUM_LAYERS = 29
"""Entries 0 to 28 of torchvision's `features`: conv5_3, without its ReLU (29) and the pool (30)."""


class VGG16Encoder(nn.Module):
    """VGG-16 without its last ReLU: (B, 3, H, W) -> (B, 512, H/16, W/16), of either sign.

    Parameter names are torchvision's; SSPL's own files say `feat_extractor` for `features`.
    Nothing in it is trained, and it is always in eval mode.
    """

    embedding_size = 512

    def __init__(self) -> None:
        """Builds the network with torchvision's initialisation."""
        super().__init__()
        # Not vgg16(): its classifier would draw 124 million weights to throw them away.
        self.features = make_layers(cfgs["D"], batch_norm=False)[:NUM_LAYERS]
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "VGG16Encoder":
        """Stays in eval mode, whatever is asked for: the encoder is frozen."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Encodes frames, normalised with ImageNet's mean and deviation.

        Args:
            frames: (B, 3, H, W).

        Returns:
            (B, 512, floor(H/16), floor(W/16)), without gradient.
        """
        return self.features(frames)
