"""Boxes and masks from files, and the ground-truth maps that they make."""

import json
import math
import warnings

import numpy as np
import pytest
from golden_inputs import arrays, records
from PIL import Image

from datasets.annotations import (
    consensus_map,
    mask_map,
    read_flickr_xml,
    read_mask,
    read_pixel_json,
    read_vgg_ss_json,
    read_vgg_ss_xml,
)
from datasets.frames import FrameGeometry
from utils.files import BrokenFileError

FORMATS = {"vggss": (read_vgg_ss_xml, 1), "flickr": (read_flickr_xml, 2)}
NAMES = [str(name) for name in arrays("evaluation")["names"]]
WRAPPED = {"vggss": {"smooth_21", "smooth_23"}, "flickr": {"smooth_23"}}
"""Boxes a pixel or more below 0: the authors' slices count them from the other edge."""
BOX = [0.25, 0.125, 0.5, 0.75]
PIXELS = [64, 32, 128, 192]  # BOX on the canvas of 256


def write(folder, content, name="boxes.xml"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def leaves(values, label=""):
    names = ("xmin", "ymin", "xmax", "ymax")
    tags = "".join(f"<{n}>{value}</{n}>" for n, value in zip(names, values, strict=True))
    return (f"<name>{label}</name>" if label else "") + tags


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("benchmark", FORMATS)
def test_golden_ground_truth(tmp_path, benchmark, name):
    read, annotators_needed = FORMATS[benchmark]
    boxes = read(write(tmp_path, records("evaluation")["xml"][benchmark][name]))
    ours = consensus_map(boxes, annotators_needed=annotators_needed)
    golden, index = arrays("evaluation"), NAMES.index(name)
    full, some = (
        np.unpackbits(golden[f"{benchmark}/{kind}"][index]).reshape(224, 224).astype(float)
        for kind in ("gt_x2", "gt_any")
    )
    theirs = full + 0.5 * (some - full)
    assert ours.dtype == np.float32 and ours.shape == (224, 224)
    assert np.array_equal(ours, theirs) == (name not in WRAPPED[benchmark])
    assert (224 * boxes <= -1).any() == (name in WRAPPED[benchmark])


# ----------------------------------------------------------------------------------------- boxes

TWO = f"<bbox><any>{leaves(BOX)}</any></bbox><bbox><one>{leaves(BOX)}</one></bbox>"


@pytest.mark.parametrize(
    ("read", "body", "expected"),
    [
        (read_vgg_ss_xml, f"<bbox><box>{leaves(BOX)}</box></bbox>", [BOX]),
        (read_vgg_ss_xml, f"<bbox><b>{leaves(BOX)}</b><b>{leaves(BOX[::-1])}</b></bbox>", [BOX, BOX[::-1]]),
        (read_vgg_ss_xml, TWO, [BOX, BOX]),
        (read_vgg_ss_xml, f"<bbox>{leaves(BOX)}</bbox>", [BOX]),
        (read_vgg_ss_xml, f"<bbox>{leaves(BOX, 'cat')}</bbox>", [BOX]),
        (read_vgg_ss_xml, f"<bbox><box>{leaves(BOX, 'cat')}</box></bbox>", [BOX]),
        (read_vgg_ss_xml, f"<size><width>9</width></size><bbox><b>{leaves(BOX)}</b></bbox>", [BOX]),
        (read_vgg_ss_xml, "<bbox></bbox>", []),
        (read_flickr_xml, "<filename>x.jpg</filename>", []),
        (read_vgg_ss_xml, f"<bbox></bbox><BBox><b>{leaves(BOX).upper()}</b></BBox>", [BOX]),
        (read_vgg_ss_xml, f'<v:bbox xmlns:v="urn:v">{leaves(BOX)}</v:bbox>', [BOX]),
        (read_vgg_ss_xml, '<bbox xmlns="urn:v" YMAX="0.75" ymin="0.125" xmax="0.5" xmin="0.25"/>', [BOX]),
        (
            read_flickr_xml,
            "<bbox><y_max>192</y_max><x_min>64</x_min><x_max>128</x_max><y_min>32</y_min>"
            "<difficult>0</difficult></bbox>",
            [BOX],
        ),
        (read_flickr_xml, "<bbox><X1>64</X1><X2>128</X2><Y1>32</Y1><Y2>192</Y2></bbox>", [BOX]),
        (read_vgg_ss_xml, f"<bbox><bbox>{leaves(BOX)}</bbox></bbox>", [BOX]),
        (read_flickr_xml, f"<one><bbox>{leaves(PIXELS, 's')}</bbox></one>" * 3, [BOX] * 3),
        (read_flickr_xml, "<one>" + f"<bbox>{leaves(PIXELS, 's')}</bbox>" * 2 + "</one>", [BOX] * 2),
        (read_flickr_xml, f"<one><bbox>{leaves(PIXELS)}</bbox></one>", [BOX]),
        (read_flickr_xml, f"<bbox>{leaves(PIXELS, 's')}</bbox>", [BOX]),
        (read_flickr_xml, f"<one><bbox>{leaves(['64.0', '32', ' 128 ', '1.92e2'], 's')}</bbox></one>", [BOX]),
        # A little beyond the frame, and an annotator's slip as in the published files.
        (read_vgg_ss_xml, f"<bbox>{leaves([-0.3, -1.5, 1.2, 1.5])}</bbox>", [[-0.3, -1.5, 1.2, 1.5]]),
        (read_vgg_ss_xml, f"<bbox>{leaves([0.6, 0.2, -2.9e16, 0.7])}</bbox>", [[0.6, 0.2, -2.9e16, 0.7]]),
        (read_flickr_xml, f"<bbox>{leaves([-64, 0, 320, 384])}</bbox>", [[-0.25, 0, 1.25, 1.5]]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_xml_shapes(tmp_path, read, body, expected, encoding):
    content = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{body}</annotation>'
    boxes = read(write(tmp_path, content.encode(encoding)))
    assert boxes.dtype == np.float64 and boxes.shape == (len(expected), 4)
    assert boxes.tolist() == expected


ONE_BOX = f"<a><b><bbox>{leaves(BOX)}</bbox></b></a>"
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))


@pytest.mark.parametrize("read", [read_vgg_ss_xml, read_flickr_xml])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not readable as XML"),
        ("no boxes here", "not readable as XML"),
        ("<annotation><bbox>", "not readable as XML"),
        (ONE_BOX.replace("0.5", "half"), "half"),
        (f"<a><bbox>{leaves(['', 0, 1, 1])}</bbox></a>", "could not convert"),
        (f"<a><bbox>{leaves([0, 0, 1, 'nan'])}</bbox></a>", "nan"),
        (f"<a><bbox>{leaves([0, 0, 'inf', 1])}</bbox></a>", "inf"),
        (f"<a><bbox>{leaves([0, 0, 1, 600])}</bbox></a>", "boxes are expected as "),
        (f"<a><bbox>{leaves([-600, 0, 1, 1])}</bbox></a>", "boxes are expected as "),
        ("<a></a>", "no box: expected elements <bbox> with four numbers each, found a"),
        ("<a><filename>x.jpg</filename><one></one></a>", "no box"),
        (f"<a><object><bndbox>{leaves(PIXELS)}</bndbox></object></a>", "found a, bndbox, object, xmax"),
        ("<a><bbox>1 2 3 4</bbox></a>", "four numbers, got [['1 2 3 4']]"),
        ("<a><bbox><x>0</x><y>0</y><width>1</width><height>1</height></bbox></a>", "given by height, width"),
        ("<a><bbox><x>1</x><y>2</y><z>3</z></bbox></a>", "four numbers, got [['1', '2', '3']]"),
        (f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a>&l11;</a>', "DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "DOCTYPE"),
        (f'<?xml version="1.0"?><!DOCTYPE a SYSTEM "a.dtd">{ONE_BOX}', "DOCTYPE"),
        (f"<!DOCTYPE a>{ONE_BOX}".encode("utf-16"), "DOCTYPE"),
        (f'<?xml version="1.0" encoding="klingon"?>{ONE_BOX}', "encoding"),
        (f'<?xml version="1.0" encoding="shift_jis"?>{ONE_BOX}', "encoding"),
        (f'<?xml version="1.0" encoding="utf-32"?>{ONE_BOX}', "XML"),
        (f'<?xml version="1.0" encoding="base64"?>{ONE_BOX}', "XML"),
        (b"\x00\xff\x00", "XML"),
    ],
)
def test_broken_and_hostile_xml_is_named(tmp_path, read, content, reason):
    path = write(tmp_path, content)
    with pytest.raises(BrokenFileError) as caught:
        read(path)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path} cannot be read: not readable as XML")
    assert reason in caught.value.reason


