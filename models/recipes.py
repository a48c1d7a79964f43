"""How each method is optimised; the defaults are the published recipes."""

import math
from dataclasses import dataclass, replace

import torch

from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.sspl import SSPL, SSPLConfig


@dataclass(frozen=True, kw_only=True)
class SSLTIERecipe:
    """How SSL-TIE is optimised: Adam with one constant rate."""

    epochs: int = 100
    """passes over the training set"""
    batch_size: int = 32
    """clips a step; each is a negative for the others"""
    learning_rate: float = 1e-4
    """of Adam, constant"""
    weight_decay: float = 1e-4
    """L2 penalty of Adam, not decoupled"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        _check_extent(self.epochs, self.batch_size, "the other clips of a batch are the negatives")
        _check_rates(self.weight_decay, learning_rate=self.learning_rate)

    def completed(self, config: SSLTIEConfig) -> "SSLTIERecipe":
        """The recipe itself: nothing in it depends on the model's configuration."""
        del config
        return self

    def build_optimizer(self, model: SSLTIE) -> torch.optim.Optimizer:
        """Adam over all parameters."""
        return torch.optim.Adam(
            model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True, kw_only=True)
class SSPLRecipe:
    """How SSPL is optimised: AdamW, each trained part at its own constant rate.

    The authors chose these values for 10k Flickr clips and give none for larger sets.
    """

    epochs: int | None = None
    """passes over the training set; none: 20 with the PCM, 100 without"""
    batch_size: int = 256
    """clips a step, of all processes; the batch norms of the heads see them together"""
    audio_learning_rate: float | None = None
    """of the MLP after VGGish; none: 2e-5 with the PCM, 5e-4 without"""
    pcm_learning_rate: float | None = None
    """of the predictive coding module; none: 2e-5"""
    head_learning_rate: float | None = None
    """of projection and prediction head; none: 5e-5 with the PCM, 2e-3 without"""
    weight_decay: float = 1e-4
    """decoupled; the PCM's rates a and b are exempt"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        _check_extent(self.epochs or 1, self.batch_size, "batch norms need two")
        rates = {
            "audio_learning_rate": self.audio_learning_rate,
            "pcm_learning_rate": self.pcm_learning_rate,
            "head_learning_rate": self.head_learning_rate,
        }
        _check_rates(self.weight_decay, **{k: v for k, v in rates.items() if v is not None})

    def completed(self, config: SSPLConfig) -> "SSPLRecipe":
        """The recipe with the authors' values for the variant where none was given.

        Args:
            config: with or without the PCM.

        Raises:
            ValueError: a rate is given for a PCM that is not there.
        """
        if self.pcm_learning_rate is not None and not config.pcm:
            raise ValueError("--pcm-learning-rate has nothing to set with --no-pcm.")
        epochs, audio, head = (20, 2e-5, 5e-5) if config.pcm else (100, 5e-4, 2e-3)
        pcm = (self.pcm_learning_rate or 2e-5) if config.pcm else None
        return replace(
            self,
            epochs=self.epochs or epochs,
            audio_learning_rate=self.audio_learning_rate or audio,
            pcm_learning_rate=pcm,
            head_learning_rate=self.head_learning_rate or head,
        )

    def build_optimizer(self, model: SSPL) -> torch.optim.Optimizer:
        """AdamW over the trained parts; the recipe must be completed."""
        rates = (self.audio_learning_rate, self.pcm_learning_rate, self.head_learning_rate)
        return torch.optim.AdamW(model.parameter_groups(*rates, weight_decay=self.weight_decay), fused=True)


def _check_extent(epochs: int, batch_size: int, why_two: str) -> None:
    if epochs < 1 or batch_size < 2:
        raise ValueError(
            f"--epochs must be at least 1 and --batch-size at least 2 ({why_two}), got {epochs}, {batch_size}"
        )


def _check_rates(weight_decay: float, **rates: float) -> None:
    wrong = [name for name, rate in rates.items() if not 0 < rate < math.inf]
    if wrong or not 0 <= weight_decay < math.inf:
        names = " and ".join("--" + name.replace("_", "-") for name in rates)
        raise ValueError(
            f"{names} must be above 0 and --weight-decay not below, got "
            f"{', '.join(map(str, rates.values()))} and {weight_decay}"
        )
