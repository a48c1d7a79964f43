"""Several processes as one: started by torchrun, or the only one there is.

    torchrun --standalone --nproc-per-node 4 main.py ssl_tie ...

All functions work without a process group, where this is the only process. Those that exchange
something must be called by all processes, in the same order; they go over the CPU, and so do not
wait for what a GPU is doing, unless they are given tensors of a GPU.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What torchrun tells each process."""

Item = TypeVar("Item")
Indices = TypeVar("Indices", bound=Sequence)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the other processes that torchrun started; does nothing without torchrun.

    The group is left on the way out, also after an error.

    Args:
        device: kind of device to train on.

    Yields:
        device of this process: with torchrun and GPUs, the one of its local rank.

    Raises:
        ValueError: the launcher's variables are set in part, or there are too few GPUs.
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
        if local_rank() >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started process {local_rank()}, counted from 0, where PyTorch sees "
                f"{torch.cuda.device_count()} CUDA devices. Lower --nproc-per-node."
            )
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this process among those on its computer, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return rank() == 0


def shard(items: Indices, rank: int, world_size: int) -> Indices:
    """The part of a sequence that is a process's own.

    The parts are consecutive, in the order of the ranks, so that `gather_objects` of what is found
    for each item has the sequence's order. Each item is in one part; nothing is padded, so that the
    sizes may differ by one, and are 0 where there are more processes than items.

    Args:
        items: what is shared out.
        rank: number of the process, from 0.
        world_size: number of processes.
    """
    start, end = (len(items) * number // world_size for number in (rank, rank + 1))
    return items[start:end]  # type: ignore[return-value]  # a slice has the sequence's type


def own_part(batch_size: int) -> slice:
    """Which clips of each batch this process takes: as many as each other one.

    Args:
        batch_size: clips of all processes together.

    Raises:
        ValueError: the processes cannot all take as many, or would take fewer than 2.
    """
    if batch_size % world_size() or batch_size // world_size() < 2:
        raise ValueError(
            f"--batch-size {batch_size} is that of all {world_size()} processes together: it must "
            "be a multiple of their number, and at least twice that."
        )
    share = batch_size // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def gather_objects(objects: Sequence[Item]) -> list[Item]:
    """The objects of all processes, in the order of their ranks; they must be picklable."""
    if world_size() == 1:
        return list(objects)
    parts: list[list[Item]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, list(objects))
    return [item for part in parts for item in part]


def all_reduce_mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over all processes of named scalars; the names must be the same in all of them."""
    if world_size() == 1 or not values:
        return dict(values)
    names = sorted(values)
    packed = torch.stack([values[name].detach() for name in names])
    dist.all_reduce(packed)
    means = dict(zip(names, packed / world_size(), strict=True))
    return {name: means[name] for name in values}


def largest(number: int) -> int:
    """Largest number of all processes, e.g. of the signal that one of them got."""
    return _extreme(number, dist.ReduceOp.MAX)


def smallest(number: int) -> int:
    """Smallest number of all processes, so that all of them cut their batches to one size."""
    return _extreme(number, dist.ReduceOp.MIN)


def barrier() -> None:
    """Waits until all processes are here; does not wait for what their GPUs are doing."""
    _extreme(0, dist.ReduceOp.MAX)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Lets the main process through alone, then the others: for files that one must make."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()


def _extreme(number: int, operation: dist.ReduceOp.RedOpType) -> int:
    if world_size() == 1:
        return number
    shared = torch.tensor(number)
    dist.all_reduce(shared, operation)
    return int(shared.item())
