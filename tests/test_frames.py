"""Picture files to square frames, and boxes that go the same way."""

import pickle

import numpy as np
import pytest
import torch
from golden_inputs import FULL_GOLDENS, GOLDENS, arrays
from PIL import Image, ImageDraw

from datasets.frames import FrameConfig, FrameGeometry, read_frame, to_tensor
from utils.files import BrokenFileError

GOLDEN_PICTURES = ("sq299", "land", "port", "gray", "small")
MEAN = np.array([0.485, 0.456, 0.406])[:, None, None]
STD = np.array([0.229, 0.224, 0.225])[:, None, None]


# -------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("name", GOLDEN_PICTURES)
def test_golden_test_transform(name):
    picture, path = read_frame(GOLDENS / "frame" / f"img_{name}.png"), FULL_GOLDENS / "c_spec.npz"
    frame = to_tensor(FrameGeometry(224, "centre_crop").apply_to_frame(picture))
    squashed = to_tensor(FrameGeometry(224).apply_to_frame(picture))
    assert frame.shape == (3, 224, 224) and frame.dtype == torch.uint8
    assert torch.equal(frame, squashed) == (name in {"sq299", "gray"})
    frame = (frame.numpy() / 255 - MEAN) / STD
    np.testing.assert_allclose(frame[:, ::8, ::8], arrays("inputs")[f"img_{name}"], atol=1e-5)
    if path.is_file():  # every pixel
        with np.load(path) as golden:
            np.testing.assert_allclose(frame, golden[f"img_{name}"], atol=1e-5)


# ---------------------------------------------------------------------------- frames and boxes


def frame_with_rectangle(width, height, box):
    frame = Image.new("RGB", (width, height))
    left, top, right, bottom = box
    ImageDraw.Draw(frame).rectangle((left, top, right - 1, bottom - 1), fill="white")
    return frame, np.array([box]) / (width, height, width, height)


def white_box(frame):
    """Edges of what is white, as fractions."""
    left, top, right, bottom = Image.fromarray(np.asarray(frame)[:, :, 1] > 127).getbbox()
    width, height = frame.size
    return np.array([left / width, top / height, right / width, bottom / height])


@pytest.mark.parametrize("mode", ["squash", "centre_crop"])
@pytest.mark.parametrize("size", [224, 128])
@pytest.mark.parametrize(("width", "height"), [(500, 333), (333, 500), (241, 240), (300, 300), (100, 151)])
def test_boxes_go_where_the_frame_goes(mode, size, width, height):
    geometry = FrameGeometry(size, mode)
    for shares in ((0.4, 0.3, 0.6, 0.7), (0.0, 0.1, 0.5, 0.9), (0.45, 0.05, 1.0, 1.0)):
        box = [round(s * side) for s, side in zip(shares, (width, height) * 2, strict=True)]
        frame, fractions = frame_with_rectangle(width, height, box)
        square = geometry.apply_to_frame(frame)
        assert square.size == (size, size)
        (moved,) = geometry.apply_to_boxes(fractions, width, height)
        np.testing.assert_allclose(white_box(square), moved.clip(0, 1), atol=1.01 / size)


# --------------------------------------------------------------------------------- broken files


RAMP = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
GREY = Image.fromarray(RAMP)
HALF = Image.fromarray(np.tile(np.repeat([0, 255], 20), (30, 1)).astype(np.uint8))  # left: transparent
BESIDE_WHITE = np.where(np.asarray(HALF), RAMP, 255)


def with_alpha(mode):
    picture = GREY.convert(mode)
    picture.putalpha(HALF)
    return picture


def palette_with_transparency():
    picture = Image.fromarray(np.where(np.asarray(HALF), RAMP // 2 + 100, 0).astype(np.uint8), "P")
    picture.putpalette([value for index in range(256) for value in [min(255, max(0, index - 100) * 2)] * 3])
    return picture


KINDS = {
    "rgb.jpg": (GREY.convert("RGB"), RAMP),
    "grey.png": (GREY, RAMP),
    "1.png": (GREY.convert("1"), np.asarray(GREY.convert("1")) * 255),
    "cmyk.jpg": (GREY.convert("CMYK"), RAMP),
    "rgb.webp": (GREY.convert("RGB"), RAMP),
    "rgb.avif": (GREY.convert("RGB"), RAMP),
    "16.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
    "16.tif": (Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
    "rgba.png": (with_alpha("RGB"), BESIDE_WHITE),
    "la.png": (with_alpha("L"), BESIDE_WHITE),
    "p.png": (palette_with_transparency(), BESIDE_WHITE),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_is_read_as_viewers_show_it(tmp_path, name):
    picture, expected = KINDS[name]
    path = tmp_path / name
    picture.save(path, **({"transparency": 0} if name == "p.png" else {"quality": 100}))
    shown = read_frame(path)
    assert shown.mode == "RGB" and shown.size == (40, 30)
    difference = np.abs(np.asarray(shown).astype(int) - np.asarray(expected)[:, :, None])
    assert difference.max() <= 8 and difference.mean() < 2


@pytest.mark.parametrize("grey", [GREY, KINDS["16.png"][0]])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, RAMP), (2, RAMP[:, ::-1]), (3, RAMP[::-1, ::-1]), (6, np.rot90(RAMP, 3)), (8, np.rot90(RAMP))],
)
def test_pictures_are_turned_as_their_camera_says(tmp_path, grey, orientation, turned):
    exif = Image.Exif()
    exif[0x112] = orientation
    grey.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_frame(tmp_path / "x.png"))[:, :, 0], turned)


def assert_broken(path):
    with pytest.raises(BrokenFileError) as caught:
        read_frame(path)
    copied = pickle.loads(pickle.dumps(caught.value))  # as between processes
    assert copied.path == path and copied.reason
    assert str(copied) == str(caught.value) == f"{path} cannot be read: {copied.reason}"


def test_broken_pictures_are_named(tmp_path, monkeypatch):
    noise = Image.effect_noise((200, 200), 50)
    for name, size in (("torn.jpg", 3000), ("torn.png", 200)):
        noise.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
        assert_broken(tmp_path / name)
    for content in (b"", b"HTTP 404: no such frame\n" * 9, b"\xff\xd8\xff\xe0\0"):
        (tmp_path / "frame.jpg").write_bytes(content)
        assert_broken(tmp_path / "frame.jpg")
    for dtype in (np.int32, np.float32):  # grey whose white is not known
        Image.fromarray(np.zeros((3, 4), dtype)).save(tmp_path / "grey.tif")
        assert_broken(tmp_path / "grey.tif")
    assert_broken(tmp_path / "absent.jpg")
    assert_broken(tmp_path)
    noise.save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert_broken(tmp_path / "huge.png")


@pytest.mark.parametrize("size", [0, 16, -32, 225])
def test_frame_sizes_off_the_grid_are_refused(size):
    with pytest.raises(ValueError, match=f"--frame-size must be a multiple of 32, got {size}"):
        FrameConfig(frame_size=size)
    assert FrameConfig(frame_size=96).frame_size == 96
