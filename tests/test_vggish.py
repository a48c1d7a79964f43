"""The frozen encoders, VGGish and VGG-16, compute what the authors' do."""

import pytest
import torch
import torch.nn.functional as F
from sspl_inputs import build, golden_waveform, mean_and_std, relative

from datasets.audio import VGGishLogMel

pytestmark = pytest.mark.usefixtures("one_thread")


def test_golden_audio():
    waveform = golden_waveform()
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
        embedding, target = model.encode_audio(model.audio_encoder(segments))
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
    encoded = encoder(frames)
    assert encoded.shape == (2, 512, 2, 3)
    assert encoded.min() < 0
    torch.testing.assert_close(encoded, features)
