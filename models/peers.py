"""Published localisers that can be scored beside the methods of this project, but not trained.

LVS (Chen et al., CVPR 2021), EZ-VSL (Mo and Morgado, ECCV 2022), SLAVC (Mo and Morgado, NeurIPS
2022), FNAC (Sun et al., CVPR 2023) and SSL-Align (Senocak et al., ICCV 2023) are one network with
few differences: two ResNet-18, the sound's map reduced to its maximum over positions, a projection
or none, and the cosine of the sound with every position of the frame.

Deliberate differences from the authors' programs:

1. The map is the cosine. EZ-VSL, SLAVC and FNAC divide it by tau, which no scoring rule sees: a
   normalised map stays the same, and SLAVC's fixed threshold takes tau out again.
2. Dropout before the projections (SLAVC, FNAC) is left out: it does nothing at test.
3. SLAVC's momentum networks are left out. That its other networks localise is our reading.

Read from descriptions of the programs; no released file could be had to compare with. What is
known of each, and what is not: docs/peers.md.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders import ResNet18Encoder, global_max_pool
from models.similarity import similarity_map


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """What sets one peer apart from the others."""

    title: str
    """its name in papers"""
    entry: Literal["model_state_dict", "model"]
    """under which its file holds the weights"""
    data_parallel: bool | None = None
    """whether the names in its file begin with `module.`; None: with or without"""
    last_stride: Literal[1, 2]
    """of both encoders' last stage: maps of 14 x 14 or of 7 x 7"""
    projections: tuple[str, ...] = ()
    """endings of `img_proj` and `aud_proj` in its file, one for each pair of projections, over
    which the map is averaged; none: the encoders' features are compared as they are"""


PEERS: dict[str, PeerConfig] = {
    "lvs": PeerConfig(title="LVS", entry="model_state_dict", data_parallel=True, last_stride=1),
    "ssl_align": PeerConfig(title="SSL-Align", entry="model_state_dict", data_parallel=False, last_stride=1),
    "ez_vsl_or_fnac": PeerConfig(title="EZ-VSL or FNAC", entry="model", last_stride=2, projections=("",)),
    "slavc": PeerConfig(title="SLAVC", entry="model", last_stride=2, projections=("1", "2")),
}
"""Every peer, by name. EZ-VSL and FNAC have the same names, shapes, inputs and map: no file tells
which of the two it is."""


class PeerLocaliser(nn.Module):
    """A peer's networks, for testing only."""

    def __init__(self, config: PeerConfig) -> None:
        """Builds both encoders and the projections, randomly initialised.

        Args:
            config: a value of PEERS.
        """
        super().__init__()
        self.imgnet = ResNet18Encoder(3, last_stride=config.last_stride)
        self.audnet = ResNet18Encoder(1, last_stride=config.last_stride)
        width = ResNet18Encoder.embedding_size
        self.img_proj = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in config.projections)
        self.aud_proj = nn.ModuleList(nn.Linear(width, width) for _ in config.projections)

    def visual_features(self, frames: Tensor) -> Tensor:
        """What `compare` needs of frames.

        Args:
            frames: (B, 3, H, W), normalised.

        Returns:
            (B, P, 512, h, w), h = H/16 or H/32, of unit norm: the map under each of the P
            projections, or without any the encoder's (P = 1).
        """
        encoded = self.imgnet(frames)
        projected = [projection(encoded) for projection in self.img_proj] or [encoded]
        return F.normalize(torch.stack(projected, dim=1), dim=2)

    def sound_features(self, log_spectrogram: Tensor) -> Tensor:
        """What `compare` needs of sounds.

        Args:
            log_spectrogram: (B, 1, F, T), see datasets/audio.py.

        Returns:
            (B, P, 512), of unit norm, as `visual_features`.
        """
        encoded = global_max_pool(self.audnet(log_spectrogram))
        projected = [projection(encoded) for projection in self.aud_proj] or [encoded]
        return F.normalize(torch.stack(projected, dim=1), dim=2)

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Features of B frames and of as many sounds -> similarity maps (B, h, w) in [-1, 1]."""
        pairs = zip(visual.unbind(dim=1), sound.unbind(dim=1), strict=True)
        return torch.stack([similarity_map(*pair) for pair in pairs]).mean(dim=0)

    def localise(self, frames: Tensor, log_spectrogram: Tensor) -> Tensor:
        """Similarity map of each frame with its own sound.

        Args:
            frames: (B, 3, H, W), normalised.
            log_spectrogram: (B, 1, F, T), see datasets/audio.py.

        Returns:
            (B, h, w) in [-1, 1], h = H/16 or H/32.
        """
        return self.compare(self.visual_features(frames), self.sound_features(log_spectrogram))
