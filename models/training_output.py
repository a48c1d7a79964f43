"""What every method returns in training."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """The result of a method's `forward`."""

    loss: Tensor
    """scalar to minimise"""
    terms: dict[str, Tensor]
    """detached scalars to log, by name"""
    similarity_map: Tensor
    """(B, h, w), detached, of the frames that are shown: plain ones, or view 1"""
