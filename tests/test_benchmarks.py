"""Every data set of DATA_SETS, from made-up folders to batches and to results."""

import gzip
import json
import shutil
import subprocess
import sys
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
from conftest import vgg_ss_xml
from peer_inputs import SHAPES, filled, official_file

from datasets.annotations import consensus_map, read_pixel_json
from datasets.benchmarks import (
    BENCHMARKS,
    BOX_BENCHMARKS,
    DATA_SETS,
    PLAIN_BENCHMARKS,
    TRAINING_SETS,
    build_clips,
    read_ground_truth,
    scene_of,
)
from datasets.lists import LISTS
from scripts.pack_hdf5 import main as pack
from scripts.verify_dataset import main as verify
from utils.evaluation.protocols import PROTOCOLS
from utils.files import BrokenFileError

ROOT = Path(__file__).resolve().parents[1]
# Copies of the published annotations that a developer may keep beside the repository.
PUBLISHED = ROOT.parent / "shared" / "metadata"

# -------------------------------------------------------------------------------------- the rows


def test_rows_name_what_there_is():
    assert set(BENCHMARKS) | set(TRAINING_SETS) == set(DATA_SETS)
    assert set(BOX_BENCHMARKS) < set(PLAIN_BENCHMARKS) < set(BENCHMARKS)
    for row in DATA_SETS.values():
        assert row.negatives is None or LISTS[row.negatives].pairs
        assert row.headline is None or row.headline in PROTOCOLS
        assert (row.metrics is None) == (row.headline is None)


def test_docs_name_every_data_set_folder_and_list():
    page = (ROOT / "docs" / "data.md").read_text()
    for name, row in DATA_SETS.items():
        assert f"`{name}`" in page
        for folder in row.folders[:1]:
            names = (folder.frames, folder.masks or folder.sounds[0], row.boxes_json or folder.frames)
            assert all(part.rpartition("/")[2] in page for part in names), name
    for name, row in LISTS.items():
        assert f"`{name}`" in page and (row.pairs or f"{row.clips:,}" in page or str(row.clips) in page), name


