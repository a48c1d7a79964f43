"""Several processes compute what one process with all clips computes: gloo, on the CPU."""

import copy
import math

import distributed_workers as workers
import pytest
import torch
from distributed_workers import ANGLES, LAYERS, PRECISIONS, SHARES, SSL_TIE_VARIANTS
from torch import nn

from datasets.geometry import GeometricTransform
from models.encoders import RepeatedBatchNorm2d, ResNet18Encoder
from models.predictive_coding import PredictiveCodingModule
from utils import distributed
from utils.distributed import SynchronisedBatchNorm, average, gather_rows, synchronise_batch_norms

pytestmark = pytest.mark.usefixtures("one_thread")
SCENARIOS = {
    2: ["batch_norms", "sspl", "ssl_tie", "helpers", "different_batches"],
    4: ["batch_norms", "ssl_tie", "helpers"],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What processes found: number of processes -> scenario -> result of each rank."""
    return workers.run_processes(SCENARIOS, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def alone():
    """The same by one process with all clips: scenario -> result."""
    return {name: workers.SCENARIOS[name](0, 1) for name in ("sspl", "ssl_tie")}


def distance(ours, expected):
    """Of two tensors, relative to the second; means that are 0 but for rounding count as equal."""
    return ((ours - expected).norm() / expected.norm().clamp_min(1e-6)).item()


def largest_distance(ours, expected):
    assert ours.keys() == expected.keys() and expected
    return max(distance(ours[name].double(), expected[name].double()) for name in expected)


# ------------------------------------------------------------------------------------ batch norms


@pytest.mark.parametrize("world_size", SCENARIOS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_batch_norm_over_processes_is_that_of_the_whole_batch(found, world_size, precision, name):
    """Against torch's in float64, from inputs of the same rounding, with unequal batches."""
    build, shape = LAYERS[name]
    dtype = PRECISIONS[precision]
    parts = [result[name, precision] for result in found[world_size]["batch_norms"]]
    layer = build().double()
    expected = workers.batch_norm_steps(_Rounded(layer, dtype), shape, torch.float64, 0, 1)
    tolerance = {"float64": 1e-10, "float32": 2e-4, "bfloat16": 2e-2}[precision]
    for long_key, value in expected.items():
        key = long_key.replace("layer.", "")
        values = [part[key].double() for part in parts]
        if key.startswith("same "):
            assert all(torch.equal(values[0], other) for other in values), key
            ours, limit = values[0], min(tolerance, 1e-5)
        elif key.startswith("sum of "):
            ours, limit = sum(values), tolerance
        else:
            assert [len(value) for value in values] == SHARES[world_size]
            ours, limit = torch.cat(values), tolerance
            assert parts[0][key].dtype == dtype
        assert distance(ours, value.double()) < limit, key
        assert value.double().norm() > 0 or key == "same num_batches_tracked", key


class _Rounded(nn.Module):
    """Rounds its input to a precision, and then goes on in float64."""

    def __init__(self, layer, dtype):
        super().__init__()
        self.layer = layer
        self.dtype = dtype

    def forward(self, features):
        rounded = features + (features.to(self.dtype).to(features) - features).detach()
        return self.layer(rounded)


def test_all_batch_norms_of_a_network_are_synchronised_and_nothing_else_changes():
    for network in (
        ResNet18Encoder(1, batch_norm_passes=2),
        PredictiveCodingModule(1, channels=4, audio_size=2),
    ):
        kinds = {name: type(layer) for name, layer in network.named_modules()}
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        synchronise_batch_norms(network.eval())
        synchronise_batch_norms(network)
        assert not any(layer.training for layer in network.modules())
        for name, layer in network.named_modules():
            if issubclass(kinds[name], nn.modules.batchnorm._BatchNorm):
                assert isinstance(layer, SynchronisedBatchNorm), name
                assert isinstance(layer, kinds[name]), name
            else:
                assert type(layer) is kinds[name], name
        after = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        assert after.keys() == tensors.keys()
        assert all(after[name] is tensor for name, tensor in tensors.items())
        copied = copy.deepcopy(network)
        assert [type(layer) for layer in copied.modules()] == [type(layer) for layer in network.modules()]
    encoder = ResNet18Encoder(1, batch_norm_passes=2)
    synchronise_batch_norms(encoder)
    assert isinstance(encoder.bn1, RepeatedBatchNorm2d) and encoder.bn1.passes == 2


# ---------------------------------------------------------------------------------------- methods


def compare(parts, expected):
    """Largest relative distances of loss, gradients and running statistics from the expected."""
    for part in parts[1:]:  # the data-parallel wrapper gives all processes the same gradients
        for name, gradient in part["gradients"].items():
            assert torch.equal(gradient, parts[0]["gradients"][name]), name
    loss = torch.stack([part["loss"] for part in parts]).mean()
    return {
        "loss": abs(loss.item() / expected["loss"].item() - 1),
        "gradients": largest_distance(parts[0]["gradients"], expected["gradients"]),
        "buffers": max(largest_distance(part["buffers"], expected["buffers"]) for part in parts),
        "maps": distance(torch.cat([part["maps"] for part in parts]), expected["maps"]),
    }


@pytest.mark.parametrize("pcm", [True, False], ids=["pcm", "no pcm"])
def test_sspl_on_two_processes_is_sspl_on_one(found, alone, pcm):
    parts = [result[pcm, True] for result in found[2]["sspl"]]
    distances = compare(parts, alone["sspl"][pcm, True])
    assert max(distances.values()) < 1e-8, distances


@pytest.mark.parametrize("pcm", [True, False], ids=["pcm", "no pcm"])
def test_sspl_without_synchronised_batch_norms_is_another(found, alone, pcm):
    parts = [result[pcm, False] for result in found[2]["sspl"]]
    loss, gradients, expected = [], [], alone["sspl"][pcm, True]
    for part in parts:
        loss.append(part["loss"])
        gradients.append(largest_distance(part["gradients"], expected["gradients"]))
    assert abs(torch.stack(loss).mean().item() / expected["loss"].item() - 1) > 1e-3
    assert min(gradients) > 1e-2
    assert min(largest_distance(part["buffers"], expected["buffers"]) for part in parts) > 1e-2


@pytest.mark.parametrize(
    ("world_size", "variant"),
    [(2, variant) for variant in SSL_TIE_VARIANTS]
    + [(4, variant) for variant in SSL_TIE_VARIANTS if variant != "ResNet-18"],
)
def test_ssl_tie_on_several_processes_is_ssl_tie_on_one(found, alone, world_size, variant):
    parts = [result[variant] for result in found[world_size]["ssl_tie"]]
    expected = alone["ssl_tie"][variant]
    distances = compare(parts, expected)
    assert max(distances.values()) < 1e-8, distances
    for name, term in expected["terms"].items():
        mean = sum(part["terms"][name] for part in parts) / world_size
        assert mean.item() == pytest.approx(term.item(), rel=1e-8), name


def test_the_processes_have_different_coverage():
    """Else the masked equivariance loss would be right with a mean of each process's own."""
    transform = GeometricTransform(ANGLES, 1.0, True, 64, "masked")
    coverage = transform.warp_maps(torch.zeros(4, 4, 4))[1].sum(dim=(1, 2))
    assert coverage[:2].sum() != coverage[2:].sum()
    assert (coverage > 0).any()


def test_batches_of_different_sizes_are_refused_in_all_processes(found):
    for message in found[2]["different_batches"]:
        assert "as many clips to a training step, but they brought from 2 to 3" in message


def test_nothing_is_gathered_without_a_group():
    rows = torch.rand(3, 2, requires_grad=True)
    gathered, own_offset = gather_rows(rows)
    assert gathered is rows and own_offset == 0
    assert average(rows) is rows


# ---------------------------------------------------------------------------------------- helpers


@pytest.mark.parametrize("world_size", SCENARIOS)
def test_helpers_among_processes(found, world_size):
    for rank, seen in enumerate(found[world_size]["helpers"]):
        assert seen == {
            "rank": rank,
            "world_size": world_size,
            "is_main_process": rank == 0,
            "gathered": [(other, i) for other in range(world_size) for i in range(other)],
            "sharded": list("abcdefg"),
            "mean": [(world_size - 1) / 2, 1.0],
            "nobody": 0,
            "the last": world_size - 1,
            "smallest": 10 - (world_size - 1),
        }


def test_helpers_of_a_process_alone():
    seen = workers.helpers(0, 1)
    assert seen["gathered"] == [] and seen["sharded"] == list("abcdefg")
    assert (seen["rank"], seen["world_size"], seen["is_main_process"]) == (0, 1, True)
    assert seen["mean"] == [0.0, 1.0] and seen["smallest"] == 10
    assert seen["nobody"] == seen["the last"] == 0


@pytest.mark.parametrize("num_items", [0, 1, 3, 4, 17])
@pytest.mark.parametrize("world_size", [1, 2, 4, 5])
def test_shards_are_the_sequence_without_repetition(num_items, world_size):
    items = list(range(num_items))
    parts = [distributed.shard(items, rank, world_size) for rank in range(world_size)]
    assert [item for part in parts for item in part] == items
    sizes = {len(part) for part in parts}
    assert sizes <= {num_items // world_size, math.ceil(num_items / world_size)}


def test_no_group_is_made_without_torchrun(monkeypatch):
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with distributed.process_group(torch.device("cuda")) as device:
        assert device == torch.device("cuda")
        assert not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)


def test_a_launcher_that_says_half_is_refused(monkeypatch):
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.raises(ValueError, match="WORLD_SIZE, LOCAL_RANK missing"),
        distributed.process_group(torch.device("cpu")),
    ):
        pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with (
        pytest.raises(ValueError, match=r"process 7, counted from 0, where PyTorch sees 4 CUDA"),
        distributed.process_group(torch.device("cuda")),
    ):
        pass
    assert not torch.distributed.is_initialized()


def test_a_launched_process_has_a_group_until_an_error(monkeypatch):
    settings = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in (settings | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ZeroDivisionError), distributed.process_group(torch.device("cpu")) as device:
        assert torch.distributed.get_backend() == "gloo"
        assert device == torch.device("cpu")
        assert distributed.gather_objects([1, 2]) == [1, 2]
        assert gather_rows(torch.ones(2, 3))[1] == 0
        raise ZeroDivisionError
    assert not torch.distributed.is_initialized()
