"""Silence and noise as negatives: against slow loops, in all the ways that a step can be taken."""

import csv
import datetime
import math

import pytest
import torch
import torch.distributed as dist
from command_line import SMALL
from distributed_workers import narrow_encoder
from test_end_to_end import train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import opts
from datasets.audio import AudioConfig
from datasets.geometry import GeometricTransform
from models.ssl_tie import SSLTIE, NegativeSoundConfig, SSLTIEConfig
from utils.distributed import synchronise_batch_norms

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
AUDIO = AudioConfig(window_seconds=1, mel_bins=32, hop_length=400)
CLIPS, NEGATIVES = 4, 3
TIME_LIMIT = datetime.timedelta(seconds=60)


def build(**options):
    """Narrow networks in float64 whose running statistics are not those of a new network."""
    with torch.device("meta"):
        model = SSLTIE(SSLTIEConfig(**options))
    torch.manual_seed(0)
    model.imgnet = narrow_encoder(3)
    model.audnet = narrow_encoder(1, batch_norm_passes=model.audnet.bn1.passes)
    model = model.double().train()
    generator = torch.Generator().manual_seed(5)
    for layer in model.audnet.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.rand(layer.num_features, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
    return model


def make_inputs(own=slice(None)):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(CLIPS, 3, 64, 64, generator=generator, dtype=torch.float64)
    sounds, negatives = (
        torch.randn(number, 1, 33, 48, generator=generator, dtype=torch.float64)
        for number in (CLIPS, NEGATIVES)
    )
    transform = GeometricTransform((5, -30, 0, 20)[own], 1.0, True, 64, "masked")
    return {
        "frames": frames[own],
        "log_mel_spectrogram": sounds[own],
        "transformed_frames": transform.warp_frames(frames[own]),
        "transform": transform.warp_maps,
        "negative_sounds": negatives,
    }


@pytest.fixture
def inputs():
    return make_inputs()


def step(model, inputs):
    """Losses by name, and gradients."""
    output = model(**inputs)
    output.loss.backward()
    return output.terms, {name: weight.grad.clone() for name, weight in model.named_parameters()}


def drawn(kinds, seed):
    model = SSLTIE(SSLTIEConfig(), audio=AUDIO, negatives=NegativeSoundConfig(negative_sounds=kinds))
    return model.draw_negative_sounds(seed, CPU)


@pytest.mark.slow
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


def test_negatives_of_no_contrast_are_refused():
    plain = "ssl_tie --train-set vggsound --data-root d --output o".split()
    words = [*plain, "--negative-sounds", "silence"]
    opts.parse_train_options([*words, *SMALL, "--contrastive-weight", "0"])
    off = ["--contrastive-weight", "0", "--transformed-contrastive-weight", "0"]
    with pytest.raises(ValueError, match="--negative-sounds are negatives of the contrast"):
        opts.parse_train_options([*words, *SMALL, *off])


def slow_contrast(model, features, sounds, num_own):
    """Cross-entropy by loops over frames, sounds and positions."""
    config = model.config

    def mean_in_region(values, threshold, sign):
        weights = [1 / (1 + math.exp(-sign * (v - threshold) / config.sharpness)) for v in values]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    losses, negative = [], []
    for frame in range(num_own):
        maps = [[float(features[frame, :, y, x] @ s) for y in range(4) for x in range(4)] for s in sounds]
        means = [mean_in_region(values, config.positive_threshold, 1) for values in maps]
        hard = mean_in_region(maps[frame], config.negative_threshold, -1)
        others = [mean for place, mean in enumerate(means) if place != frame]
        scores = [means[frame], *others, hard]
        exponentials = [math.exp(score / config.temperature) for score in scores]
        losses.append(-math.log(exponentials[0] / sum(exponentials)))
        negative += means[num_own:]
    return sum(losses) / num_own, sum(negative) / len(negative)


def test_each_negative_sound_is_one_more_column(inputs):
    model = build()
    output = model(**inputs)
    reference = build()
    features = reference.visual_features(inputs["frames"])
    clips = reference.sound_features(inputs["log_mel_spectrogram"])
    negatives = [  # each alone: they do not depend on one another
        reference.eval().sound_features(inputs["negative_sounds"][place : place + 1])
        for place in range(NEGATIVES)
    ]
    # What the negatives are normalised by has seen this step's clips, as sound_features moves it.
    sounds = torch.cat([clips, *negatives]).detach()
    loss, similarity = slow_contrast(model, features.detach(), sounds, CLIPS)
    assert output.terms["contrastive"].item() == pytest.approx(loss, rel=1e-9)
    assert output.terms["negative_similarity"].item() == pytest.approx(similarity, rel=1e-9)
    without = build()(**{n: v for n, v in inputs.items() if n != "negative_sounds"})
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


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=TIME_LIMIT
    )
    model = build()
    synchronise_batch_norms(model)
    wrapped = DistributedDataParallel(model)  # alive until backward, which averages
    terms, _ = step(wrapped, make_inputs(slice(2 * rank, 2 * rank + 2)))
    torch.save((terms, {n: weight.grad for n, weight in model.named_parameters()}), folder / f"{rank}.pt")
    del wrapped  # freed after the group, it can hang: gloo's threads want the GIL
    dist.destroy_process_group()


