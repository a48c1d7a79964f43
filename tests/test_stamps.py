"""The stamps data set: what is written, when it refuses, and the rules of composition."""

import csv
import json
import logging
import struct
import subprocess
import sys
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from command_line import ROOT
from PIL import Image

from scripts.stamps.__main__ import main
from scripts.stamps.compose import (
    DURATION,
    MAX_OVERLAP,
    SOUNDING_AREA,
    as_fraction,
    compose_clip,
    compose_waveform,
    overlap_share,
    place_boxes,
)
from scripts.stamps.material import CATALOGUE, make_procedural_material, read_rcc

NUM_TRAIN, NUM_TEST, FRAME_SIZE = 9, 6, 96
PARTS = {(True, True): "seen", (True, False): "held_out_recording",
         (False, True): "held_out_photo", (False, False): "both_held_out"}  # fmt: skip


def words(folder, *options, source="procedural"):
    """Arguments of make_stamps.sh."""
    recipe = ["--train", NUM_TRAIN, "--test", NUM_TEST, "--classes", 4, "--frame-size", FRAME_SIZE]
    return list(map(str, [folder, "--source", source, *recipe, *options]))


def read_files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def stamps_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamps") / "set"
    process = subprocess.run(
        [sys.executable, "-m", "scripts.stamps", *words(folder, "--workers", 2)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{folder}\n"
    return folder


def manifest_of(folder):
    return json.loads((folder / "stamps.json").read_text(encoding="utf-8"))


def test_files_and_lists_follow_the_manifest(stamps_set):
    clips = manifest_of(stamps_set)["clips"]
    lists = {"train": [f"train_{index:06d}" for index in range(NUM_TRAIN)],
             "test": [f"test_{index:06d}" for index in range(NUM_TEST)]}  # fmt: skip
    assert list(clips) == lists["train"] + lists["test"]
    expected = {"stamps.json"}
    expected |= {f"VGGSound/total_video_frames/{clip_id}/125.jpg" for clip_id in lists["train"]}
    expected |= {f"VGGSound/total_video_3s_audio/{clip_id}.wav" for clip_id in lists["train"]}
    for part, suffix in (("frame", "jpg"), ("audio", "wav"), ("anno", "xml")):
        expected |= {f"VGGSound_test/{part}/{clip_id}.{suffix}" for clip_id in lists["test"]}
    for clip_id in lists["test"]:
        record = clips[clip_id]
        part = PARTS[record["photo_seen_in_training"], record["sound_seen_in_training"]]
        for name in (part, "two_objects" if record["other_objects"] else "one_object"):
            lists.setdefault(f"test_{name}", []).append(clip_id)
        root = ElementTree.parse(stamps_set / f"VGGSound_test/anno/{clip_id}.xml").getroot()
        assert root.findtext("filename") == f"{clip_id}.jpg"
        (box,) = root.findall("bbox/box")
        assert [float(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")] == record["box"]
    assert {path.stem: path.read_text().split() for path in stamps_set.glob("*.txt")} == lists
    assert set(read_files(stamps_set)) == expected | {f"{name}.txt" for name in lists}
    assert [path.name for path in stamps_set.parent.iterdir()] == [stamps_set.name]
    for path in stamps_set.rglob("*.wav"):
        sound = soundfile.info(path)
        assert (sound.samplerate, sound.channels, sound.subtype, sound.frames) == (16000, 1, "PCM_16", 48000)
    for path in stamps_set.rglob("*.jpg"):
        with Image.open(path) as frame:
            assert (frame.format, frame.mode, frame.size) == ("JPEG", "RGB", (FRAME_SIZE,) * 2)


def assert_boxes_keep_their_bounds(clips):
    for clip in clips:
        x_min, y_min, x_max, y_max = clip["box"]
        assert 0 <= x_min < x_max <= 1 and 0 <= y_min < y_max <= 1
        area = (x_max - x_min) * (y_max - y_min)
        assert SOUNDING_AREA[0] - 1e-5 <= area <= SOUNDING_AREA[1] + 1e-5
        for other in clip["other_objects"]:
            assert other["class"] != clip["class"]
            assert overlap_share(np.array(clip["box"]), np.array(other["box"])) <= MAX_OVERLAP + 1e-4


def test_the_same_recipe_gives_the_same_files_and_another_is_refused(stamps_set, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "other name"
    folder.mkdir()  # an empty folder is as good as none
    assert main(words(folder, "--workers", 1)) == 0
    assert read_files(folder) == read_files(stamps_set)
    before = {path: path.stat().st_mtime_ns for path in stamps_set.rglob("*")}
    for source in ("procedural", "auto"):
        assert main(words(stamps_set, source=source)) == 0
    assert caplog.text.count("nothing to do") == 2
    assert main(words(stamps_set, "--seed", 1)) == 2
    assert "seed 0 instead of 1" in caplog.text and "another folder" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in stamps_set.rglob("*")} == before


@pytest.mark.parametrize("content", [None, "[]", "{", '{"recipe": 3}'])
def test_folder_with_something_else_is_refused(tmp_path, caplog, content):
    (tmp_path / ("notes.txt" if content is None else "stamps.json")).write_text(content or "mine")
    assert main([str(tmp_path), "--source", "procedural"]) == 2
    assert "another folder" in caplog.text
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("frame_size", [64, 112, 224, 256, 448])
def test_boxes_keep_their_pixels_when_they_are_scored(frame_size):
    edges = range(frame_size + 1)
    assert [int(224 * as_fraction(edge, frame_size)) for edge in edges] == [
        224 * e // frame_size for e in edges
    ]


@pytest.mark.parametrize("option", ["--classes=99", "--classes=1", "--train=0", "--seed=-1"])
def test_bad_numbers_are_refused(tmp_path, caplog, option):
    assert main([str(tmp_path / "set"), "--source", "procedural", option]) == 2
    assert option.split("=")[0] in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_without_apt_get_auto_falls_back_and_real_refuses(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    options = ("--cache", tmp_path / "cache", "--workers", 1)
    assert main(words(tmp_path / "real", *options, source="real")) == 2
    assert "apt-get is not on PATH" in caplog.text
    assert not (tmp_path / "real").exists()
    assert main(words(tmp_path / "auto", *options, source="auto")) == 0
    assert "No real material: apt-get is not on PATH" in caplog.text
    manifest = manifest_of(tmp_path / "auto")
    assert manifest["source"] == manifest["recipe"]["source"] == "procedural"


@pytest.mark.parametrize(
    ("cached", "script", "source", "parts"),
    [
        (True, "exit 1", "auto", ("sha256", "delete it")),
        (False, "echo no > tuxpaint-stamps-default_2022.06.04-1_all.deb", "auto", ("sha256", "refused")),
        (False, "echo 'E: Not found' >&2; exit 100", "real", ("2022.06.04-1", "Not found")),
    ],
)
def test_another_package_is_refused(tmp_path, monkeypatch, caplog, cached, script, source, parts):
    apt_get, cache = tmp_path / "bin" / "apt-get", tmp_path / "cache"
    for folder in (apt_get.parent, cache):
        folder.mkdir()
    apt_get.write_text(f"#!/bin/sh\n{script}\n")
    apt_get.chmod(0o755)
    if cached:
        (cache / "tuxpaint-stamps-default_2022.06.04-1_all.deb").write_bytes(b"not the package")
    before = read_files(cache)
    monkeypatch.setenv("PATH", str(apt_get.parent))
    assert main(words(tmp_path / "set", "--cache", cache, source=source)) == 2
    for part in (*parts, *map(str, cache.iterdir())):
        assert part in caplog.text
    assert read_files(cache) == before
    assert not (tmp_path / "set").exists()


def test_rcc_reader(tmp_path):
    """A version 3 archive: root / folder / (plain.txt, packed.bin)."""
    names, offsets = b"", []
    for name in ("folder", "plain.txt", "packed.bin"):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    plain, content = b"as it is", bytes(range(256)) * 4
    packed = struct.pack(">I", len(content)) + zlib.compress(content)
    payloads = struct.pack(">I", len(plain)) + plain
    packed_offset = len(payloads)
    payloads += struct.pack(">I", len(packed)) + packed
    nodes = [struct.pack(">IHII", 0, 2, 1, 1), struct.pack(">IHII", offsets[0], 2, 2, 2),
             struct.pack(">IHHHI", offsets[1], 0, 0, 1, 0),
             struct.pack(">IHHHI", offsets[2], 1, 0, 1, packed_offset)]  # fmt: skip
    tree = b"".join(node + bytes(8) for node in nodes)  # the time of last change
    start = 24
    places = (start, start + len(tree), start + len(tree) + len(payloads))
    path = tmp_path / "tiny.rcc"
    path.write_bytes(struct.pack(">4s5I", b"qres", 3, *places, 0) + tree + payloads + names)
    assert read_rcc(path) == {"folder/plain.txt": plain, "folder/packed.bin": content}


def test_overlap_is_a_share_of_the_smaller_box_and_placement_obeys_it():
    first = np.array([0, 0, 10, 10])
    others = np.array([[8, 5, 12, 10], [10, 0, 20, 10], [20, 20, 30, 30], [2, 2, 4, 4]])
    np.testing.assert_allclose(overlap_share(first, others), [10 / 20, 0, 0, 1])
    rng = np.random.default_rng(0)
    placed = [place_boxes([(55, 50), (50, 52)], 100, rng) for _ in range(200)]
    boxes = np.array([pair for pair in placed if pair is not None])
    assert len(boxes) > 150
    assert boxes.min() >= 0 and boxes.max() <= 100
    assert (overlap_share(boxes[:, 0], boxes[:, 1]) <= MAX_OVERLAP).all()
    assert (boxes[:, 0, :2] < 10).any(axis=0).all()  # all the room is used
    assert (boxes[:, 0, 2:] > 90).any(axis=0).all()
    assert place_boxes([(80, 80), (80, 80)], 100, rng) is None


def test_splits_share_no_background_and_training_sees_nothing_held_out():
    material = make_procedural_material(4, FRAME_SIZE)
    train, test = (
        [compose_clip(material, split, index, seed=3, frame_size=FRAME_SIZE)[2] for index in range(60)]
        for split in ("train", "test")
    )
    assert_boxes_keep_their_bounds([*train, *test])
    assert not {clip["background"] for clip in train} & {clip["background"] for clip in test}
    for flag in ("photo_seen_in_training", "sound_seen_in_training"):
        assert all(clip[flag] for clip in train)
        assert 0.25 < np.mean([clip[flag] for clip in test]) < 0.75
    used = {part["stamp"] for clip in train for part in (clip, *clip["other_objects"])}
    assert not {stamp for stamp in used if stamp.endswith("-1") and "silent" not in stamp}
    heard = [clip["class"] for clip in test]
    assert {heard.count(name) for name in heard} == {15}


@pytest.mark.parametrize("length", [40, 8_000, DURATION - 1, 4 * DURATION])
def test_waveforms_of_any_recording(length):
    rng = np.random.default_rng(length)
    waveform = compose_waveform(rng.uniform(-1, 1, length).astype(np.float32), rng)
    assert waveform.shape == (DURATION,) and waveform.dtype == np.float32
    assert 0.1 < np.abs(waveform).max() <= 1


def test_catalogue_files_belong_to_one_class_only():
    rows = list(csv.DictReader(CATALOGUE.open()))
    files = [(row["kind"], row["file"]) for row in rows]
    assert len(set(files)) == len(files)
    for name in {row["class"] for row in rows} - {""}:
        for kind in ("photo", "sound"):
            held_out = [r["held_out"] for r in rows if (r["class"], r["kind"]) == (name, kind)]
            assert held_out == ["no"] * max(1, len(held_out) - 1) + ["yes"] * (len(held_out) > 1)


@pytest.mark.slow
def test_real_material(tmp_path, caplog):
    status = main(words(tmp_path / "set", "--classes", 50, "--train", 50, source="real"))
    if "cannot be had" in caplog.text:
        pytest.skip(caplog.messages[-1])
    assert status == 0, caplog.text
    manifest = manifest_of(tmp_path / "set")
    assert (manifest["source"], len(manifest["classes"]), len(manifest["packages"])) == ("real", 50, 2)
    assert_boxes_keep_their_bounds(manifest["clips"].values())