def test_vgg_ss_json(tmp_path):
    slip = [0.634375, 0.253125, -2.8823037615171176e16, 0.74375]  # as published
    lists = {"a": [BOX, [0, 0, 1, 1]], "b": [], "c": [slip, BOX], "d": [slip]}
    entries = [{"File": f"{clip_id}.mp4", "class": "x", "BBox": boxes} for clip_id, boxes in lists.items()]
    boxes = read_vgg_ss_json(write(tmp_path, "\ufeff" + json.dumps(entries), "boxes.json"))
    assert {clip_id: array.tolist() for clip_id, array in boxes.items()} == lists
    assert boxes["b"].shape == (0, 4) and boxes["c"].dtype == np.float64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = {name: consensus_map(array, annotators_needed=1) for name, array in boxes.items()}
    assert (maps["a"] == 1).all() and not maps["b"].any() and not maps["d"].any()
    np.testing.assert_array_equal(maps["c"], consensus_map(np.array([BOX]), annotators_needed=1))


def pixel_entry(box, image="a.jpg", audio="a.wav"):
    return {"image": f"/theirs/{image}", "audio": f"/theirs/{audio}", "gt_box": box}


@pytest.mark.parametrize(
    ("read", "content", "reason"),
    [
        *((read, text, "not a list of") for read in (read_vgg_ss_json, read_pixel_json)
          for text in ("", "[{]", "3", "null", "[3]", "[" * 100_000, "[{}]", '{"file": "a", "bbox": []}')),
        (read_vgg_ss_json, [{"file": "a"}], "bbox"),
        (read_vgg_ss_json, [{"bbox": [BOX]}], "file"),
        (read_vgg_ss_json, [{"file": "a", "bbox": []}] * 2, "a comes twice"),
        (read_vgg_ss_json, [{"file": "a.mp4", "bbox": []}, {"file": "a", "bbox": []}], "a comes twice"),
        (read_vgg_ss_json, [{"file": "a", "bbox": None}], "not a list of"),
        (read_vgg_ss_json, [{"file": "a", "bbox": [BOX, [0, 0, 1]]}], "four numbers"),
        (read_vgg_ss_json, [{"file": "a", "bbox": [[0, 0], [1, 1]]}], "four numbers"),
        (read_vgg_ss_json, [{"file": "a", "bbox": [["left", 0, 1, 1]]}], "left"),
        (read_vgg_ss_json, [{"file": "a", "bbox": [[math.nan, 0, 1, 1]]}], "fractions"),
        (read_vgg_ss_json, '[{"file": "a", "bbox": [[0, 0, 1e400, 1]]}]', "fractions"),
        (read_vgg_ss_json, f'[{{"file": "a", "bbox": [[0, 0, 1{"0" * 400}, 1]]}}]', "not a list of"),
        *((read_vgg_ss_json, [{"file": "a", "bbox": [BOX, box]}], "fractions")
          for box in (PIXELS, [0, 0, 1, 2.1], [-1e17, 0, 1, 1e17], [-40, 0, 1, 1])),
        (read_pixel_json, [{"image": "a.jpg", "audio": "a.wav"}], "gt_box"),
        (read_pixel_json, [pixel_entry([1, 2, 3])], "four numbers"),
        (read_pixel_json, [pixel_entry([])], "four numbers"),
        (read_pixel_json, [pixel_entry([0, 0, 1, math.inf])], "inf"),
        (read_pixel_json, [pixel_entry([0, 0, 640, 480])], "224 x 224"),
        (read_pixel_json, [pixel_entry([0, 0, 9, 256])], "224 x 224"),
        (read_pixel_json, [pixel_entry([0, 0, 9, 9])] * 2, "a comes twice"),
        (read_pixel_json, [pixel_entry([0, 0, 9, 9], audio="b.wav")], "a and b have different names"),
    ],
)  # fmt: skip
def test_broken_json_is_named(tmp_path, read, content, reason):
    path = write(tmp_path, content if isinstance(content, str) else json.dumps(content), "boxes.json")
    with pytest.raises(BrokenFileError, match="not a list of") as caught:
        read(path)
    assert caught.value.path == path
    assert reason in caught.value.reason