def test_two_processes_take_the_step_of_one(tmp_path, inputs):
    torch.multiprocessing.start_processes(work, (tmp_path,), 2, start_method="spawn")
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    terms, expected = step(build(), inputs)
    for name, term in terms.items():
        mean = (found[0][0][name] + found[1][0][name]) / 2
        assert mean.item() == pytest.approx(term.item(), rel=1e-9), name
    for _, gradients in found:
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-7, atol=1e-10)


def similarity_with_silence(*, with_negatives):
    """Of each frame's best position, after a short training on colours and pitches."""
    generator = torch.Generator().manual_seed(2)
    silence = drawn("silence", 0).double()
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    frames = torch.randn(CLIPS, 3, 64, 64, generator=generator, dtype=torch.float64)
    sounds = -40 + 20 * torch.randn(CLIPS, 1, 32, 41, generator=generator, dtype=torch.float64)
    for _ in range(40):
        optimizer.zero_grad()
        model(
            frames=frames,
            log_mel_spectrogram=sounds,
            transformed_frames=frames,
            transform=lambda maps: (maps, torch.ones_like(maps)),
            negative_sounds=silence if with_negatives else None,
        ).loss.backward()
        optimizer.step()
    with torch.no_grad():
        maps = model.eval().localise(frames, silence.expand(CLIPS, -1, -1, -1))
        own = model.localise(frames, sounds)
    return maps.amax(dim=(1, 2)).mean().item(), own.amax(dim=(1, 2)).mean().item()


def test_training_with_silence_makes_frames_unlike_silence():
    (silent, own), (silent_without, _) = (
        similarity_with_silence(with_negatives=chosen) for chosen in (True, False)
    )
    assert silent < silent_without - 0.2
    assert own > silent + 0.2


def test_a_run_from_the_command_line(tiny_data, tmp_path):
    output = tmp_path / "run"
    words = ["--negative-sounds", "silence,noise"]
    finished = train(tiny_data, output, "--epochs", 1, *words)
    assert finished.returncode == 0, finished.stderr
    row = next(csv.DictReader((output / "history.csv").open()))
    assert 0 <= float(row["negative_similarity"]) <= 1
    assert 0 < float(row["loss"]) < 20
    # It is a part of the loss, so that a run cannot be resumed without it.
    refused = train(tiny_data, output, "--epochs", 2, "--resume")
    assert refused.returncode == 2
    assert "--negative-sounds was silence,noise, is None" in refused.stderr


def test_a_run_of_before_the_options_can_be_resumed():
    plain = "ssl_tie --train-set vggsound --data-root d --output o".split()
    now = opts.as_plain(opts.parse_train_options([*plain, *SMALL]))
    before = {name: values for name, values in now.items() if name not in ("mixing", "negatives")}
    assert opts.differences_that_matter(before, now) == []
    other = opts.parse_train_options([*plain, *SMALL, "--negative-sounds", "silence"])
    assert opts.differences_that_matter(before, opts.as_plain(other)) == [
        "--negative-sounds was None, is silence"
    ]
