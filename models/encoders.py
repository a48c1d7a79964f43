"""Visual and audio encoders, built on torchvision's networks."""

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet


class RepeatedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running statistics move as if the same batch had been seen several times.

    The authors encode the same spectrogram twice in a training step. Encoding it once gives the
    same output and gradients; only the running statistics would lag behind. Two updates with one
    batch are r <- 0.9 (0.9 r + 0.1 b) + 0.1 b, hence one update with momentum 1 - 0.9**passes.
    """

    def __init__(self, num_features: int, *, passes: int = 1) -> None:
        """Prepares the layer.

        Args:
            num_features: channels.
            passes: how many updates one training forward stands for, at least 1.
        """
        super().__init__(num_features, momentum=1.0 - 0.9**passes)
        self.passes = passes

    def forward(self, features: Tensor) -> Tensor:
        """Normalises (B, C, h, w)."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(self.passes - 1)
        return super().forward(features)


class ResNet18Encoder(ResNet):
    """ResNet-18 without its head: (B, C, H, W) -> (B, 512, H/16, W/16), or as torchvision's /32.

    Parameter names are torchvision's. Initialisation is the authors': Kaiming (fan-out) for
    convolutions, N(1, 0.02) for batch-norm weights, zero for their biases (SSL-TIE, supplementary
    facts of the released program).
    """

    embedding_size = 512

    def __init__(self, in_channels: int, *, batch_norm_passes: int = 1, last_stride: int = 1) -> None:
        """Builds the network.

        Args:
            in_channels: 3 for frames, 1 for spectrograms.
            batch_norm_passes: see RepeatedBatchNorm2d.
            last_stride: of the last stage: 1 for H/16, torchvision's 2 for H/32.
        """
        norm_layer = partial(RepeatedBatchNorm2d, passes=batch_norm_passes)
        super().__init__(BasicBlock, [2, 2, 2, 2], norm_layer=norm_layer)
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        first_block = self.layer4[0]
        first_block.conv1.stride = (last_stride, last_stride)
        first_block.downsample[0].stride = (last_stride, last_stride)
        del self.avgpool, self.fc
        self.apply(_initialise)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encodes (B, C, H, W) into a map (B, 512, h, w), never negative; h = ceil(H/16 or /32)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(pictures))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        return features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def global_max_pool(feature_map: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, D), the maximum over positions."""
    return torch.amax(feature_map, dim=(2, 3))
