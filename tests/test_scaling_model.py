"""The cost model of many GPUs, on an example worked out by hand."""

import math

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from models.ssl_tie import SSLTIE, SSLTIEConfig
from scripts.scaling_model import Links, Machine, TrainingCosts, predict_step

MACHINE = Machine(
    peak_tflops=1.0,
    share_of_peak=0.5,
    head_tflops=0.001,
    memory_gb_per_s=0.001,
    gpus_per_node=4,
    node_gb_per_s=100.0,
    network_gb_per_s=10.0,
    link_efficiency=0.5,
    node_microseconds=10.0,
    network_microseconds=100.0,
    overlap=0.25,
)
COSTS = TrainingCosts(
    clips_per_gpu=2,
    gflop_per_clip=5.0,
    parameters=1_000_000,
    batch_norms=3,
    batch_norm_channels=100,
    embedding_size=8,
    map_cells=4,
    head_touches=10.0,
)


def test_a_step_worked_out_by_hand():
    """8 GPUs in 2 nodes: two hops of 10 us within a node and one of 100 us between them.

    Bytes pass at min(100, 4 * 10) GB/s * 0.5 = 20 GB/s, 7/8 of each message.
    """
    seconds = predict_step(8, COSTS, MACHINE)
    assert seconds.encoders == pytest.approx(2 * 5e9 / 0.5e12)
    # 2 frames x 16 sounds x 4 cells, and on average 0.625 as many of the transformed frames.
    similarities = 2 * 16 * 4 * 1.625
    assert seconds.head == pytest.approx(similarities * (6 * 8 / 1e9 + 10 * 4 / 1e6))
    latency, moved = 120e-6, 7 / 8 / 20e9
    embeddings = 16 * 8 * 4
    assert seconds.embeddings == pytest.approx(3 * latency + 3 * embeddings * moved)
    statistics, sums = 8 * (2 * 100 + 3) * 8, 2 * 100 * 4
    assert seconds.batch_norms == pytest.approx(3 * 3 * latency + (statistics + 2 * sums) * moved)
    assert seconds.gradients == pytest.approx(0.75 * (2 * latency + 2 * 4e6 * moved))
    assert seconds.total == pytest.approx(math.fsum(seconds))


def test_one_gpu_sends_nothing():
    seconds = predict_step(1, COSTS, MACHINE)
    assert (seconds.embeddings, seconds.batch_norms, seconds.gradients) == (0.0, 0.0, 0.0)
    assert seconds.encoders > 0 and seconds.head > 0


def test_links_within_a_node_are_nvlink_s():
    links = Links(4, MACHINE)
    assert links.latency == pytest.approx(20e-6)
    assert links.bytes_per_s == pytest.approx(50e9)


def test_the_default_costs_are_the_method_s():
    with torch.device("meta"):
        model = SSLTIE(SSLTIEConfig())
    costs = TrainingCosts()
    assert sum(p.numel() for p in model.parameters()) == costs.parameters
    layers = [layer for layer in model.audnet.modules() if isinstance(layer, _BatchNorm)]
    assert 3 * len(layers) == costs.batch_norms  # frames, transformed frames, sounds
    assert 3 * sum(layer.num_features for layer in layers) == costs.batch_norm_channels
    assert costs.embedding_size == model.audnet.embedding_size


@pytest.mark.parametrize("wrong", [{"share_of_peak": 0.0}, {"link_efficiency": 1.5}, {"overlap": -1.0}])
def test_shares_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="--" + next(iter(wrong)).replace("_", "-")):
        Machine(**wrong)
