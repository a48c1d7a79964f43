"""What the processes of test_distributed.py do; spawned processes import this module.

A scenario is a function of (rank, world size) that returns what torch.save can write. With (0, 1)
and no process group it gives what the processes together are compared with.
"""

from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.geometry import GeometricTransform
from datasets.mixing import nearest_others
from models.encoders import RepeatedBatchNorm2d, VGG16Encoder
from models.released import build_localiser
from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.sspl import SSPL, SSPLConfig
from utils import distributed
from utils.distributed import synchronise_batch_norms

TIME_LIMIT = timedelta(minutes=5)
"""After which a process that waits for another is taken to hang."""
CLIPS = 4
"""Of the global batch."""
WIDTH = 16
"""Features of the narrow networks, which are as good as wide ones to compare processes by."""


device = torch.device("cpu")
"""Of this process"""


def run_processes(plan, folder, kind="cpu"):
    """Runs scenarios by world size in processes that serve in one group after another.

    Returns world size -> scenario -> results of the processes in the order of their ranks. They meet in an
    empty folder. Steps are taken on a kind of device: cpu, or a GPU for each process.
    """
    torch.multiprocessing.start_processes(_work, (plan, folder, kind), max(plan), start_method="spawn")
    results = {}
    for world_size, names in plan.items():
        paths = [folder / f"{world_size}_{rank}.pt" for rank in range(world_size)]
        parts = [torch.load(path, map_location="cpu") for path in paths]
        results[world_size] = {name: [part[name] for part in parts] for name in names}
    return results


def _work(rank, plan, folder, kind):
    global device  # noqa: PLW0603 - a process has one
    torch.set_num_threads(1)
    if kind == "cuda":
        device = torch.device(kind, rank)
        torch.cuda.set_device(device)
    for world_size, names in plan.items():
        if rank < world_size:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
                init_method=f"file://{folder}/rendezvous_of_{world_size}",
                rank=rank,
                world_size=world_size,
                timeout=TIME_LIMIT,
            )
            results = {name: SCENARIOS[name](rank, world_size) for name in names}
            torch.save(results, folder / f"{world_size}_{rank}.pt")
            dist.destroy_process_group()


def own_share(batch, rank, world_size):
    return {name: distributed.shard(tensor, rank, world_size) for name, tensor in batch.items()}


# ------------------------------------------------------------------------------------ batch norms

SHARES = {1: [6], 2: [4, 2], 4: [3, 1, 1, 1]}
"""Clips of each process, by the number of processes."""

LAYERS = {
    "1d": (lambda: nn.BatchNorm1d(5), (6, 5)),
    "1d, sequences": (lambda: nn.BatchNorm1d(5), (6, 5, 7)),
    "2d": (lambda: nn.BatchNorm2d(3), (6, 3, 4, 2)),
    "not affine": (lambda: nn.BatchNorm2d(3, affine=False), (6, 3, 4, 2)),
    "repeated": (lambda: RepeatedBatchNorm2d(3, passes=2), (6, 3, 4, 2)),
}
"""Batch norm and the shape of its global batch."""

PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def batch_norm_steps(layer, shape, dtype, rank, world_size):
    """Two training steps and an evaluation; the loss is a sum, which adds up over processes."""
    generator = torch.Generator().manual_seed(2)
    start = sum(SHARES[world_size][:rank])
    own = slice(start, start + SHARES[world_size][rank])
    torch.manual_seed(3)
    with torch.no_grad():  # the same numbers in all precisions
        for parameter in layer.parameters():
            parameter.copy_(0.5 + torch.rand(len(parameter)))
    found = {}
    for step in range(2):
        # A mean that is large beside the spread: sums of squares would cancel.
        everything = 100 + step + torch.randn(*shape, generator=generator, dtype=torch.float64)
        factors = torch.randn(*shape, generator=generator, dtype=torch.float64)
        features = everything[own].to(dtype).detach().requires_grad_()
        output = layer(features)
        (output * factors[own].to(dtype)).sum().backward()
        found[f"output {step}"] = output.detach()
        found[f"gradient {step}"] = features.grad
    with torch.no_grad():
        found["evaluated"] = layer.eval()(everything[own].to(dtype))
    found |= {f"sum of {name}": p.grad for name, p in layer.named_parameters()}
    found |= {f"same {name}": buffer for name, buffer in layer.named_buffers()}
    return found


