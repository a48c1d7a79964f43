"""SSPL equals its authors' program, trains what it should, and says when it collapses."""

import math
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_inputs import released_shapes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datasets.audio import VGGishLogMel, level_waveform
from models.predictive_coding import PredictiveCodingModule
from models.released import SSPL_FILES, convert_sspl_release
from models.sspl import (
    SSPL,
    SSPLConfig,
    SSPLRecipe,
    View,
    attention_map,
    collapse_terms,
    effective_rank,
    spread,
    symmetric_loss,
)
from utils.training import TrainingRun

FROZEN = ("frame_encoder.", "audio_encoder.")
BOTH = pytest.mark.parametrize("pcm", [True, False])
SIDE = 96
"""Of the frames in tests that need no golden number: maps of 6 x 6, a fifth of the work."""


def relative(expected):
    """Recorded numbers have five or six digits."""
    return pytest.approx(expected, rel=2e-4)


def mean_and_std(values):
    return [values.mean().item(), values.std(correction=0).item()]


# ------------------------------------------------------------------------------- models and inputs


def fill(shapes):
    """The recorded numbers' weights: a formula of each tensor's place, name and shape."""
    filled = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            filled[name] = torch.tensor(0)
            continue
        count = math.prod(shape)
        values = np.random.RandomState(1000 + index).standard_normal(count)
        if name.endswith("running_var"):
            values = 1 + 0.5 * values**2
        elif name.endswith(("running_mean", "bias")):
            values *= 0.1
        elif name.startswith("b0."):
            values = 0.5 + 0.1 * values
        elif name.startswith("a0.") or len(shape) == 1:
            values = 1 + 0.1 * values
        else:
            values *= math.sqrt(2 * shape[0] / count)
        filled[name] = torch.tensor(values, dtype=torch.float32).reshape(shape)
    return filled


def normal(seed, *shape):
    values = np.random.RandomState(seed).standard_normal(shape)
    return torch.tensor(values, dtype=torch.float32)


@cache
def release():
    """The authors' four files, filled by the formula; VGG-16, of which nothing is recorded, not."""
    generator = torch.Generator().manual_seed(0)
    frame = {
        name: torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        for name, shape in released_shapes("frame_best.pth").items()
    }
    return {"frame_best.pth": frame} | {name: fill(released_shapes(name)) for name in SSPL_FILES[1:]}


def build(*, pcm=True):
    """A model with the weights of the release; those of the frozen encoders are shared."""
    files = {name: content for name, content in release().items() if pcm or name != "pcm_best.pth"}
    config, state = convert_sspl_release(files, Path("release"))
    state = {k: v if k.startswith(FROZEN) else v.clone() for k, v in state.items()}
    with torch.device("meta"):  # nothing is drawn for weights that are replaced anyway
        model = SSPL(SSPLConfig(**config))
    model.load_state_dict(state, strict=True, assign=True)
    return model


@cache
def golden_clips():
    """Maps of both views, audio embedding and audio target of four clips."""
    view_1 = normal(1, 4, 512, 14, 14)
    maps = view_1, view_1 + 0.5 * normal(2, 4, 512, 14, 14)
    return maps, normal(4, 4, 512), F.normalize(normal(3, 4, 128).clamp_min(0), dim=1)


def golden_views(model):
    maps, embedding, target = golden_clips()
    return [model.process_view(features, embedding, target) for features in maps]


