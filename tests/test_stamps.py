"""The stamps data set: what is written, when it refuses, and the rules of composition."""

import csv
import json
import os
import shutil
import struct
import subprocess
import sys
import wave
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from scripts.stamps.__main__ import main
from scripts.stamps.compose import (
    DURATION,
    MAX_OVERLAP,
    SOUNDING_AREA,
    compose_clip,
    compose_waveform,
    overlap_share,
    place_boxes,
)
from scripts.stamps.material import CATALOGUE, StampsError, make_procedural_material, read_rcc

ROOT = Path(__file__).resolve().parent.parent
NUM_TRAIN, NUM_TEST, FRAME_SIZE = 9, 6, 96


def run_stamps(folder, *options, path=None, source="procedural"):
    recipe = ["--train", NUM_TRAIN, "--test", NUM_TEST, "--classes", 4, "--frame-size", FRAME_SIZE]
    words = [folder, "--source", source, *recipe, *options]
    return subprocess.run(
        [sys.executable, "-m", "scripts.stamps", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PATH": str(path)} if path else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def read_files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_refused(process, *words):
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    for word in words:
        assert word in process.stderr
    assert process.stdout == ""


@pytest.fixture(scope="module")
def stamps_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamps") / "set"
    process = run_stamps(folder, "--workers", 2)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{folder}\n"
    return folder


@pytest.fixture(scope="module")
def manifest(stamps_set):
    return json.loads((stamps_set / "stamps.json").read_text(encoding="utf-8"))


def test_layout_is_complete(stamps_set, manifest):
    train_ids = [f"train_{index:06d}" for index in range(NUM_TRAIN)]
    test_ids = [f"test_{index:06d}" for index in range(NUM_TEST)]
    expected = {"stamps.json", "train.txt", "test.txt"}
    expected |= {path.name for path in stamps_set.glob("test_*.txt")}
    expected |= {f"VGGSound/total_video_frames/{clip_id}/125.jpg" for clip_id in train_ids}
    expected |= {f"VGGSound/total_video_3s_audio/{clip_id}.wav" for clip_id in train_ids}
    for part, suffix in (("frame", "jpg"), ("audio", "wav"), ("anno", "xml")):
        expected |= {f"VGGSound_test/{part}/{clip_id}.{suffix}" for clip_id in test_ids}
    assert set(read_files(stamps_set)) == expected
    assert (stamps_set / "train.txt").read_text(encoding="utf-8").split() == train_ids
    assert (stamps_set / "test.txt").read_text(encoding="utf-8").split() == test_ids
    assert list(manifest["clips"]) == train_ids + test_ids
    assert [path.name for path in stamps_set.parent.iterdir()] == [stamps_set.name]


def test_parts_of_the_test_list_follow_the_manifest(stamps_set, manifest):
    expected = {}
    for clip_id, record in manifest["clips"].items():
        if clip_id.startswith("test_"):
            seen = (record["photo_seen_in_training"], record["sound_seen_in_training"])
            part = {
                (True, True): "seen",
                (True, False): "held_out_recording",
                (False, True): "held_out_photo",
                (False, False): "both_held_out",
            }[seen]
            for name in (part, "two_objects" if record["other_objects"] else "one_object"):
                expected.setdefault(f"test_{name}", []).append(clip_id)
    assert {path.stem: path.read_text().split() for path in stamps_set.glob("test_*.txt")} == expected
    assert len(expected) >= 3


def test_annotations_are_the_sounding_boxes_of_the_manifest(stamps_set, manifest):
    for index in range(NUM_TEST):
        clip_id = f"test_{index:06d}"
        path = stamps_set / f"VGGSound_test/anno/{clip_id}.xml"
        root = ElementTree.parse(path).getroot()
        assert root.findtext("filename") == f"{clip_id}.jpg"
        (box,) = root.findall("bbox/box")
        sides = [float(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")]
        assert sides == manifest["clips"][clip_id]["box"]


def test_boxes_keep_their_bounds(manifest):
    for clip in manifest["clips"].values():
        x_min, y_min, x_max, y_max = clip["box"]
        assert 0 <= x_min < x_max <= 1
        assert 0 <= y_min < y_max <= 1
        area = (x_max - x_min) * (y_max - y_min)
        assert SOUNDING_AREA[0] - 1e-5 <= area <= SOUNDING_AREA[1] + 1e-5
        for other in clip["other_objects"]:
            assert other["class"] != clip["class"]
            assert overlap_share(np.array(clip["box"]), np.array(other["box"])) <= MAX_OVERLAP + 1e-4


def test_media_have_the_promised_format(stamps_set):
    for path in stamps_set.rglob("*.wav"):
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
            assert (file.getsampwidth(), file.getnframes()) == (2, 48_000)
    for path in stamps_set.rglob("*.jpg"):
        with Image.open(path) as frame:
            assert (frame.format, frame.mode, frame.size) == ("JPEG", "RGB", (FRAME_SIZE,) * 2)


def test_files_do_not_depend_on_the_number_of_workers(stamps_set, tmp_path):
    folder = tmp_path / "other name"
    folder.mkdir()  # an empty folder is as good as none
    process = run_stamps(folder, "--workers", 1)
    assert process.returncode == 0, process.stderr
    assert read_files(folder) == read_files(stamps_set)


def test_same_recipe_is_left_alone_and_another_is_refused(stamps_set):
    before = {path: path.stat().st_mtime_ns for path in stamps_set.rglob("*")}
    for source in ("procedural", "auto"):
        process = run_stamps(stamps_set, source=source)
        assert process.returncode == 0, process.stderr
        assert "nothing to do" in process.stderr
    assert_refused(run_stamps(stamps_set, "--seed", 1), "seed 0 instead of 1", "another folder")
    assert {path: path.stat().st_mtime_ns for path in stamps_set.rglob("*")} == before


@pytest.mark.parametrize("content", [None, "[]", "{", '{"recipe": 3}'])
def test_folder_with_something_else_is_refused(tmp_path, capsys, content):
    (tmp_path / ("notes.txt" if content is None else "stamps.json")).write_text(content or "mine")
    assert main([str(tmp_path), "--source", "procedural"]) == 2
    assert "another folder" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("option", ["--classes=99", "--classes=1", "--train=0", "--seed=-1"])
def test_bad_numbers_are_refused(tmp_path, capsys, option):
    try:
        code = main([str(tmp_path / "set"), "--source", "procedural", option])
    except SystemExit as left:  # argparse's way
        code = left.code
    assert code == 2
    assert option.split("=")[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_apt_get_auto_falls_back_and_real_refuses(tmp_path):
    options = ["--cache", tmp_path / "cache"]
    bare = tmp_path / "bin"
    bare.mkdir()
    process = run_stamps(tmp_path / "real", *options, path=bare, source="real")
    assert_refused(process, "apt-get is not on PATH")
    assert not (tmp_path / "real").exists()

    process = run_stamps(tmp_path / "auto", *options, path=bare, source="auto")
    assert process.returncode == 0, process.stderr
    assert "WARNING: no real material: apt-get is not on PATH" in process.stderr
    manifest = json.loads((tmp_path / "auto/stamps.json").read_text(encoding="utf-8"))
    assert manifest["source"] == manifest["recipe"]["source"] == "procedural"


@pytest.mark.parametrize("source", ["auto", "real"])
def test_cached_package_with_another_sha256_is_refused(tmp_path, source):
    fake = tmp_path / "cache/tuxpaint-stamps-default_2022.06.04-1_all.deb"
    fake.parent.mkdir()
    fake.write_bytes(b"not the package")
    process = run_stamps(tmp_path / "set", "--cache", fake.parent, source=source)
    assert_refused(process, "sha256", str(fake), "delete it")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("script", "source", "words"),
    [
        ("echo no > tuxpaint-stamps-default_2022.06.04-1_all.deb", "auto", ("sha256", "refused")),
        ("echo 'E: Version was not found' >&2; exit 100", "real", ("2022.06.04-1", "Version was not found")),
    ],
)
def test_what_apt_get_fetches_or_refuses(tmp_path, script, source, words):
    apt_get = tmp_path / "bin" / "apt-get"
    apt_get.parent.mkdir()
    apt_get.write_text(f"#!/bin/sh\n{script}\n")
    apt_get.chmod(0o755)
    cache = tmp_path / "cache"
    process = run_stamps(tmp_path / "set", "--cache", cache, path=apt_get.parent, source=source)
    assert_refused(process, *words)
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "set").exists()


def build_rcc(*, flag, packed):
    """A version 1 archive: root / folder / (plain.txt, packed.bin)."""
    names, offsets = b"", []
    for name in ("folder", "plain.txt", "packed.bin"):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    plain = b"as it is"
    payloads = struct.pack(">I", len(plain)) + plain
    packed_offset = len(payloads)
    payloads += struct.pack(">I", len(packed)) + packed
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", offsets[0], 2, 2, 2)
    tree += struct.pack(">IHHHI", offsets[1], 0, 0, 1, 0)
    tree += struct.pack(">IHHHI", offsets[2], flag, 0, 1, packed_offset)
    start = 20
    header = struct.pack(">4s4I", b"qres", 1, start, start + len(tree), start + len(tree) + len(payloads))
    return header + tree + payloads + names


def test_rcc_reader(tmp_path):
    content = bytes(range(256)) * 4
    path = tmp_path / "tiny.rcc"
    path.write_bytes(build_rcc(flag=1, packed=struct.pack(">I", len(content)) + zlib.compress(content)))
    assert read_rcc(path) == {"folder/plain.txt": b"as it is", "folder/packed.bin": content}


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (build_rcc(flag=4, packed=b"(zstd)"), "zstd"),
        (build_rcc(flag=1, packed=b"\0\0\0\1nonsense"), "damaged"),
        (build_rcc(flag=1, packed=b"")[:60], "damaged"),
        (b"\x89PNG" * 9, "not a Qt resource archive"),
    ],
)
def test_rcc_reader_refuses(tmp_path, archive, words):
    path = tmp_path / "bad.rcc"
    path.write_bytes(archive)
    with pytest.raises(StampsError, match=words):
        read_rcc(path)


def test_overlap_is_a_share_of_the_smaller_box():
    first = np.array([0, 0, 10, 10])
    assert overlap_share(first, np.array([8, 5, 12, 10])) == pytest.approx(10 / 20)
    assert overlap_share(first, np.array([10, 0, 20, 10])) == 0
    assert overlap_share(first, np.array([20, 20, 30, 30])) == 0
    assert overlap_share(first, np.array([2, 2, 4, 4])) == 1


def test_placement_obeys_the_overlap_rule_and_uses_the_room():
    rng = np.random.default_rng(0)
    placed = [place_boxes([(55, 50), (50, 52)], 100, rng) for _ in range(200)]
    boxes = np.array([pair for pair in placed if pair is not None])
    assert len(boxes) > 150
    assert boxes.min() >= 0
    assert boxes.max() <= 100
    assert (overlap_share(boxes[:, 0], boxes[:, 1]) <= MAX_OVERLAP).all()
    assert (boxes[:, 0, :2] < 10).any(axis=0).all()
    assert (boxes[:, 0, 2:] > 90).any(axis=0).all()
    assert place_boxes([(80, 80), (80, 80)], 100, rng) is None


def test_splits_share_no_background_and_training_sees_nothing_held_out():
    material = make_procedural_material(4, FRAME_SIZE)
    clips = {
        split: [compose_clip(material, split, index, seed=3, frame_size=FRAME_SIZE)[2] for index in range(60)]
        for split in ("train", "test")
    }
    backgrounds = {split: {clip["background"] for clip in clips[split]} for split in clips}
    assert not backgrounds["train"] & backgrounds["test"]
    for flag in ("photo_seen_in_training", "sound_seen_in_training"):
        assert all(clip[flag] for clip in clips["train"])
        assert 0.25 < np.mean([clip[flag] for clip in clips["test"]]) < 0.75
    used = {part["stamp"] for clip in clips["train"] for part in (clip, *clip["other_objects"])}
    assert not {stamp for stamp in used if stamp.endswith("-1") and "silent" not in stamp}
    heard = [clip["class"] for clip in clips["test"]]
    assert {heard.count(name) for name in heard} == {15}


@pytest.mark.parametrize("length", [40, 8_000, DURATION - 1, 4 * DURATION])
def test_waveforms_of_any_recording(length):
    rng = np.random.default_rng(length)
    recording = rng.uniform(-1, 1, length).astype(np.float32)
    waveform = compose_waveform(recording, rng)
    assert waveform.shape == (DURATION,)
    assert waveform.dtype == np.float32
    assert 0.1 < np.abs(waveform).max() <= 1


def test_catalogue_files_belong_to_one_class_only():
    rows = list(csv.DictReader(CATALOGUE.open()))
    files = [(row["kind"], row["file"]) for row in rows]
    assert len(set(files)) == len(files)
    for name in {row["class"] for row in rows} - {""}:
        for kind in ("photo", "sound"):
            held_out = [r["held_out"] for r in rows if (r["class"], r["kind"]) == (name, kind)]
            assert held_out == ["no"] * max(1, len(held_out) - 1) + ["yes"] * (len(held_out) > 1)


def test_too_many_classes_name_the_number_there_are():
    with pytest.raises(StampsError, match="has 12 classes"):
        make_procedural_material(13, FRAME_SIZE)


@pytest.mark.slow
def test_real_material(tmp_path):
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH, so the real packages cannot be fetched")
    every_class = ["--classes", 50, "--train", 50]
    process = run_stamps(tmp_path / "set", *every_class, source="real")
    if "cannot be had" in process.stderr:
        pytest.skip(process.stderr.splitlines()[-1])
    assert process.returncode == 0, process.stderr
    manifest = json.loads((tmp_path / "set/stamps.json").read_text(encoding="utf-8"))
    assert manifest["source"] == "real"
    assert len(manifest["classes"]) == 50
    assert len(manifest["packages"]) == 2
    test_boxes_keep_their_bounds(manifest)
