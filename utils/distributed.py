"""Several processes as one: started by torchrun, or the only one there is.

    torchrun --standalone --nproc-per-node 4 main.py ssl_tie ...

All functions work without a process group, where this is the only process. Those that exchange
something must be called by all processes, in the same order; they go over the CPU, and so do not
wait for what a GPU is doing, unless they are given tensors of a GPU.
"""

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dnn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # set for each process by torchrun


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes that torchrun started; yield this one's device.

    Without torchrun that is the given device; with it and GPUs, the GPU of the local rank.
    """
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if len(missing) == len(LAUNCHER_VARIABLES):
        yield device
        return
    if missing:
        raise ValueError(
            f"{', '.join(missing)} missing from the environment, where {LAUNCHER_VARIABLES} are "
            "set together by torchrun. Start with torchrun, or unset the others."
        )
    if device.type == "cuda":
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started process {local_rank}, counted from 0, where PyTorch sees "
                f"{torch.cuda.device_count()} CUDA devices. Lower --nproc-per-node."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except BaseException as error:
        # A data-parallel wrapper freed after its group can hang: gloo's threads want the GIL.
        traceback.clear_frames(error.__traceback__)
        if device.type != "cuda":  # NCCL would wait for processes that never come; this one's end stops it
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Return whether this process is the one that writes files and talks to the user."""
    return rank() == 0


def shard(items: Any, rank: int, world_size: int) -> Any:  # noqa: ANN401 - the type of the sequence
    """Return a process's own part of a sequence: consecutive, in the order of the ranks, nothing padded.

    `gather_objects` of one result for each item has the sequence's order. Sizes may differ by one, and are 0
    where there are more processes than items.
    """
    return items[len(items) * rank // world_size : len(items) * (rank + 1) // world_size]


def local_slice(batch_size: int) -> slice:
    """Return which clips of each batch, of all processes together, this process takes."""
    share, rest = divmod(batch_size, world_size())
    if rest or share < 2:
        raise ValueError(
            f"--batch-size {batch_size} is that of all {world_size()} processes together: it must "
            "be a multiple of their number, and at least twice that."
        )
    return slice(rank() * share, (rank() + 1) * share)


def gather_objects(objects: Sequence[Any]) -> list[Any]:
    """Return the objects of all processes, in the order of their ranks; they must be picklable."""
    if world_size() == 1:
        return list(objects)
    parts: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, list(objects))
    return [item for part in parts for item in part]


def largest(number: int) -> int:
    """Return the largest number of all processes, e.g. of the signal that one of them got."""
    if world_size() == 1:
        return number
    shared = torch.tensor(number)  # on the CPU: does not wait for a GPU
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared.item())


def smallest(number: int) -> int:
    """Return the smallest number of all processes, e.g. for all of them to cut their batches to."""
    return -largest(-number)


def average(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, without gradient; itself with one process."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows (B, ...) of all processes as (processes * B, ...), and the index of the own first one.

    The gradient of a row is the sum over the losses of all processes, so that a data-parallel wrapper, which
    averages gradients, yields that of the mean loss. All processes must call this in the same order, with as
    many rows: main.py cuts their batches to the smallest.
    """
    if world_size() == 1:
        return rows, 0
    # A sum with zeros, not dnn.all_gather, whose gradient on gloo is wrong unless it arrives contiguous.
    own_offset, padding = rank() * len(rows), torch.zeros_like(rows)
    parts = [rows if number == rank() else padding for number in range(world_size())]
    return dnn.all_reduce(torch.cat(parts)), own_offset


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm over the batches of all processes, on CPUs, which nn.SyncBatchNorm refuses.

    It tracks statistics with a momentum. Local batches may differ in size, but none may be empty.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, ...) to the same shape and precision."""
        if not self.training or world_size() == 1:
            return super().forward(features)
        dims, per_channel = [0, *range(2, features.ndim)], (1, -1) + (1,) * (features.ndim - 2)
        precise = features.to(torch.promote_types(features.dtype, torch.float32))
        local_count = precise.new_full((1,), features.numel() // features.shape[1])
        totals = dnn.all_reduce(torch.cat([precise.sum(dims), local_count]))  # (C + 1)
        mean, count = totals[:-1] / totals[-1], totals[-1].detach()
        # Squares of centred features: those of the features cancel where the mean is large.
        centred = precise - mean.view(per_channel)
        variance = dnn.all_reduce(centred.square().sum(dims)) / count  # (C)
        assert self.momentum is not None and self.num_batches_tracked is not None  # as in all networks here
        statistics = {"running_mean": mean, "running_var": variance * count / (count - 1)}
        for name, value in statistics.items():
            running = self.get_buffer(name)
            running.lerp_(value.detach().to(running), self.momentum)
        self.num_batches_tracked.add_(1)
        normalised = centred * (variance + self.eps).rsqrt().view(per_channel)
        if self.affine:
            normalised = normalised * self.weight.view(per_channel) + self.bias.view(per_channel)
        return normalised.to(features.dtype)


def synchronise_batch_norms(module: nn.Module) -> None:
    """Synchronise every batch norm in a module, in place, on the device where it is.

    The layers only change their class: names, parameters, buffers and the optimiser's view of them stay, and
    what a subclass adds to torch's batch norm.
    """
    on_gpu = any(parameter.is_cuda for parameter in module.parameters())
    base: type[_BatchNorm] = nn.SyncBatchNorm if on_gpu else SynchronisedBatchNorm
    for layer in module.modules():
        kind = type(layer)
        if isinstance(layer, _BatchNorm) and not isinstance(layer, base):
            layer.__class__ = type(f"Synchronised{kind.__name__}", (kind, base), {})
            layer.process_group = None  # type: ignore[assignment]  # of nn.SyncBatchNorm: all processes
