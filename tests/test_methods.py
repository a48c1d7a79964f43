"""LVS, EZ-VSL, SLAVC and FNAC train as their authors' programs do, and start from what is asked for."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import scoring
from golden_inputs import released_shapes
from method_inputs import (
    TYPES,
    batch_of,
    frames,
    golden,
    golden_model,
    head,
    head_features,
    kept_features,
    log_spectrograms,
    probe,
    sound_map,
)
from peer_inputs import SHAPES, filled, official_file
from PIL import Image
from torch.nn import functional as F

import main
import opts
from datasets.augmentation import draw_for_clips
from datasets.clips import AudioVisualClips, Clip, collate
from datasets.frames import FrameConfig, FrameGeometry, to_displayable
from models import METHODS, fnac, released
from models.contrast import trimap_contrast
from models.lvs import LVSConfig
from models.released import build_localiser, convert_release

SOURCE = Path("release")
NAMES = ("lvs", "ez_vsl", "slavc", "fnac")
MOMENTA = {"frame_momentum": 0.999, "sound_momentum": 0.998}
TRIMAPS = {
    "": {},
    "_no_trimap": {"tri_map": False},
    "_no_hard": {"hard_negatives": False},
    "_eps": {"positive_threshold": 0.5, "negative_threshold": 0.45},
}
HEADS = [
    ("ez_vsl", "head"),
    *(("fnac", f"head{dropped}_{phase}") for dropped in ("", "_dropout") for phase in ("warmup", "full")),
    ("slavc", "head"),
    ("slavc", "head_dropout"),
    *(("lvs", f"head_{kind}{variant}") for kind in ("relu", "signed") for variant in TRIMAPS),
]
TERMS = {
    "frame_to_sound": "loss_frame_to_sound",
    "sound_to_frame": "loss_sound_to_frame",
    "fast_frames": "loss_online_frames",
    "fast_sounds": "loss_online_sounds",
}
"""Our names of the goldens' terms"""


# ------------------------------------------------------------------------------------------------- heads


