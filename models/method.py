"""What main.py and test.py ask of a method, with defaults: the base class of every method.

A new method is one file with a subclass of Method and one row in METHODS (models/__init__.py);
CONTRIBUTING.md has the steps, models/ssl_tie.py an example.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.clips import AudioVisualClips, Batch, Clip
from datasets.frames import FrameConfig, FrameGeometry, as_float, normalise
from utils.options import Options, option

logger = logging.getLogger(__name__)

Views = dict[str, Any]  # arguments of `forward` of a training step


@dataclass(frozen=True)
class TrainingOutput:
    """The result of a method's `forward`."""

    loss: Tensor  # scalar to minimise
    terms: dict[str, Tensor]  # detached scalars to log, by name
    similarity_map: Tensor  # (B, h, w), detached, of the view `frames`


@dataclass(frozen=True, kw_only=True)
class AdamRecipe(Options):
    """How the model is optimised: Adam with one constant rate; the defaults are SSL-TIE's."""

    epochs: int = option(100, at_least=1)  # passes over the training set
    batch_size: int = option(32, at_least=2)
    """clips a step, of all processes; each is a negative for the others"""
    learning_rate: float = option(1e-4, above=0)  # of Adam, constant
    weight_decay: float = option(1e-4, at_least=0)  # L2 penalty of Adam, not decoupled


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What a new run starts from."""

    start: str = "scratch"
    """scratch: random weights; imagenet: ImageNet's in the frame encoder; or a file of this method, of
    which only the weights are taken"""


class Method(nn.Module):
    """A sound localiser that can be trained and scored.

    A subclass has the networks, `forward(**views) -> TrainingOutput`, which computes a training step's loss
    with heads and losses in float32, and what raises NotImplementedError here. For retrieval it also has
    `embed_frames(frames, pooling)` and `embed_audio(sounds)`, which return (B, D) of unit norm.
    """

    built_with: tuple[str, ...] = ("audio", "frame")
    """groups of options that the constructor takes by name, after that of the model"""
    half_cosine = False
    """whether the authors' similarity is (cosine + 1) / 2, as thresholds on it need to know"""
    random_crop = False  # whether training frames come as they are stored, for `augment` to crop
    keep_shape = False
    """whether of training frames only the short side is `training_frame_size`, for `augment` to crop"""
    margin = 0.0  # share of `frame_size` by which training frames are larger, for `augment` to cut from
    excerpt_seconds: float | None = None
    """only the first seconds of each training sound are used; None: the whole window"""

    def __init__(self, audio: Any, frame: FrameConfig) -> None:  # noqa: ANN401 - each method hears otherwise
        """Build the front end for one of the configurations in datasets/audio.py; it holds no weights."""
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

    def augment(self, batch: Batch, seed: int, *, first: int = 0, global_size: int | None = None) -> Views:
        """Make the training views of a batch, which are the arguments of `forward`, on the batch's device.

        `frames`, normalised (B, 3, S, S), must be among them: those of `TrainingOutput.similarity_map`.

        Args:
            batch: decoded clips of this process.
            seed: of the step, the same in all processes. What is drawn follows from it and from each clip's
                place in the batch of all processes: see datasets.augmentation.draw_for_clips.
            first: place of this process's first clip in the batch of all processes.
            global_size: clips in the batch of all processes; None: this batch is all there is.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------ what has a default

    @classmethod
    def check_options(cls, options: Any) -> None:  # noqa: ANN401 - opts.TrainOptions
        """Refuse groups of options that contradict each other; fill in what depends on other groups."""

    @classmethod
    def from_options(cls, options: Any) -> "Method":  # noqa: ANN401
        """Build the method for training."""
        return cls(options.model, **{name: getattr(options, name) for name in cls.built_with})

    def pretrained(self, options: Any) -> dict[str, tuple[nn.Module, Path | None]]:  # noqa: ANN401
        """Return the networks that start from published weights, by kind, each with its file if one is named.

        The kinds are those of PRETRAINED (models/released.py), which also says where files are looked for.
        A ResNet-18 named `imgnet`, for frames, starts from ImageNet's.
        """
        if options.start.start == "imagenet" and not hasattr(self, "imgnet"):
            raise ValueError(f"--start imagenet is for a ResNet-18 named imgnet; {options.method} has none.")
        return {"resnet18": (self.get_submodule("imgnet"), None)} if options.start.start == "imagenet" else {}

    def load_start(self, options: Any) -> None:  # noqa: ANN401
        """Load what a new run starts from, as `--start` says; not called when a run is resumed."""
        from models import released  # noqa: PLC0415 - it imports the methods

        if (start := options.start.start) not in ("scratch", "imagenet"):
            released.load_start(self, Path(start), options.method)
            logger.info("Weights of %s", start)
        elif networks := self.pretrained(options):
            for kind, path in released.load_pretrained(networks).items():
                logger.info("Weights of %s: %s", kind, path)

    def before_step(self, epoch: int, step: int) -> None:
        """Change what goes by steps; main.py calls it before each one, both counted from 0."""

    def build_optimizer(self, recipe: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        """Return the optimiser, by the group of options `optimisation`: Adam over all trained parameters."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        rate, decay = recipe.learning_rate, recipe.weight_decay
        return torch.optim.Adam(trained, lr=rate, weight_decay=decay, fused=True)

    @property
    def training_frame_size(self) -> int:
        """Side of the square training frames, with keep_shape their short side; not with random_crop."""
        return int(self.frame.frame_size * (1 + self.margin))

    def training_clips(self, clips: Sequence[Clip]) -> AudioVisualClips:
        """Decode clips as `augment` takes them."""
        return AudioVisualClips(
            clips,
            geometry=FrameGeometry(self.training_frame_size),
            audio=self.audio,
            excerpt_seconds=self.excerpt_seconds,
            random_crop=self.random_crop,
            keep_shape=self.keep_shape,
        )

    def networks(self) -> Sequence[nn.Module]:
        """Return the parts that --compile compiles."""
        return [part for part in self.children() if part is not self.front_end]

    def curriculum(self, options: Any, clips: AudioVisualClips) -> Any:  # noqa: ANN401
        """Return what changes the training batches from epoch to epoch: see datasets/mixing.py."""

    def diagnose(self, terms: Mapping[str, float]) -> str | None:
        """Say what the logged terms, means of some steps, warn of; None while all is well."""

    @torch.no_grad()
    def prepare(self, frames: Tensor, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Turn frames (B, 3, S, S) in [0, 255] and whole windows (B, L) of sound into what the networks take.

        Returns:
            normalised frames (B, 3, S, S) and sounds as the front end makes them.
        """
        return normalise(as_float(frames)), self.front_end(waveforms)

    def localise(self, frames: Tensor, sounds: Tensor) -> Tensor:
        """Return the similarity map (B, h, w) of each prepared frame with its own sound."""
        return self.compare(self.visual_features(frames), self.sound_features(sounds))
