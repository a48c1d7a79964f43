"""VGGish: the frozen audio encoder of SSPL."""

import torch
from torch import Tensor, nn

SEGMENT_SHAPE = (1, 96, 64)
"""Channel, spectrogram frames and mel bins of a segment."""

STAGES = ((64,), (128,), (256, 256), (512, 512))
"""Channels of the convolutions between two poolings."""


class VGGishEncoder(nn.Module):
    """VGGish without PCA and quantisation: (B, S, 1, 96, 64) -> (B, S, 128), never negative.

    Hershey et al., "CNN Architectures for Large-Scale Audio Classification", ICASSP 2017.
    Parameter names are those of the released PyTorch weights. Nothing in it is trained, and it is
    always in eval mode.
    """

    embedding_size = 128

    def __init__(self) -> None:
        """Builds the network with torch's default initialisation."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage in STAGES:
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
        self.eval()

    def train(self, mode: bool = True) -> "VGGishEncoder":
        """Stays in eval mode, whatever is asked for: the encoder is frozen."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, log_mel_segments: Tensor) -> Tensor:
        """Encodes all segments of all clips at once.

        Args:
            log_mel_segments: (B, S, 1, 96, 64), natural logarithm, 0.96 s each.

        Returns:
            (B, S, 128), at least 0, without gradient.

        Raises:
            ValueError: the segments have another shape.
        """
        shape = tuple(log_mel_segments.shape)
        if len(shape) != 5 or shape[2:] != SEGMENT_SHAPE:
            raise ValueError(f"log_mel_segments must be (B, segments, 1, 96, 64), got {shape}")
        features = self.features(log_mel_segments.flatten(0, 1))
        # The released weights come from TensorFlow: time, mel, channel is the order of the inputs.
        flat = features.permute(0, 2, 3, 1).flatten(1)
        return self.embeddings(flat).unflatten(0, shape[:2])
