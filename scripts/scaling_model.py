"""Predicts how training scales over GPUs: a model of its costs, not a measurement.

    bash scripts/benchmark.sh scaling                         # 1, 8, 64 and 512 GPUs
    bash scripts/benchmark.sh scaling --clips-per-gpu 256 --share-of-peak 0.2

Every number that is not counted from the program is an assumption and an option; docs/scaling.md
explains them.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from scripts.benchmark_measure import write_line

GIGA = 1e9
MICRO = 1e-6
FLOAT_BYTES, DOUBLE_BYTES = 4, 8
TRANSFORMED_CELLS_SHARE = 0.625
"""Cells of the transformed frames' maps, of those of the plain ones: all or a quarter, in turn."""


@dataclass(frozen=True, kw_only=True)
class TrainingCosts:
    """What a step costs on any machine; the defaults are counted from SSL-TIE at its own sizes."""

    clips_per_gpu: int = 32
    """clips of each GPU's batch"""
    gflop_per_clip: float = 93.2
    """10^9 FLOP of encoders, forward and backward, the sound encoded once"""
    parameters: int = 22_346_752
    """numbers whose gradients are averaged"""
    batch_norms: int = 60
    """synchronised in a step: 20 layers on frames, transformed frames and sounds each"""
    batch_norm_channels: int = 14_400
    """channels of all of these together"""
    embedding_size: int = 512
    """D, numbers in an audio embedding"""
    map_cells: int = 196
    """h * w of a frame's map"""
    head_touches: float = 40.0
    """assumed: times that each similarity is read or written in memory, forward and backward"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the machine can do; all of it assumed, for nodes of 8 H200 and 400 Gb/s each."""

    peak_tflops: float = 989.0
    """of a GPU in the encoders' precision, 10^12 FLOP/s"""
    share_of_peak: float = 0.35
    """assumed: what the encoders reach of it"""
    head_tflops: float = 67.0
    """of a GPU in float32, in which the contrast is computed"""
    memory_gb_per_s: float = 4800.0
    """of a GPU's memory, 10^9 bytes/s"""
    gpus_per_node: int = 8
    """joined by NVLink"""
    node_gb_per_s: float = 450.0
    """NVLink of a GPU, each way"""
    network_gb_per_s: float = 50.0
    """network of a GPU, each way: 400 Gb/s"""
    link_efficiency: float = 0.8
    """assumed: share of the links' speed that large messages reach"""
    node_microseconds: float = 5.0
    """assumed: of a message within a node, with the call that starts it"""
    network_microseconds: float = 15.0
    """assumed: of a message between nodes"""
    overlap: float = 0.5
    """assumed: share of the gradients' exchange that is hidden behind the backward pass"""

    def __post_init__(self) -> None:
        """Refuses shares that are none."""
        for name in ("share_of_peak", "link_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0 and at most 1")
        if not 0 <= self.overlap <= 1 or self.gpus_per_node < 1:
            raise ValueError("--overlap must be 0 to 1 and --gpus-per-node at least 1")


@dataclass(frozen=True, kw_only=True)
class ScalingQuestion:
    """For how many GPUs."""

    gpus: str = "1,8,64,512"
    """numbers of GPUs, commas between them"""

    def __post_init__(self) -> None:
        """Refuses what is not a number."""
        if not all(count.isdecimal() and int(count) for count in self.gpus.split(",")):
            raise ValueError(f"--gpus takes numbers, commas between them, got {self.gpus!r}")


class StepSeconds(NamedTuple):
    """Predicted seconds of a step, part by part."""

    encoders: float
    head: float
    embeddings: float
    batch_norms: float
    gradients: float

    @property
    def total(self) -> float:
        """All parts, one after the other; the hidden part of the gradients is left out."""
        return sum(self)


def predict_scaling(question: ScalingQuestion, costs: TrainingCosts, machine: Machine) -> None:
    """Prints a line for each number of GPUs."""
    alone = predict_step(1, costs, machine).total
    for gpus in map(int, question.gpus.split(",")):
        seconds = predict_step(gpus, costs, machine)
        write_line(
            case="scaling",
            prediction=True,
            gpus=gpus,
            clips_per_step=gpus * costs.clips_per_gpu,
            predicted_efficiency=alone / seconds.total,
            predicted_samples_per_s=gpus * costs.clips_per_gpu / seconds.total,
            predicted_milliseconds={part: 1000 * value for part, value in seconds._asdict().items()},
            assumed=vars(machine),
        )