def batch_norms(rank, world_size):
    found = {}
    for name, (build, shape) in LAYERS.items():
        for precision, dtype in PRECISIONS.items():
            layer = build()
            synchronise_batch_norms(layer)
            layer = layer.double() if dtype == torch.float64 else layer
            found[name, precision] = batch_norm_steps(layer, shape, dtype, rank, world_size)
    return found


# ---------------------------------------------------------------------------------------- methods


def take_step(model, inputs, world_size):
    """One training step: loss and terms of this process, gradients, running statistics."""
    model = model.to(device)
    synchronise_batch_norms(model)  # on a GPU it takes PyTorch's
    called = DistributedDataParallel(model) if world_size > 1 else model
    views = {n: view.to(device) if isinstance(view, torch.Tensor) else view for n, view in inputs.items()}
    output = called(**views)
    output.loss.backward()
    return {
        "loss": output.loss.detach(),
        "terms": output.terms,
        "gradients": {n: p.grad for n, p in model.named_parameters() if p.requires_grad},
        # Not those of the front end, which are in no checkpoint and here not even filled.
        "buffers": {n: buffer for n, buffer in model.named_buffers() if n in model.state_dict()},
        "maps": output.similarity_map,
    }


def distance(ours, expected):
    """Of two tensors, relative to the second; means that are 0 but for rounding count as equal."""
    return ((ours - expected).norm() / expected.norm().clamp_min(1e-6)).item()


def largest_distance(ours, expected):
    assert ours.keys() == expected.keys() and expected
    return max(distance(ours[name].double(), expected[name].double()) for name in expected)


def check_parts(method, parts, expected):
    """Asserts that a step's results of all processes are together those of one with all clips."""
    for part in parts[1:]:  # the data-parallel wrapper gives all processes the same gradients
        for name, gradient in part["gradients"].items():
            assert torch.equal(gradient, parts[0]["gradients"][name]), name
    assert torch.stack([part["loss"] for part in parts]).mean().item() == pytest.approx(
        expected["loss"].item(), rel=1e-8
    )
    assert largest_distance(parts[0]["gradients"], expected["gradients"]) < 1e-8
    assert max(largest_distance(part["buffers"], expected["buffers"]) for part in parts) < 1e-8
    assert distance(torch.cat([part["maps"] for part in parts]), expected["maps"]) < 1e-8
    for name, term in expected["terms"].items() if method != "sspl" else ():
        mean = sum(part["terms"][name] for part in parts) / len(parts)
        assert mean.item() == pytest.approx(term.item(), rel=1e-8), name


def build_sspl(*, pcm):
    """SSPL in float64, narrow, with stand-ins for its frozen encoders: they have no batch norm."""
    with (
        mock.patch.object(VGG16Encoder, "embedding_size", WIDTH),
        mock.patch("models.sspl.PROJECTION_SIZE", 4 * WIDTH),
        torch.device("meta"),
    ):
        model = SSPL(SSPLConfig(pcm=pcm, pcm_cycles=2))
    torch.manual_seed(0)
    model.frame_encoder = nn.Conv2d(3, WIDTH, 16, stride=16)
    model.audio_encoder = nn.Sequential(nn.Flatten(2), nn.Linear(96 * 64, 128), nn.ReLU())
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, rate in model.named_parameters():
        if "_rates." in name:
            nn.init.uniform_(rate, 0.4, 1.0)
    for encoder in (model.frame_encoder, model.audio_encoder):
        encoder.requires_grad_(False)
    return model.double().train()


def sspl(rank, world_size):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, CLIPS, 3, 96, 96, generator=generator, dtype=torch.float64)
    views = {
        "frames": frames[0],
        "second_frames": frames[0] + 0.5 * frames[1],
        "log_mel_segments": torch.randn(CLIPS, 3, 1, 96, 64, generator=generator, dtype=torch.float64),
    }
    found = {}
    for pcm in (True, False):
        model = build_sspl(pcm=pcm)
        found[pcm] = take_step(model, own_share(views, rank, world_size), world_size)
    return found


