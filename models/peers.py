"""Networks of other published localisers, which are scored beside the methods of this project.

LVS (Chen et al., CVPR 2021), EZ-VSL (Mo and Morgado, ECCV 2022), SLAVC (Mo and Morgado, NeurIPS
2022), FNAC (Sun et al., CVPR 2023) and SSL-Align (Senocak et al., ICCV 2023) are one network with
few differences: two ResNet-18, the sound's map reduced to its maximum over positions, a projection
or none, and the cosine of the sound with every position of the frame. EZ-VSL and FNAC have the same
names, shapes, inputs and map.

Deliberate differences from the authors' programs:

1. The map is the cosine. EZ-VSL, SLAVC and FNAC divide it by tau, which no scoring rule sees: a
   normalised map stays the same, and SLAVC's fixed threshold takes tau out again.
2. Dropout before the projections (SLAVC, FNAC) is left out: it does nothing at test.
3. SLAVC's momentum networks are left out: its test program does not use them either.

Maps equal those of the authors' programs with the same weights (tests/goldens/peers.npz); no released file
could be had. Their files are read by models/released.py; more in docs/peers.md.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.audio import AlignSpectrogramConfig, MiddleSpectrogramConfig, SpectrogramConfig
from datasets.frames import FrameConfig
from models.encoders import ResNet18Encoder, global_max_pool, similarity_map
from models.method import Method


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """What sets one peer apart from the others."""

    audio: type[SpectrogramConfig]
    """the sound that it hears"""
    last_stride: Literal[1, 2]
    """of both encoders' last stage: maps of 14 x 14 or of 7 x 7"""
    num_projections: int = 0
    """pairs of projections over which the map is averaged; 0: encoders' features are compared"""
    half_cosine: bool = False
    """see Method"""


PEERS: dict[str, PeerConfig] = {
    "lvs": PeerConfig(audio=SpectrogramConfig, last_stride=1),
    "ssl_align": PeerConfig(audio=AlignSpectrogramConfig, last_stride=1),
    "ez_vsl_or_fnac": PeerConfig(
        audio=MiddleSpectrogramConfig, last_stride=2, num_projections=1, half_cosine=True
    ),
    "slavc": PeerConfig(audio=MiddleSpectrogramConfig, last_stride=2, num_projections=2, half_cosine=True),
}


class PeerLocaliser(Method):
    """Two encoders and P pairs of projections; P = 1 stands for none below. It is scored, never trained."""

    def __init__(self, config: PeerConfig, audio: SpectrogramConfig | None = None) -> None:
        super().__init__(audio or config.audio(), FrameConfig())
        self.half_cosine = config.half_cosine
        width = ResNet18Encoder.embedding_size
        self.imgnet = ResNet18Encoder(3, last_stride=config.last_stride)
        self.audnet = ResNet18Encoder(1, last_stride=config.last_stride)
        self.img_proj = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(config.num_projections))
        self.aud_proj = nn.ModuleList(nn.Linear(width, width) for _ in range(config.num_projections))

    def visual_features(self, frames: Tensor) -> Tensor:
        """Encode normalised frames (B, 3, H, W) -> (B, P, 512, h, w), unit norm; h = H/16 or H/32."""
        encoded = self.imgnet(frames)  # (B, 512, h, w)
        projected = [projection(encoded) for projection in self.img_proj] or [encoded]
        return F.normalize(torch.stack(projected, dim=1), dim=2)  # (B, P, 512, h, w)

    def sound_features(self, log_spectrogram: Tensor) -> Tensor:
        """Encode log-spectrograms (B, 1, F, T) -> (B, P, 512), unit norm."""
        encoded = global_max_pool(self.audnet(log_spectrogram))  # (B, 512)
        projected = [projection(encoded) for projection in self.aud_proj] or [encoded]
        return F.normalize(torch.stack(projected, dim=1), dim=2)  # (B, P, 512)

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Compare features of B frames and of as many sounds: similarity maps (B, h, w) in [-1, 1]."""
        pairs = zip(visual.unbind(dim=1), sound.unbind(dim=1), strict=True)
        maps = [similarity_map(frames, sounds) for frames, sounds in pairs]  # P of (B, h, w)
        return torch.stack(maps).mean(dim=0)


class ObjectPrior(nn.Module):
    """Where objects are, whatever sounds: the prior of EZ-VSL's object-guided localisation.

    ResNet-18 as trained on ImageNet answers wherever it sees something; the mean size of its last
    features is a map that never hears the sound. Mixed with a model's map it scores higher, without any
    better hearing: how much of a result is its doing is seen by scoring it alone.
    """

    def __init__(self) -> None:
        """Builds the network, randomly initialised: models.released.load_object_prior has the weights."""
        super().__init__()
        self.encoder = ResNet18Encoder(3, last_stride=2)

    def object_maps(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) -> mean activation (B, H/32, W/32), never negative."""
        return self.encoder(frames).abs().mean(dim=1)