def slow_map(boxes, annotators_needed, size):
    """Pixel by pixel."""
    result = np.zeros((size, size), np.float32)
    for row in range(size):
        for column in range(size):
            votes = 0
            for box in boxes:
                left, top, right, bottom = (math.floor(size * min(max(v, 0), 1)) for v in box)
                votes += left <= column < right and top <= row < bottom
            result[row, column] = min(votes / annotators_needed, 1)
    return result


@pytest.mark.parametrize("annotators_needed", [1, 2, 3])
@pytest.mark.parametrize("size", [23, 64])
def test_consensus_map_equals_a_slow_loop(annotators_needed, size):
    random = np.random.default_rng(size + annotators_needed)
    for num_boxes in (0, 1, 2, 5, 8):
        corners = random.uniform(-0.3, 1.3, (num_boxes, 4))  # some inverted, some outside
        upright = np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        for boxes in (corners, upright):
            actual = consensus_map(boxes, annotators_needed=annotators_needed, size=size)
            expected = slow_map(boxes.tolist(), annotators_needed, size)
            np.testing.assert_allclose(actual, expected, atol=1e-7)
            assert actual.dtype == np.float32


# ------------------------------------------------------------------------------------------ masks

OBJECT = np.zeros((5, 7), bool)
OBJECT[1:3, 2:6] = True
OBJECT[4, 0] = True


