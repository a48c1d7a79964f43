"""Readers of the field's benchmarks, from made-up folders to batches and to results."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_inputs import (
    SCENES,
    batch_of,
    make_extended,
    make_is3,
    make_ms3,
    make_s4,
    sounded_entry,
    write_frame,
    write_sound,
)
from command_line import assert_refused, run
from peer_inputs import SHAPES, filled, official_file

from datasets.annotations import read_pixel_json
from datasets.benchmarks import build_clips, read_ground_truth, scene_of
from scripts.pack_hdf5 import main as pack
from scripts.verify_dataset import main as verify
from utils.files import BrokenFileError

# Copies of the published annotations that a developer may keep beside the repository.
PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "metadata"

# --------------------------------------------------------------------------------- IS3 and VPO


def test_is3_gives_boxes_and_pairs(tmp_path):
    boxes = make_is3(tmp_path / "IS3")
    for root in (tmp_path, tmp_path / "IS3"):
        clip_set = build_clips("is3", root, clip_list=None)
        assert clip_set.clip_ids == sorted(boxes)
    assert clip_set.cut == "IS3, 4 clips: none of the published cuts"
    assert clip_set.source_ids is None  # their names are not those of training lists
    batch = batch_of(clip_set)
    assert batch.pair_keys == tuple(sorted([SCENES[0], SCENES[0], SCENES[1], SCENES[1]]))
    for clip_id, truth, found in zip(
        batch.clip_ids, batch.ground_truth_maps, batch.bounding_boxes, strict=True
    ):
        x_min, y_min, x_max, y_max = map(int, boxes[clip_id])
        expected = np.zeros((224, 224))
        expected[y_min:y_max, x_min:x_max] = 1
        np.testing.assert_array_equal(truth, expected)
        np.testing.assert_allclose(found, np.array([boxes[clip_id]]) / 224)
    assert batch.part(slice(1, 3)).pair_keys == batch.pair_keys[1:3]


def test_is3_s_json_may_lie_elsewhere(tmp_path):
    boxes = make_is3(tmp_path / "data")
    path = tmp_path / "boxes.json"
    shutil.move(tmp_path / "data" / "synthetic3240_bbox.json", path)
    with pytest.raises(FileNotFoundError, match=r"synthetic3240_bbox\.json.*--annotations"):
        build_clips("is3", tmp_path / "data", clip_list=None)
    clip_set = build_clips("is3", tmp_path / "data", clip_list=None, annotations=path)
    assert clip_set.clip_ids == sorted(boxes)
    with pytest.raises(FileNotFoundError, match="absent"):
        build_clips("is3", tmp_path / "data", clip_list=None, annotations=tmp_path / "absent")


def test_a_missing_file_of_is3_is_named(tmp_path):
    boxes = make_is3(tmp_path)
    first, second, *_ = boxes
    (tmp_path / "visual_frames" / f"{first}.jpg").unlink()
    (tmp_path / "audio_wav" / f"{second}.wav").unlink()
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{clip_id}\n" for clip_id in boxes))
    with pytest.raises(FileNotFoundError, match="2 of 4 clips") as refusal:
        build_clips("is3", tmp_path, clip_list=str(listed))
    assert f"visual_frames/{first}.jpg" in str(refusal.value)
    assert f"audio_wav/{second}." in str(refusal.value)
    assert len(build_clips("is3", tmp_path, clip_list=None).clips) == 2


@pytest.mark.parametrize("dataset", ["vpo_ss", "vpo_ms"])
def test_vpo_takes_several_boxes_and_several_sounds_of_a_frame(tmp_path, dataset):
    write_frame(tmp_path / "visual_frames" / "street.jpg")
    for index, sound in enumerate(("car", "dog")):
        write_sound(tmp_path / "audio_wav" / f"{sound}.wav", index)
    entries = [
        sounded_entry("street", "car", [[0, 0, 112, 112], [112, 112, 224, 224]]),
        sounded_entry("street", "dog", [56, 0, 112, 224]),
    ]
    (tmp_path / f"{dataset}_bbox.json").write_text(json.dumps(entries))
    clip_set = build_clips(dataset, tmp_path, clip_list=None)
    assert clip_set.clip_ids == ["street+car", "street+dog"]
    batch = batch_of(clip_set, map_size=8)
    assert batch.pair_keys == (None, None)
    assert [len(boxes) for boxes in batch.bounding_boxes] == [2, 1]
    quarters = np.kron(np.eye(2), np.ones((4, 4)))
    np.testing.assert_array_equal(batch.ground_truth_maps[0], quarters)
    assert not torch.equal(batch.waveforms[0], batch.waveforms[1])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("{", "gt_box"),
        ("[3]", "gt_box"),
        ([{"image": "a.jpg", "audio": "a.wav"}], "KeyError"),
        ([sounded_entry("a", "a", [1, 2, 3])], "four numbers"),
        ([sounded_entry("a", "a", [])], "four numbers"),
        ([sounded_entry("a", "a", [0, 0, 1, float("inf")])], "not finite"),
        ([sounded_entry("a", "a", [0, 0, 640, 480])], "224 x 224"),
        ([sounded_entry("a", "a", [0, 0, 9, 9])] * 2, "a comes twice"),
    ],
)
def test_a_json_of_another_form_is_refused(tmp_path, entries, words):
    path = tmp_path / "boxes.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    with pytest.raises(BrokenFileError, match=words):
        read_pixel_json(path)


def test_is3_is_packed_with_its_pairs(tmp_path):
    make_is3(tmp_path / "data")
    packed = tmp_path / "clips.h5"
    assert pack(["is3", str(tmp_path / "data"), str(packed), "--workers", "0"]) == 0
    first = batch_of(build_clips("is3", tmp_path / "data", clip_list=None))
    clip_set = build_clips("is3", packed, clip_list=None)
    second = batch_of(clip_set)
    assert second.pair_keys == first.pair_keys
    np.testing.assert_array_equal(second.ground_truth_maps, first.ground_truth_maps)


# ------------------------------------------------------------------------------------ AVSBench


@pytest.mark.parametrize(
    ("dataset", "folder", "make"),
    [("avsbench_s4", "Single-source/s4_data", make_s4), ("avsbench_ms3", "Multi-sources/ms3_data", make_ms3)],
)
def test_avsbench_gives_masks(tmp_path, dataset, folder, make):
    masks = make(tmp_path / folder)
    for root in (tmp_path, tmp_path / folder):
        clip_set = build_clips(dataset, root, clip_list=None)
        assert clip_set.clip_ids == sorted(masks)
    assert "none of the published cuts" in clip_set.cut
    batch = batch_of(clip_set, map_size=48, frame_size=48)
    assert batch.bounding_boxes == (None,) * len(masks)
    assert not batch.broken
    for clip_id, truth in zip(batch.clip_ids, batch.ground_truth_maps, strict=True):
        np.testing.assert_array_equal(truth, masks[clip_id] > 0)
    # The frames of a video hear the same sound, and are different frames.
    videos = [clip_id.rpartition("_")[0] for clip_id in batch.clip_ids]
    same = videos.count(videos[0])
    assert torch.equal(batch.waveforms[0], batch.waveforms[same - 1])
    assert not torch.equal(batch.waveforms[0], batch.waveforms[same])
    assert not torch.equal(batch.frames[0], batch.frames[1])


def test_empty_masks_are_empty_truths(tmp_path):
    make_ms3(tmp_path / "ms3_data")
    batch = batch_of(build_clips("avsbench_ms3", tmp_path, clip_list=None))
    sums = dict(zip(batch.clip_ids, batch.ground_truth_maps.sum(axis=(1, 2)), strict=True))
    assert [clip_id for clip_id, area in sums.items() if area == 0] == ["one.two_1"]


def test_missing_files_of_avsbench_are_named(tmp_path):
    masks = make_s4(tmp_path)
    (tmp_path / "visual_frames/test/cat/xY9_0_5000/xY9_0_5000_2.png").unlink()
    (tmp_path / "audio_wav/test/dog/-aB_c_1000_6000.wav").unlink()
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{clip_id}\n" for clip_id in masks))
    with pytest.raises(FileNotFoundError, match="4 of 6 clips") as refusal:
        build_clips("avsbench_s4", tmp_path, clip_list=str(listed))
    assert "audio_wav/test/<category>/<video>.wav" in str(refusal.value)
    allowed = build_clips("avsbench_s4", tmp_path, clip_list=str(listed), allow_missing=True)
    assert allowed.clip_ids == ["xY9_0_5000_1", "xY9_0_5000_3"]
    assert allowed.cut.endswith("; 4 of them are missing")


def test_a_broken_mask_is_a_broken_clip(tmp_path):
    make_ms3(tmp_path)
    path = tmp_path / "gt_masks" / "test" / "three" / "three_1.png"
    path.write_bytes(path.read_bytes()[:60])
    batch = batch_of(build_clips("avsbench_ms3", tmp_path, clip_list=None))
    assert [broken.clip_id for broken in batch.broken] == ["three_1"]


def test_masks_of_another_form_are_refused(tmp_path):
    make_ms3(tmp_path)
    with pytest.raises(ValueError, match="--annotations takes the JSON of vgg_ss"):
        build_clips("avsbench_ms3", tmp_path, clip_list=None, annotations=tmp_path / "x.json")
    folder = tmp_path / "gt_masks" / "test"
    (folder / "three" / "three_1.png").rename(folder / "three" / "other_1.png")
    with pytest.raises(ValueError, match=r"other_1\.png.*three_<k>\.png"):
        build_clips("avsbench_ms3", tmp_path, clip_list=None)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="No masks"):
        build_clips("avsbench_ms3", tmp_path, clip_list=None)


def test_two_videos_of_one_name_are_refused(tmp_path):
    make_s4(tmp_path, videos=("cat/same", "dog/same"))
    with pytest.raises(ValueError, match="same name"):
        build_clips("avsbench_s4", tmp_path, clip_list=None)


# ------------------------------------------------------------------- the other programs on them


@pytest.mark.parametrize(("dataset", "words"), [("avsbench_s4", "masks"), ("vgg_ss_extended", "borrow")])
def test_what_hdf5_files_cannot_hold_is_refused(tiny_data, tmp_path, caplog, dataset, words):
    make_s4(tmp_path)
    root = tmp_path if dataset == "avsbench_s4" else tiny_data.root
    assert pack([dataset, str(root), str(tmp_path / "clips.h5")]) == 2
    assert words in caplog.text
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "clips.h5").write_bytes(b"")
    lists = {"clip_list": None, "negatives": None}
    if dataset == "vgg_ss_extended":
        lists = dict(zip(lists, map(str, make_extended(tiny_data, tmp_path)), strict=True))
    with pytest.raises(ValueError, match=words):
        build_clips(dataset, alone, **lists)


def test_verify_knows_what_is_shared_by_design(tmp_path, capsys, caplog):
    make_is3(tmp_path / "is3")
    make_s4(tmp_path / "s4")
    assert verify(["is3", str(tmp_path / "is3"), "--workers", "1"]) == 0
    assert verify(["avsbench_s4", str(tmp_path / "s4"), "--workers", "1"]) == 0
    frames = tmp_path / "is3" / "visual_frames"
    shutil.copy(frames / f"{SCENES[0]}_cat.jpg", frames / f"{SCENES[1]}_bird.jpg")
    mask = next((tmp_path / "s4" / "gt_masks" / "test").rglob("*_2.png"))
    mask.write_bytes(mask.read_bytes()[:60])
    capsys.readouterr()
    assert verify(["is3", str(tmp_path / "is3"), "--workers", "1"]) == 1
    assert "duplicate_frame: 3\n" in capsys.readouterr().out
    assert verify(["avsbench_s4", str(tmp_path / "s4"), "--workers", "1"]) == 1
    assert f"unreadable_mask: 1\n    {mask.stem}: " in capsys.readouterr().out
    assert verify(["vgg_ss_extended", str(tmp_path)]) == 2
    assert "verify vgg_ss" in caplog.text


def test_baselines_from_is3_s_json(tmp_path):
    boxes = make_is3(tmp_path)
    path = tmp_path / "synthetic3240_bbox.json"
    truth = read_ground_truth("is3", path, None)
    assert sorted(boxes) == list(truth.boxes)
    finished = run(
        "test.py", "baselines", "--benchmark", "is3", "--annotations", path,
        "--output", tmp_path / "blind.json",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "IS3, 4 clips: none of the published cuts" in finished.stdout
    assert json.loads((tmp_path / "blind.json").read_text())["cut"] == truth.cut


@pytest.mark.parametrize(
    ("benchmark", "words"),
    [
        ("vgg_ss_extended", "nothing to find"),
        ("flickr_soundnet_extended", "nothing to find"),
        ("avsbench_ms3", "masks, no boxes"),
        ("vpo_ss", "vpo_ss_bbox.json"),
    ],
)
def test_baselines_without_boxes_are_refused(tmp_path, benchmark, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_ground_truth(benchmark, tmp_path / "boxes.json", None)


# ------------------------------------------------------------------------- the published annotations


def published(name):
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"no copy of the published annotations at {path}")
    return path


@pytest.fixture
def is3_json(tmp_path):
    path = tmp_path / "synthetic3240_bbox.json"
    path.write_bytes(gzip.decompress(published("is3_synthetic3240_bbox.json.gz").read_bytes()))
    return path


def test_is3_s_boxes_as_published(is3_json):
    frames = read_pixel_json(is3_json)
    assert all(len(frame.bounding_boxes) == 1 for frame in frames.values())
    assert all(frame.frame_name == frame.sound_name for frame in frames.values())
    scenes = [scene_of(clip_id) for clip_id in frames]
    assert len(set(scenes)) == 3240 and all(scenes.count(scene) == 2 for scene in scenes[:9])
    # Each pixel of the published boxes comes back through the map's rounding.
    entries = json.loads(is3_json.read_text())
    for entry, frame in zip(entries, frames.values(), strict=True):
        assert (224 * frame.bounding_boxes).astype(int).tolist() == [entry["gt_box"]]


def test_is3_s_mean_area_is_the_published_one(is3_json):
    truth = read_ground_truth("is3", is3_json, None)
    areas = [maps.mean(dtype=float) for _, maps in truth.maps(map_size=224, batch_size=1)]
    assert sum(areas) / len(areas) == pytest.approx(0.328, abs=5e-4)
    assert truth.cut == "IS3, 6,480 clips: the complete set"


def test_positives_without_area_keep_their_boxes():
    truth = read_ground_truth("vgg_ss", published("lvs_vggss.json"), None)
    empty = [i for i, maps in truth.maps(map_size=224, batch_size=1) if not maps.any()]
    assert empty == [["M1P1xla8rg0_000000"], ["MKC9LvRivTM_000030"]]
    assert all(len(boxes) > 0 for boxes in truth.boxes.values())


# --------------------------------------------------------------------------------- from the files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("release") / "model.pth"
    torch.save(official_file("ez_vsl_or_fnac", filled(SHAPES["ez_vsl_or_fnac"])), path)
    return path


def arguments(checkpoint, benchmark, root, output, *more):
    return [
        "localisation", "--checkpoint", checkpoint, "--benchmark", benchmark, "--data-root", root,
        "--output", output, "--workers", 0, "--device", "cpu", "--gallery", 1,
        "--save-overlays", "all", *more,
    ]  # fmt: skip


@pytest.fixture
def summary_of(testing_program, checkpoint, tmp_path):
    """The command, in this process; gives its summary."""

    def score(benchmark, root, *more):
        output = tmp_path / "results"
        given = arguments(checkpoint, benchmark, root, output, *more)
        assert testing_program.main([str(word) for word in given]) == 0
        assert "<table" in (output / "report.html").read_text()
        return json.loads((output / "summary.json").read_text())

    return score


def test_is3_is_scored(summary_of, tmp_path):
    make_is3(tmp_path / "data")
    summary = summary_of("is3", tmp_path / "data")
    assert summary["num_clips"] == 4 and summary["complete"]
    assert summary["cut"] == "IS3, 4 clips: none of the published cuts"
    assert "could not be looked for" in summary["leak_check"]["message"]
    assert len(list((tmp_path / "results" / "overlays").glob("*.jpg"))) == 4


def test_avsbench_is_scored(summary_of, tmp_path):
    make_s4(tmp_path / "data")
    summary = summary_of("avsbench_s4", tmp_path / "data")
    assert summary["num_clips"] == 6 and summary["complete"]
    assert summary["cut"].startswith("AVSBench S4, 6 clips: none")


def test_extended_vgg_ss_is_scored(checkpoint, tiny_data, tmp_path):
    positives, negatives = make_extended(tiny_data, tmp_path)
    given = arguments(
        checkpoint, "vgg_ss_extended", tiny_data.root, tmp_path / "out",
        "--clip-list", positives, "--negatives", negatives,
    )  # fmt: skip
    leaking = tmp_path / "leaking.txt"
    leaking.write_text("neg_1\n")
    finished = run("test.py", *given, "--training-list", leaking)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_clips"] == 7
    assert summary["cut"].startswith("Extended VGG-SS, 4 clips: none")
    assert summary["leak_check"]["num_clips"] == 1  # the frame of a negative
    assert_refused(run("test.py", *given[:-4], "--negatives", negatives), "--clip-list")
