"""Boxes, masks and classes from files, and the ground-truth maps that they make."""

import hashlib
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
    read_labels,
    read_mask,
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


def write(folder, content, name="boxes.xml"):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def leaves(values, label=""):
    names = ("xmin", "ymin", "xmax", "ymax")
    tags = "".join(f"<{n}>{value}</{n}>" for n, value in zip(names, values, strict=True))
    return (f"<name>{label}</name>" if label else "") + tags


# -------------------------------------------------------------------------------------- goldens


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


# ---------------------------------------------------------------------------------- XML shapes


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"<bbox><box>{leaves(BOX)}</box></bbox>", [BOX]),
        (f"<bbox><box>{leaves(BOX)}</box><box>{leaves(BOX[::-1])}</box></bbox>", [BOX, BOX[::-1]]),
        (f"<bbox><any>{leaves(BOX)}</any></bbox><bbox><one>{leaves(BOX)}</one></bbox>", [BOX, BOX]),
        (f"<bbox>{leaves(BOX)}</bbox>", [BOX]),
        (f"<bbox>{leaves(BOX, 'cat')}</bbox>", [BOX]),
        (f"<bbox><box>{leaves(BOX, 'cat')}</box></bbox>", [BOX]),
        (f"<size><width>640</width></size><bbox><box>{leaves(BOX)}</box></bbox>", [BOX]),
        ("<filename>x.jpg</filename>", []),
        ("<bbox></bbox>", []),
    ],
    ids=["one", "two", "two blocks", "flat", "flat label", "label", "size", "no bbox", "empty"],
)
def test_vgg_ss_shapes(tmp_path, body, expected):
    boxes = read_vgg_ss_xml(write(tmp_path, f"<annotation>{body}</annotation>"))
    assert boxes.dtype == np.float64 and boxes.shape == (len(expected), 4)
    assert boxes.tolist() == expected


PIXELS = [64, 32, 128, 192]  # BOX on the canvas of 256


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"<one><bbox>{leaves(PIXELS, 'sound')}</bbox></one>", [BOX]),
        (f"<one><bbox>{leaves(PIXELS, 's')}</bbox></one>" * 3, [BOX] * 3),
        ("<one>" + f"<bbox>{leaves(PIXELS, 's')}</bbox>" * 2 + "</one>", [BOX] * 2),
        (f"<one><bbox>{leaves(PIXELS)}</bbox></one>", [BOX]),
        (f"<bbox>{leaves(PIXELS, 's')}</bbox>", [BOX]),
        (f"<size><width>9</width></size><a><bbox>{leaves(PIXELS, 's')}</bbox></a>", [BOX]),
        (
            f"<one><bbox>{leaves(['64.0', '32.5', ' 128 ', '1.92e2'], 's')}</bbox></one>",
            [[0.25, 32.5 / 256, 0.5, 0.75]],
        ),
        ("<one></one>", []),
    ],
    ids=["one", "three", "two of one", "no label", "no annotator", "size", "floats", "none"],
)
def test_flickr_shapes(tmp_path, body, expected):
    boxes = read_flickr_xml(write(tmp_path, f"<annotation>{body}</annotation>"))
    assert boxes.dtype == np.float64 and boxes.shape == (len(expected), 4)
    assert boxes.tolist() == expected


@pytest.mark.parametrize("read", [read_vgg_ss_xml, read_flickr_xml])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not readable as XML"),
        ("no boxes here", "not readable as XML"),
        ("<annotation><bbox>", "not readable as XML"),
        (f"<a><b><bbox>{leaves(BOX).replace('0.5', 'half')}</bbox></b></a>", "half"),
        (f"<a><b><bbox>{leaves(['', 0, 1, 1])}</bbox></b></a>", "must end in four numbers"),
        (f"<a><b><bbox>{leaves([0, 0, 1, 'nan'])}</bbox></b></a>", "nan"),
        (f"<a><b><bbox>{leaves([0, 0, 'inf', 1])}</bbox></b></a>", "inf"),
        ("<a><b><bbox><x>1</x><y>2</y><z>3</z></bbox></b></a>", "['1', '2', '3']"),
    ],
)
def test_broken_xml_is_named(tmp_path, read, content, reason):
    path = write(tmp_path, content)
    with pytest.raises(BrokenFileError) as caught:
        read(path)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path} cannot be read: ")
    assert reason in caught.value.reason


