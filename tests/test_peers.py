"""Peers localise and hear as described, and any model can have the object prior."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from command_line import scoring
from golden_inputs import arrays, released_shapes
from peer_inputs import (
    ENDINGS,
    SHAPES,
    filled,
    golden_boxes,
    golden_frame,
    golden_sound,
    golden_weights,
    official_file,
    stretched,
)
from PIL import Image
from scipy.signal import spectrogram
from torch import nn
from torchvision.models import resnet18

from datasets.annotations import consensus_map
from datasets.audio import (
    AlignSpectrogramConfig,
    MiddleSpectrogramConfig,
    SpectrogramConfig,
    fit_window,
    load_waveform,
)
from datasets.benchmarks import DATA_SETS
from datasets.frames import FrameGeometry
from models import SCORED
from models.encoders import ResNet18Encoder
from models.localiser import load_localiser
from models.released import PRETRAINED, build_localiser, convert_release, convert_strictly
from utils.evaluation.metrics import TruthMaps, consensus_iou
from utils.evaluation.protocols import OTHER_NAMES, PROTOCOLS, ObjectMaps, predict, upsample

SOURCE = Path("release.pth")


# -------------------------------------------------------------------------------------------- sound

# Samples that are read, from the middle or not, and frames of the spectrogram; which samples are heard, and
# the overlap of spectrogram frames.
PUBLISHED = {
    "lvs": (160_000, False, 671, slice(None), 274),
    "ssl_align": (160_000, False, 299, slice(56_000, 104_000), 353),
    "ez_vsl_or_fnac": (48_000, True, 200, slice(None), 274),
    "slavc": (48_000, True, 200, slice(None), 274),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_peer_hears_scipy_s_log_spectrogram(name):
    config = SCORED[name].groups["audio"]()
    num_samples, centred, num_frames, part, overlap = PUBLISHED[name]
    assert (config.num_samples, config.centred) == (num_samples, centred)
    assert config.sample_rate == 16_000
    rng = np.random.default_rng(2)
    waveforms = rng.standard_normal((2, num_samples)).astype(np.float32)  # a third beyond [-1, 1]
    heard = config.build_front_end()(torch.from_numpy(waveforms))
    assert heard.shape == (2, 1, 257, num_frames)
    assert heard.dtype == torch.float32
    for waveform, found in zip(waveforms.astype(np.float64), heard[:, 0], strict=True):
        samples = waveform[part].clip(-1, 1)
        _, _, power = spectrogram(samples, 16_000, nperseg=512, noverlap=overlap)
        np.testing.assert_allclose(found.numpy(), np.log(power + 1e-7) / 12, atol=2e-6)


@pytest.mark.parametrize("config", [SpectrogramConfig(), MiddleSpectrogramConfig(), AlignSpectrogramConfig()])
def test_silence_and_an_offset_are_the_floor(config):
    for level in (0.0, 0.25):
        heard = config.build_front_end()(torch.full((1, config.num_samples), level))
        assert torch.equal(heard, torch.full_like(heard, np.log(1e-7) / 12))


def test_short_sounds_are_repeated_from_their_beginning_and_stereo_is_left_or_mean(tmp_path):
    rng = np.random.default_rng(3)
    stereo = rng.uniform(-0.5, 0.5, (20_001, 2)).astype(np.float32)
    soundfile.write(tmp_path / "short.wav", stereo, 16_000, subtype="FLOAT")
    mean, left = stereo.mean(axis=1), stereo[:, 0]
    for name, channel in {"ez_vsl_or_fnac": mean, "slavc": mean, "lvs": mean, "ssl_align": left}.items():
        config = SCORED[name].groups["audio"]()
        expected = np.tile(channel, 10)[: config.num_samples]
        np.testing.assert_allclose(load_waveform(tmp_path / "short.wav", config), expected, atol=1e-7)


def test_ssl_align_hears_the_middle_of_what_a_benchmark_s_sounds_are_long(tmp_path):
    torch.save(official_file("ssl_align", stretched(SHAPES["ssl_align"])), tmp_path / "align.pth")
    assert DATA_SETS["avsbench_s4"].clip_seconds == DATA_SETS["avsbench_ms3"].clip_seconds == 5
    assert {row.clip_seconds for name, row in DATA_SETS.items() if not row.has_masks} == {10}
    sound = torch.from_numpy(np.random.default_rng(4).uniform(-1, 1, 80_000).astype(np.float32))
    for seconds, first in ((5.0, 16_000), (10.0, 56_000)):
        localiser = load_localiser(tmp_path / "align.pth", "cpu", clip_seconds=seconds)
        heard = localiser.model.front_end(fit_window(sound, localiser.audio)[None])
        part = sound.repeat(2).numpy()[first : first + 48_000].astype(np.float64)
        _, _, power = spectrogram(part, 16_000, nperseg=512, noverlap=353)
        np.testing.assert_allclose(heard[0, 0].numpy(), np.log(power + 1e-7) / 12, atol=2e-6)


AUTHORS = {  # names in goldens/peers.npz
    "lvs": "lvs", "ssl_align": "ssl_align", "ez_vsl": "ez_vsl_or_fnac", "fnac": "ez_vsl_or_fnac",
    "slavc": "slavc",
}  # fmt: skip


@pytest.mark.parametrize("authors", AUTHORS)
@torch.no_grad()
def test_sounds_maps_and_scores_are_those_of_the_authors_programs(authors):
    name, golden = AUTHORS[authors], arrays("peers")
    official = golden_weights(name)
    model = build_localiser(name, {}).eval()
    model.load_state_dict(convert_release(official_file(name, official), SOURCE)[1])
    sounds = [torch.from_numpy(golden_sound(clip) / np.float32(32_768)) for clip in range(3)]
    geometry = FrameGeometry(224, "squash_aliased" if name == "ssl_align" else "squash")
    frames = torch.stack([geometry.to_square(Image.fromarray(golden_frame(clip))) for clip in range(3)])
    frames, sounds = model.prepare(frames, torch.stack([fit_window(sound, model.audio) for sound in sounds]))
    np.testing.assert_allclose(sounds[:, 0, ::32, ::20], golden[f"{authors}_spec"], atol=6e-6)
    maps = model.localise(frames, sounds)
    np.testing.assert_allclose(maps, golden[f"{authors}_maps"], atol=1e-6)
    boxes = [consensus_map(golden_boxes(clip), annotators_needed=1) for clip in range(3)]
    truth = TruthMaps(torch.from_numpy(np.stack(boxes)))
    rules = [key for key in golden if key.startswith(f"{authors}_ciou_") and not key.endswith("_conf")]
    assert rules
    for key in rules:
        rule = key.removeprefix(f"{authors}_ciou_")
        (found,) = predict(maps, [PROTOCOLS[OTHER_NAMES.get(rule, rule)]], truth.num_annotated)
        np.testing.assert_allclose(consensus_iou(found.masks, truth), golden[key], atol=1e-4)


# ------------------------------------------------------------------------------------- object prior


@torch.no_grad()
def test_object_maps_are_the_mean_activation_of_torchvision_s_last_features():
    shapes = released_shapes("resnet18")
    official = filled(shapes)
    prior = ResNet18Encoder(3, last_stride=2).eval()
    build = PRETRAINED["resnet18"].build
    prior.load_state_dict(convert_strictly(official, SOURCE, "ResNet-18", build, ignored=("fc.",)))
    frames = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    reference = resnet18()
    reference.load_state_dict(official)
    features = nn.Sequential(*list(reference.children())[:-2]).eval()(frames)
    torch.testing.assert_close(prior(frames).mean(dim=1), features.abs().mean(dim=1))
    assert prior(torch.zeros(1, 3, 224, 224)).shape == (1, 512, 7, 7)


def min_max(values):
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_each_rule_mixes_object_maps_as_its_authors_do(protocol, alpha):
    rng = np.random.default_rng(4)
    similarity = torch.from_numpy(0.4 * rng.standard_normal((3, 14, 14))).clip(-1, 1).float()
    objects = torch.from_numpy(rng.gamma(2, 0.6, (3, 7, 7))).float()
    counts = torch.full((3,), 9000)
    (found,) = predict(similarity, [protocol], counts, ObjectMaps(objects, alpha))
    for clip in range(3):
        own = upsample(similarity[clip : clip + 1], protocol)[0].double().numpy()
        enlarged = replace(protocol, upsampling=protocol.object_upsampling or protocol.upsampling)
        other = upsample(objects[clip : clip + 1], enlarged)[0].double().numpy()
        if protocol.name.startswith("slavc"):
            mixed = alpha * (own + 1) / 2 + (1 - alpha) * other / 2.5
            expected = mixed if protocol.name == "slavc_fixed" else min_max(mixed)
        else:
            expected = min_max(alpha * min_max(own) + (1 - alpha) * min_max(other))
        np.testing.assert_allclose(found.localisation_maps[clip], expected, atol=2e-6)
        rank = {"median": 25_088, "adaptive": 50_176 - 9000}.get(protocol.threshold)
        threshold = 0.5 if rank is None else np.sort(expected.ravel())[rank]
        clear = np.abs(expected - threshold) > 1e-5
        assert np.array_equal(found.masks[clip].numpy()[clear], (expected > threshold)[clear])
        assert clear.mean() > 0.99


def test_a_map_that_is_not_finite_predicts_nothing_whatever_the_objects():
    similarity = torch.zeros(1, 14, 14)
    similarity[0, 3, 3] = torch.nan
    objects = ObjectMaps(torch.rand(1, 7, 7), 0.4)
    for found in predict(similarity, list(PROTOCOLS.values()), torch.tensor([900]), objects):
        assert not found.masks.any()


# ----------------------------------------------------------------------------------- from the files


@pytest.fixture
def score(testing_program, tiny_data):
    """The command, in this process; gives its exit status."""

    def run(checkpoint, output, *options):
        return testing_program.main(scoring(tiny_data, checkpoint, output, "--gallery", 1, *options))

    return run


@pytest.mark.parametrize("name", ["lvs", "slavc"])
def test_a_release_is_scored_by_the_same_command(name, score, tmp_path):
    # Its name says another method: only the content counts.
    torch.save(official_file(name, filled(SHAPES[name])), tmp_path / "ssl_tie_htf.pth")
    rules = ("--protocol", "ez_vsl,slavc_fixed,ssl_tie")
    assert score(tmp_path / "ssl_tie_htf.pth", tmp_path / "out", *rules) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["checkpoint"]["method"] == name
    assert summary["checkpoint"]["epoch"] == (17 if ENDINGS[name] else 0)
    assert summary["num_clips"] == 6 and summary["num_non_finite_maps"] == 0
    assert summary["object_prior"] is None
    with (tmp_path / "out" / "per_clip.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_an_object_prior_is_part_of_the_result(score, tmp_path, monkeypatch, caplog):
    checkpoint, weights = tmp_path / "ez.pth", tmp_path / "resnet18.pth"
    torch.save(official_file("ez_vsl_or_fnac", filled(SHAPES["ez_vsl_or_fnac"])), checkpoint)
    torch.save(filled(released_shapes("resnet18")), weights)
    monkeypatch.setattr("models.released.verify", lambda *_: None)  # the sum is a real file's

    def scored(folder, *options):
        assert score(checkpoint, tmp_path / folder, "--protocol", "ez_vsl", *options) == 0
        return json.loads((tmp_path / folder / "summary.json").read_text())

    prior = ("--object-prior-weights", weights, "--object-prior")
    alone, mixed, objects = scored("a"), scored("b", *prior, 0.4), scored("c", *prior, 0)
    names = [summary["rows"][0]["name"] for summary in (alone, mixed, objects)]
    endings = ("", " + object prior (alpha 0.4)", " + object prior (alpha 0)")
    assert names == [f"EZ-VSL or FNAC ez, released{ending}" for ending in endings]
    assert [summary["object_prior"] for summary in (alone, mixed, objects)] == [None, 0.4, 0.0]
    assert any("blind" in warning for warning in mixed["warnings"])
    assert len({s["rows"][0]["mean_ciou"] for s in (alone, mixed, objects)}) == 3
    assert alone["rows"][1:] == mixed["rows"][1:] == objects["rows"][1:]
    assert score(checkpoint, tmp_path / "a", "--protocol", "ez_vsl", *prior, 0.4) == 2
    assert "another object prior" in caplog.text
    missing = ("--object-prior", 0.4, "--object-prior-weights", tmp_path / "none.pth")
    assert score(checkpoint, tmp_path / "d", *missing) == 2
    for words in ("resnet18-f37072fd.pth", "--object-prior-weights", "get_weights.sh resnet18"):
        assert words in caplog.text
