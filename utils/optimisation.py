"""A training step: forward and backward in a precision, over several processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from utils.distributed import local_slice
from utils.training import Precision, autocast


class Stepper:
    """An optimizer and, for fp16, the scale that keeps small gradients from vanishing."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, precision: Precision) -> None:
        """Starts with no gradients.

        Args:
            optimizer: of the model.
            device: of the model.
            precision: of the networks.
        """
        self.optimizer = optimizer
        self.device = device
        self.precision = precision
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a scalar loss, or of a part of it."""
        self._scaler.scale(loss).backward()

    def step(self) -> None:
        """Moves the weights and forgets the gradients; fp16 leaves steps out that overflow."""
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer and of the scale."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


class StepBatch(Protocol):
    """What a step needs of a batch."""

    def __len__(self) -> int:
        """B."""
        ...

    def to(self, device: torch.device) -> "StepBatch":
        """Itself, on a device."""
        ...


BatchType = TypeVar("BatchType", bound=StepBatch)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves for the log."""

    loss: Tensor
    """scalar, of this process's clips"""
    terms: dict[str, Tensor]
    """scalars by name"""
    inputs: dict[str, Any]
    """of the model"""
    similarity_map: Tensor
    """(B, h, w)"""


@dataclass(frozen=True)
class Trainer:
    """A model, what is called to train it, and what moves its weights."""

    model: nn.Module
    """the bare module: weights, localise"""
    wrapped: nn.Module
    """what a step calls: the model, or its data-parallel wrapper"""
    stepper: Stepper

    def step_on(
        self, batch: BatchType, views: Callable[..., dict[str, Any]], *, seed: int, global_size: int
    ) -> StepResult:
        """Forward and backward over this process's clips, then one step.

        Args:
            batch: of this process, at least two clips.
            views: batch, seed, first and global_size -> keyword arguments of the model.
            seed: of the step, the same in all processes.
            global_size: clips of all processes, had none of them been broken.
        """
        device, first = self.stepper.device, local_slice(global_size).start
        inputs = views(batch.to(device), seed, first=first, global_size=global_size)
        with autocast(device, self.stepper.precision):
            output = self.wrapped(**inputs)
        self.stepper.backward(output.loss)
        self.stepper.step()
        return StepResult(output.loss.detach(), output.terms, inputs, output.similarity_map)
