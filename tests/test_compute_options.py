"""Each option of --precision and its neighbours does what it says, and leaves the results alone."""

import copy
import shutil

import pytest
import torch
import torch.distributed as dist
from command_line import run
from distributed_workers import narrow_encoder
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import main
import opts
from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.training_output import TrainingOutput
from scripts.benchmark_steps import Sizes, as_arguments, draw_inputs
from utils.optimisation import Stepper, Trainer, autocast

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SIZES = Sizes(batch_size=6, frame_size=64, mel_bins=33, spectrogram_frames=48)
TINY = (
    "--frame-size 32 --window-seconds 0.25 --mel-bins 16 --hop-length 240 --time-mask 2 "
    "--frequency-mask 2 --batch-size 4 --workers 0 --device cpu --pictures 0 --log-every 1"
).split()


def build_model(*, narrow=True, **settings):
    """The method with two-layer encoders, or with its own."""
    torch.manual_seed(0)
    model = SSLTIE(SSLTIEConfig())
    if narrow:
        model.imgnet, model.audnet = narrow_encoder(3), narrow_encoder(1, passes=2)
    for name, value in settings.items():
        assert hasattr(model, name)
        setattr(model, name, value)
    return model.train()


@pytest.fixture(scope="module")
def inputs():
    return draw_inputs(SIZES, 1.0, CPU)


def loss_and_state(model, inputs, precision="fp32"):
    """Loss, gradients and running statistics of one forward and backward."""
    with autocast(CPU, precision):
        loss = model(**as_arguments(inputs)).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss.detach(), gradients, dict(model.named_buffers())


def largest_distance(ours, expected):
    assert ours.keys() == expected.keys() and expected
    return max(
        ((ours[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-6)).item()
        for name, value in expected.items()
    )


def saved_bytes(function):
    """Bytes that autograd keeps for backward, each storage once."""
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()
    assert result is not None  # alive, so that no address is used twice
    return sum(kept.values())


# ---------------------------------------------------------------------------- --recompute-audio


@pytest.mark.parametrize("narrow", [True, False], ids=["narrow", "ResNet-18"])
def test_recomputing_changes_no_bit(inputs, narrow):
    plain = loss_and_state(build_model(narrow=narrow), inputs)
    again = loss_and_state(build_model(narrow=narrow, recompute_audio=True), inputs)
    assert torch.equal(plain[0], again[0])
    for expected, ours in zip(plain[1:], again[1:], strict=True):
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(ours[name], value), name


def test_recomputing_keeps_none_of_the_audio_encoder_s_activations(inputs):
    model = build_model(narrow=False)
    sounds = inputs.log_mel_spectrogram
    of_parameters = sum(p.numel() * 4 for p in model.parameters())

    def kept():
        return saved_bytes(lambda: model(**as_arguments(inputs)))

    of_audio = saved_bytes(lambda: model.audnet(sounds))
    of_audio -= sum(p.numel() * 4 for p in model.audnet.parameters())
    everything = kept()
    model.recompute_audio = True
    assert of_audio > 0.1 * (everything - of_parameters)
    # Its output, and the parameters that backward no longer holds on to itself.
    assert everything - kept() >= 0.95 * of_audio


def test_without_gradients_nothing_is_computed_twice(inputs):
    model = build_model(recompute_audio=True)
    calls = []
    model.audnet.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model.encode_audio(inputs.log_mel_spectrogram)
    assert len(calls) == 1
    model.encode_audio(inputs.log_mel_spectrogram).sum().backward()
    assert len(calls) == 3


# ------------------------------------------------------------------------------ --micro-batches


class Mean(nn.Module):
    """No batch norm, no negatives: the loss is a mean over clips."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3).double()

    def forward(self, rows):
        values = self.layer(rows).square().sum(1)
        return TrainingOutput(values.mean(), {"half": values.detach().mean() / 2}, values.detach())


class Rows:
    """A batch of numbers."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def part(self, chosen):
        return Rows(self.rows[chosen])

    def to(self, device):
        return Rows(self.rows.to(device))


def as_rows(batch, seed, *, first, global_size):
    return {"rows": batch.rows}


def trainer_of(model, micro_batches, wrapped=None, precision="fp32"):
    """Its optimizer only counts: gradients stay to be looked at."""
    stepper = Stepper(torch.optim.SGD(model.parameters(), lr=0.0), CPU, precision)
    stepper.optimizer.zero_grad = lambda set_to_none: None
    return Trainer(model, wrapped or model, stepper, micro_batches)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_of_a_batch_are_the_batch_where_clips_do_not_meet(parts):
    batch = Rows(torch.randn(7, 5, dtype=torch.float64, generator=torch.manual_seed(1)))
    found = []
    for micro_batches in (1, parts):
        model = Mean()
        result = trainer_of(model, micro_batches).step_on(batch, as_rows, seed=0, global_size=7)
        found.append((result.loss, result.terms["half"], model.layer.weight.grad))
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-12, atol=1e-14)


def test_parts_of_a_batch_are_small_batches_one_after_the_other(inputs):
    """SSL-TIE's clips do meet, in negatives and batch norms: those of a part, and no others."""
    model = build_model()
    step = trainer_of(model, 2).step_on(inputs, lambda batch, *_, **__: as_arguments(batch),
                                        seed=0, global_size=6)  # fmt: skip
    expected = build_model()
    halves = [inputs.part(slice(0, 3)), inputs.part(slice(3, 6))]
    losses = [loss_and_state(expected, half)[0] for half in halves]  # gradients add up
    assert step.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    halved = {name: p.grad / 2 for name, p in expected.named_parameters()}
    ours = {name: p.grad for name, p in model.named_parameters()}
    assert largest_distance(ours, halved) < 1e-6
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], b) for name, b in expected.named_buffers())
    whole = loss_and_state(build_model(), inputs)
    assert abs(whole[0] / step.loss - 1) > 0.05  # fewer negatives: another loss


