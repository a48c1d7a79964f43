"""Several processes compute what one process with all clips computes: gloo, on the CPU."""

import copy
import math

import distributed_workers as workers
import pytest
import torch
from distributed_workers import LAYERS, PEERS, PRECISIONS, SHARES, SSL_TIE_VARIANTS
from torch import nn

from models.encoders import ResNet18Encoder
from models.predictive_coding import PredictiveCodingModule
from utils import distributed
from utils.distributed import SynchronisedBatchNorm, synchronise_batch_norms

SCENARIOS = {2: "batch_norms sspl ssl_tie peers helpers".split(), 4: "batch_norms ssl_tie helpers".split()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What processes found: number of processes -> scenario -> result of each rank."""
    return workers.run_processes(SCENARIOS, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def alone():
    """The same by one process with all clips: scenario -> result."""
    return {name: workers.SCENARIOS[name](0, 1) for name in ("sspl", "ssl_tie", "peers", "helpers")}


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
        assert workers.distance(ours, value.double()) < limit, key
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
    pcm = PredictiveCodingModule(1, channels=4, audio_size=2)
    for network in (ResNet18Encoder(1, batch_norm_passes=2), pcm):
        kinds = {name: type(layer) for name, layer in network.named_modules()}
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        synchronise_batch_norms(network.eval())
        synchronise_batch_norms(network)
        assert not any(layer.training for layer in network.modules())
        for name, layer in network.named_modules():
            is_norm = issubclass(kinds[name], nn.modules.batchnorm._BatchNorm)
            assert isinstance(layer, SynchronisedBatchNorm) == is_norm, name
            assert isinstance(layer, kinds[name]) and (is_norm or type(layer) is kinds[name]), name
        after = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        assert after.keys() == tensors.keys()
        assert all(after[name] is tensor for name, tensor in tensors.items())
        copied = copy.deepcopy(network)
        assert [type(layer) for layer in copied.modules()] == [type(layer) for layer in network.modules()]


# ---------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("world_size", "method", "variant"),
    [
        *((2, "sspl", pcm) for pcm in (True, False)),
        *((size, "ssl_tie", variant) for size in SCENARIOS for variant in SSL_TIE_VARIANTS),
        *((2, "peers", name) for name in PEERS),
    ],
)
def test_a_step_of_several_processes_is_that_of_one(found, alone, world_size, method, variant):
    parts = [result[variant] for result in found[world_size][method]]
    workers.check_parts(method, parts, alone[method][variant])


# ---------------------------------------------------------------------------------------- helpers


@pytest.mark.parametrize("world_size", [1, *SCENARIOS])
def test_helpers_among_processes(found, alone, world_size):
    results = [alone["helpers"]] if world_size == 1 else found[world_size]["helpers"]
    for rank, seen in enumerate(results):
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
            "nearest": alone["helpers"]["nearest"],
            "slice": str(slice(2 * rank, 2 * rank + 2)),
        }


@pytest.mark.parametrize("world_size", [1, 2, 4, 5])
def test_shards_are_the_sequence_without_repetition(world_size):
    for num_items in (0, 1, 3, 4, 17):
        items = list(range(num_items))
        parts = [distributed.shard(items, rank, world_size) for rank in range(world_size)]
        assert [item for part in parts for item in part] == items
        sizes = {len(part) for part in parts}
        assert sizes <= {num_items // world_size, math.ceil(num_items / world_size)}


def test_what_torchrun_sets_decides_on_the_group(monkeypatch):
    cuda = torch.device("cuda")
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with distributed.process_group(cuda) as device:
        assert device == cuda and not torch.distributed.is_initialized()
    monkeypatch.setenv("RANK", "7")
    with pytest.raises(ValueError, match="WORLD_SIZE, LOCAL_RANK missing"), distributed.process_group(cuda):
        pass
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    message = r"process 7, counted from 0, where PyTorch sees 4 CUDA"
    with pytest.raises(ValueError, match=message), distributed.process_group(cuda):
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
        assert distributed.gather_rows(torch.ones(2, 3))[1] == 0
        raise ZeroDivisionError
    assert not torch.distributed.is_initialized()
