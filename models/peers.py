"""Networks of other published localisers, in training and in tests; what their methods share.

LVS (Chen et al., CVPR 2021), EZ-VSL (Mo and Morgado, ECCV 2022), SLAVC (Mo and Morgado, NeurIPS 2022), FNAC
(Sun et al., CVPR 2023) and SSL-Align (Senocak et al., ICCV 2023) are one network with few differences: two
ResNet-18, the sound's map reduced to its maximum over positions, a projection or none, and the cosine of the
sound with every position of the frame. EZ-VSL and FNAC have the same names, shapes, inputs and map. SSL-Align
is only scored: neither its trainer nor its loss is public.

Deliberate differences from the authors' programs:

1. The map is the cosine. EZ-VSL, SLAVC and FNAC divide it by tau, which no scoring rule sees: a normalised
   map stays the same, and SLAVC's fixed threshold takes tau out again.
2. Negatives and batch norms see the clips of all processes; theirs only those of one GPU.
3. A broken clip is left out and named; theirs put another one in its place.
4. Crops, flips, masks and dropout follow from the seed; theirs are not seeded (FNAC: some of them).

Kept: training cuts squares out of frames of their own shape, a test squashes frames. Of square ones both are
the authors' own.

Files are read by models/released.py; how all this was checked stands in docs/peers.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.audio import SpectrogramConfig
from datasets.augmentation import CUT_OUT_MARGIN, CUT_OUT_NUMBERS, cut_out, draw_for_clips
from datasets.clips import Batch
from datasets.frames import FrameConfig, as_float, normalise
from datasets.loaders import hash_seed
from models.encoders import (
    ImagePooling,
    ResNet18Encoder,
    at_least_float32,
    global_max_pool,
    pool_positions,
    similarity_map,
)
from models.method import AdamRecipe, Method, StartOptions, Views
from utils.options import option


@dataclass(frozen=True, kw_only=True)
class ImageNetStart(StartOptions):
    """What a new run starts from; published is ImageNet."""

    start: str = "imagenet"


@dataclass(frozen=True, kw_only=True)
class PeerRecipe(AdamRecipe):
    """How EZ-VSL and SLAVC are optimised: Adam with one constant rate, as published for 144k clips."""

    epochs: int = option(20, at_least=1)
    batch_size: int = option(128, at_least=2)
    weight_decay: float = option(0.0, at_least=0)


class PeerLocaliser(Method):
    """Two encoders and P pairs of projections; P = 1 stands for none below."""

    keep_shape = True
    margin = CUT_OUT_MARGIN
    num_projections = 0
    """pairs of projections over which the map is averaged; 0: encoders' features are compared"""
    num_dropped = 0  # networks whose frame features lose elements in training
    sound_stride: Literal[1, 2] = 1
    """of the sound encoder's last stage, as published; `last_stride` is of the frame encoder's"""
    sound_numbers = 0  # numbers in [0, 1) that `training_sounds` needs of a clip

    def __init__(self, config: Any, *, audio: SpectrogramConfig, frame: FrameConfig) -> None:  # noqa: ANN401
        """Build the networks; `config` has `last_stride`, and `dropout` where num_dropped is not 0."""
        super().__init__(audio, frame)
        self.config = config
        width = ResNet18Encoder.embedding_size
        self.imgnet = ResNet18Encoder(3, last_stride=config.last_stride)
        self.audnet = ResNet18Encoder(1, last_stride=self.sound_stride)
        self.img_proj = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(self.num_projections))
        self.aud_proj = nn.ModuleList(nn.Linear(width, width) for _ in range(self.num_projections))
        for part in (*self.img_proj, *self.aud_proj):
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.01)

    # ------------------------------------------------------------------------------------ training views

    @torch.no_grad()
    def augment(self, batch: Batch, seed: int, *, first: int = 0, global_size: int | None = None) -> Views:
        """Make the arguments of `forward` of a batch: see `Method`."""
        count, parts = len(batch), [CUT_OUT_NUMBERS, self.sound_numbers]
        numbers = draw_for_clips(seed, count, sum(parts), first=first, total=global_size)
        for_frames, for_sounds = numbers.split(parts, dim=1)
        frames = cut_out(batch.frames, batch.picture_sizes, self.frame.frame_size, for_frames)
        views = {
            "frames": normalise(as_float(frames)),  # (B, 3, S, S)
            "log_spectrogram": self.training_sounds(batch.waveforms, for_sounds),  # (B, 1, F, T)
        }
        if self.num_dropped and self.config.dropout:
            kept = 1 - self.config.dropout
            generator = torch.Generator(batch.frames.device).manual_seed(
                hash_seed(seed, 1)
            )  # apart from the crops
            side = self.frame.frame_size // (16 * self.config.last_stride)
            size = (global_size or count, self.num_dropped, self.imgnet.embedding_size, side, side)
            drawn = torch.rand(size, generator=generator, device=batch.frames.device)
            views["kept"] = (drawn[first : first + count] < kept) / kept  # (B, K, 512, h, w)
        return views

    def training_sounds(self, waveforms: Tensor, numbers: Tensor) -> Tensor:
        """Turn windows (B, L), each with its numbers in [0, 1), into what training hears: (B, 1, F, T)."""
        return self.front_end(waveforms)

    # ----------------------------------------------------------------------- localisation and retrieval

    def visual_features(self, frames: Tensor, kept: Tensor | None = None) -> Tensor:
        """Encode normalised frames (B, 3, H, W) -> (B, P, 512, h, w), unit norm; h = H/16 or H/32.

        In training, features are multiplied by `kept`, (B, 512, h, w), before they are projected.
        """
        return project(self.imgnet(frames), self.img_proj, kept)

    def sound_features(self, log_spectrogram: Tensor) -> Tensor:
        """Encode log-spectrograms (B, 1, F, T) -> (B, P, 512), unit norm."""
        return project(global_max_pool(self.audnet(log_spectrogram)), self.aud_proj)

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Compare features of B frames and of as many sounds: similarity maps (B, h, w) in [-1, 1]."""
        pairs = zip(visual.unbind(dim=1), sound.unbind(dim=1), strict=True)
        maps = [similarity_map(frames, sounds) for frames, sounds in pairs]  # P of (B, h, w)
        return torch.stack(maps).mean(dim=0)

    def embed_audio(self, log_spectrogram: Tensor) -> Tensor:
        """Embed sounds for retrieval: (B, P * 512), of unit norm."""
        return F.normalize(self.sound_features(log_spectrogram).flatten(1), dim=1)

    def embed_frames(self, frames: Tensor, pooling: ImagePooling = "max") -> Tensor:
        """Embed frames (B, 3, H, W) for retrieval: see `pool_positions`, of the features that localise."""
        return pool_positions(self.visual_features(frames).flatten(1, 2), pooling)


def project(encoded: Tensor, projections: Iterable[nn.Module], kept: Tensor | None = None) -> Tensor:
    """Project features (B, 512, ...), the share that is kept, to (B, P, 512, ...) of unit norm."""
    encoded = encoded if kept is None else encoded * kept
    projected = [projection(encoded) for projection in projections] or [encoded]
    return F.normalize(at_least_float32(torch.stack(projected, dim=1)), dim=2)
