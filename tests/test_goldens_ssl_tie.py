"""The model, its loss head and three training steps equal the authors' program."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_inputs import arrays, frames, official_state_dict, spectrograms

from datasets.geometry import GeometricTransform
from models.contrast import contrastive_loss, trimap_contrast
from models.encoders import similarity_maps
from models.released import convert_release
from models.ssl_tie import SSLTIE, SSLTIEConfig


@pytest.fixture(scope="module")
def official():
    return official_state_dict()


@pytest.fixture(scope="module")
def build(official):
    def _build(**options):
        model = SSLTIE(SSLTIEConfig(**options))
        model.load_state_dict(convert_release({"state_dict": official}, Path("x.pth"))[1])
        return model

    return _build


def forward_head(model, inputs, dtype):
    log_mel = spectrograms(batch_size=len(inputs)).to(dtype)
    with torch.no_grad():
        embedding = model.sound_features(log_mel)
        features = model.visual_features(inputs.to(dtype))
        peaks = similarity_maps(features, embedding).amax((2, 3))  # the authors' A0_ref
        return trimap_contrast(features, embedding, model.config), embedding, peaks


def assert_logits(logits, golden):
    """All columns but the masked one, which the authors turn into about -700."""
    batch_size = len(golden)
    keep = np.ones(golden.shape, dtype=bool)
    keep[np.arange(batch_size), np.arange(batch_size) + 1] = False
    np.testing.assert_allclose(logits.numpy()[keep], golden[keep], rtol=2e-6)
    assert np.isneginf(logits.numpy()[~keep]).all()
    assert (golden[~keep] < -100).all()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_forward(build, mode, dtype):
    golden_name = f"{mode}_f{32 if dtype == torch.float32 else 64}"
    golden = {k.split("/", 1)[1]: v for k, v in arrays("model").items() if k.startswith(golden_name + "/")}
    model = build(transformed_contrastive_weight=0, equivariance_weight=0)  # as of a single encoding
    model = model.to(dtype).train(mode == "train")
    (logits, maps), embedding, peaks = forward_head(model, frames(), dtype)
    np.testing.assert_allclose(maps, golden["A"][:, 0], atol=2e-6)
    np.testing.assert_allclose(peaks, golden["A0_ref"], atol=2e-6)
    np.testing.assert_allclose(embedding, golden["aud_emb"], atol=2e-6)
    assert_logits(logits, golden["logits"])
    assert contrastive_loss(logits).item() == pytest.approx(float(golden["loss"]), abs=2e-6)
    if mode == "train":
        state = model.state_dict()
        for name in ("imgnet.bn1", "audnet.bn1"):
            for statistic in ("running_mean", "running_var"):
                np.testing.assert_allclose(
                    state[f"{name}.{statistic}"], golden[f"buf/{name}.{statistic}"], rtol=1e-5, atol=1e-5
                )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eval_f32_eps0.5_0.45", {"positive_threshold": 0.5, "negative_threshold": 0.45}),
        ("eval_f32_eps0.5_notri", {"positive_threshold": 0.5, "tri_map": False}),
        ("eval_f32_eps0.5_noneg", {"positive_threshold": 0.5, "hard_negatives": False}),
        ("eval112", {}),
    ],
)
def test_forward_variants(build, name, options):
    golden = {k.removeprefix(f"{name}/"): v for k, v in arrays("model").items()}
    inputs = frames() if options else frames(batch_size=2, size=112)
    (logits, maps), _, peaks = forward_head(build(**options).eval(), inputs, torch.float32)
    np.testing.assert_allclose(maps, golden["A"][:, 0], atol=2e-6)
    assert_logits(logits, golden["logits"])
    if options:
        np.testing.assert_allclose(peaks, golden["A0_ref"], atol=2e-6)
        assert contrastive_loss(logits).item() == pytest.approx(float(golden["loss"]), abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_loss_head_alone(dtype):
    golden = arrays("model")
    features = torch.tensor(golden["head/img_feat"], dtype=dtype)
    audio = torch.tensor(golden["head/aud_feat"], dtype=dtype).amax((2, 3))
    units = (torch.nn.functional.normalize(vectors, dim=1) for vectors in (features, audio))
    logits, maps = trimap_contrast(*units, SSLTIEConfig())
    np.testing.assert_allclose(maps, golden["head_f64/A"][:, 0], atol=2e-6)
    assert_logits(logits, golden["head_f64/logits"])  # float64: the authors' float32 has a NaN
    assert np.isnan(golden["head_f32/loss"])
    assert contrastive_loss(logits).item() == pytest.approx(float(golden["head_f64/loss"]), abs=2e-6)
    first_five = contrastive_loss(logits[:5]).item()
    assert first_five == pytest.approx(float(golden["head_f64/loss_first5"]), abs=2e-6)


STEPS = [(1.0, False), (0.5, True), (1.0, True)]
LOSS_TOLERANCE = [2e-6, 3e-4, 1e-3]
NORM_TOLERANCE = [5e-3, 5e-3, 2e-2]


def test_three_adam_steps(build):
    golden = arrays("transform_and_steps")
    model = build().train()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)
    for step, (scale, flip) in enumerate(STEPS):
        angles = tuple(int(angle) for angle in golden["angles"][step])
        transform = GeometricTransform(angles, scale, flip, 224)
        inputs = frames(step)
        optimizer.zero_grad()
        output = model(
            frames=inputs,
            log_mel_spectrogram=spectrograms(step),
            transformed_frames=transform.warp_frames(inputs),
            transform=transform.warp_maps,
        )
        output.loss.backward()
        prefix = f"step{step}_f64"
        tolerance = LOSS_TOLERANCE[step]
        assert output.loss.item() == pytest.approx(float(golden[f"{prefix}/loss"]), abs=tolerance)
        names = {"contrastive": "loss_cl", "contrastive_transformed": "loss_cl_ts", "equivariance": "loss_ts"}
        for term, name in names.items():
            expected = float(golden[f"{prefix}/{name}"])
            assert output.terms[term].item() == pytest.approx(expected, abs=tolerance)
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        expected = float(golden[f"{prefix}/grad_norm"])
        assert norm == pytest.approx(expected, rel=NORM_TOLERANCE[step])
        optimizer.step()
    assert_weights_after_three_steps(model, before, golden)


def assert_weights_after_three_steps(model, before, golden):
    state = model.state_dict()
    official = official_state_dict()
    names = {"audnet.conv1_a.weight": "audnet.conv1.weight"}
    slices, at = golden["after3_f64/slices"], 0
    ours, theirs = [], []
    for name, initial in official.items():
        if not initial.is_floating_point():
            continue
        length = min(8, initial.numel())
        expected, at = slices[at : at + length], at + length
        ours_name = names.get(name, name)
        if ours_name not in state or state[ours_name].shape != initial.shape:
            continue
        actual = state[ours_name].flatten()[:8].double().numpy()
        np.testing.assert_allclose(actual, expected, atol=5e-4, rtol=1e-3, err_msg=name)
        if ours_name in before:
            start = before[ours_name].flatten()[:8].double().numpy()
            ours.append(actual - start)
            theirs.append(expected - start)
    assert at == len(slices)
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.99
    tracked = {n: int(v) for n, v in state.items() if n.endswith("num_batches_tracked")}
    assert set(tracked.values()) == {7 + 2 * len(STEPS)}
