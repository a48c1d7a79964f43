"""FNAC: EZ-VSL, with similarities among sounds and among frames against false negatives.

Sun, Zhang, Wang, Liu, Zhong, Feng, Guo, Zhang, Barnes: "Learning Audio-Visual Source Localization via False
Negative Aware Contrastive Learning", CVPR 2023. With l as in models/ez_vsl.py, softmax over the last index:

    A = softmax(a a^T / tau),   I = softmax(g g^T / tau),  g_n = mean_x v_n(x)
    F = softmax(f f^T / tau),   f_n = mean_x v_n(x) [N_n(x) > 0.6],  N_n: own map / tau, min-max normalised
    loss = CE(rows of l) + CE(columns of l)
           + w1 mean|A - softmax(l)| + w2 mean|A - F| + w3 mean|I - softmax(l)|    after the warm-up; w = 100

Kept as published:

1. No stop-gradient: similarities learn from logits, and logits from them. The mask alone has no gradient.
2. f and g are means over all positions and not normalised again.
3. The means are over B x B entries of rows that sum to 1, so they fall like 1 / B: 100 belongs to batch 256.
4. The warm-up counts epochs, whatever their length.
5. 0.9 of the elements of the frame features are dropped before the projection, of the sound's none.
6. The masks are bands of rows that start within the number of columns, and stretches of columns that start
   within the number of rows, so that some lie outside; they are filled with 0, louder than all that is real.

Deliberate differences: models/peers.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.contrast import both_ways_losses, peak_logits
from models.ez_vsl import EZVSL, EZVSLConfig
from models.method import AdamRecipe, TrainingOutput
from utils.distributed import gather_rows
from utils.options import option

MASK_SIZES = 10  # 0 to 9 rows, and as many columns
FOREGROUND = 0.6  # normalised similarity above which a position is foreground


@dataclass(frozen=True, kw_only=True)
class FNACConfig(EZVSLConfig):
    """What defines the model and its loss; stored in the checkpoint."""

    dropout: float = option(0.9, at_least=0, at_most=0.999)
    """share of the frame features' elements that training drops"""
    warm_up_epochs: int = option(5, at_least=0)  # first epochs, without the three regularising terms
    fns1_weight: float = option(100.0, at_least=0)
    """w1, of what sounds among themselves tell about false negatives; made for batch 256, as the next two"""
    tns_weight: float = option(100.0, at_least=0)
    """w2, of what sounds tell about the frames' foregrounds: true negatives"""
    fns2_weight: float = option(100.0, at_least=0)
    """w3, of what frames among themselves tell about false negatives"""


@dataclass(frozen=True, kw_only=True)
class FNACRecipe(AdamRecipe):
    """How FNAC is optimised, as published: Adam with one constant rate."""

    epochs: int = option(30, at_least=1)
    batch_size: int = option(256, at_least=2)


class FNAC(EZVSL):
    """The localiser and its training loss."""

    num_dropped = 1
    sound_numbers = 4
    is_warm = True

    def before_step(self, epoch: int, step: int) -> None:
        """Leave the regularising terms out of the first epochs."""
        self.is_warm = epoch >= self.config.warm_up_epochs

    def training_sounds(self, waveforms: Tensor, numbers: Tensor) -> Tensor:
        """Turn windows (B, L) into (B, 1, F, T), masked where its numbers (B, 4) in [0, 1) say."""
        return mask(super().training_sounds(waveforms, numbers), numbers)

    def forward(
        self,
        *,
        frames: Tensor,  # (B, 3, H, W), normalised
        log_spectrogram: Tensor,  # (B, 1, F, T)
        kept: Tensor | None = None,  # (B, 1, 512, h, w), factors of the frame features: dropout
    ) -> TrainingOutput:
        """Compute a training step's loss: own frames and sounds against those of all processes."""
        config = self.config
        sound = self.sound_features(log_spectrogram)  # (B, 1, 512)
        visual = self.visual_features(frames, None if kept is None else kept[:, 0])[:, 0]  # (B, 512, h, w)
        sounds, own_offset = gather_rows(sound[:, 0])  # (A, 512)
        logits = peak_logits(visual, sounds, config.temperature)  # (B, A)
        with torch.autocast(visual.device.type, enabled=False):  # it is cut at a threshold below
            own_map = self.compare(visual[:, None], sound)  # (B, h, w)
        rows, columns = both_ways_losses(logits, own_offset)
        loss = rows + columns
        terms = {"contrastive": loss.detach()}
        if self.is_warm:
            among_sounds = affinity(sound[:, 0], config.temperature)  # (B, A), as the next three
            among_foregrounds = affinity(foreground(visual, own_map / config.temperature), config.temperature)
            among_frames = affinity(visual.mean(dim=(2, 3)), config.temperature)
            cross_modal = logits.softmax(dim=1)
            regularising = {
                "fns1": config.fns1_weight * (among_sounds - cross_modal).abs().mean(),
                "tns": config.tns_weight * (among_sounds - among_foregrounds).abs().mean(),
                "fns2": config.fns2_weight * (among_frames - cross_modal).abs().mean(),
            }
            loss = loss + sum(regularising.values())
            terms |= {name: term.detach() for name, term in regularising.items()}
        return TrainingOutput(loss, terms, own_map.detach())


def affinity(features: Tensor, temperature: float) -> Tensor:
    """Softmax of own features (B, D) among those of all processes: (B, A)."""
    with torch.autocast(features.device.type, enabled=False):
        everything, _ = gather_rows(features)  # (A, D)
        return (features @ everything.T / temperature).softmax(dim=1)


def foreground(visual: Tensor, own_map: Tensor) -> Tensor:
    """Average features (B, D, h, w) over positions, those outside of the own sound's region as 0: (B, D)."""
    lowest, highest = own_map.amin(dim=(1, 2), keepdim=True), own_map.amax(dim=(1, 2), keepdim=True)
    is_foreground = (own_map - lowest) / (highest - lowest + 1e-5) > FOREGROUND  # (B, h, w)
    return (visual * is_foreground[:, None]).mean(dim=(2, 3))


def mask(log_spectrogram: Tensor, numbers: Tensor) -> Tensor:
    """Put 0 into a band of rows and a stretch of columns of (B, 1, F, T); numbers (B, 4) in [0, 1)."""
    rows, columns = log_spectrogram.shape[2:]
    starts = (numbers[:, :2] * torch.tensor([columns, rows])).long()  # (B, 2); exchanged, as published
    ends = starts + (numbers[:, 2:] * MASK_SIZES).long()
    limits = torch.stack([starts, ends], dim=2)[..., None]  # (B, 2, 2, 1)
    limits = limits.to(log_spectrogram.device, non_blocking=True)
    inside = []
    for axis, size in enumerate((rows, columns)):
        places = torch.arange(size, device=log_spectrogram.device)
        inside.append((places >= limits[:, axis, 0]) & (places < limits[:, axis, 1]))  # (B, size)
    return log_spectrogram.masked_fill(inside[0][:, None, :, None] | inside[1][:, None, None, :], 0)