ANGLES = (5, -30, 0, 20)  # halves of different coverage, or a mean of each process's own would be right
SSL_TIE_VARIANTS = {"narrow": {}, "negative sounds": {}, "no hard negatives": {"hard_negatives": False}}
"""Options by name."""


def narrow_encoder(in_channels, batch_norm_passes=1, last_stride=1):
    """Two convolutions in the place of a ResNet-18, with a map of a sixteenth of the picture's side."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 5, stride=4, padding=2, bias=False),
        RepeatedBatchNorm2d(8, passes=batch_norm_passes),
        nn.ReLU(),
        nn.Conv2d(8, WIDTH, 5, stride=4, padding=2, bias=False),
        RepeatedBatchNorm2d(WIDTH, passes=batch_norm_passes),
        nn.ReLU(),
    )


narrow_encoder.embedding_size = WIDTH  # type: ignore[attr-defined]


def frames_and_sounds():
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(CLIPS, 3, 64, 64, generator=generator, dtype=torch.float64)
    return frames, torch.randn(CLIPS, 1, 33, 48, generator=generator, dtype=torch.float64), generator


def build_ssl_tie(variant):
    torch.manual_seed(0)
    with mock.patch("models.ssl_tie.ResNet18Encoder", narrow_encoder):
        return SSLTIE(SSLTIEConfig(**SSL_TIE_VARIANTS[variant])).double().train()


def ssl_tie_inputs(variant, rank, world_size):
    frames, sounds, generator = frames_and_sounds()
    negatives = torch.randn(2, 1, 33, 48, generator=generator, dtype=torch.float64)
    views = own_share({"frames": frames, "log_mel_spectrogram": -40 + 20 * sounds}, rank, world_size)
    transform = GeometricTransform(distributed.shard(ANGLES, rank, world_size), 1.0, True, 64, "masked")
    return views | {
        "transformed_frames": transform.warp_frames(views["frames"]),
        "transform": transform.warp_maps,
        "negative_sounds": negatives if variant == "negative sounds" else None,
    }


def ssl_tie(rank, world_size):
    found = {}
    for name in SSL_TIE_VARIANTS:
        model = build_ssl_tie(name)
        found[name] = take_step(model, ssl_tie_inputs(name, rank, world_size), world_size)
    return found


PEERS = ("lvs", "ez_vsl", "slavc", "fnac")


def peers(rank, world_size):
    found, (frames, sounds, generator) = {}, frames_and_sounds()
    kept = 10.0 * (torch.rand(CLIPS, 2, WIDTH, 4, 4, generator=generator, dtype=torch.float64) < 0.5)
    for name in PEERS:
        torch.manual_seed(0)
        with mock.patch("models.peers.ResNet18Encoder", narrow_encoder):
            model = build_localiser(name, {}).double().train()
        views = {"frames": frames, "log_spectrogram": sounds} | ({"kept": kept} if model.num_dropped else {})
        model.before_step(5, 0)
        found[name] = take_step(model, own_share(views, rank, world_size), world_size)
    return found


# ---------------------------------------------------------------------------------------- helpers


def helpers(rank, world_size):
    mean = distributed.average(torch.tensor([float(rank), 1.0]))
    with pytest.raises(ValueError, match=f"--batch-size 1 is that of all {world_size} processes"):
        distributed.local_slice(1)
    return {
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "is_main_process": distributed.is_main_process(),
        "gathered": distributed.gather_objects([(rank, index) for index in range(rank)]),
        "sharded": distributed.gather_objects(distributed.shard("abcdefg", rank, world_size)),
        "mean": mean.tolist(),
        "nobody": distributed.largest(0),
        "the last": distributed.largest(rank),
        "smallest": distributed.smallest(10 - rank),
        "nearest": nearest_others(
            torch.rand(9, 4, generator=torch.Generator().manual_seed(0)), (2, 1)
        ).tolist(),
        "slice": str(distributed.local_slice(2 * world_size)),
    }


SCENARIOS = {scenario.__name__: scenario for scenario in (batch_norms, sspl, ssl_tie, peers, helpers)}