@pytest.mark.parametrize("read", [read_vgg_ss_xml, read_flickr_xml, read_vgg_ss_json])
def test_absent_files_are_named(tmp_path, read):
    with pytest.raises(BrokenFileError, match=r"absent\.xml cannot be read"):
        read(tmp_path / "absent.xml")


ONE_BOX = f"<a><b><bbox>{leaves(BOX)}</bbox></b></a>"
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))


@pytest.mark.parametrize("read", [read_vgg_ss_xml, read_flickr_xml])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a>&l11;</a>'.encode(), "DOCTYPE"),
        (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "DOCTYPE"),
        (f'<?xml version="1.0"?><!DOCTYPE a SYSTEM "a.dtd">{ONE_BOX}'.encode(), "DOCTYPE"),
        (f"<!DOCTYPE a>{ONE_BOX}".encode("utf-16"), "DOCTYPE"),
        (f'<?xml version="1.0" encoding="klingon"?>{ONE_BOX}'.encode(), "encoding"),
        (f'<?xml version="1.0" encoding="shift_jis"?>{ONE_BOX}'.encode(), "encoding"),
        (f'<?xml version="1.0" encoding="utf-32"?>{ONE_BOX}'.encode(), "XML"),
        (f'<?xml version="1.0" encoding="utf-7"?>{ONE_BOX}'.encode(), "XML"),
        (f'<?xml version="1.0" encoding="base64"?>{ONE_BOX}'.encode(), "XML"),
        (b"\x00\xff\x00", "XML"),
    ],
)
def test_hostile_xml_is_named(tmp_path, read, content, reason):
    path = tmp_path / "boxes.xml"
    path.write_bytes(content)
    with pytest.raises(BrokenFileError, match="not readable as XML") as caught:
        read(path)
    assert reason in caught.value.reason


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_usual_encodings_are_read(tmp_path, encoding):
    path = tmp_path / "boxes.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{ONE_BOX}'.encode(encoding))
    assert read_flickr_xml(path).shape == (1, 4)


@pytest.mark.parametrize(
    ("read", "values", "unit"),
    [
        (read_vgg_ss_xml, PIXELS, "fractions"),
        (read_vgg_ss_xml, [0, 0, 1, 2.1], "fractions"),
        (read_vgg_ss_xml, [-40, 0, 1, 1], "fractions"),
        (read_flickr_xml, [64, 32, 640, 192], "canvas of 256"),
    ],
)
def test_boxes_in_another_unit_are_named(tmp_path, read, values, unit):
    path = write(tmp_path, f"<a><bbox><box>{leaves(values)}</box></bbox></a>")
    if read is read_flickr_xml:
        path = write(tmp_path, f"<a><one><bbox>{leaves(values)}</bbox></one></a>")
    with pytest.raises(BrokenFileError, match=f"boxes are expected as .*{unit}.* got "):
        read(path)


def test_boxes_a_little_beyond_the_frame_are_kept(tmp_path):
    for values in ([-0.3, -1.5, 1.2, 1.5], [0.6, 0.2, -2.8823037615171176e16, 0.7]):
        path = write(tmp_path, f"<a><bbox><box>{leaves(values)}</box></bbox></a>")
        assert read_vgg_ss_xml(path).tolist() == [values]
    values = [-80, 0, 300, 384]
    path = write(tmp_path, f"<a><one><bbox>{leaves(values)}</bbox></one></a>")
    assert (256 * read_flickr_xml(path)).tolist() == [values]


