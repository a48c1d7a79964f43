"""Rotation, scale and flip of frames and maps, in the authors' way and in the mended one."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_inputs import arrays, frames, records

from datasets.geometry import GeometricConfig, GeometricTransform

ANGLES = (0, 7, 30, -19, -30, 45, 90, 180)
CELL = 16  # pixels of a frame to a cell of its map
GOLDEN_CASES = list(itertools.product((1.0, 0.5), (False, True)))


def transform(angles, scale=1.0, flip=False, *, size=224, target="reference"):
    return GeometricTransform(tuple(angles), scale, flip, size, target)


def golden_maps():
    return torch.tensor(arrays("transform_and_steps")["heat_in"][:, 0])


def ramp(size):
    """A linear picture: every bilinear step leaves it as it is."""
    places = (torch.arange(size).double() + 0.5) / size
    return (0.8 * places[None] - 0.5 * places[:, None])[None, None]


def waves(size):
    """A smooth picture, lopsided, so that no turn or mirror leaves it as it is."""
    places = (torch.arange(size).double() + 0.5) / size
    rows, columns = places[:, None], places[None]
    picture = torch.cos(np.pi * columns) + 0.8 * torch.cos(2 * np.pi * rows) * columns
    return 0.5 * picture[None, None]


def cells_of(pictures):
    return F.avg_pool2d(pictures, CELL)[:, 0]


@pytest.mark.parametrize(("scale", "flip"), GOLDEN_CASES)
def test_golden_matrix_frame_and_map(scale, flip):
    golden, name = arrays("transform_and_steps"), f"tf_s{scale}_f{int(flip)}"
    drawn = transform(golden["angles"][0].tolist(), scale, flip)
    np.testing.assert_allclose(drawn.matrix(), golden[f"{name}/matrix"], atol=1e-5)
    warped = drawn.warp_frames(frames())
    assert warped.shape == (4, 3, 224 * scale, 224 * scale)
    np.testing.assert_allclose(warped[:, :, ::28, ::28], golden[f"{name}/image"], atol=5e-5)
    target, weights = drawn.warp_maps(golden_maps())
    np.testing.assert_allclose(target, golden[f"{name}/heat"][:, 0], atol=1.2e-5)
    assert (weights == 1).all() and weights.shape == target.shape
    difference = target - torch.tensor(golden[f"{name}/pred"][:, 0])
    assert difference.square().mean().item() == pytest.approx(float(golden[f"{name}/mse"]), rel=1e-4)
    assert difference.abs().mean().item() == pytest.approx(float(golden[f"{name}/l1"]), rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(("angle", "turned"), [(0, ""), (30, "rot30_")])
def test_golden_impulse(angle, turned, scale):
    impulse = torch.zeros(1, 14, 14)
    impulse[0, 3, 4] = 1
    target, _ = transform([angle], scale).warp_maps(impulse)
    expected = arrays("transform_and_steps")[f"impulse_{turned}s{scale}"][:, 0]
    np.testing.assert_allclose(target, expected, atol=1.2e-5)
    # At half size the authors' path steps over the cell: its similarity has no influence at all.
    assert expected.any() == (scale == 1.0)


def test_golden_identity_blurs():
    target, _ = transform([0]).warp_maps(golden_maps()[:1])
    expected = arrays("transform_and_steps")["identity_heat_out"][:, 0]
    np.testing.assert_allclose(target, expected, atol=1.2e-5)
    assert 0.02 < (target - golden_maps()[:1]).abs().max() < 0.03


def test_golden_draws():
    for seed, group in itertools.groupby(records("transform_draws"), lambda draw: draw["seed"]):
        generator = random.Random(seed)
        for draw in group:
            drawn = GeometricTransform.sample(GeometricConfig(), 4, 224, generator)
            expected = transform(draw["angles"], draw["scale"], draw["hflip"])
            assert drawn == expected, draw


def draw_many(**switches):
    generator = random.Random(11)
    config = GeometricConfig(**switches)
    return [GeometricTransform.sample(config, 3, 224, generator) for _ in range(40)]


@pytest.mark.parametrize(
    ("switches", "effect"),
    [
        ({"rotation": False}, {"angles": (0, 0, 0)}),
        ({"scaling": False}, {"scale": 1.0}),
        ({"geometric_flip": False}, {"flip": False}),
        ({"equivariance_target": "masked"}, {"target": "masked"}),
    ],
)
def test_each_switch_acts_alone(switches, effect):
    plain = draw_many()
    assert {drawn.scale for drawn in plain} == {1.0, 0.5}
    assert {drawn.flip for drawn in plain} == {True, False}
    assert draw_many(**switches) == [dataclasses.replace(drawn, **effect) for drawn in plain]


def test_frames_and_maps_of_another_shape_are_refused():
    for shape in ((3, 3, 224, 224), (2, 3, 112, 112), (2, 3, 224, 112)):
        with pytest.raises(ValueError, match=r"frames must be \(2, C, 224, 224\), got \("):
            transform([1, 2]).warp_frames(torch.zeros(shape))
    for target, shape in itertools.product(("reference", "masked"), ((3, 14, 14), (1, 14, 14), (2, 14, 7))):
        with pytest.raises(ValueError, match=r"maps must be \(2, h, h\), got \("):
            transform([1, 2], target=target).warp_maps(torch.zeros(shape))


@pytest.mark.parametrize(
    ("method", "target"), [("warp_maps", "reference"), ("warp_frames", "reference"), ("warp_maps", "masked")]
)
def test_mixed_precision_leaves_the_geometry_alone(method, target):
    warp = getattr(transform([30, -17, 5, 0], target=target), method)
    inputs = golden_maps() if method == "warp_maps" else frames()
    expected = warp(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp(inputs)
    torch.testing.assert_close(warped, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("target", "cells"), [("reference", 36), ("masked", 169)])
def test_cells_that_matter_at_half_size(target, cells):
    maps = torch.rand(1, 14, 14, generator=torch.Generator().manual_seed(0), requires_grad=True)
    warped, weights = transform([0], 0.5, target=target).warp_maps(maps)
    (warped * weights).sum().backward()
    assert (maps.grad != 0).sum() == cells


def test_masked_identity_is_exact():
    maps = golden_maps()
    target, coverage = transform([0] * 4, target="masked").warp_maps(maps)
    np.testing.assert_allclose(target, maps, atol=1e-6)
    assert (coverage == 1).all()
    np.testing.assert_allclose(transform([0] * 4).warp_frames(frames()), frames(), atol=5e-4)
    mirrored, coverage = transform([0] * 4, flip=True, target="masked").warp_maps(maps)
    np.testing.assert_allclose(mirrored, maps.flip(-1), atol=1e-6)
    assert (coverage == 1).all()


@pytest.mark.parametrize(("scale", "flip"), GOLDEN_CASES)
@pytest.mark.parametrize("size", [224, 128])
def test_masked_coverage_excludes_what_the_warp_does_not_fill(size, scale, flip):
    drawn = transform(ANGLES, scale, flip, size=size, target="masked")
    filled = drawn.warp_frames(torch.ones(len(ANGLES), 1, size, size, dtype=torch.float64))
    least = -F.max_pool2d(-filled, CELL)[:, 0]
    wholly_filled = least > 1 - 1e-4
    _, coverage = drawn.warp_maps(torch.ones(len(ANGLES), size // CELL, size // CELL))
    assert set(coverage.unique().tolist()) <= {0.0, 1.0}
    assert (coverage[~wholly_filled] == 0).all()
    # Nothing is left out needlessly, except where an edge lies on the border within a pixel.
    assert (coverage[wholly_filled] == 0).sum() <= (0 if size == 224 else 5)
    if size == 224:
        assert coverage.flatten(1).sum(1).min() >= 5


@pytest.mark.parametrize(("scale", "flip"), GOLDEN_CASES)
@pytest.mark.parametrize("size", [224, 128])
def test_masked_cells_are_the_transformed_frames_cells(size, scale, flip):
    drawn = transform(ANGLES, scale, flip, size=size, target="masked")
    # The ramp is exact; the waves allow for the curve between cells, which grows with the cell.
    for picture, tolerance in ((ramp, 2e-5), (waves, 0.012 * (224 / size) ** 2)):
        pictures = picture(size).expand(len(ANGLES), 1, size, size)
        target, coverage = drawn.warp_maps(cells_of(pictures))
        expected = cells_of(drawn.warp_frames(pictures))
        assert ((target - expected).abs() * coverage).max() < tolerance, picture.__name__


@pytest.mark.parametrize("target", ["reference", "masked"])
@pytest.mark.parametrize(("scale", "flip"), GOLDEN_CASES)
def test_gradients_of_the_maps(target, scale, flip):
    drawn = transform([17, -8], scale, flip, size=64, target=target)
    maps = torch.rand(2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda inputs: drawn.warp_maps(inputs)[0], maps)
    assert drawn.warp_maps(maps)[0].requires_grad
    assert not drawn.warp_maps(maps)[1].requires_grad
