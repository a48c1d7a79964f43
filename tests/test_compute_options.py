"""Each option of --precision and its neighbours does what it says, and leaves the results alone."""

import shutil
from functools import partial

import pytest
import torch
from command_line import assert_same_weights, run, training
from distributed_workers import largest_distance, narrow_encoder
from torch import nn

import main
import opts
from datasets.geometry import GeometricTransform
from models.ssl_tie import SSLTIE, SSLTIEConfig
from utils.training import autocast, choose_precision

CPU = torch.device("cpu")
TINY = (
    "--frame-size 32 --window-seconds 0.25 --mel-bins 16 --hop-length 240 --time-mask 2 --frequency-mask 2"
).split()


def build_model():
    """The method with two-layer encoders."""
    torch.manual_seed(0)
    model = SSLTIE(SSLTIEConfig())
    model.imgnet, model.audnet = narrow_encoder(3), narrow_encoder(1, batch_norm_passes=2)
    return model.train()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(4)
    frames = torch.randn(6, 3, 64, 64, generator=generator)
    transform = GeometricTransform(tuple(range(-15, 15, 5)), scale=1.0, flip=True, frame_size=64)
    return {
        "frames": frames,
        "log_mel_spectrogram": torch.randn(6, 1, 33, 48, generator=generator),
        "transformed_frames": transform.warp_frames(frames),
        "transform": transform.warp_maps,
    }


def loss_and_state(model, inputs, precision="fp32"):
    """Loss, gradients and running statistics of one forward and backward."""
    with autocast(CPU, precision):
        loss = model(**inputs).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss.detach(), gradients, dict(model.named_buffers())


def options_of(*arguments):
    return opts.parse_train_options(
        ["ssl_tie", "--train-set", "vggsound", "--data-root", "none", "--output", "none",
         "--device", "cpu", *arguments]
    )  # fmt: skip


def test_channels_are_innermost_on_a_cpu_with_the_same_results(inputs):
    ordered, wrapped = main.build_model(options_of(), CPU)
    assert wrapped is ordered
    plain, _ = main.build_model(options_of(), CPU)
    plain.to(memory_format=torch.contiguous_format)
    orders = []
    for layer in ordered.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _, __, output: orders.append(output.is_contiguous(memory_format=torch.channels_last))
            )
    expected, ours = (loss_and_state(model, inputs) for model in (plain, ordered))
    assert len(orders) == 60 and all(orders)  # frames, transformed frames, sounds
    assert abs(ours[0] / expected[0] - 1) < 1e-5
    assert largest_distance(ours[1], expected[1]) < 1e-2
    assert largest_distance(ours[2], expected[2]) < 1e-5
    assert ordered.build_optimizer(options_of().optimisation).defaults["fused"]


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2e-2), ("fp16", 3e-3)])
def test_half_precision_moves_the_loss_a_little(inputs, precision, bound):
    expected = loss_and_state(build_model(), inputs)
    model = build_model()
    dtypes = []
    model.imgnet.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    loss, gradients, _ = loss_and_state(model, inputs, precision)
    assert set(dtypes) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert 0 < abs(loss / expected[0] - 1) < bound


@pytest.mark.slow
def test_fp16_trains_and_resumes_from_the_command_line(tiny_data, tmp_path):
    """A scale that no run begins with is gone on with."""
    last = tmp_path / "run" / "last.pth"
    for epochs in (1, 2):
        words = ("--precision", "fp16", "--epochs", epochs, *TINY, *(["--resume"] if epochs > 1 else []))
        finished = run("main.py", *training(tiny_data, last.parent, *words))
        assert finished.returncode == 0, finished.stderr
        content = torch.load(last, weights_only=True)
        if epochs == 1:
            assert 2.0**10 < content["progress"]["scaler"]["scale"] <= 2.0**16
            content["progress"]["scaler"]["scale"] = 2.0**10
            torch.save(content, last)
    assert content["epoch"] == 2
    assert content["progress"]["scaler"]["scale"] <= 2.0**10


def test_a_run_of_another_layout_is_gone_on_with(tiny_data, tmp_path):
    """GPUs keep weights and moments of float32 row by row, CPUs with the channels innermost."""
    for name in ("own", "other"):
        last = tmp_path / name / "last.pth"
        for words in (["--epochs", 1], ["--epochs", 2, "--resume"]):
            assert main.main(training(tiny_data, last.parent, *TINY, *words)) == 0
            content = torch.load(last, weights_only=True)
            if name == "other":
                for values in content["optimizer"]["state"].values():
                    values |= {key: value.contiguous() for key, value in values.items()}
                torch.save(content, last)
    assert_same_weights(tmp_path / "own" / "last.pth", last)


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_sets_and_unsets_the_switches(monkeypatch, request, tf32):
    """Convolutions alone: similarities and warps stay exact."""
    switches, seen = (torch.backends.cuda.matmul, torch.backends.cudnn), []
    for switch in switches:
        request.addfinalizer(partial(setattr, switch, "allow_tf32", switch.allow_tf32))
        switch.allow_tf32 = not tf32
    monkeypatch.setattr(main, "train_on", lambda *_: seen.extend(s.allow_tf32 for s in switches) or 0)
    assert main.train(options_of("--precision", "tf32" if tf32 else "bf16")) == 0
    assert seen == [False, tf32]


def test_compiling_leaves_the_names_alone():
    plain, compiled = (main.build_model(options_of(*words), CPU)[0] for words in ([], ["--compile"]))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert all(network._compiled_call_impl is not None for network in compiled.networks())
    assert all(network._compiled_call_impl is None for network in plain.networks())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's compiler
def test_compiled_networks_give_the_same_loss(inputs):
    expected = loss_and_state(build_model(), inputs)
    model = build_model()
    for network in model.networks():
        network.compile()
    loss, gradients, buffers = loss_and_state(model, inputs)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert largest_distance(gradients, expected[1]) < 1e-2
    assert largest_distance(buffers, expected[2]) < 1e-5


@pytest.mark.parametrize(
    ("device", "has_bf16", "chosen"), [("cuda", True, "bf16"), ("cuda", False, "tf32"), ("cpu", True, "fp32")]
)
def test_a_gpu_trains_in_the_fast_precision_that_it_has(device, has_bf16, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)

    assert choose_precision("auto", torch.device(device)) == chosen
    assert choose_precision("fp32", torch.device(device)) == "fp32"