def test_a_benchmark_is_one_row(tmp_path):
    """A copy of the programs with a row more: choices and readers follow."""
    for name in ("datasets", "models", "utils"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("opts.py", "test.py"):
        shutil.copy(ROOT / name, tmp_path)
    path = tmp_path / "datasets" / "benchmarks.py"
    row = '"toy": DataSet(title="Toy", roots=(".",), folders=_VGG_SS_FOLDERS, read_xml=read_vgg_ss_xml),'
    text = path.read_text()
    assert text.count('    "stamps": DataSet(') == 1
    path.write_text(text.replace('    "stamps": DataSet(', f'    {row}\n    "stamps": DataSet('))
    (tmp_path / "anno").mkdir()
    (tmp_path / "anno" / "a.xml").write_text(vgg_ss_xml("a", (0, 0, 0.5, 1)))

    def run(*words):
        given = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
        return subprocess.run([sys.executable, *words], check=False, **given)

    scored = run("test.py", "baselines", "--benchmark", "toy", "--annotations", "anno")
    assert scored.returncode == 0, scored.stderr
    assert "toy, 1 clips: no cut of this set is published" in scored.stdout
    described = run("-c", "import opts; opts.parse_train_options(['ssl_tie', '--help'])")
    assert "--validation-benchmark {vgg_ss,flickr_soundnet,toy," in described.stdout


# ------------------------------------------------------------------------ folders with XML or nothing

FLICKR_BOX = "<bbox><n>x</n><v>64</v><v>0</v><v>256</v><v>128</v></bbox>"
FLICKR_XML = f"<a><p1>{FLICKR_BOX}</p1><p2>{FLICKR_BOX}</p2></a>"
PLACES = [
    (name, folders, sounds)
    for name in ("vggsound", "flickr", "vgg_ss", "flickr_soundnet", "stamps")
    for folders in DATA_SETS[name].folders
    for sounds in folders.sounds
]


@pytest.mark.parametrize(("dataset", "folders", "sounds"), PLACES, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("below", [False, True])
def test_layouts(tmp_path, dataset, folders, sounds, below):
    row = DATA_SETS[dataset]
    root = tmp_path / row.roots[-1 if below and "5k" not in sounds else 0]
    frame = f"10/{folders.frame_name}" if folders.frame_name else "10.JPG"
    write_frame(root / folders.frames / frame)
    write_sound(root / sounds / "10.flac")
    (root / sounds / "._10.flac").write_bytes(b"left by a Mac")
    if folders.boxes:
        (root / folders.boxes).mkdir(parents=True)
        xml = FLICKR_XML if row.annotators_needed == 2 else vgg_ss_xml("10", (0.25, 0, 1, 0.5))
        (root / folders.boxes / "10.xml").write_text(xml)
    clip_set = build_clips(dataset, tmp_path, clip_list=None)
    assert (clip_set.dataset, clip_set.clip_ids) == (dataset, ["10"])
    assert (clip_set.list_name, clip_set.missing) == ("every clip found", ())
    clip = clip_set.clips[0]
    assert clip.frame_source == root / folders.frames / frame
    assert clip.audio_source == root / sounds / "10.flac"
    if folders.boxes:
        expected = [[0.25, 0, 1, 0.5]] * row.annotators_needed
        np.testing.assert_allclose(clip.bounding_boxes, expected)
        assert clip.annotators_needed == row.annotators_needed
    else:
        assert clip.bounding_boxes is None


def test_vgg_ss_json_instead_of_xml(tiny_data):
    shutil.rmtree(tiny_data.root / "VGGSound_test" / "anno")
    with pytest.raises(FileNotFoundError, match="--annotations"):
        build_clips("vgg_ss", tiny_data.root, clip_list=None)
    path = tiny_data.root / "vggss.json"
    entries = [{"file": i, "class": "x", "bbox": [tiny_data.boxes[i]]} for i in tiny_data.test_ids]
    path.write_text(json.dumps(entries))
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=None, annotations=path)
    np.testing.assert_allclose(clips.clips[0].bounding_boxes, [tiny_data.boxes["test_0"]])
    with pytest.raises(FileNotFoundError, match="get_splits"):
        build_clips("vgg_ss", tiny_data.root, clip_list=None, annotations=path.with_name("no.json"))
    with pytest.raises(ValueError, match="--annotations takes the JSON of vgg_ss"):
        build_clips("vggsound", tiny_data.root, clip_list=None, annotations=path)


def test_missing_files_are_counted_and_named(tiny_data, tmp_path, caplog):
    test = tiny_data.root / "VGGSound_test"
    path = tmp_path / "list.txt"
    path.write_text("never_there\n" + "".join(f"{i}.jpg\n" for i in reversed(tiny_data.test_ids)))
    (test / "frame" / "test_1.jpg").unlink()
    (test / "audio" / "test_2.wav").unlink()
    (test / "anno" / "test_3.xml").unlink()
    (test / "frame" / "test_4.jpg").write_bytes(b"")
    (test / "anno" / "test_5.xml").write_text("<a><bbox><b>")
    with pytest.raises(FileNotFoundError, match="6 of 7 clips") as refusal:
        build_clips("vgg_ss", tiny_data.root, clip_list=str(path))
    words = str(refusal.value)
    for part in ("never_there", "XML", "test_4.jpg is empty", "no annotation", "no audio", "--allow-missing"):
        assert part in words
    assert "test_1" not in words  # only the first five
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=str(path), allow_missing=True)
    assert clips.clip_ids == ["test_0"]
    assert (len(clips.missing), clips.num_listed, clips.list_name) == (6, 7, "list")
    assert "6 of 7" in caplog.text
    with pytest.raises(FileNotFoundError, match="2 of 3 clips"):  # without a list, complete clips alone count
        build_clips("vgg_ss", tiny_data.root, clip_list=None)


def test_annotation_without_boxes_is_an_empty_truth(tiny_data):
    path = tiny_data.root / "VGGSound_test" / "anno" / "test_2.xml"
    path.write_text("<annotation></annotation>")
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=None)
    assert clips.clips[2].bounding_boxes.shape == (0, 4)


@pytest.mark.parametrize(("dataset", "error"), [("no_such_set", ValueError), ("vgg_ss", FileNotFoundError)])
def test_unknown_set_and_missing_folder(tmp_path, dataset, error):
    with pytest.raises(error, match=r"vgg_ss|VGG-SS"):
        build_clips(dataset, tmp_path / "nowhere", clip_list=None)


# ------------------------------------------------------------------------------------- extended sets


