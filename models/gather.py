"""What the losses of processes that train together share.

Without a process group, or with one process in it, nothing here does anything.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def num_processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, in the order of their ranks, with gradient to each of them.

    All processes must call this in the same order, in forward and in backward. The gradient of a
    row is the sum over the losses of all processes, so that a data-parallel wrapper, which averages
    gradients, yields that of the mean loss. Sizes are compared on the CPU, which the process group
    must have a backend for beside that of `rows`.

    Args:
        rows: (B, ...), the same shape in all processes.

    Returns:
        (processes * B, ...), and the index of this process's first row in it.

    Raises:
        ValueError: the processes have batches of different sizes; in all of them.
    """
    if num_processes() == 1:
        return rows, 0
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(num_processes())]
    dist.all_gather(sizes, torch.tensor([len(rows)]))
    if len({size.item() for size in sizes}) > 1:
        raise ValueError(
            "Every process must bring as many clips to a training step, got "
            f"{', '.join(str(size.item()) for size in sizes)} in the order of their ranks. Cut "
            "all batches to the smallest, or leave the step out in all processes."
        )
    return _GatherRows.apply(rows), dist.get_rank() * len(rows)


def average_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, without gradient; `value` itself with one process."""
    if num_processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / num_processes()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ANN401 - torch's context has no type
        parts = [torch.empty_like(rows) for _ in range(num_processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(num_processes())[dist.get_rank()]
