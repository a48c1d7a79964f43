"""Silence and noise as negatives: against slow loops, in all the ways that a step can be taken."""

import csv

import distributed_workers
import pytest
import torch
from command_line import assert_refused, run, training
from test_losses import naive_logits, naive_loss
from torch import nn

import main
from datasets.audio import AudioConfig
from models.encoders import similarity_maps
from models.ssl_tie import SSLTIE, NegativeSoundConfig, SSLTIEConfig

CPU = torch.device("cpu")
AUDIO = AudioConfig(window_seconds=1, mel_bins=32, hop_length=400)
CLIPS = distributed_workers.CLIPS


def build():
    """Narrow networks in float64 whose running statistics are not those of a new network."""
    model = distributed_workers.build_ssl_tie("negative sounds")
    generator = torch.Generator().manual_seed(5)
    for layer in model.audnet.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.rand(layer.num_features, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
    return model


@pytest.fixture
def inputs():
    return distributed_workers.ssl_tie_inputs("negative sounds", 0, 1)


def drawn(kinds, seed):
    with torch.device("meta"):
        model = SSLTIE(SSLTIEConfig(), audio=AUDIO, negatives=NegativeSoundConfig(negative_sounds=kinds))
    return model.draw_negative_sounds(seed, CPU)


def test_silence_is_the_floor_and_noise_has_its_level(monkeypatch):
    heard = drawn("silence,noise", 3)
    assert heard.shape == (2, 1, AUDIO.mel_bins, AUDIO.num_frames)
    assert (heard[0] == -100).all() and heard[1].max() > -60
    assert torch.equal(drawn("silence", 3), heard[:1]) and torch.equal(drawn("noise", 3), heard[1:])
    assert not torch.equal(drawn("noise", 4), heard[1:])
    assert drawn(None, 3) is None
    monkeypatch.setattr(AUDIO.build_front_end().__class__, "forward", lambda _, waveforms: waveforms)
    levels = torch.cat([drawn("noise", seed) for seed in range(60)]).std(dim=1).log10()
    assert -2.01 < levels.min() < -1.8 and -0.2 < levels.max() < 0.01
    assert abs(levels.mean() + 1) < 0.25  # evenly between -2 and 0


def test_each_negative_sound_is_one_more_column(inputs):
    model = build()
    output = model(**inputs)
    reference = build()
    features = reference.visual_features(inputs["frames"])
    clips = reference.sound_features(inputs["log_mel_spectrogram"])
    negatives = [  # each alone: they do not depend on one another
        reference.eval().sound_features(negative[None]) for negative in inputs["negative_sounds"]
    ]
    # What the negatives are normalised by has seen this step's clips, as sound_features moves it.
    sounds = torch.cat([clips, *negatives])  # (A + K, D)
    rows = naive_logits(similarity_maps(features, sounds), model.config)
    assert output.terms["contrastive"].item() == pytest.approx(naive_loss(rows), rel=1e-9)
    of_negatives = torch.tensor(rows, dtype=torch.float64)[:, -1 - len(negatives) : -1]
    similarity = model.config.temperature * of_negatives.mean().item()
    assert output.terms["negative_similarity"].item() == pytest.approx(similarity, rel=1e-9)
    without = build()(**inputs | {"negative_sounds": None})
    assert "negative_similarity" not in without.terms
    assert output.terms["contrastive"] > without.terms["contrastive"] + 1e-3
    assert output.terms["contrastive_transformed"] > without.terms["contrastive_transformed"]


def test_statistics_stay_and_are_those_of_test_time(inputs):
    model = build()
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    embedding = model.encode_negative_sounds(inputs["negative_sounds"])
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0] and torch.equal(buffer, before[name][1]), name
    assert all(layer.training for layer in model.modules())
    expected = model.eval().sound_features(inputs["negative_sounds"])
    torch.testing.assert_close(embedding, expected)


def test_a_run_from_the_command_line(tiny_data, tmp_path):
    output = tmp_path / "run"
    assert main.main(training(tiny_data, output, "--negative-sounds", "silence,noise")) == 0
    row = next(csv.DictReader((output / "history.csv").open()))
    assert 0 <= float(row["negative_similarity"]) <= 1
    assert 0 < float(row["loss"]) < 20
    # It is a part of the loss, so that a run cannot be resumed without it.
    resumed = run("main.py", *training(tiny_data, output, "--epochs", 2, "--resume"))
    assert_refused(resumed, "--negative-sounds was silence,noise, is None")
