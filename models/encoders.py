"""The networks that methods are built of, and what comes right behind them: pooling, cosines."""

from functools import partial
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import cfgs, make_layers

ImagePooling = Literal["max", "mean", "positions"]
"""How a frame's map becomes its embedding; `positions` keeps them all."""

SEGMENT_SHAPE = (1, 96, 64)
"""Channel, spectrogram frames and mel bins of a segment that VGGish hears"""


class RepeatedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running statistics move as if the same batch had been seen several times.

    SSL-TIE's authors encode the same spectrogram twice in a training step. Encoding it once gives the same
    output and gradients; only the running statistics would lag behind. Two updates with one batch are
    r <- 0.9 (0.9 r + 0.1 b) + 0.1 b, hence one update with momentum 1 - 0.9**passes.
    """

    def __init__(self, num_features: int, *, passes: int = 1) -> None:
        """Take the number of channels, and of updates that one training forward stands for."""
        super().__init__(num_features, momentum=1.0 - 0.9**passes)
        self.passes = passes

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(self.passes - 1)
        return super().forward(features)


class ResNet18Encoder(ResNet):
    """ResNet-18 without its head: (B, C, H, W) -> (B, 512, H/16, W/16), or as torchvision's /32.

    Parameter names are torchvision's. Initialisation is that of SSL-TIE's authors: Kaiming (fan-out) for
    convolutions, N(1, 0.02) for batch-norm weights, zero for their biases.
    """

    embedding_size = 512

    def __init__(self, in_channels: int, *, batch_norm_passes: int = 1, last_stride: int = 1) -> None:
        """Build the network.

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
        """Encode (B, C, H, W) into a map (B, 512, h, w), never negative; h = ceil(H/16 or /32)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(pictures))))  # (B, 64, H/4, W/4)
        features = self.layer1(features)
        features = self.layer2(features)  # (B, 128, H/8, W/8)
        features = self.layer3(features)  # (B, 256, H/16, W/16)
        return self.layer4(features)  # (B, 512, h, w)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class FrozenEncoder(nn.Module):
    """A network that is never trained: no gradients, always in eval mode."""

    def freeze(self) -> None:
        """Take gradients away; call it at the end of __init__."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked for."""
        del mode
        return super().train(False)


class VGG16Encoder(FrozenEncoder):
    """VGG-16 without its last ReLU: (B, 3, H, W) -> (B, 512, H/16, W/16), of either sign.

    Parameter names are torchvision's; SSPL's own files say `feat_extractor` for `features`.
    """

    embedding_size = 512

    def __init__(self) -> None:
        """Build the network with torchvision's initialisation."""
        super().__init__()
        # Entries 0 to 28 end with conv5_3, without its ReLU (29) and the pool (30).
        # Not vgg16(): its classifier would draw 124 million weights to throw them away.
        self.features = make_layers(cfgs["D"], batch_norm=False)[:29]
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.freeze()

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode normalised frames (B, 3, H, W) into (B, 512, H/16, W/16), rounded down."""
        return self.features(frames)


class VGGishEncoder(FrozenEncoder):
    """VGGish without PCA and quantisation: (B, S, 1, 96, 64) -> (B, S, 128), never negative.

    Hershey et al., "CNN Architectures for Large-Scale Audio Classification", ICASSP 2017. Parameter names are
    those of the released PyTorch weights.
    """

    embedding_size = 128

    def __init__(self) -> None:
        """Build the network with torch's default initialisation."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage in ((64,), (128,), (256, 256), (512, 512)):  # channels between two poolings
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(6 * 4 * channels, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, self.embedding_size),
            nn.ReLU(inplace=True),
        )
        self.freeze()

    @torch.no_grad()
    def forward(self, log_mel_segments: Tensor) -> Tensor:
        """Encode all segments (B, S, 1, 96, 64) of all clips at once, natural logarithm, 0.96 s each.

        Raises:
            ValueError: the segments have another shape.
        """
        shape = tuple(log_mel_segments.shape)
        if len(shape) != 5 or shape[2:] != SEGMENT_SHAPE:
            raise ValueError(f"log_mel_segments must be (B, segments, 1, 96, 64), got {shape}")
        features = self.features(log_mel_segments.flatten(0, 1))  # (B * S, 512, 6, 4)
        # The released weights come from TensorFlow: time, mel, channel is the order of the inputs.
        flat = features.permute(0, 2, 3, 1).flatten(1)  # (B * S, 12288)
        return self.embeddings(flat).unflatten(0, shape[:2])  # (B, S, 128)


def at_least_float32(features: Tensor) -> Tensor:
    """Return features of any floating type in float32, or in their own type if that is wider."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def global_max_pool(feature_map: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, D), the maximum over positions."""
    return torch.amax(feature_map, dim=(2, 3))


def pool_positions(visual_feature_map: Tensor, pooling: ImagePooling) -> Tensor:
    """Make embeddings of frames for retrieval.

    Args:
        visual_feature_map: (B, D, h, w), as the encoder gives it.
        pooling: max: the maximum over positions of each channel, as SSL-TIE pools its sounds; mean: their
            mean; positions: all of them, so that a sound's score with the frame is the highest value of their
            similarity map.

    Returns:
        (B, D) of unit norm; for positions (B, h * w, D), each position of unit norm.

    Raises:
        ValueError: there is no such pooling.
    """
    features = at_least_float32(visual_feature_map)
    if pooling == "max":
        return F.normalize(global_max_pool(features), dim=-1)
    if pooling == "mean":
        return F.normalize(features.mean(dim=(2, 3)), dim=-1)
    if pooling == "positions":
        return F.normalize(features.flatten(2).movedim(1, 2), dim=-1)
    raise ValueError(f"pooling must be one of {', '.join(get_args(ImagePooling))}, got {pooling!r}")


def similarity_map(visual_feature_map: Tensor, audio_embedding: Tensor) -> Tensor:
    """Cosine of each clip's sound (B, D) with each position of its own frame (B, D, h, w): (B, h, w).

    Both have unit norm along D.
    """
    return torch.einsum("bdhw,bd->bhw", visual_feature_map, audio_embedding)


def similarity_maps(visual_feature_map: Tensor, audio_embedding: Tensor) -> Tensor:
    """Cosine of every sound (A, D) with every position of every frame (B, D, h, w): (B, A, h, w).

    Both have unit norm along D; entry [i, j] is frame i with sound j.
    """
    return torch.einsum("bdhw,ad->bahw", visual_feature_map, audio_embedding)
