"""SSPL equals its authors' program and trains what it should."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sspl_inputs import FROZEN, build, golden_views, relative
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datasets.annotations import consensus_map
from models.sspl import (
    SSPL,
    SSPLConfig,
    SSPLRecipe,
    View,
    attention_map,
    attention_pool,
    collapse_terms,
    collapse_warning,
    cosine_map,
    effective_rank,
    spread,
    symmetric_loss,
)
from utils.evaluation.metrics import TruthMaps, consensus_iou
from utils.evaluation.protocols import PROTOCOLS, predict
from utils.training import TrainingRun

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 96
"""Of the frames in tests that need no golden number: maps of 6 x 6, a fifth of the work."""


@pytest.fixture(scope="module")
def inputs():
    """A tiny batch of two clips."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, 3, SIDE, SIDE, generator=generator)
    return {
        "frames_view_1": frames,
        "frames_view_2": frames.flip(3),
        "log_mel_segments": torch.randn(2, 3, 1, 96, 64, generator=generator),
    }


# ----------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize(("mode", "loss"), [("eval", -0.0047027), ("train", -0.0141379)])
def test_golden_step_without_the_pcm(mode, loss):
    model = build(pcm=False).train(mode == "train")
    with torch.no_grad():
        first, second = golden_views(model)
    pooled = first.pooled_feature.flatten()[:3].tolist()
    assert pooled == relative([10.62547, -2.76915, 9.3242])
    assert symmetric_loss(first, second).item() == relative(loss)


def test_golden_score():
    values = np.random.RandomState(7).standard_normal((14, 14)).astype(np.float32)
    protocol = PROTOCOLS["sspl"]
    predicted = predict(torch.from_numpy(values)[None], [protocol])[0].masks
    assert predicted.sum() == 24_888
    # The box of zpWuikVorYg_000032.
    box = np.array([[0.403125, 0.253125, 0.6, 0.75]])
    truth = consensus_map(box, annotators_needed=1)
    assert truth.sum() == 4_928
    of_clip = TruthMaps(torch.from_numpy(truth)[None])
    assert consensus_iou(predicted, of_clip).item() == pytest.approx(0.1176669, abs=5e-8)


# ---------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize(("pcm", "trained"), [(True, 21_734_016), (False, 11_874_304)])
def test_parameter_counts(pcm, trained):
    with torch.device("meta"):
        model = SSPL(SSPLConfig(pcm=pcm))

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert count(model.frame_encoder) == 14_714_688
    assert count(model.audio_encoder) == 72_141_184
    assert count(model.audio_projection) == 328_704
    assert count(model.projection_head) + count(model.prediction_head) == 11_545_600
    assert not pcm or count(model.predictive_coding) == 9_859_712


@pytest.mark.parametrize("pcm", [True, False])
def test_a_step_moves_every_trained_weight_and_no_frozen_one(inputs, pcm):
    model = build(pcm=pcm).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
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
        frozen = name.startswith(FROZEN)
        assert torch.equal(tensor, before[name]) == frozen, name
        assert not (frozen and name in trained)
    assert model.training and model.projection_head.training
    for encoder in (model.frame_encoder, model.audio_encoder):
        assert not any(module.training for module in encoder.modules())
    assert output.similarity_map.shape == (2, 6, 6) and not output.similarity_map.requires_grad
    assert all(not term.requires_grad and term.ndim == 0 for term in output.terms.values())


def test_the_step_is_the_sum_of_its_parts(inputs):
    """Views one after the other, the first one's map returned, and localise the same map."""
    model = build().eval()
    with torch.no_grad():
        output = model(**inputs)
        sound = model.encode_audio(model.audio_encoder(inputs["log_mel_segments"]))
        first, second = (
            model.process_view(model.frame_encoder(inputs[f"frames_view_{view}"]), *sound) for view in (1, 2)
        )
        localised = model.localise(inputs["frames_view_1"], inputs["log_mel_segments"])
    torch.testing.assert_close(output.loss, symmetric_loss(first, second))
    torch.testing.assert_close(output.similarity_map, first.similarity_map)
    torch.testing.assert_close(output.similarity_map, localised)
    torch.testing.assert_close(output.terms, collapse_terms(first, second, sound[0]))
    assert localised.abs().max() <= 1 and localised.std() > 0
    assert not torch.equal(first.similarity_map, second.similarity_map)


