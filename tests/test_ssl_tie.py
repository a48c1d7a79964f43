"""SSL-TIE: gradients, precision, switches, initialisation, and the authors' released weights."""

import copy
import math

import pytest
import torch
from torch import nn

from datasets.geometry import GeometricTransform
from models.contrast import contrastive_loss, trimap_contrast
from models.ssl_tie import SSLTIE, SSLTIEConfig, equivariance_loss

pytestmark = pytest.mark.usefixtures("one_thread")
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


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# ------------------------------------------------------------------------------------- the step


def test_every_parameter_gets_a_gradient(build, inputs):
    model = build()
    model(**inputs).loss.backward()
    assert len(gradients(model)) == 120
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().max() > 0, name


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
    total = 0.3 * expected["contrastive"] + 0.2 * expected["contrastive_transformed"]
    total = total + 2 * expected["equivariance"]
    assert output.loss.item() == pytest.approx(total.item(), abs=1e-6)
    torch.testing.assert_close(output.similarity_map, plain_map.detach())
    assert not output.similarity_map.requires_grad


def test_encoding_the_sound_once_or_twice_is_the_same(build, inputs):
    once, twice = build(audio_encodings=1), build(audio_encodings=2)
    calls = [count_calls(model.audnet) for model in (once, twice)]
    losses = [model(**inputs).loss for model in (once, twice)]
    assert [len(counted) for counted in calls] == [1, 2]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    others = gradients(twice)
    for name, gradient in gradients(once).items():
        assert (gradient - others[name]).norm() <= 2e-5 * others[name].norm(), name
    buffers = dict(twice.named_buffers())
    for name, buffer in once.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-6, atol=1e-6, msg=name)
        if name.endswith("num_batches_tracked"):
            assert buffer == 2


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
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


# --------------------------------------------------------------------------------- the switches


def refuse_to_transform(_maps):
    raise AssertionError("the transform was called")


@pytest.mark.parametrize("audio_encodings", [1, 2])
def test_without_transformed_terms_nothing_is_transformed(build, inputs, audio_encodings):
    model = build(transformed_contrastive_weight=0, equivariance_weight=0, audio_encodings=audio_encodings)
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


@pytest.mark.parametrize("size", [64, 96])
@torch.no_grad()
def test_localise(initial, inputs, size):
    model = copy.deepcopy(initial).eval()
    frames = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(6))
    sounds = inputs["log_mel_spectrogram"]
    maps = model.localise(frames, sounds)
    embedding, features = model.sound_features(sounds), model.visual_features(frames)
    assert maps.shape == (3, size // 16, size // 16)
    assert maps.min() >= 0 and maps.max() <= 1 + 1e-6 and maps.std() > 0
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(maps.shape))
    for clip in range(3):
        own = (features[clip] * embedding[clip][:, None, None]).sum(0)
        torch.testing.assert_close(maps[clip], own)
        alone = model.localise(frames[clip : clip + 1], sounds[clip : clip + 1])[0]
        torch.testing.assert_close(maps[clip], alone, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------- initialisation


def test_initialisation_is_the_authors(initial):
    convolutions = batch_norms = 0
    for name, module in initial.named_modules():
        if isinstance(module, nn.Conv2d):
            convolutions += 1
            weight = module.weight.detach()
            expected = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
            # Five standard errors of a sample's mean and standard deviation.
            count = weight.numel()
            assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * count))
            assert abs(weight.mean()) < 5 * expected / math.sqrt(count), name
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            batch_norms += 1
            weight = module.weight.detach()
            count = weight.numel()
            assert weight.mean().item() == pytest.approx(1, abs=5 * 0.02 / math.sqrt(count))
            assert weight.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * count))
            assert (module.bias == 0).all(), name
            assert (module.running_mean == 0).all() and (module.running_var == 1).all(), name
    assert (convolutions, batch_norms) == (40, 40)
