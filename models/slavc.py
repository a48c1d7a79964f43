"""SLAVC: what sounds at a position, and where a sound is, with slow copies of all networks as targets.

Mo, Morgado: "A Closer Look at Weakly-Supervised Audio-Visual Source Localization", NeurIPS 2022. With two
pairs of projections, 1 and 2, slow copies, "bar", W a softmax over sounds m, R one over positions x:

    s_nm = log sum_x W(<v1_n, a1bar_m>)(x) R(<v2_n, a2bar_m>)(x)        fast frames, slow sounds
    u_nm = log sum_x W(<v1bar_n, a1_m>)(x) R(<v2bar_n, a2_m>)(x)        slow frames, fast sounds
    loss = CE(rows of s) + CE(rows of u)

Kept as published:

1. The cross-entropies normalise s and u over sounds again.
2. Both are over sounds: frames never compete for a sound.
3. A slow weight moves to m slow + (1 - m) fast before each step, so by the weights after the step before: the
   first step changes nothing, and the copies of a trained model lag by one.
4. Slow networks are in train mode, on the same views: they normalise by statistics of their own, and drop
   elements of their own; the statistics are not averaged.
5. 0.9 of the elements of the frame features are dropped before the projections, of the sound's none.

Deliberate differences (more in models/peers.py): the scores are computed as logarithms, which is the same to
1e-15 and survives low precision. The fast networks localise, as in the authors' test commands; the maps that
their trainer prints, of the slow ones, are left out. A file without the slow copies gets equal ones.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.audio import SpectrogramConfig
from datasets.frames import FrameConfig
from models.contrast import own_sound_loss, what_and_where_logits
from models.encoders import global_max_pool
from models.ez_vsl import EZVSLConfig
from models.method import TrainingOutput
from models.peers import PeerLocaliser, project
from utils.distributed import gather_rows
from utils.options import option

NETWORKS = ("imgnet", "img_proj", "audnet", "aud_proj")


@dataclass(frozen=True, kw_only=True)
class SLAVCConfig(EZVSLConfig):
    """What defines the model and its loss; stored in the checkpoint."""

    dropout: float = option(0.9, at_least=0, at_most=0.999)
    """share of the frame features' elements that training drops"""
    frame_momentum: float = option(0.999, at_least=0, at_most=1)
    """m of the slow frame networks: share that a step leaves"""
    sound_momentum: float = option(0.999, at_least=0, at_most=1)  # m of the slow sound networks


class SLAVC(PeerLocaliser):
    """The localiser and its training loss."""

    num_projections = num_dropped = sound_stride = 2
    half_cosine = True

    def __init__(self, config: SLAVCConfig, *, audio: SpectrogramConfig, frame: FrameConfig) -> None:
        """Build the fast networks and equal slow ones, named as in the authors' files."""
        super().__init__(config, audio=audio, frame=frame)
        self.momentum_imgnet, self.momentum_img_proj = deepcopy(self.imgnet), deepcopy(self.img_proj)
        self.momentum_audnet, self.momentum_aud_proj = deepcopy(self.audnet), deepcopy(self.aud_proj)
        for name in NETWORKS:
            getattr(self, f"momentum_{name}").requires_grad_(False)

    def load_start(self, options: Any) -> None:  # noqa: ANN401
        """Load what a new run starts from: see `Method`; ImageNet's weights go into both."""
        super().load_start(options)
        if options.start.start == "imagenet":
            self.momentum_imgnet.load_state_dict(self.imgnet.state_dict())

    @torch.no_grad()
    def before_step(self, epoch: int, step: int) -> None:
        """Move the slow weights towards the fast ones; once per step, before the slow features."""
        for name in NETWORKS:
            share = self.config.frame_momentum if name.startswith("img") else self.config.sound_momentum
            slow, fast = getattr(self, f"momentum_{name}"), getattr(self, name)
            for copy, weight in zip(slow.parameters(), fast.parameters(), strict=True):
                copy.lerp_(weight, 1 - share)

    def forward(
        self,
        *,
        frames: Tensor,  # (B, 3, H, W), normalised
        log_spectrogram: Tensor,  # (B, 1, F, T)
        kept: Tensor | None = None,  # (B, 2, 512, h, w), factors of fast and of slow frame features: dropout
    ) -> TrainingOutput:
        """Compute a training step's loss: own frames against the sounds of all processes."""
        fast_kept, slow_kept = (None, None) if kept is None else kept.unbind(dim=1)  # (B, 512, h, w) each
        visual = self.visual_features(frames, fast_kept)  # (B, 2, 512, h, w)
        sound = self.sound_features(log_spectrogram)  # (B, 2, 512)
        with torch.no_grad():
            slow_visual = project(self.momentum_imgnet(frames), self.momentum_img_proj, slow_kept)
            pooled = global_max_pool(self.momentum_audnet(log_spectrogram))  # (B, 512)
            slow_sounds, own_offset = gather_rows(project(pooled, self.momentum_aud_proj))  # (A, 2, 512)
        sounds, _ = gather_rows(sound)  # (A, 2, 512)
        tau = self.config.temperature
        by_frames = own_sound_loss(what_and_where_logits(visual, slow_sounds, tau), own_offset)
        by_sounds = own_sound_loss(what_and_where_logits(slow_visual, sounds, tau), own_offset)
        terms = {"fast_frames": by_frames.detach(), "fast_sounds": by_sounds.detach()}
        return TrainingOutput(by_frames + by_sounds, terms, self.compare(visual, sound).detach())
