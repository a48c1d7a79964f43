"""The predictive coding module starts, aligns and learns as the authors' does."""

import pytest
import torch
from sspl_inputs import GRADIENT_NORMS, WITH_PCM, build, golden_views, mean_and_std, relative
from torch import nn

from models.predictive_coding import PredictiveCodingModule
from models.sspl import symmetric_loss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_step_with_the_pcm(mode):
    model = build().train(mode == "train")
    golden = WITH_PCM[mode]
    aligned = []
    model.predictive_coding.register_forward_hook(lambda *call: aligned.append(call[2].detach()))
    with torch.set_grad_enabled(mode == "train"):
        first, second = golden_views(model)
        loss = symmetric_loss(first, second)
    maps = aligned[0]
    found = [*mean_and_std(maps), *maps.flatten()[:3].tolist()]
    assert found == relative(golden["aligned"])
    assert aligned[1].std(correction=0).item() == relative(golden["aligned_2_std"])
    assert mean_and_std(first.similarity_map) == relative(golden["similarity"])
    assert first.attention_map.mean().item() == relative(golden["attention_mean"])
    assert first.pooled_feature.flatten()[:3].tolist() == relative(golden["pooled"])
    assert first.projection.flatten()[:3].tolist() == relative(golden["projection"])
    assert loss.item() == relative(golden["loss"])
    if mode == "train":
        loss.backward()
        assert_golden_gradients(model)


def assert_golden_gradients(model):
    pcm = dict(model.predictive_coding.named_parameters())
    norms = {name: pcm[name].grad.norm().item() for name in GRADIENT_NORMS}
    assert norms == relative(GRADIENT_NORMS)
    assert model.prediction_head.layer2.weight.grad.norm().item() == relative(0.115856)
    assert model.projection_head.layer1[0].weight.grad.norm().item() == relative(0.681880)
    counters = [
        buffer.item()
        for name, buffer in model.predictive_coding.named_buffers()
        if name.endswith("num_batches_tracked")
    ]
    assert counters == [2] * 25


def test_the_pcm_draws_its_weights_in_the_authors_order():
    torch.manual_seed(1234)
    module = PredictiveCodingModule(4)
    first = module.predict_audio.weight.detach().flatten()[:3].tolist()
    assert first == pytest.approx([-0.0416, -0.0087, -0.0212], abs=5e-5)
    torch.manual_seed(1234)
    nn.Conv2d(512, 128, 1)
    for _ in range(2):
        nn.Conv2d(512, 512, 3, bias=False)
    nn.ConvTranspose2d(128, 512, 1, bias=False)
    nn.ConvTranspose2d(512, 512, 3, bias=False)
    output = nn.ConvTranspose2d(512, 512, 1)
    torch.testing.assert_close(module.output.weight, output.weight)
    last = nn.ConvTranspose2d(512, 512, 3, bias=False)
    torch.testing.assert_close(module.correct_level_3.weight, last.weight)
    assert all((rate == 1).all() for rate in module.correction_rates)
    assert all((rate == 0.5).all() for rate in module.prediction_rates)