def predict_step(gpus: int, costs: TrainingCosts, machine: Machine) -> StepSeconds:
    """Predicts a step with as many clips on each GPU, whatever their number.

    Args:
        gpus: number of processes.
        costs: of the method.
        machine: its speeds.
    """
    clips, sounds = costs.clips_per_gpu, gpus * costs.clips_per_gpu
    embedding_bytes = sounds * costs.embedding_size * FLOAT_BYTES
    small = Links(gpus, machine)
    # Forward: (mean, variance) of each channel and a count in float64; backward: two float32 sums.
    statistics_bytes = gpus * (2 * costs.batch_norm_channels + costs.batch_norms) * DOUBLE_BYTES
    sums_bytes = 2 * costs.batch_norm_channels * FLOAT_BYTES
    exposed = 1 - machine.overlap
    return StepSeconds(
        encoders=clips
        * costs.gflop_per_clip
        * GIGA
        / (machine.peak_tflops * machine.share_of_peak * 1000 * GIGA),
        head=head_seconds(clips, sounds, costs, machine),
        embeddings=small.all_gather(embedding_bytes) + small.all_reduce(embedding_bytes),
        batch_norms=small.all_gather(statistics_bytes, messages=costs.batch_norms)
        + small.all_reduce(sums_bytes, messages=costs.batch_norms),
        gradients=exposed * small.all_reduce(costs.parameters * FLOAT_BYTES),
    )


def head_seconds(clips: int, sounds: int, costs: TrainingCosts, machine: Machine) -> float:
    """Of the contrast of own frames with the sounds of all, plain and transformed.

    Args:
        clips: frames of this GPU.
        sounds: of all GPUs.
        costs: of the method.
        machine: its speeds.
    """
    similarities = clips * sounds * costs.map_cells * (1 + TRANSFORMED_CELLS_SHARE)
    flops = 3 * 2 * costs.embedding_size * similarities  # forward and two gradients
    touched = costs.head_touches * FLOAT_BYTES * similarities
    return flops / (machine.head_tflops * 1000 * GIGA) + touched / (machine.memory_gb_per_s * GIGA)


class Links:
    """How long messages take among some GPUs: latency of each hop, and bytes over bandwidth.

    Hops are those of a tree: log2 of the GPUs in a node and log2 of the nodes. Between nodes, all
    their network cards work together, so that the bytes pass at the slower of NVLink and cards.
    """

    def __init__(self, gpus: int, machine: Machine) -> None:
        """Works out one hop's latency and the bandwidth.

        Args:
            gpus: that exchange something, filling one node after the other.
            machine: its links.
        """
        in_node = min(gpus, machine.gpus_per_node)
        nodes = math.ceil(gpus / machine.gpus_per_node)
        self.gpus = gpus
        self.latency = MICRO * (
            machine.node_microseconds * math.ceil(math.log2(in_node))
            + machine.network_microseconds * math.ceil(math.log2(nodes))
        )
        speed = machine.node_gb_per_s
        if nodes > 1:
            speed = min(speed, in_node * machine.network_gb_per_s)
        self.bytes_per_s = speed * machine.link_efficiency * GIGA

    def all_gather(self, total_bytes: float, *, messages: int = 1) -> float:
        """Seconds until all have everything, where each brings its part.

        Args:
            total_bytes: of all parts of all messages.
            messages: exchanges, one after the other.
        """
        share = (self.gpus - 1) / self.gpus
        return messages * self.latency + share * total_bytes / self.bytes_per_s

    def all_reduce(self, total_bytes: float, *, messages: int = 1) -> float:
        """Seconds until all have the sum of what each brings: there and back.

        Args:
            total_bytes: of what each brings, in all messages.
            messages: exchanges, one after the other.
        """
        return 2 * self.all_gather(total_bytes, messages=messages)