PALETTE = Image.fromarray((~OBJECT).astype(np.uint8))
PALETTE.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white and 1 is black: what counts is the colour


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
        PALETTE,
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


def test_absent_files_are_named(tmp_path):
    for read in (read_vgg_ss_xml, read_flickr_xml, read_vgg_ss_json, read_pixel_json, read_mask):
        with pytest.raises(BrokenFileError, match=r"absent\.xml cannot be read"):
            read(tmp_path / "absent.xml")


def test_broken_masks_are_named(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    for content in (b"", b"no picture", path.read_bytes()[:900]):
        path.write_bytes(content)
        with pytest.raises(BrokenFileError, match=r"mask\.png"):
            read_mask(path)


def nearest(mask, height, width):
    """The slow way: the pixel below the centre of each new one."""
    rows = [int((y + 0.5) * mask.shape[0] / height) for y in range(height)]
    columns = [int((x + 0.5) * mask.shape[1] / width) for x in range(width)]
    return mask[rows][:, columns]


@pytest.mark.parametrize("frame_size", [1, 16, 96])
@pytest.mark.parametrize("map_size", [8, 16, 48])
def test_a_squashed_mask_takes_the_nearest_pixels_whatever_the_model_s_frame(tmp_path, map_size, frame_size):
    mask = np.random.default_rng(3).integers(0, 2, (30, 50)).astype(bool)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = mask_map(tmp_path / "mask.png", FrameGeometry(frame_size), (50, 30), map_size)
    assert found.dtype == np.float32 and set(np.unique(found)) <= {0, 1}
    np.testing.assert_array_equal(found, nearest(mask, map_size, map_size))


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
