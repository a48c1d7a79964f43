"""What needs a GPU: it computes what the CPU does, in each precision and layout, and runs are gone on with.

GPU_TESTS_DEVICE=cpu compares the CPU with itself, which tries the tests themselves where there is no GPU.
"""

import math
import os

import distributed_workers as workers
import pandas as pd
import pytest
import torch
from command_line import training

import main
import opts
from datasets.clips import Batch
from models import METHODS
from utils.training import autocast, use_full_float32

CPU, DEVICE = torch.device("cpu"), torch.device(os.environ.get("GPU_TESTS_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs a GPU")
CLIPS = 4
WAYS = {  # of the device -> of the CPU; the floor of what may lie between them
    "fp64": (None, 1e-6),
    "fp32": ("fp32", 1e-4),
    "channels_last": ("fp32", 1e-4),
    "compile": ("fp32", 1e-4),
    "tf32": ("bf16", 1e-2),  # finer, and not there on CPUs
    "bf16": ("bf16", 1e-2),
    "fp16": ("bf16", 1e-2),  # finer, and slow on CPUs
}


class Case:
    """A method at its initial weights, training views made on the CPU, and the CPU's float64 step."""

    def __init__(self, method, folder):
        self.words = [
            *(method, "--train-set", "vggsound", "--data-root", ".", "--output", str(folder)),
            *("--frame-size", "96", "--start", "scratch", *["--random-init"] * (method == "sspl")),
        ]
        self.model, _ = self.build(CPU, "fp32")
        self.batch = make_batch(self.model)
        self.views = self.model.augment(self.batch, seed=1)
        self.exact = self.step(CPU, "fp64")
        self.distances = {way: self.distance(CPU, way) for way in ("fp32", "bf16")}

    def build(self, device, way):
        precision = way if way in ("tf32", "bf16", "fp16") else "fp32"
        words = ["--precision", precision, *["--compile"] * (way == "compile")]
        self.options = opts.parse_train_options([*self.words, *words])
        use_full_float32(precision != "tf32")
        return main.build_model(self.options, device)

    def step(self, device, way):
        """Maps, loss and all gradients of the first step."""
        model, wrapped = self.build(device, way)
        if way == "channels_last":
            model.to(memory_format=torch.channels_last)
        dtype = torch.float64 if way == "fp64" else torch.float32
        views = {
            name: view.to(device, dtype) if isinstance(view, torch.Tensor) else view
            for name, view in self.views.items()
        }
        model.to(dtype).before_step(5, 0)
        for scale in (2.0**16, 2.0**8, 1.0) if way == "fp16" else (1.0,):  # as training finds it
            model.zero_grad()
            with autocast(device, self.options.compute.precision):
                output = wrapped(**views)
            (scale * output.loss).backward()
            gradients = torch.cat(
                [p.grad.flatten() / scale for p in model.parameters() if p.grad is not None]
            )
            if gradients.isfinite().all():
                break
        return [tensor.double().cpu() for tensor in (output.similarity_map, output.loss.detach(), gradients)]

    def distance(self, device, way):
        """From the exact step: of maps and gradients, relative, and of the loss."""
        maps, loss, gradients = zip(self.step(device, way), self.exact, strict=True)
        return [relative(*maps), (loss[0] - loss[1]).abs().item(), relative(*gradients)]


def relative(ours, expected):
    return ((ours - expected).norm() / expected.norm()).item()


def make_batch(model):
    """Blobs of colour, and chords that beat."""
    generator = torch.Generator().manual_seed(0)
    size = model.training_frame_size + 32 * model.random_crop
    coarse = 255 * torch.rand(CLIPS, 3, 6, 6, generator=generator)
    time = torch.arange(model.audio.num_samples) / 16_000
    pitches, beats = torch.rand(2, CLIPS, 3, 1, generator=generator)
    tones = torch.sin(300 * math.pi * 2 ** (5 * pitches) * time)
    return Batch(
        clip_ids=tuple("abcd"),
        frames=torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").byte(),
        waveforms=(tones * torch.sin(math.pi * (1 + 6 * beats) * time) ** 2).mean(1),
        bounding_boxes=(None,) * CLIPS,
        ground_truth_maps=None,
        broken=(),
        picture_sizes=((size, size),) * CLIPS,
    )


@pytest.fixture(scope="module", params=METHODS)
def case(request, tmp_path_factory):
    torch.set_num_threads(os.cpu_count() or 1)
    yield Case(request.param, tmp_path_factory.mktemp("gpu"))
    torch.set_num_threads(1)
    use_full_float32()


def test_training_views_are_those_of_the_cpu(case):
    views = case.model.to(DEVICE).augment(case.batch.to(DEVICE), seed=1)
    assert views.keys() == case.views.keys()
    for name, view in case.views.items():
        if isinstance(view, torch.Tensor) and name != "kept":  # the dropout is drawn on the device
            assert views[name].device.type == DEVICE.type
            assert relative(views[name].cpu(), view) < 1e-3, name


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_as_near_to_float64_as_on_the_cpu(case, way):
    """Gradients at random weights amplify rounding up to a million times, in float32 and on CPUs too."""
    if not ON_GPU and way in ("compile", "tf32", "fp16"):
        pytest.skip("slow on CPUs, or not there")
    if way == "compile" and case.options.method != "ssl_tie":
        pytest.skip("takes a minute: one method is enough")
    likewise, floor = WAYS[way]
    limits = [floor + 2 * d for d in case.distances[likewise]] if likewise else [floor] * 3
    found = case.distance(DEVICE, way)
    assert all(d < limit for d, limit in zip(found, limits, strict=True)), (found, limits)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_of_ssl_tie_is_the_unbroken_one(tiny_data, tmp_path, precision):
    """As near as a second unbroken one: on a GPU, sums of gradients have no fixed order."""
    found = {}
    for name, epochs in (("unbroken", [2]), ("again", [2]), ("parts", [1, 2])):
        for number in epochs:
            words = ["--epochs", number, "--precision", precision, "--device", DEVICE]
            words += ["--resume"] * (name == "parts" and number == 2)
            assert main.main(training(tiny_data, tmp_path / name, *words)) == 0
        moments = torch.load(tmp_path / name / "last.pth", weights_only=True)["optimizer"]["state"].values()
        found[name] = torch.cat([of["exp_avg_sq"].double().flatten() for of in moments])
    near = relative(found["again"], found["unbroken"])
    assert near < 0.1  # without the moments of the first epoch the next line's distance is above 0.5
    assert relative(found["parts"], found["unbroken"]) <= 5 * near
    losses = [pd.read_csv(tmp_path / name / "history.csv")["loss"] for name in ("unbroken", "parts")]
    assert losses[1].tolist() == pytest.approx(losses[0].tolist(), rel=1e-3 if precision == "fp32" else 2e-2)


@pytest.mark.skipif(ON_GPU and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_step_of_two_processes_of_ssl_tie_and_others_is_that_of_one(tmp_path):
    names = ["sspl", "ssl_tie", "peers"]
    found = workers.run_processes({2: names}, tmp_path, DEVICE.type)[2]
    for name in names:
        for variant, expected in workers.SCENARIOS[name](0, 1).items():
            workers.check_parts(name, [result[variant] for result in found[name]], expected)