# ----------------------------------------------------------------------------------------- JSON


def test_json(tmp_path):
    # The published file has twelve boxes with such a coordinate: an annotator's slip.
    slip = [0.634375, 0.253125, -2.8823037615171176e16, 0.74375]
    entries = [
        {"file": "a_000001", "class": "elk bugling", "bbox": [BOX, [0, 0, 1, 1]]},
        {"file": "b_000002", "class": "thunder", "bbox": []},
        {"file": "c_000003", "class": "rain", "bbox": [slip, BOX]},
        {"file": "d_000004", "class": "hail", "bbox": [slip]},
    ]
    boxes = read_vgg_ss_json(write(tmp_path, "\ufeff" + json.dumps(entries), "boxes.json"))
    assert list(boxes) == ["a_000001", "b_000002", "c_000003", "d_000004"]
    assert [array.shape for array in boxes.values()] == [(2, 4), (0, 4), (2, 4), (1, 4)]
    assert boxes["a_000001"].tolist() == [BOX, [0, 0, 1, 1]]
    assert boxes["c_000003"].dtype == np.float64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = {name: consensus_map(array, annotators_needed=1) for name, array in boxes.items()}
    assert (maps["a_000001"] == 1).all()
    assert not maps["b_000002"].any() and not maps["d_000004"].any()
    alone = consensus_map(np.array([BOX]), annotators_needed=1)
    np.testing.assert_array_equal(maps["c_000003"], alone)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[{]",
        "3",
        "null",
        '{"file": "a", "bbox": []}',
        '[{"file": "a"}]',
        '[{"bbox": [[0, 0, 1, 1]]}]',
        '[{"file": "a", "bbox": []}, {"file": "a", "bbox": []}]',
        '[{"file": "a", "bbox": null}]',
        '[{"file": "a", "bbox": [[0, 0, 1]]}]',
        '[{"file": "a", "bbox": [[0, 0, 1, 1], [0, 0, 1]]}]',
        '[{"file": "a", "bbox": [["left", 0, 1, 1]]}]',
        '[{"file": "a", "bbox": [[NaN, 0, 1, 1]]}]',
        '[{"file": "a", "bbox": [[0, 0, 1e400, 1]]}]',
        '[{"file": "a", "bbox": [[0, 0], [1, 1]]}]',
        f'[{{"file": "a", "bbox": [[0, 0, 1{"0" * 400}, 1]]}}]',
        "[" * 100_000,
    ],
)
def test_broken_json_is_named(tmp_path, content):
    path = write(tmp_path, content, "boxes.json")
    with pytest.raises(BrokenFileError) as caught:
        read_vgg_ss_json(path)
    assert caught.value.path == path
    assert "not a list of" in caught.value.reason


@pytest.mark.parametrize("values", [PIXELS, [0, 0, 1, 2.1], [-1e17, 0, 1, 1e17]])
def test_json_in_pixels_is_named(tmp_path, values):
    entries = [{"file": "a", "bbox": [BOX]}, {"file": "b", "bbox": [BOX, values]}]
    path = write(tmp_path, json.dumps(entries), "boxes.json")
    with pytest.raises(BrokenFileError, match=r"boxes\.json cannot be read: .* fractions"):
        read_vgg_ss_json(path)


# ---------------------------------------------------------------------------------- the map


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
        upright = np.concatenate(
            [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], axis=1
        )
        for boxes in (corners, upright):
            actual = consensus_map(boxes, annotators_needed=annotators_needed, size=size)
            expected = slow_map(boxes.tolist(), annotators_needed, size)
            np.testing.assert_allclose(actual, expected, atol=1e-7)
            assert actual.dtype == np.float32