def step_of_head(method, case, dtype):
    """A training step on features: model, output, and features with their gradients."""
    kind = case.partition("_")[2].partition("_")[0]
    config, side, offset, factors = {}, 7, 10, {}
    if method == "lvs":
        config, side, offset = TRIMAPS[case.removeprefix(f"head_{kind}")], 14, 10 if kind == "relu" else 20
    visual, pooled = head_features(offset, 6, side, relu=kind == "relu")
    sound = sound_map(30, pooled) if method == "lvs" else pooled[:, :, None, None]
    model = head(method, dtype, MOMENTA if method == "slavc" else config, (visual, sound))
    visual, sound = (torch.tensor(array).to(dtype).requires_grad_() for array in (visual, sound))
    if "dropout" in case:
        factors["kept"] = torch.tensor(kept_features(*((33, 36) if method == "slavc" else (33,)))).to(dtype)
    model.before_step(4 if "warmup" in case else 5, 0)
    output = model(frames=visual, log_spectrogram=sound, **factors)
    output.loss.backward()
    return model, output, visual, sound


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("method", "case"), HEADS)
def test_loss_terms_gradients_and_slow_step_are_those_of_the_authors(method, case, kind):
    expected, exact = golden(method, f"{case}/{kind}/"), kind == "f64"
    model, output, visual, sound = step_of_head(method, case, TYPES[kind])
    losses = {"loss": output.loss} | {TERMS[n]: term for n, term in output.terms.items() if n in TERMS}
    for name, loss in losses.items():
        if name in expected:
            assert loss.item() == pytest.approx(expected[name].item(), rel=1e-12 if exact else 2e-5), name
    if method == "fnac":
        terms = [term.item() for term in output.terms.values()]
        terms[1:] = [term / 100 for term in terms[1:]]
        assert len(terms) == (4 if "full" in case else 1)
        np.testing.assert_allclose(terms, expected["terms"][: len(terms)], rtol=1e-12 if exact else 2e-5)
    for key, scale in (("own_map_over_tau", 0.03), ("map", 1)):
        if key in expected:
            found = (output.similarity_map / scale).double().numpy()
            np.testing.assert_allclose(found, expected[key], rtol=0, atol=1e-11 if exact else 2e-6 / scale)
    names = ("grad_visual", "grad_sound_map" if method == "lvs" else "grad_sound")
    for number, (name, features) in enumerate(zip(names, (visual, sound), strict=True)):
        gradient = features.grad.double().numpy()
        rows, limit = expected[f"{name}/norm_per_clip"], (1e-12 if exact else 1e-4) * expected[f"{name}/norm"]
        found = np.linalg.norm(gradient.reshape(6, -1), axis=1)
        np.testing.assert_allclose(found, rows, rtol=0, atol=(1e-12 if exact else 5e-5) * rows.max())
        found = (gradient * probe(40 + number, gradient.shape)).sum()
        assert found == pytest.approx(expected[f"{name}/probe"], abs=limit)
        np.testing.assert_allclose(gradient.ravel()[:8], expected[f"{name}/first8"], rtol=0, atol=limit)
    for part in ("img_proj", "aud_proj") if method == "slavc" else ():
        for number in range(2):
            weight = getattr(model, f"momentum_{part}")[number].weight.detach().double()
            after = f"momentum_{part}{number + 1}_after"
            np.testing.assert_allclose(
                weight.flatten()[:4], expected[after], rtol=0, atol=1e-12 if exact else 1e-6
            )
            total = pytest.approx(expected[f"{after}_abs_sum"], rel=1e-12 if exact else 1e-6)
            assert weight.abs().sum().item() == total


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("case", "share"), [("quirk_minus99", 0.9), ("quirk_nan", 0.3)])
def test_what_breaks_in_the_authors_lvs_is_mended_and_nothing_else_differs(case, share, kind):
    visual, sounds = head_features(20, 4, 14)
    visual = share * visual + sounds[:, :, None, None]
    sounds[3] *= -1 if case == "quirk_minus99" else 1
    visual, sounds = (F.normalize(torch.tensor(x).to(TYPES[kind]), dim=1) for x in (visual, sounds))
    logits, _ = trimap_contrast(visual, sounds, LVSConfig())
    found = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long), reduction="none").double().numpy()
    theirs = golden("lvs", f"{case}/f64/")["loss_per_clip"]
    same = slice(3 if case == "quirk_minus99" else 4)
    np.testing.assert_allclose(found[same], theirs[same], rtol=1e-9 if kind == "f64" else 1e-4)
    assert found.max() < 20  # theirs: 1131 for a clip, or NaN for all in float32


# -------------------------------------------------------------------------------------------- whole steps


@pytest.mark.slow
@pytest.mark.parametrize("method", NAMES)
def test_a_whole_step_with_a_released_file_s_weights_is_that_of_the_authors(method):
    expected = golden(method, "model_train/f32/")
    dropout = {"dropout": 0.0} if method in ("slavc", "fnac") else {}
    model = golden_model(method, dropout | (MOMENTA if method == "slavc" else {})).train()
    recipe = replace(METHODS[method].groups["optimisation"](), learning_rate=1e-4)
    recipe = replace(recipe, weight_decay=0.0) if method == "lvs" else recipe
    optimizer = model.build_optimizer(recipe)

    def step():
        model.before_step(5, 0)
        output = model(frames=frames(52, 4), log_spectrogram=log_spectrograms(53, 4, 200))
        return output.loss, output.loss.item() if method != "fnac" else [
            term.item() / (1 if name == "contrastive" else 100) for name, term in output.terms.items()
        ]  # fmt: skip

    def check_slow_weights(which):
        for key, value in expected.items():
            if key.startswith(f"momentum_after_{which}_forward/"):
                name = key.rpartition("/")[2].replace("proj1.", "proj.0.").replace("proj2.", "proj.1.")
                weight = model.state_dict()[name].flatten()[:8]
                np.testing.assert_allclose(weight, value, rtol=0, atol=1e-6)

    loss, found = step()
    np.testing.assert_allclose(found, expected["terms" if method == "fnac" else "loss"], rtol=2e-5)
    loss.backward()
    check_slow_weights("first")
    norms = {}
    for name, parameter in model.named_parameters():
        part, number, *_ = name.split(".")
        part = f"{part}{int(number) + 1}" if method == "slavc" and "proj" in part else part
        if parameter.requires_grad:
            norms.setdefault(part, []).append(parameter.grad.norm().item())
    assert len(norms) == {"lvs": 2, "slavc": 6}.get(method, 4)
    for part, values in norms.items():
        assert math.hypot(*values) == pytest.approx(expected[f"grad_norm/{part}"], rel=5e-3)
    for key, value in expected.items():
        if "buffer/" in key:
            statistics = model.state_dict()[key.rpartition("buffer/")[2]][:8]
            np.testing.assert_allclose(statistics, value, rtol=0, atol=1e-5)
    optimizer.step()
    _, found = step()
    check_slow_weights("second")
    after = f"{'terms' if method == 'fnac' else 'loss'}_after_one_adam_step"
    assert after in expected or method == "lvs"
    np.testing.assert_allclose(found, expected.get(after, found), rtol=5e-3)


