"""LVS: the hard way, a frame against all sounds with regions by thresholds. LVS's loss, our recipe.

Chen, Xie, Afouras, Nagrani, Vedaldi, Zisserman: "Localizing Visual Sounds the Hard Way", CVPR 2021. Its
logits are released, its trainer is not. The contrast is the one that SSL-TIE took over, with two differences
that mend it (models/contrast.py).

What is ours, or from others' words:

1. The recipe is SSL-TIE's (batch 32, 100 epochs, Adam 1e-4, weight decay 1e-4), and starts from random
   weights, as the released class does; papers that cite it say ImageNet for frames (`--start imagenet`).
2. Training hears the middle 3 s of the first 10, a test all of them, as its test program does.
3. Views are the mild ones of the train branch in its test program.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from models.contrast import TriMapConfig, contrastive_loss, refuse_crossed_thresholds, trimap_contrast
from models.method import TrainingOutput
from models.peers import PeerLocaliser
from utils.distributed import gather_rows

TRAINING_SECONDS = 3.0  # of the middle of a sound's window


@dataclass(frozen=True, kw_only=True)
class LVSConfig(TriMapConfig):
    """What defines the model and its loss; stored in the checkpoint."""

    last_stride: Literal[1, 2] = 1
    """of the frame encoder's last stage: maps of a 16th or a 32nd of the frame's side"""


class LVS(PeerLocaliser):
    """The localiser and its training loss."""

    @classmethod
    def check_options(cls, options: Any) -> None:  # noqa: ANN401
        """Refuse thresholds that cross."""
        refuse_crossed_thresholds(options.model)

    def training_sounds(self, waveforms: Tensor, numbers: Tensor) -> Tensor:
        """Turn the middle of windows (B, L) into (B, 1, F, T)."""
        length = min(round(TRAINING_SECONDS * self.audio.sample_rate), waveforms.shape[1])
        start = (waveforms.shape[1] - length) // 2
        return super().training_sounds(waveforms[:, start : start + length], numbers)

    def forward(
        self,
        *,
        frames: Tensor,  # (B, 3, H, W), normalised
        log_spectrogram: Tensor,  # (B, 1, F, T)
    ) -> TrainingOutput:
        """Compute a training step's loss: its frames against the sounds of all processes."""
        sounds, own_offset = gather_rows(self.sound_features(log_spectrogram)[:, 0])  # (A, 512)
        visual = self.visual_features(frames)[:, 0]  # (B, 512, h, w)
        logits, own_map = trimap_contrast(visual, sounds, self.config, own_offset)  # (B, K), (B, h, w)
        loss = contrastive_loss(logits)
        return TrainingOutput(loss, {"contrastive": loss.detach()}, own_map.detach())