@pytest.fixture(scope="module")
def inputs():
    """A tiny batch of two clips."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, 3, SIDE, SIDE, generator=generator)
    return {
        "frames": frames,
        "second_frames": frames.flip(3),
        "log_mel_segments": torch.randn(2, 3, 1, 96, 64, generator=generator),
    }


# ----------------------------------------------------------------------------------------- goldens

WITH_PCM = {
    "eval": {
        "aligned": [-0.029883, 1.261771, -0.94821, -1.78879, -2.91359],
        "aligned_2_std": 1.439684,
        "similarity": [0.006729, 0.039773],
        "attention_mean": 0.485195,
        "pooled": [-209.8268, -14.12138, -65.30705],
        "projection": [121.66574, -16.04208, -151.94348],
        "loss": -0.0113961,
    },
    "train": {
        "aligned": [-0.011607, 1.094616, 0.72266, -0.38467, -0.86927],
        "aligned_2_std": 1.098915,
        "similarity": [0.004445, 0.041073],
        "attention_mean": 0.509875,
        "pooled": [-41.63997, 10.23116, -31.44003],
        "projection": [-0.91556, -1.4445, 1.20842],
        "loss": -0.0028693,
    },
}
GRADIENT_NORMS = {
    "predictive_coding.correction_rates.0": 0.014022,
    "predictive_coding.prediction_rates.2": 0.088463,
    "predictive_coding.predict_level_2.weight": 7.902,
    "predictive_coding.correct_level_1.weight": 0.24951,
    "predictive_coding.output.bias": 0.016105,
    "prediction_head.layer2.weight": 0.115856,
    "projection_head.layer1.0.weight": 0.681880,
}


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_step_with_the_pcm(mode):
    model = build().train(mode == "train")
    golden, aligned = WITH_PCM[mode], []
    model.predictive_coding.register_forward_hook(lambda *call: aligned.append(call[2].detach()))
    with torch.set_grad_enabled(mode == "train"):
        first, second = golden_views(model)
        loss = symmetric_loss(first, second)
    found = [*mean_and_std(aligned[0]), *aligned[0].flatten()[:3].tolist()]
    assert found == relative(golden["aligned"])
    assert aligned[1].std(correction=0).item() == relative(golden["aligned_2_std"])
    assert mean_and_std(first.similarity_map) == relative(golden["similarity"])
    assert first.attention_map.mean().item() == relative(golden["attention_mean"])
    assert first.pooled_feature.flatten()[:3].tolist() == relative(golden["pooled"])
    assert first.projection.flatten()[:3].tolist() == relative(golden["projection"])
    assert loss.item() == relative(golden["loss"])
    if mode == "train":
        loss.backward()
        norms = {name: model.get_parameter(name).grad.norm().item() for name in GRADIENT_NORMS}
        assert norms == relative(GRADIENT_NORMS)
        buffers = dict(model.predictive_coding.named_buffers())
        assert [v.item() for n, v in buffers.items() if n.endswith("num_batches_tracked")] == [2] * 25


@pytest.mark.parametrize(("mode", "loss"), [("eval", -0.0047027), ("train", -0.0141379)])
def test_golden_step_without_the_pcm(mode, loss):
    model = build(pcm=False).train(mode == "train")
    with torch.no_grad():
        first, second = golden_views(model)
    assert first.pooled_feature.flatten()[:3].tolist() == relative([10.62547, -2.76915, 9.3242])
    assert symmetric_loss(first, second).item() == relative(loss)


def test_golden_audio():
    time = np.arange(48_000) / 16_000
    samples = 0.5 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 3000 * time)
    waveform = level_waveform(torch.tensor(samples, dtype=torch.float32)[None])
    assert waveform.min() == -1
    assert waveform.max().item() == relative(0.998335)
    assert waveform[0, :3].tolist() == relative([-0.00083268, 0.29617393, 0.3989669])

    segments = VGGishLogMel()(waveform)
    assert segments.shape == (1, 3, 1, 96, 64) and segments.dtype == torch.float32
    found = [*mean_and_std(segments), segments.min().item(), segments.max().item()]
    assert found == relative([-2.910317, 2.481708, -4.602552, 4.599100])
    bins = segments[0, 0, 0, 0, [0, 10, 20, 40, 63]].tolist()
    assert bins == relative([-3.40946, 2.30144, -4.01034, -1.30476, -4.60044])

    model = build(pcm=False)
    with torch.no_grad():
        embeddings = model.audio_encoder(segments)
        projected = model.audio_projection(embeddings)
        embedding, target = model.encode_audio(embeddings)
    assert embeddings.shape == (1, 3, 128)
    assert mean_and_std(embeddings) == relative([2.799657, 4.016076])
    assert (embeddings != 0).sum() == 198
    assert embeddings.flatten()[0].item() == relative(5.66007)
    assert mean_and_std(projected) == relative([0.026458, 6.822298])
    assert projected.flatten()[:3].tolist() == relative([-7.01245, -0.63156, -13.90969])
    torch.testing.assert_close(embedding, projected.mean(dim=1))
    torch.testing.assert_close(target, F.normalize(embeddings.mean(dim=1), dim=1))


def test_the_frame_encoder_ends_before_the_last_relu():
    encoder = build(pcm=False).frame_encoder
    features = frames = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    state = encoder.state_dict()
    for layer in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        weight, bias = (state[f"features.{layer}.{kind}"] for kind in ("weight", "bias"))
        features = F.conv2d(features, weight, bias, padding=1)
        if layer != 28:
            features = features.relu()
        if layer in (2, 7, 14, 21):
            features = F.max_pool2d(features, 2)
    torch.testing.assert_close(encoder(frames), features)
    assert features.shape == (2, 512, 2, 3) and features.min() < 0


def test_the_pcm_draws_its_weights_in_the_authors_order():
    torch.manual_seed(1234)
    module = PredictiveCodingModule(4)
    recorded = {
        "predict_audio": [-0.041633, -0.008671, -0.021227],
        "output": [0.037419, 0.019191, -0.023603],
        "correct_level_3": [-0.000246, -0.013802, 0.009724],
    }
    for name, values in recorded.items():
        first = module.get_parameter(f"{name}.weight").flatten()[:3].tolist()
        assert first == pytest.approx(values, abs=1e-6), name
    assert all((rate == 1).all() for rate in module.correction_rates)
    assert all((rate == 0.5).all() for rate in module.prediction_rates)


# ---------------------------------------------------------------------------------------- the step


@BOTH
def test_a_step_moves_every_trained_weight_and_no_frozen_one(inputs, pcm):
    model = build(pcm=pcm).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(model.get_parameter(name).numel() for name in trained) == (21_734_016 if pcm else 11_874_304)
    optimizer = model.build_optimizer(SSPLRecipe().completed(model.config))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(**inputs)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if name in trained:
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(FROZEN), name
    assert output.similarity_map.shape == (2, 6, 6) and not output.similarity_map.requires_grad
    assert all(not term.requires_grad and term.ndim == 0 for term in output.terms.values())


@BOTH
def test_the_step_is_the_sum_of_its_parts_and_a_clip_is_localised_alone_as_in_company(inputs, pcm):
    model = build(pcm=pcm).eval()
    with torch.no_grad():
        output = model(**inputs)
        sound = model.encode_audio(model.audio_encoder(inputs["log_mel_segments"]))
        first, second = (
            model.process_view(model.frame_encoder(inputs[name]), *sound)
            for name in ("frames", "second_frames")
        )
        localised = model.localise(inputs["frames"], inputs["log_mel_segments"])
        alone = model.localise(inputs["frames"][1:], inputs["log_mel_segments"][1:])
    torch.testing.assert_close(output.loss, symmetric_loss(first, second))
    torch.testing.assert_close(output.similarity_map, first.similarity_map)
    torch.testing.assert_close(output.similarity_map, localised)
    torch.testing.assert_close(output.terms, collapse_terms(first, second, sound[0]))
    torch.testing.assert_close(alone[0], localised[1], rtol=1e-4, atol=1e-5)
    assert localised.abs().max() <= 1 and localised.std() > 0
    assert not torch.equal(first.similarity_map, second.similarity_map)


def test_the_loss_is_float32_under_autocast(inputs):
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
        localised = model.localise(inputs["frames"], inputs["log_mel_segments"])
    for result in (output.loss, output.similarity_map, localised, *output.terms.values()):
        assert result.dtype == torch.float32 and torch.isfinite(result).all()
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@BOTH
def test_parameter_groups_are_the_authors(pcm):
    model = build(pcm=pcm)
    recipe = SSPLRecipe().completed(model.config)
    assert (recipe.epochs, recipe.batch_size, model.config.pcm_cycles) == (20 if pcm else 100, 256, 4)
    optimizer = model.build_optimizer(recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    groups = optimizer.param_groups
    rows = [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
    if pcm:
        assert rows == [
            ("audio_projection", 2e-5, 1e-4),
            ("predictive_coding", 2e-5, 1e-4),
            ("predictive_coding_rates", 2e-5, 0.0),
            ("heads", 5e-5, 1e-4),
        ]
        assert [tuple(p.shape) for p in groups[2]["params"]] == [(1, 512, 1, 1)] * 6
    else:
        assert rows == [("audio_projection", 5e-4, 1e-4), ("heads", 2e-3, 1e-4)]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    rates = {"audio_learning_rate": 0.1, "pcm_learning_rate": 0.2 if pcm else None}
    chosen = SSPLRecipe(**rates, head_learning_rate=0.3)
    groups = model.build_optimizer(chosen.completed(model.config)).param_groups
    assert [group["lr"] for group in groups] == ([0.1, 0.2, 0.2, 0.3] if pcm else [0.1, 0.3])


# ------------------------------------------------------------------------------ collapse is visible

HEALTHY = {
    "embedding_std": 0.5, "audio_std": 0.3, "prediction_std": 0.5, "projection_rank": 20.0,
    "similarity_std": 0.05, "attention_entropy": 0.9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"embedding_std": 1e-3}, "embedding_std 0.001"),
        ({"audio_std": 1e-3}, "audio_std"),
        ({"prediction_std": 1e-3}, "prediction_std"),
        ({"projection_rank": 1.01}, "one line"),
        ({"similarity_std": 1e-4}, "flat"),
    ],
)
def test_a_collapse_is_named(change, word):
    assert SSPL.diagnose(None, HEALTHY) is None
    assert word in SSPL.diagnose(None, HEALTHY | change)


def test_spread_rank_and_entropy():
    generator = torch.Generator().manual_seed(0)
    everywhere = torch.randn(400, 300, generator=generator)
    assert spread(everywhere).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(4, 8)).item() == pytest.approx(0, abs=1e-6)
    centred = everywhere.double() - everywhere.double().mean(0)
    values = torch.linalg.svdvals(centred) ** 2
    expected = (values.sum() ** 2 / (values**2).sum()).item()
    assert effective_rank(everywhere).item() == pytest.approx(expected, rel=1e-4)
    line = torch.randn(400, 1, generator=generator) * torch.randn(1, 300, generator=generator)
    assert effective_rank(line).item() == pytest.approx(1, rel=1e-4)

    flat, peak, vectors = torch.full((2, 4, 4), 0.3), torch.zeros(2, 4, 4), torch.eye(2, 8)
    view = View(flat, attention_map(flat), vectors, vectors, vectors)
    terms = collapse_terms(view, view, torch.ones(2, 4))
    names = ("attention_entropy", "similarity_std", "similarity_mean")
    assert [terms[name].item() for name in names] == pytest.approx([1, 0, 0.3], abs=1e-6)
    peak[:, 1, 2] = 1
    terms = collapse_terms(view._replace(attention_map=peak), view, torch.ones(2, 4))
    assert terms["attention_entropy"].item() == pytest.approx(0, abs=1e-6)


@BOTH
def test_a_model_to_which_all_clips_are_the_same_is_warned_of(pcm):
    """Through the whole model in training, whose batch norms spread what they get."""
    model = build(pcm=pcm).train()
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(8, 3, SIDE, SIDE, generator=generator)
    sounds = torch.randn(8, 3, 1, 96, 64, generator=generator)
    batch = {"frames": frames, "second_frames": frames.flip(3), "log_mel_segments": sounds}
    nearly_equal = {name: view[:1] + 1e-4 * view for name, view in batch.items()}
    with torch.no_grad():
        different, equal = (model(**views).terms for views in (batch, nearly_equal))
    assert model.diagnose(different) is None
    assert "audio_std" in model.diagnose(equal)
    assert pcm or "embedding_std" in model.diagnose(equal)  # the PCM's own batch norms spread frames


def test_a_run_warns_once_an_epoch_and_logs_the_terms(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("utils.training.LOG_EVERY", 1)
    with TrainingRun(tmp_path / "run", resume=False) as run:
        run.start({}, missing=(), steps_per_epoch=4, diagnose=partial(SSPL.diagnose, None),
                  optimizer=torch.optim.SGD([torch.zeros(1)]))  # fmt: skip
        run.begin_epoch()
        terms = {name: torch.tensor(value) for name, value in (HEALTHY | {"prediction_std": 1e-4}).items()}
        for _ in range(2):
            for _ in range(4):
                run.note_step(torch.tensor(-0.9), terms, ("a", "b"))
            run.finish_epoch(None)
    warnings = [r.message for r in caplog.records if "collapsing" in r.message]
    assert len(warnings) == 2 and "Epoch 1, step 1" in warnings[0]
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for name in ("train/embedding_std", "train/clips_per_second", "learning_rate/0"):
        assert len(events.Scalars(name)) == 8
    assert "options/text_summary" in events.Tags()["tensors"]