# ------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("method", NAMES)
def test_views_are_crops_of_the_enlarged_frame_and_three_seconds_and_follow_from_seed_and_place(method):
    frame = FrameConfig(frame_size=64)
    model = build_localiser(method, {}, frame=frame)
    assert model.training_frame_size == 70
    batch = batch_of(model, [(70, 70)] * 4)
    views = model.augment(batch, 5)
    assert views["frames"].shape == (4, 3, 64, 64) and views["log_spectrogram"].shape == (4, 1, 257, 200)
    side = 64 // (16 if method == "lvs" else 32)
    shape = {"slavc": (4, 2, 512, side, side), "fnac": (4, 1, 512, side, side)}.get(method)
    assert (tuple(views["kept"].shape) if "kept" in views else None) == shape
    if shape:
        values, counts = views["kept"].unique(return_counts=True)
        assert values.tolist() == pytest.approx([0, 10]) and 0.05 < counts[1] / counts.sum() < 0.15
    part = model.augment(batch.part(slice(2, 4)), 5, first=2, global_size=4)
    for name, view in views.items():
        assert torch.equal(view[2:], part[name]), name
        assert (name == "log_spectrogram" and method != "fnac") or not torch.equal(
            view, model.augment(batch, 6)[name]
        )


def test_frames_keep_their_shape_until_they_are_cut(tiny_data, tmp_path):
    Image.new("RGB", (300, 100)).save(tmp_path / "wide.png")
    sound = next(tiny_data.root.glob("**/*.wav"))
    model = build_localiser("ez_vsl", {}, frame=FrameConfig(frame_size=64))
    geometry = FrameGeometry(model.training_frame_size)
    clips = AudioVisualClips(
        [Clip("wide", tmp_path / "wide.png", sound)], geometry=geometry, audio=model.audio, keep_shape=True
    )
    batch = collate([clips[0]])
    assert batch.picture_sizes == ((70, 210),)
    marked = replace(batch, frames=torch.arange(210).expand(1, 3, 70, 210).byte())
    views = [to_displayable(model.augment(marked, seed)["frames"])[0] for seed in range(20)]
    lefts = [int(draw_for_clips(seed, 1, 3)[0, 1] * 147) for seed in range(20)]
    assert [view[0, :, 0].min() for view in views] == lefts and max(lefts) > 70
    assert len({int(view[0, 0, 0]) > int(view[0, -1, 0]) for view in views}) == 2  # some are mirrored


def test_fnac_s_masks_are_a_loop_over_rows_and_columns():
    numbers = draw_for_clips(3, 200, 4)
    heard = fnac.mask(torch.full((200, 1, 257, 200), -1.0), numbers)
    outside = 0
    for found, (row, column, height, width) in zip(heard, numbers.tolist(), strict=True):
        expected = torch.full((1, 257, 200), -1.0)
        first_row, first_column = int(row * 200), int(column * 257)
        expected[:, first_row : first_row + int(height * 10)] = 0
        expected[:, :, first_column : first_column + int(width * 10)] = 0
        assert torch.equal(found, expected)
        outside += first_column >= 200
    assert 20 < outside < 70  # of 200, 22 % are expected


# ------------------------------------------------------------------------------------- from the command line