def test_votes_count_up_to_a_full_one():
    boxes = np.array([[0, 0, 0.5, 1], [0.25, 0, 0.75, 1], [0.25, 0, 0.5, 1]])
    row = consensus_map(boxes, annotators_needed=2, size=8)[3]
    assert row.tolist() == [0.5, 0.5, 1, 1, 0.5, 0.5, 0, 0]
    row = consensus_map(boxes, annotators_needed=1, size=8)[3]
    assert row.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


# ------------------------------------------------------------------------------------------ masks

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


# ---------------------------------------------------------------------------------------- classes


def write_labels(folder, content, name="labels.csv"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


CONTENTS = {
    "plain": ("labels.csv", 'a_000001,dog\nb_000030,"speech, woman"\n', "CSV of id,label"),
    "header": (
        "labels.txt",
        '\ufeffclip_id,label\r\n"a_000001","dog"\r\n\r\nb_000030, "speech, woman"\r\n',
        "CSV of id,label",
    ),
    "vggsound": ("vggsound.csv", 'a,1,dog,train\nb,30,"speech, woman",test\n', "VGGSound's CSV"),
    "vgg_ss": (
        "vggss.json",
        [
            {"file": "a_000001", "class": "dog", "bbox": []},
            {"file": "b_000030", "class": "speech, woman", "bbox": []},
        ],
        "VGG-SS JSON",
    ),
    "stamps": (
        "stamps.json",
        {"clips": {"a_000001": {"class": "dog"}, "b_000030": {"class": "speech, woman"}}},
        "stamps.json",
    ),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_every_published_form_gives_the_same_classes(case, tmp_path):
    name, content, form = CONTENTS[case]
    path = write_labels(tmp_path, content, name)
    labels = read_labels(path)
    assert labels.classes == {"a_000001": "dog", "b_000030": "speech, woman"}
    assert labels.form == form
    assert labels.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert labels.of(["b_000030", "a_000001", "b_000030"]) == ["speech, woman", "dog", "speech, woman"]


def test_ids_that_begin_with_dashes_and_starts_of_six_digits(tmp_path):
    labels = read_labels(write_labels(tmp_path, "---g-f_I2yQ,1,people marching,test\n-x,123456,a,train\n"))
    assert list(labels.classes) == ["---g-f_I2yQ_000001", "-x_123456"]


def test_clips_without_a_class_are_counted_and_named(tmp_path):
    labels = read_labels(write_labels(tmp_path, "a,dog\nb,cat\n"))
    with pytest.raises(ValueError, match=r"2 of 3 clips have no class, first: c, d\..*2 clips"):
        labels.of(["a", "c", "d"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", "", "names no clips"),
        ("l.csv", "id,label\n", "names no clips"),
        ("l.csv", "a\nb\n", r"lines of \[1\] fields.*id,label"),
        ("l.csv", "a,dog\nb,speech, woman\n", r"lines of \[2, 3\] fields.*double quotes"),
        ("l.csv", "a,first,dog,test\n", r"lines of \[4\] fields"),
        ("l.csv", 'a,"dog\n', "not a CSV"),
        ("l.csv", "a,dog\nb,\n", "entry 2 lacks its id or its class"),
        ("l.csv", "a,dog\nb,cat\na,cat\n", "names a twice, as 'dog' and 'cat'"),
        ("l.json", "{", "not valid JSON"),
        ("l.json", "3", "of another form"),
        ("l.json", {"classes": {}}, "of another form"),
        ("l.json", [{"file": "a", "bbox": []}], 'entry 1 has no text under "file" or "class"'),
        ("l.json", {"clips": {"a": {"class": 3}}}, "entry 1 has no text"),
        ("l.json", {"clips": {"a": "dog"}}, "entry 1 has no text"),
    ],
)
def test_what_is_no_list_of_labels_is_refused_in_words(name, content, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_labels(write_labels(tmp_path, content, name))


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No labels at .*stamps\.json"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"a,\xff\xfe")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_labels(tmp_path / "binary.csv")
