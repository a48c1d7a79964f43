"""The networks that methods are built of, and what comes right behind them: pooling, cosines."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ImagePooling = Literal["max", "mean", "positions"]
"""How a frame's map becomes its embedding; `positions` keeps them all."""


class RepeatedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running statistics move as if the same batch had been seen several times.

    SSL-TIE's authors encode the same spectrogram twice in a training step. Encoding it once gives the same
    output and gradients; only the running statistics would lag behind. Two updates with one batch are
    r <- 0.9 (0.9 r + 0.1 b) + 0.1 b, hence one update with momentum 1 - 0.9**passes.
    """

    def __init__(self, num_features: int, *, passes: int) -> None:
        super().__init__(num_features, momentum=1.0 - 0.9**passes)
        self.passes = passes

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(self.passes - 1)
        return super().forward(features)


class ResNet18Encoder(nn.Module):
    """ResNet-18 without its head: (B, C, H, W) -> (B, 512, H/16, W/16), or as torchvision's /32.

    Parameter names are torchvision's. Initialisation is that of SSL-TIE's authors: Kaiming (fan-out) for
    convolutions, N(1, 0.02) for batch-norm weights, zero for their biases.
    """

    embedding_size = 512

    def __init__(self, in_channels: int, *, batch_norm_passes: int = 1, last_stride: int = 1) -> None:
        """Build it for frames (3 channels) or spectrograms (1); `last_stride` is of the last stage."""
        from torchvision.models.resnet import BasicBlock, ResNet  # noqa: PLC0415 - two seconds, --help does without

        super().__init__()
        norm_layer = partial(RepeatedBatchNorm2d, passes=batch_norm_passes)
        network = ResNet(BasicBlock, [2, 2, 2, 2], norm_layer=norm_layer)
        if in_channels != 3:
            network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        first_block = network.layer4[0]
        first_block.conv1.stride = first_block.downsample[0].stride = (last_stride, last_stride)
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.apply(_initialise)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode (B, C, H, W) into a map (B, 512, h, w), never negative; h = ceil(H/16 or /32)."""
        features = F.relu(self.bn1(self.conv1(pictures)), inplace=True)  # (B, 64, H/2, W/2)
        features = F.max_pool2d(features, 3, stride=2, padding=1)  # (B, 64, H/4, W/4)
        features = self.layer1(features)
        features = self.layer2(features)  # (B, 128, H/8, W/8)
        features = self.layer3(features)  # (B, 256, H/16, W/16)
        return self.layer4(features)  # (B, 512, h, w)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class VGG16Encoder(nn.Module):
    """VGG-16 without its last ReLU, frozen: (B, 3, H, W) -> (B, 512, H/16, W/16), of either sign.

    Parameter names are torchvision's; SSPL's own files say `feat_extractor` for `features`.
    """

    embedding_size = 512

    def __init__(self) -> None:
        from torchvision.models.vgg import cfgs, make_layers  # noqa: PLC0415 - as above

        super().__init__()
        # Entries 0 to 28 end with conv5_3, without its ReLU (29) and the pool (30).
        # Not vgg16(): its classifier would draw 124 million weights to throw them away.
        self.features = make_layers(cfgs["D"], batch_norm=False)[:29]
        self.features.apply(_initialise)  # as torchvision does
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode normalised frames (B, 3, H, W) into (B, 512, H/16, W/16), rounded down."""
        return self.features(frames)


class VGGishEncoder(nn.Module):
    """VGGish without PCA and quantisation, frozen: (B, S, 1, 96, 64) -> (B, S, 128), never negative.

    Hershey et al., "CNN Architectures for Large-Scale Audio Classification", ICASSP 2017. Parameter names are
    those of the released PyTorch weights.
    """

    embedding_size = 128

    def __init__(self) -> None:
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
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, log_mel_segments: Tensor) -> Tensor:
        """Encode all segments (B, S, 1, 96, 64) of all clips at once, natural logarithm, 0.96 s each."""
        features = self.features(log_mel_segments.flatten(0, 1))  # (B * S, 512, 6, 4)
        # The released weights come from TensorFlow: time, mel, channel is the order of the inputs.
        flat = features.permute(0, 2, 3, 1).flatten(1)  # (B * S, 12288)
        return self.embeddings(flat).unflatten(0, log_mel_segments.shape[:2])  # (B, S, 128)


def at_least_float32(features: Tensor) -> Tensor:
    """Return features of any floating type in float32, or in their own type if that is wider."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def global_max_pool(feature_map: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, D), the maximum over positions."""
    return torch.amax(feature_map, dim=(2, 3))


def pool_positions(visual_feature_map: Tensor, pooling: ImagePooling) -> Tensor:
    """Make embeddings of frames (B, D, h, w) for retrieval: (B, D), or (B, h * w, D), each of unit norm.

    max: the maximum over positions of each channel, as SSL-TIE pools its sounds; mean: their mean; positions:
    all of them, so that a sound's score with the frame is the highest value of their similarity map.
    """
    features = at_least_float32(visual_feature_map)
    if pooling == "max":
        return F.normalize(global_max_pool(features), dim=-1)
    if pooling == "mean":
        return F.normalize(features.mean(dim=(2, 3)), dim=-1)
    if pooling == "positions":
        return F.normalize(features.flatten(2).movedim(1, 2), dim=-1)
    raise ValueError(f"pooling must be one of max, mean, positions, got {pooling!r}")


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