def test_negatives_borrow_frames_and_sounds(tiny_data, tmp_path):
    positives, negatives = make_extended(tiny_data, tmp_path)
    clip_set = build_clips(
        "vgg_ss_extended", tiny_data.root, clip_list=str(positives), negatives=str(negatives)
    )
    added = ["neg_0+neg_1", "neg_1+test_0", "neg_0+neg_0"]
    assert clip_set.clip_ids == [*tiny_data.test_ids[:4], *added]
    assert clip_set.num_listed == 7
    assert clip_set.list_name == "positives and negatives"
    assert set(clip_set.source_ids) == {*tiny_data.test_ids[:4], "neg_0", "neg_1"}
    assert clip_set.cut == (
        "Extended VGG-SS, 4 clips: none of the published cuts; 3 negatives: none of the published cuts"
    )
    batch = batch_of(clip_set, map_size=32)
    assert [len(boxes) for boxes in batch.bounding_boxes] == [1] * 4 + [0] * 3
    assert batch.bounding_boxes[-1].shape == (0, 4)
    assert batch.ground_truth_maps[:4].any(axis=(1, 2)).all()
    assert not batch.ground_truth_maps[4:].any()
    assert torch.equal(batch.waveforms[5], batch.waveforms[0])
    assert torch.equal(batch.frames[4], batch.frames[6])
    assert not torch.equal(batch.waveforms[4], batch.waveforms[6])

    other = build_clips("vgg_ss", tiny_data.root, clip_list=str(positives))
    assert other.list_sha256 != clip_set.list_sha256
    assert other.clip_ids == list(other.source_ids) == clip_set.clip_ids[:4]


def test_a_positive_keeps_its_degenerate_box_and_needs_one(tiny_data, tmp_path):
    positives, negatives = make_extended(tiny_data, tmp_path)
    path = tiny_data.root / "VGGSound_test" / "anno" / "test_1.xml"
    path.write_text(vgg_ss_xml("test_1", (0.25, 1, 0.75, 1)))

    def build():
        return build_clips(
            "vgg_ss_extended", tiny_data.root, clip_list=str(positives), negatives=str(negatives)
        )

    batch = batch_of(build())
    assert len(batch.bounding_boxes[1]) == 1 and not batch.ground_truth_maps[1].any()
    path.write_text("<annotation></annotation>")
    with pytest.raises(FileNotFoundError, match="test_1: its annotation holds no box"):
        build()
    clip_set = build_clips("vgg_ss", tiny_data.root, clip_list=str(positives))
    assert clip_set.clips[1].bounding_boxes.shape == (0, 4)


def test_missing_negatives_are_named(tiny_data, tmp_path):
    positives, negatives = make_extended(tiny_data, tmp_path)
    (tiny_data.root / "VGGSound_test" / "frame" / "neg_1.jpg").unlink()
    given = {"clip_list": str(positives), "negatives": str(negatives)}
    with pytest.raises(FileNotFoundError, match=r"1 of 7.*neg_1\+test_0: no frame .*neg_1\.jpg"):
        build_clips("vgg_ss_extended", tiny_data.root, **given)
    left = build_clips("vgg_ss_extended", tiny_data.root, **given, allow_missing=True)
    assert left.clip_ids[4:] == ["neg_0+neg_1", "neg_0+neg_0"]
    assert left.cut.endswith("; 1 of them are missing")
    (tiny_data.root / "VGGSound_test" / "audio" / "neg_1.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 7.*neg_0\+neg_1: no audio .*neg_1\."):
        build_clips("vgg_ss_extended", tiny_data.root, **given)


def test_the_lists_of_extended_sets_must_be_there(tiny_data, tmp_path, monkeypatch):
    positives, negatives = make_extended(tiny_data, tmp_path)
    monkeypatch.setenv("VSSL_SPLITS", str(tmp_path / "lists"))
    for dataset, name in (
        ("vgg_ss_extended", "slavc_vgg_ss_negatives"),
        ("flickr_soundnet_extended", "slavc_flickr_negatives"),
    ):
        with pytest.raises(ValueError, match=r"positives.*--clip-list"):
            build_clips(dataset, tiny_data.root, clip_list=None, negatives=str(negatives))
        with pytest.raises(FileNotFoundError, match=rf"get_splits\.sh {name}"):
            build_clips(dataset, tiny_data.root, clip_list=str(positives))
    with pytest.raises(ValueError, match="--negatives goes with vgg_ss_extended"):
        build_clips("vgg_ss", tiny_data.root, clip_list=None, negatives=str(negatives))


