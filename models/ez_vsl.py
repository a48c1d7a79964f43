"""EZ-VSL: the highest similarity anywhere in the frame, contrasted both ways.

Mo, Morgado: "Localizing Visual Sounds the Easy Way", ECCV 2022. With unit features v_n(x) of frame n at
position x and unit sounds a_m, both projected once:

    l_nm = max_x <v_n(x), a_m> / tau          loss = CE(rows of l) + CE(columns of l)

Kept as published: the sum, not the mean, of both directions; ImageNet weights at the start. Deliberate
differences: models/peers.py. The authors score with ImageNet's object prior (test.py --object-prior 0.4).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from models.contrast import both_ways_losses, peak_logits
from models.method import TrainingOutput
from models.peers import PeerLocaliser
from utils.distributed import gather_rows
from utils.options import Options, option


@dataclass(frozen=True, kw_only=True)
class EZVSLConfig(Options):
    """What defines the model and its loss; stored in the checkpoint."""

    last_stride: Literal[1, 2] = 2
    """of the frame encoder's last stage: maps of a 16th or a 32nd of the frame's side"""
    temperature: float = option(0.03, above=0)  # tau: divisor of similarities


class EZVSL(PeerLocaliser):
    """The localiser and its training loss."""

    num_projections = 1
    sound_stride = 2
    half_cosine = True

    def forward(
        self,
        *,
        frames: Tensor,  # (B, 3, H, W), normalised
        log_spectrogram: Tensor,  # (B, 1, F, T)
    ) -> TrainingOutput:
        """Compute a training step's loss: own frames and sounds against those of all processes."""
        sound = self.sound_features(log_spectrogram)  # (B, 1, 512)
        visual = self.visual_features(frames)  # (B, 1, 512, h, w)
        sounds, own_offset = gather_rows(sound[:, 0])  # (A, 512)
        logits = peak_logits(visual[:, 0], sounds, self.config.temperature)  # (B, A)
        rows, columns = both_ways_losses(logits, own_offset)
        terms = {"frame_to_sound": rows.detach(), "sound_to_frame": columns.detach()}
        return TrainingOutput(rows + columns, terms, self.compare(visual, sound).detach())
