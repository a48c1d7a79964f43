"""Masks: what counts as the object, and the map that they make."""

import numpy as np
import pytest
from PIL import Image

from datasets.annotations import mask_map, read_mask
from datasets.frames import FrameGeometry
from utils.files import BrokenFileError

OBJECT = np.zeros((5, 7), bool)
OBJECT[1:3, 2:6] = True
OBJECT[4, 0] = True


def palette_picture():
    """Index 0 is white and 1 is black: what counts is the colour."""
    picture = Image.fromarray(np.where(OBJECT, 0, 1).astype(np.uint8))
    picture.putpalette([255, 255, 255, 0, 0, 0])
    return picture


def one_channel(channel, mode="RGB"):
    values = np.zeros((*OBJECT.shape, len(mode)), np.uint8)
    values[..., channel] = 9 * OBJECT
    if mode[-1] == "A":
        values[..., -1] = 255
    return Image.fromarray(values, mode)


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(OBJECT),
        Image.fromarray(OBJECT.astype(np.uint8)),
        Image.fromarray(255 * OBJECT.astype(np.uint8)),
        Image.fromarray(300 * OBJECT.astype(np.uint16)),
        palette_picture(),
        one_channel(0),
        one_channel(2),
        one_channel(1, "RGBA"),
        one_channel(0, "LA"),
    ],
    ids=["1", "L of 1", "L of 255", "16 bits", "palette", "red", "blue", "opaque", "grey, opaque"],
)
def test_all_that_is_not_black_is_the_object(picture, tmp_path):
    picture.save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png")
    assert found.dtype == bool
    np.testing.assert_array_equal(found, OBJECT)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_broken_mask_is_named(tmp_path, content):
    path = tmp_path / "mask.png"
    path.write_bytes(content)
    with pytest.raises(BrokenFileError, match=r"mask\.png"):
        read_mask(path)


def test_a_mask_that_breaks_off_is_named(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(BrokenFileError, match=r"mask\.png"):
        read_mask(path)


def nearest(mask, height, width):
    """The slow way: the pixel below the centre of each new one."""
    rows, columns = mask.shape
    return np.array(
        [
            [mask[int((y + 0.5) * rows / height), int((x + 0.5) * columns / width)]
             for x in range(width)]
            for y in range(height)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("map_size", [8, 16, 48])
def test_a_squashed_mask_takes_the_nearest_pixels(tmp_path, map_size):
    mask = np.random.default_rng(3).integers(0, 2, (30, 50)).astype(bool)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = mask_map(tmp_path / "mask.png", FrameGeometry(16), (50, 30), map_size)
    assert found.dtype == np.float32 and set(np.unique(found)) <= {0, 1}
    np.testing.assert_array_equal(found, nearest(nearest(mask, 16, 16), map_size, map_size))


@pytest.mark.parametrize("mode", ["squash", "centre_crop"])
@pytest.mark.parametrize("size", [(192, 96), (384, 192), (96, 96)])
def test_mask_and_frame_stay_together(tmp_path, mode, size):
    """A frame that is its own mask, also where the mask has another size or shape."""
    picture = np.zeros((96, 192), np.uint8)
    picture[16:64, 64:112] = 255
    frame = Image.fromarray(picture)
    frame.resize(size, Image.Resampling.NEAREST).save(tmp_path / "mask.png")
    geometry = FrameGeometry(32, mode)
    square = np.asarray(geometry.apply_to_frame(frame.convert("RGB")))[..., 0] > 127
    found = mask_map(tmp_path / "mask.png", geometry, frame.size, 32)
    assert 0 < found.sum() < 32 * 32
    assert (found != square).mean() < 0.03


def test_an_empty_mask_is_an_empty_truth(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "mask.png")
    assert mask_map(tmp_path / "mask.png", FrameGeometry(32), (9, 9), 224).sum() == 0