def test_permuting_the_batch_permutes_the_maps(inputs):
    batch = {name: torch.cat([tensor, 0.5 * tensor[:1]]) for name, tensor in inputs.items()}
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        plain = build().train()(**batch)
        permuted = build().train()(**{name: tensor[order] for name, tensor in batch.items()})
    torch.testing.assert_close(permuted.loss, plain.loss, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(permuted.similarity_map, plain.similarity_map[order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pcm", [True, False])
def test_a_batch_of_one_is_localised_as_in_company(inputs, pcm):
    model = build(pcm=pcm).eval()
    with torch.no_grad():
        both = model.localise(inputs["frames_view_1"], inputs["log_mel_segments"])
        one = model.localise(inputs["frames_view_1"][1:], inputs["log_mel_segments"][1:])
        alone = model(**{name: tensor[1:] for name, tensor in inputs.items()})
    assert one.shape == (1, 6, 6)
    torch.testing.assert_close(one[0], both[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.similarity_map, one)
    assert torch.isfinite(alone.loss)
    assert all(torch.isfinite(term) for term in alone.terms.values())


def test_a_training_batch_of_one_is_refused(inputs):
    with pytest.raises(ValueError, match="cannot train on a batch of one clip"):
        build(pcm=False).train()(**{name: tensor[:1] for name, tensor in inputs.items()})


def test_the_loss_is_float32_under_autocast(inputs):
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
        localised = model.localise(inputs["frames_view_1"], inputs["log_mel_segments"])
    for result in (output.loss, output.similarity_map, localised, *output.terms.values()):
        assert result.dtype == torch.float32 and torch.isfinite(result).all()
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


# ----------------------------------------------------------------------------------- its functions


def random_view(seed, batch_size=3):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(batch_size, 4, 4, generator=generator)
    vectors = torch.randn(2, batch_size, 8, generator=generator)
    pooled = torch.zeros(batch_size, 8)
    return View(
        similarity,
        attention_map(similarity),
        pooled,
        vectors[0].requires_grad_(),
        vectors[1].requires_grad_(),
    )


def test_the_gradient_stops_at_the_projections():
    first, second = random_view(1), random_view(2)
    loss = symmetric_loss(first, second)
    loss.backward()
    for view in (first, second):
        assert view.projection.grad is None
        assert view.prediction.grad.abs().sum() > 0
    crossed = F.cosine_similarity(first.prediction, second.projection)
    crossed = crossed + F.cosine_similarity(second.prediction, first.projection)
    torch.testing.assert_close(loss, -crossed.mean() / 2)


def test_the_gradient_stops_at_the_projections_of_the_model(inputs):
    model = build(pcm=False).train()
    assert model(**inputs).loss.requires_grad
    model.prediction_head.register_forward_hook(lambda *call: call[2].detach())
    assert not model(**inputs).loss.requires_grad


def test_attention_pooling_equals_a_loop():
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(3, 8, 4, 5, generator=generator)
    sounds = torch.randn(3, 8, generator=generator)
    similarity = cosine_map(features, sounds)
    attention = attention_map(similarity)
    pooled = attention_pool(features, attention)
    for clip in range(3):
        own = np.empty((4, 5))
        for y in range(4):
            for x in range(5):
                cell, sound = features[clip, :, y, x].numpy(), sounds[clip].numpy()
                own[y, x] = cell @ sound / np.linalg.norm(cell) / np.linalg.norm(sound)
        weights = (own - own.min()) / (own.max() - own.min())
        np.testing.assert_allclose(similarity[clip], own, atol=1e-6)
        np.testing.assert_allclose(attention[clip], weights, atol=1e-6)
        expected = (features[clip].numpy() * weights).sum(axis=(1, 2))
        np.testing.assert_allclose(pooled[clip], expected, atol=1e-5)


def test_a_flat_map_has_no_attention_and_full_entropy():
    flat = torch.full((2, 4, 4), 0.3)
    assert (attention_map(flat) == 0).all()
    view = random_view(3, batch_size=2)
    collapsed = view._replace(
        similarity_map=flat, attention_map=attention_map(flat), pooled_feature=torch.ones(2, 8)
    )
    terms = collapse_terms(collapsed, collapsed, torch.ones(2, 4))
    assert terms["attention_entropy"].item() == pytest.approx(1)
    assert terms["similarity_std"].item() == pytest.approx(0, abs=1e-6)
    assert terms["similarity_mean"].item() == pytest.approx(0.3)
    assert terms["embedding_std"].item() == pytest.approx(0, abs=1e-6)
    assert terms["audio_std"].item() == pytest.approx(0, abs=1e-6)
    peak = torch.zeros(2, 4, 4)
    peak[:, 1, 2] = 1
    terms = collapse_terms(view._replace(attention_map=peak), view, torch.ones(2, 4))
    assert terms["attention_entropy"].item() == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------- options, refusals


@pytest.mark.parametrize("pcm", [True, False])
def test_parameter_groups_are_the_authors(pcm):
    model = build(pcm=pcm)
    recipe = SSPLRecipe().completed(model.config)
    assert recipe.epochs == (20 if pcm else 100)
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
    assert all(group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 for group in groups)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    given = SSPLRecipe(
        audio_learning_rate=0.1, pcm_learning_rate=0.2 if pcm else None, head_learning_rate=0.3
    )
    groups = model.build_optimizer(given.completed(model.config)).param_groups
    assert [group["lr"] for group in groups] == ([0.1, 0.2, 0.2, 0.3] if pcm else [0.1, 0.3])


def test_options_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="--pcm-cycles must be at least 1, got 0"):
        SSPLConfig(pcm_cycles=0)
    for name in ("audio", "pcm", "head"):
        with pytest.raises(ValueError, match=f"--{name}-learning-rate"):
            SSPLRecipe(**{f"{name}_learning_rate": 0.0})
    with pytest.raises(ValueError, match="--pcm-learning-rate has nothing to set"):
        SSPLRecipe(pcm_learning_rate=0.1).completed(SSPLConfig(pcm=False))


def test_inputs_of_another_shape_are_refused(inputs):
    model = build().eval()
    frames, segments = inputs["frames_view_1"], inputs["log_mel_segments"]
    with pytest.raises(ValueError, match=r"must be \(B, segments, 1, 96, 64\), got"):
        model.audio_encoder(segments[:, :, 0])
    with pytest.raises(ValueError, match="2 frames and the segments of 1 sounds"):
        model.localise(frames, segments[:1])
    with pytest.raises(ValueError, match="same clips"):
        model(frames_view_1=frames, frames_view_2=frames[:1], log_mel_segments=segments)
    with pytest.raises(ValueError, match="got 20 x 20"):
        model.predictive_coding(torch.zeros(1, 512, 20, 20), torch.zeros(1, 128))


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
    assert collapse_warning(HEALTHY) is None
    assert word in collapse_warning(HEALTHY | change)


def test_spread_and_rank():
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


def terms_of(model, inputs):
    with torch.no_grad():
        return {name: term.item() for name, term in model(**inputs).terms.items()}


@pytest.mark.parametrize("pcm", [True, False])
def test_a_model_to_which_all_clips_are_the_same_is_warned_of(pcm):
    """Through the whole model in training, whose batch norms spread what they get."""
    model = build(pcm=pcm).train()
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(8, 3, SIDE, SIDE, generator=generator)
    sounds = torch.randn(8, 3, 1, 96, 64, generator=generator)
    different = {"frames_view_1": frames, "frames_view_2": frames.flip(3)}
    assert collapse_warning(terms_of(model, different | {"log_mel_segments": sounds})) is None
    nearly = {name: view[:1] + 1e-4 * view for name, view in different.items()}
    same_sounds = sounds[:1] + 1e-4 * sounds
    warning = collapse_warning(terms_of(model, nearly | {"log_mel_segments": same_sounds}))
    assert "audio_std" in warning
    assert pcm or "embedding_std" in warning  # the PCM's own batch norms spread the frames' part


def test_predictions_that_are_all_the_same_are_warned_of(inputs):
    model = build(pcm=False).train()
    with torch.no_grad():
        model.prediction_head.layer2.weight.mul_(1e-6)
    assert "prediction_std" in collapse_warning(terms_of(model, inputs))


def test_a_run_warns_once_an_epoch_and_logs_the_terms(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("utils.training.LOG_EVERY", 1)
    with TrainingRun(tmp_path / "run", resume=False) as run:
        run.start({}, missing=(), steps_per_epoch=4, diagnose=collapse_warning)
        for _ in range(2):
            for _ in range(4):
                terms = HEALTHY | {"prediction_std": 1e-4}
                terms = {name: torch.tensor(value) for name, value in terms.items()}
                run.note_step(torch.tensor(-0.9), terms, ("a", "b"))
            run.finish_epoch(None)
    warnings = [r.message for r in caplog.records if "collapsing" in r.message]
    assert len(warnings) == 2 and "Epoch 1, step 1" in warnings[0]
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert len(events.Scalars("train/embedding_std")) == 8
