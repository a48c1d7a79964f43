"""What main.py and test.py ask of a method, with defaults: the base class of every method.

A new method is one file with a subclass of Method and one row in METHODS (models/__init__.py);
CONTRIBUTING.md has the steps, models/ssl_tie.py an example.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datasets.augmentation import as_float, normalise
from datasets.clips import AudioVisualClips, Batch
from datasets.frames import FrameConfig


@dataclass(frozen=True)
class TrainingOutput:
    """The result of a method's `forward`."""

    loss: Tensor
    """scalar to minimise"""
    terms: dict[str, Tensor]
    """detached scalars to log, by name"""
    similarity_map: Tensor
    """(B, h, w), detached, of the frames in the view `Method.shown`"""


class Method(nn.Module):
    """A sound localiser that can be trained and scored.

    A subclass has the networks, `forward(**views) -> TrainingOutput`, which computes a training step's loss
    with heads and losses in float32, and what raises NotImplementedError here. For retrieval it also has
    `embed_frames(frames, pooling)` and `embed_audio(sounds)`, which return (B, D) of unit norm.
    """

    shown = "frames"
    """name of the training view that `TrainingOutput.similarity_map` belongs to"""
    random_crop = False
    """whether training frames come as they are stored, for `augment` to crop"""
    excerpt_seconds: float | None = None
    """only the first seconds of each training sound are used; None: the whole window"""

    def __init__(self, audio: Any, frame: FrameConfig) -> None:  # noqa: ANN401 - each method hears otherwise
        """Build the front end; it holds no weights and is in no checkpoint.

        Args:
            audio: configuration of what is heard, one of those in datasets/audio.py.
            frame: size of what is seen.
        """
        super().__init__()
        self.audio, self.frame = audio, frame
        with torch.device("cpu"):  # it is computed, where tests put weights on the meta device
            self.front_end = audio.build_front_end()
        for part in self.front_end.modules():  # its windows and filters follow from the configuration
            part._non_persistent_buffers_set.update(part._buffers)

    # --------------------------------------------------------------- what every method has of its own

    def visual_features(self, frames: Tensor) -> Tensor:
        """Encode prepared frames (B, 3, H, W), whatever the sounds: (B, ...)."""
        raise NotImplementedError

    def sound_features(self, sounds: Tensor) -> Tensor:
        """Encode prepared sounds (B, ...), whatever the frames: (B, ...)."""
        raise NotImplementedError

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Compare features of B frames with those of as many sounds: similarity maps (B, h, w)."""
        raise NotImplementedError

    def augment(
        self, batch: Batch, seed: int, *, first: int = 0, global_size: int | None = None
    ) -> dict[str, Any]:
        """Make the training views of a batch, which are the arguments of `forward`, on the batch's device.

        Args:
            batch: decoded clips of this process.
            seed: of the step, the same in all processes. What is drawn follows from it and from each clip's
                place in the batch of all processes: see datasets.augmentation.draw_for_clips.
            first: place of this process's first clip in the batch of all processes.
            global_size: clips in the batch of all processes; None: this batch is all there is.
        """
        raise NotImplementedError

    def build_optimizer(self, recipe: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        """Return the optimiser of the trained parameters, by the group of options `optimisation`."""
        raise NotImplementedError

    # ------------------------------------------------------------------------ what has a default

    @classmethod
    def check_options(cls, options: Any) -> None:  # noqa: ANN401 - opts.TrainOptions
        """Refuse groups of options that contradict each other; fill in what depends on other groups.

        Raises:
            ValueError: names the options.
        """

    @classmethod
    def from_options(cls, options: Any) -> "Method":  # noqa: ANN401
        """Build the method for training: by default of its groups `model`, `audio` and `frame`."""
        return cls(options.model, audio=options.audio, frame=options.frame)  # type: ignore[call-arg, misc]

    def load_pretrained(self, options: Any) -> None:  # noqa: ANN401
        """Load what a new run does not start from at random; not called when a run is resumed."""

    @property
    def training_frame_size(self) -> int:
        """Side of the squares that training frames are decoded to, pixels, if random_crop is off."""
        return self.frame.frame_size

    def networks(self) -> Sequence[nn.Module]:
        """Return the parts that --compile compiles."""
        return [self]

    def curriculum(self, options: Any, clips: AudioVisualClips) -> Any:  # noqa: ANN401
        """Return what changes the training batches from epoch to epoch: see datasets/mixing.py."""
        del options, clips

    def diagnose(self, terms: Mapping[str, float]) -> str | None:
        """Say what the logged terms, means of some steps, warn of; None while all is well."""
        del terms
        return None

    @torch.no_grad()
    def prepare(self, frames: Tensor, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Turn decoded clips into what the networks take; nothing is drawn.

        Args:
            frames: uint8 (B, 3, S, S).
            waveforms: (B, L), the whole window.

        Returns:
            normalised frames (B, 3, S, S) and sounds as the front end makes them.
        """
        return normalise(as_float(frames)), self.front_end(waveforms)

    def localise(self, frames: Tensor, sounds: Tensor) -> Tensor:
        """Return the similarity map (B, h, w) of each prepared frame with its own sound."""
        return self.compare(self.visual_features(frames), self.sound_features(sounds))