def training(method, tiny_data, output, *words):
    """Arguments of main.py for small work."""
    small = "--frame-size 64 --batch-size 4 --workers 0 --device cpu --epochs 1".split()
    start = () if "--start" in words else ("--start", "scratch")
    return list(map(str, [
        method, "--train-set", "vggsound", "--data-root", tiny_data.root, "--output", output,
        *small, *start, *words,
    ]))  # fmt: skip


@pytest.fixture
def started(tiny_data, tmp_path):
    """The weights that a run would start from."""

    def build(method, start):
        options = opts.parse_train_options(training(method, tiny_data, tmp_path / "run", "--start", start))
        return main.build_model(options, torch.device("cpu"))[0].state_dict()

    return build


def test_a_run_starts_from_a_file_of_its_method_only(started, tmp_path):
    for release, method in (("slavc", "slavc"), ("lvs", "lvs"), ("ez_vsl_or_fnac", "fnac")):
        content = official_file(release, filled(SHAPES[release]))
        torch.save(content, tmp_path / "release.pth")
        found, expected = started(method, tmp_path / "release.pth"), convert_release(content, SOURCE)[1]
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    with pytest.raises(ValueError, match=r"release\.pth holds weights of ez_vsl_or_fnac, not of slavc"):
        started("slavc", tmp_path / "release.pth")
    content["model"]["module.imgnet.conv1.weight"][0] = torch.nan
    torch.save(content, tmp_path / "release.pth")
    with pytest.raises(ValueError, match=r"not finite, first in imgnet\.conv1\.weight"):
        started("ez_vsl", tmp_path / "release.pth")


def test_imagenet_is_in_the_frame_encoders_or_said_to_be_missing(started, tmp_path, monkeypatch):
    assert opts.parse_train_options(
        ["fnac", *"--train-set flickr --data-root d --output o".split()]
    ).start.start == ("imagenet")
    look = partial(released.find_pretrained, folders=(tmp_path,))
    monkeypatch.setattr(released, "find_pretrained", look)
    with pytest.raises(FileNotFoundError, match=r"get_weights\.sh resnet18.*--start scratch"):
        started("slavc", "imagenet")
    weights = filled(released_shapes("resnet18"))
    torch.save(weights, tmp_path / released.PRETRAINED["resnet18"].file_name)
    monkeypatch.setattr(released, "verify", lambda *_: None)  # the sum is a real file's
    found = started("slavc", "imagenet")
    for name in ("imgnet", "momentum_imgnet"):
        torch.testing.assert_close(found[f"{name}.layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])
    assert not torch.equal(found["audnet.layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])
    assert torch.equal(started("ssl_tie", "imagenet")["imgnet.conv1.weight"], weights["conv1.weight"])
    with pytest.raises(ValueError, match="leave out --start imagenet"):
        started("sspl", "imagenet")


@pytest.mark.slow
@pytest.mark.parametrize("method", [*NAMES, "sspl"])
def test_a_resumed_run_is_the_unbroken_one_and_is_scored_with_its_start(
    method, tiny_data, tmp_path, testing_program
):
    words = ("--precision", "bf16") if method == "fnac" else ()
    words += ("--warm-up-epochs", 1) if method == "fnac" else ()
    words += ("--random-init", "--no-pcm") if method == "sspl" else ()
    assert main.main(training(method, tiny_data, tmp_path / "whole", "--epochs", 2, *words)) == 0
    assert main.main(training(method, tiny_data, tmp_path / "parts", *words)) == 0
    resumed = training(method, tiny_data, tmp_path / "parts", "--epochs", 2, "--resume", *words)
    assert main.main(resumed) == 0
    one, two = (torch.load(tmp_path / n / "last.pth", weights_only=True) for n in ("whole", "parts"))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer"]["state"], two["optimizer"]["state"], rtol=0, atol=0)
    num_trained = {"lvs": 120, "slavc": 128, "sspl": 16}.get(method, 124)  # as the authors'
    assert len(one["optimizer"]["state"]) == num_trained
    results = tmp_path / "results"
    assert testing_program.main(scoring(tiny_data, tmp_path / "whole" / "last.pth", results)) == 0
    summary = json.loads((results / "summary.json").read_text())
    assert summary["checkpoint"]["method"] == method and summary["checkpoint"]["start"] == "scratch"
    assert "scratch" in (results / "report.html").read_text()
    shutil.rmtree(tmp_path)