def test_extended_flickr_takes_votes_and_knows_negatives_that_are_annotated(tmp_path):
    box = "<bbox><n>1</n><v>0</v><v>0</v><v>128</v><v>256</v></bbox>"
    for number in (10, 20):
        write_frame(tmp_path / "frame" / f"{number}.jpg", number)
        write_sound(tmp_path / "audio" / f"{number}.wav", number)
        (tmp_path / "anno").mkdir(exist_ok=True)
        (tmp_path / "anno" / f"{number}.xml").write_text(f"<a><b>{box}</b></a>")
    (tmp_path / "positives.txt").write_text("10\n")
    (tmp_path / "negatives.csv").write_text("video,audio,label\n20,10,non-sounding\n")
    clip_set = build_clips(
        "flickr_soundnet_extended",
        tmp_path,
        clip_list=str(tmp_path / "positives.txt"),
        negatives=str(tmp_path / "negatives.csv"),
    )
    assert clip_set.clip_ids == ["10", "20+10"]
    batch = batch_of(clip_set, map_size=32)
    assert [len(boxes) for boxes in batch.bounding_boxes] == [1, 0]
    assert np.unique(batch.ground_truth_maps[0]).tolist() == [0, 0.5]
    assert not batch.ground_truth_maps[1].any()


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


def test_baselines_from_is3_s_json(testing_program, tmp_path, capsys):
    boxes = make_is3(tmp_path)
    path, output = tmp_path / "synthetic3240_bbox.json", tmp_path / "blind.json"
    assert sorted(boxes) == read_ground_truth("is3", path, None).clip_ids
    given = ["baselines", "--benchmark", "is3", "--annotations", str(path), "--output", str(output)]
    assert testing_program.main(given) == 0
    assert "IS3, 4 clips: none of the published cuts" in capsys.readouterr().out
    assert json.loads(output.read_text())["cut"] == "IS3, 4 clips: none of the published cuts"


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
    areas = [consensus_map(clip.bounding_boxes, annotators_needed=1).mean() for clip in truth.clips]
    assert sum(areas) / len(areas) == pytest.approx(0.328, abs=5e-4)
    assert truth.cut == "IS3, 6,480 clips: the complete set"


def test_positives_without_area_keep_their_boxes():
    truth = read_ground_truth("vgg_ss", published("lvs_vggss.json"), None)
    empty = [c.clip_id for c in truth.clips if not consensus_map(c.bounding_boxes, annotators_needed=1).any()]
    assert empty == ["M1P1xla8rg0_000000", "MKC9LvRivTM_000030"]
    assert all(len(clip.bounding_boxes) > 0 for clip in truth.clips)


# --------------------------------------------------------------------------------- from the files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("release") / "model.pth"
    torch.save(official_file("ez_vsl_or_fnac", filled(SHAPES["ez_vsl_or_fnac"])), path)
    return path


@pytest.mark.parametrize(
    ("benchmark", "count", "cut", "leak"),
    [
        ("is3", 4, "IS3, 4 clips: none of the published cuts", "could not be looked for"),
        ("avsbench_s4", 6, "AVSBench S4, 6 clips: none", "could not be looked for"),
        ("vgg_ss_extended", 7, "Extended VGG-SS, 4 clips: none", "LEAK: 1 of 6"),
    ],
)
def test_benchmarks_are_scored(testing_program, checkpoint, tiny_data, tmp_path, benchmark, count, cut, leak):
    root, more = tmp_path / "made", []
    if benchmark == "vgg_ss_extended":
        positives, negatives = make_extended(tiny_data, tmp_path)
        (tmp_path / "leaking.txt").write_text("neg_1\n")  # the frame of a negative
        root = tiny_data.root
        more = [
            "--clip-list",
            positives,
            "--negatives",
            negatives,
            "--training-list",
            tmp_path / "leaking.txt",
        ]
    else:
        {"is3": make_is3, "avsbench_s4": make_s4}[benchmark](root)
    output = tmp_path / "results"
    given = [
        "localisation", "--checkpoint", checkpoint, "--benchmark", benchmark, "--data-root", root,
        "--output", output, "--workers", 0, "--device", "cpu", "--gallery", 1, "--save-overlays", 1, *more,
    ]  # fmt: skip
    assert testing_program.main([str(word) for word in given]) == 0
    assert "<table" in (output / "report.html").read_text()
    summary = json.loads((output / "summary.json").read_text())
    assert summary["num_clips"] == count and summary["complete"]
    assert summary["cut"].startswith(cut)
    assert leak in summary["leak_check"]["message"]
    assert len(list((output / "overlays").glob("*.jpg"))) == 1
