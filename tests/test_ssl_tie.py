"""SSL-TIE: gradients, precision, switches, initialisation, and the authors' released weights."""

import copy
import math

import pytest
import torch
from torch import nn

from datasets.geometry import GeometricTransform
from models.contrast import contrastive_loss, trimap_contrast
from models.encoders import RepeatedBatchNorm2d
from models.ssl_tie import SSLTIE, SSLTIEConfig, equivariance_loss

TRANSFORM = GeometricTransform((5, -9, 20), 1.0, True, 64)


@pytest.fixture(scope="module")
def initial():
    """One randomly initialised model; copy it before a training step."""
    torch.manual_seed(0)
    return SSLTIE(SSLTIEConfig())


@pytest.fixture(scope="module")
def inputs():
    """A tiny batch of three clips, and its transform."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(3, 3, 64, 64, generator=generator)
    return {
        "frames": frames,
        "log_mel_spectrogram": -40 + 20 * torch.randn(3, 1, 33, 48, generator=generator),
        "transformed_frames": TRANSFORM.warp_frames(frames),
        "transform": TRANSFORM.warp_maps,
    }


@pytest.fixture
def build(initial):
    """Models with the weights of `initial`."""

    def _build(**options):
        with torch.device("meta"):  # nothing is drawn for weights that are replaced anyway
            model = SSLTIE(SSLTIEConfig(**options))
        model.load_state_dict(copy.deepcopy(initial.state_dict()), assign=True)
        return model

    return _build


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# ------------------------------------------------------------------------------------- the step


def test_the_step_is_the_sum_of_its_parts(build, inputs):
    """The step again, from the public parts: which frames meet which sounds, and in which order."""
    model = build(contrastive_weight=0.3, transformed_contrastive_weight=0.2, equivariance_weight=2)
    parts = copy.deepcopy(model)
    output = model(**inputs)

    sound = parts.sound_features(inputs["log_mel_spectrogram"])
    visual, other = (parts.visual_features(inputs[name]) for name in ("frames", "transformed_frames"))
    logits, plain_map = trimap_contrast(visual, sound, model.config)
    other_logits, other_map = trimap_contrast(other, sound, model.config)
    expected = {
        "contrastive": contrastive_loss(logits),
        "contrastive_transformed": contrastive_loss(other_logits),
        "equivariance": equivariance_loss(other_map, *TRANSFORM.warp_maps(plain_map)),
    }
    assert output.terms.keys() == expected.keys()
    for name, term in expected.items():
        assert output.terms[name].item() == pytest.approx(term.item(), abs=1e-6), name
        assert not output.terms[name].requires_grad
    total = sum(weight * term for weight, term in zip((0.3, 0.2, 2), expected.values(), strict=True))
    assert output.loss.item() == pytest.approx(total.item(), abs=1e-6)
    torch.testing.assert_close(output.similarity_map, plain_map.detach())
    assert not output.similarity_map.requires_grad


def test_batch_norms_take_one_encoding_of_the_sound_as_two():
    generator = torch.Generator().manual_seed(2)
    features = 3 + torch.randn(4, 5, 6, 6, generator=generator)
    once, twice = RepeatedBatchNorm2d(5, passes=2), nn.BatchNorm2d(5)
    twice(features)
    assert torch.equal(once(features), twice(features))
    torch.testing.assert_close(once.state_dict(), twice.state_dict())


def test_the_head_stays_in_float32_under_autocast(build, inputs):
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
        features = model.visual_features(inputs["frames"])
        sound = model.sound_features(inputs["log_mel_spectrogram"])
        logits, maps = trimap_contrast(features, sound, model.config)
    results = [features, sound, logits, maps, output.loss, output.similarity_map]
    for result in (*results, *output.terms.values()):
        assert result.dtype == torch.float32
    assert torch.equal(maps, trimap_contrast(features, sound, model.config)[1])
    output.loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


# --------------------------------------------------------------------------------- the switches


def refuse_to_transform(_maps):
    raise AssertionError("the transform was called")


def test_without_transformed_terms_nothing_is_transformed(build, inputs):
    model = build(transformed_contrastive_weight=0, equivariance_weight=0)
    calls = count_calls(model.imgnet), count_calls(model.audnet)
    output = model(**inputs | {"transform": refuse_to_transform})
    assert [len(counted) for counted in calls] == [1, 1]
    assert output.terms.keys() == {"contrastive"}
    assert output.loss.item() == pytest.approx(0.5 * output.terms["contrastive"].item())
    # The sound is seen once, so its batch norms are updated once.
    assert model.audnet.bn1.num_batches_tracked == 1
    assert model.audnet.bn1.momentum == pytest.approx(0.1)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_equivariance_gradient_through_the_plain_map(build, inputs, with_gradient):
    model = build(contrastive_weight=0, transformed_contrastive_weight=0, equivariance_gradient=with_gradient)
    seen = []

    def record(maps):
        seen.append(maps)
        return TRANSFORM.warp_maps(maps)

    frames = inputs["frames"].clone().requires_grad_()
    transformed = inputs["transformed_frames"].clone().requires_grad_()
    output = model(**inputs | {"frames": frames, "transformed_frames": transformed, "transform": record})
    output.loss.backward()
    assert [maps.requires_grad for maps in seen] == [with_gradient]
    assert transformed.grad.abs().sum() > 0
    # What is left of the plain frames' gradient is a contrastive term of weight 0.
    assert (frames.grad.abs().sum() > 0) == with_gradient
    default = build(contrastive_weight=0.0, transformed_contrastive_weight=0.0)(**inputs)
    assert torch.equal(output.loss, default.loss)


def test_one_term_of_the_loss_is_needed():
    SSLTIEConfig(contrastive_weight=0, equivariance_weight=0)
    with pytest.raises(ValueError, match=r"--contrastive-weight.* not all be 0"):
        SSLTIEConfig(contrastive_weight=0, transformed_contrastive_weight=0, equivariance_weight=0)


# --------------------------------------------------------------------------------- localisation


@torch.no_grad()
def test_a_clip_is_localised_alone_as_in_company(initial, inputs):
    model = copy.deepcopy(initial).eval()
    frames = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(6))
    sounds = inputs["log_mel_spectrogram"]
    maps = model.localise(frames, sounds)
    assert maps.shape == (3, 4, 6)
    assert maps.min() >= 0 and maps.max() <= 1 + 1e-6 and maps.std() > 0
    alone = torch.cat([model.localise(*pair) for pair in zip(frames.split(1), sounds.split(1), strict=True)])
    torch.testing.assert_close(maps, alone, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------- initialisation


def test_initialisation_is_the_authors(initial):
    kinds = []
    for name, module in initial.named_modules():
        if not isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            continue
        kinds.append(type(module))
        weight = module.weight.detach()
        mean, deviation = 1, 0.02
        if isinstance(module, nn.Conv2d):
            mean, deviation = 0, math.sqrt(2 / (len(weight) * weight[0, 0].numel()))
            assert module.bias is None
        else:
            assert not module.bias.any() and not module.running_mean.any(), name
            assert (module.running_var == 1).all(), name
        # Five standard errors of a sample's mean and standard deviation.
        error = 5 * deviation / math.sqrt(weight.numel())
        assert weight.mean().item() == pytest.approx(mean, abs=error), name
        assert weight.std().item() == pytest.approx(deviation, abs=error / math.sqrt(2)), name
    assert kinds.count(nn.Conv2d) == 40 and len(kinds) == 80