def test_gradients_are_exchanged_once_a_step(tmp_path):
    """Counts what the data-parallel wrapper sends."""
    batch = Rows(torch.randn(6, 5, dtype=torch.float64, generator=torch.manual_seed(1)))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model = Mean()
        wrapped = DistributedDataParallel(model)
        sent = []

        def count(_, bucket):
            sent.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, count)
        trainer_of(model, 3, wrapped).step_on(batch, as_rows, seed=0, global_size=6)
    finally:
        dist.destroy_process_group()
    assert sent == [18]  # 5 x 3 weights and 3 biases, once


# ----------------------------------------------------------- --channels-last, --precision, --tf32


def options_of(*arguments):
    return opts.parse_train_options(
        ["ssl_tie", "--train-set", "vggsound", "--data-root", "none", "--output", "none",
         "--device", "cpu", *arguments]
    )  # fmt: skip


def test_channels_last_is_the_same_in_another_order(inputs):
    plain, ordered = (
        main.build_trainer(options_of(*words), CPU).model for words in ([], ["--channels-last"])
    )
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


def test_fp16_scale_survives_a_restart_and_overflowing_steps_are_left_out():
    weight = nn.Parameter(torch.ones(2))

    def stepper():
        return Stepper(torch.optim.Adam([weight], lr=0.1), CPU, "fp16")

    first = stepper()
    first.backward(weight.sum())
    first.step()
    moved = weight.detach().clone()
    assert not torch.equal(moved, torch.ones(2))
    first.backward(weight.sum() * float("inf"))
    first.step()
    assert torch.equal(weight, moved)
    state = copy.deepcopy(first.state_dict())
    assert state["scaler"]["scale"] == 2.0**15  # half of what it begins with
    second = stepper()
    second.load_state_dict(state)
    assert second.state_dict()["scaler"] == state["scaler"]
    seen = []
    weight.register_hook(lambda gradient: seen.append(gradient[0].item()))
    second.backward(weight.sum())
    assert seen == [2.0**15]


@pytest.mark.slow
def test_fp16_trains_and_resumes_from_the_command_line(tiny_data, tmp_path):
    """A scale that no run begins with is gone on with."""
    last = tmp_path / "run" / "last.pth"
    for epochs in (1, 2):
        finished = run(
            "main.py", "ssl_tie", "--train-set", "vggsound", "--data-root", tiny_data.root,
            "--output", last.parent, "--precision", "fp16", "--epochs", epochs, *TINY,
            *(["--resume"] if epochs > 1 else []),
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        content = torch.load(last, weights_only=True)
        if epochs == 1:
            assert 2.0**10 < content["progress"]["scaler"]["scale"] <= 2.0**16
            content["progress"]["scaler"]["scale"] = 2.0**10
            torch.save(content, last)
    assert content["epoch"] == 2
    assert content["progress"]["scaler"]["scale"] <= 2.0**10


@pytest.fixture
def tf32_switches():
    """Both of them, put back at the end."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    yield switches
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_sets_and_unsets_the_switches(monkeypatch, tf32_switches, tf32):
    for switch in tf32_switches:
        switch.allow_tf32 = not tf32
    seen = []
    monkeypatch.setattr(main, "train_on", lambda *_: seen.extend(s.allow_tf32 for s in tf32_switches) or 0)
    assert main.train(options_of("--tf32" if tf32 else "--no-tf32")) == 0
    assert seen == [tf32, tf32]


# ------------------------------------------------------------------------------------ --compile


def test_compiling_leaves_the_names_alone():
    plain, compiled = (main.build_trainer(options_of(*words), CPU).model for words in ([], ["--compile"]))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert all(network._compiled_call_impl is not None for network in compiled.networks())
    assert all(network._compiled_call_impl is None for network in plain.networks())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's compiler
def test_compiled_networks_give_the_same_loss(inputs):
    expected = loss_and_state(build_model(), inputs)
    model = build_model(recompute_audio=True)
    for network in model.networks():
        network.compile()
    loss, gradients, buffers = loss_and_state(model, inputs)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert largest_distance(gradients, expected[1]) < 1e-2
    assert largest_distance(buffers, expected[2]) < 1e-5


# ---------------------------------------------------------------------------------- all together


def test_options_reach_the_trainer():
    words = "--precision bf16 --micro-batches 4 --recompute-audio --head-megabytes 3".split()
    trainer = main.build_trainer(options_of(*words), CPU)
    assert (trainer.micro_batches, trainer.stepper.precision) == (4, "bf16")
    assert (trainer.model.recompute_audio, trainer.model.head_bytes) == (True, 3 * 2**20)
    assert trainer.wrapped is trainer.model
    plain = main.build_trainer(options_of(), CPU)
    assert (plain.micro_batches, plain.stepper.precision) == (1, "fp32")
    assert (plain.model.recompute_audio, plain.model.head_bytes) == (False, None)
    assert plain.stepper.optimizer.defaults["fused"]


def test_too_many_parts_are_refused():
    with pytest.raises(ValueError, match="--micro-batches 9 leaves fewer than 2"):
        options_of("--micro-batches", "9", "--batch-size", "16")
