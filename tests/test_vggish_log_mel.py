"""Waveforms are cut, levelled and turned into log-mel segments as SSPL's authors do it."""

import numpy as np
import pytest
import torch

from datasets.audio import VGGishLogMel, centre_clip, level_waveform, mel_matrix

pytestmark = pytest.mark.usefixtures("one_thread")


def test_golden_mel_matrix():
    matrix = mel_matrix()
    assert matrix.shape == (257, 64) and matrix.dtype == torch.float64
    assert matrix.sum().item() == pytest.approx(230.91360, abs=5e-6)
    assert (matrix > 0).sum() == 461
    assert matrix[0].sum() == 0 and matrix.max() <= 1


@pytest.mark.parametrize("length", [1, 7, 16_000, 24_000, 47_999, 48_000, 48_001, 50_001, 160_000])
def test_centre_clip_is_tiling_then_cutting(length):
    waveform = torch.arange(length)[None].repeat(2, 1)
    tiled = waveform if length >= 48_000 else waveform.repeat(1, 48_000 // length + 1)
    start = tiled.shape[1] // 2 - 24_000
    assert torch.equal(centre_clip(waveform, 48_000), tiled[:, start : start + 48_000])


def test_a_waveform_without_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        centre_clip(torch.zeros(2, 0), 48_000)


def test_levelling_is_of_each_waveform_and_leaves_silence_finite():
    generator = torch.Generator().manual_seed(3)
    waveforms = torch.randn(3, 1000, generator=generator) * torch.tensor([[0.01], [1.0], [0.0]])
    levelled = level_waveform(waveforms)
    for waveform, expected in zip(waveforms, levelled, strict=True):
        torch.testing.assert_close(level_waveform(waveform), expected)
    assert (levelled.amin(dim=1) == -1).all() and levelled.max() < 1
    assert (levelled[2] == -1).all()


def test_silence_leaks_into_the_lowest_mel_bins_only():
    segments = VGGishLogMel()(level_waveform(torch.zeros(1, 48_000)))
    assert segments.min().item() == pytest.approx(-4.60, abs=5e-3)
    assert segments.max().item() == pytest.approx(-0.64, abs=5e-3)
    assert (segments.flatten(0, 3).argmax(dim=1) == 1).all()


def test_log_mel_equals_a_loop_and_leaves_the_rest_out():
    waveforms = torch.randn(2, 31_500, generator=torch.Generator().manual_seed(4))
    segments = VGGishLogMel()(waveforms)
    assert segments.shape == (2, 2, 1, 96, 64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    for clip, segment, frame in [(0, 0, 0), (1, 0, 95), (0, 1, 0), (1, 1, 50)]:
        start = 160 * (96 * segment + frame)
        samples = waveforms[clip, start : start + 400].double().numpy() * window
        mel = np.abs(np.fft.rfft(samples, 512)) @ mel_matrix().numpy()
        expected = np.log(mel + 0.01).astype(np.float32)
        np.testing.assert_allclose(segments[clip, segment, 0, frame], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(48_000,), (1, 15_599)])
def test_waveforms_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, L\) with at least 15600 samples"):
        VGGishLogMel()(torch.zeros(shape))
