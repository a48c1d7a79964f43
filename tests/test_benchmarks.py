"""Every data set of DATA_SETS, from made-up folders to batches and to results."""

import gzip
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from benchmark_inputs import (
    SCENES,
    batch_of,
    make_extended,
    make_is3,
    make_is3_download,
    make_ms3,
    make_s4,
    make_vpo_download,
    sounded_entry,
    write_frame,
    write_sound,
)
from command_line import ROOT
from conftest import vgg_ss_xml
from PIL import Image

from datasets.annotations import consensus_map, read_pixel_json
from datasets.benchmarks import DATA_SETS, build_clips, find_test_set, read_ground_truth, scene_of
from datasets.lists import LISTS
from scripts.pack_hdf5 import main as pack
from utils.evaluation.protocols import PROTOCOLS
from utils.files import BrokenFileError

# Copies of the published annotations that a developer may keep beside the repository.
PUBLISHED = ROOT.parent / "shared" / "metadata"

# -------------------------------------------------------------------------------------- the rows


def test_rows_name_what_there_is():
    for row in DATA_SETS.values():
        assert row.negatives is None or LISTS[row.negatives].pairs
        assert row.headline is None or row.headline in PROTOCOLS
        assert (row.metrics is None) == (row.headline is None)


def test_docs_name_every_data_set_folder_and_list():
    page = (ROOT / "docs" / "data.md").read_text()
    for name, row in DATA_SETS.items():
        assert f"`{name}`" in page
        for pattern in (row.frames[0], row.sounds[0], *list(row.annotations)[:1]):
            assert all(part in page for part in re.split(r"/?(?:<id>|\*)[^/]*/?", pattern)), name
    for name, row in LISTS.items():
        assert f"`{name}`" in page and (row.pairs or f"{row.clips:,}" in page or str(row.clips) in page), name


# ------------------------------------------------------------------------ folders with XML or nothing

FLICKR_BOX = "<bbox><n>x</n><v>64</v><v>0</v><v>256</v><v>128</v></bbox>"
FLICKR_XML = f"<a><p1>{FLICKR_BOX}</p1><p2>{FLICKR_BOX}</p2></a>"
PLACES = [
    (name, frame, sound)
    for name in ("vggsound", "flickr", "vgg_ss", "flickr_soundnet", "stamps")
    for frame in DATA_SETS[name].frames
    for sound in DATA_SETS[name].sounds
]


@pytest.mark.parametrize(("dataset", "frame", "sound"), PLACES)
@pytest.mark.parametrize("below", [False, True])
def test_layouts(tmp_path, dataset, frame, sound, below):
    row = DATA_SETS[dataset]
    frame, sound = (name.replace("*", "0") for name in (frame, sound))
    root = tmp_path / row.roots[-1 if below and "5k" not in sound else 0]
    frame = root / frame.replace("<id>.jpg", "10.JPG").replace("<id>", "10")
    sound = root / sound.replace("<id>.", "10.").replace(".wav", ".flac")
    write_frame(frame)
    write_sound(sound)
    for folder in (sound.parent, (tmp_path / frame.relative_to(tmp_path)).parent, *frame.parents[:2]):
        for name in (f"._{sound.name}", "._10.jpg", "._10", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"left by a Mac or by Windows")
        (folder / "__MACOSX").mkdir(exist_ok=True)
    for pattern in list(row.annotations)[-1:]:
        boxes = root / "anno/10.xml" if pattern.endswith(".json") else root / pattern.replace("<id>", "10")
        boxes.parent.mkdir(parents=True)
        boxes.write_text(FLICKR_XML if row.annotators_needed == 2 else vgg_ss_xml("10", (0.25, 0, 1, 0.5)))
    clip_set = build_clips(dataset, tmp_path, clip_list=None, keep_incomplete=True)
    assert (clip_set.dataset, clip_set.clip_ids) == (dataset, ["10"])
    assert (clip_set.list_name, clip_set.missing) == ("every clip found", ())
    clip = clip_set.clips[0]
    assert (clip.frame_source, clip.audio_source) == (frame, sound)
    if row.annotations:
        np.testing.assert_allclose(clip.bounding_boxes, [[0.25, 0, 1, 0.5]] * row.annotators_needed)
        assert clip.annotators_needed == row.annotators_needed
    else:
        assert clip.bounding_boxes is None
    shutil.copy(sound, sound.with_suffix(".wav"))  # comes first in AUDIO_SUFFIXES
    assert build_clips(dataset, tmp_path, clip_list=None).clips[0].audio_source == sound.with_suffix(".wav")
    shutil.copy(sound, sound.with_suffix(".WAV"))
    with pytest.raises(ValueError, match="have the same name"):
        build_clips(dataset, tmp_path, clip_list=None)


def test_a_training_set_s_benchmark_is_looked_for_beside_it(tiny_data, tmp_path):
    assert find_test_set("vggsound", tiny_data.root) == ("vgg_ss", tiny_data.root)
    (tiny_data.root / "stamps.json").touch()
    assert find_test_set("vggsound", tiny_data.root) == ("stamps", tiny_data.root)
    assert find_test_set("flickr", tmp_path) == ("flickr_soundnet", None)


def test_vgg_ss_json_instead_of_xml(tiny_data):
    shutil.rmtree(tiny_data.root / "VGGSound_test" / "anno")
    path = tiny_data.root / "vggss.json"
    entries = [{"file": i, "class": "x", "bbox": [tiny_data.boxes[i]]} for i in tiny_data.test_ids]
    path.write_text(json.dumps(entries))
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=None, annotations=path)
    np.testing.assert_allclose(clips.clips[0].bounding_boxes, [tiny_data.boxes["test_0"]])
    with pytest.raises(ValueError, match=r"--annotations .* does not fit vggsound, which has none"):
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
    for part in ("never_there", "XML", "it is empty", "no annotation", "no audio", "--allow-missing"):
        assert part in words
    assert "test_1" not in words  # only the first five
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=str(path), allow_missing=True)
    assert clips.clip_ids == ["test_0"]
    assert (len(clips.missing), clips.num_listed, clips.list_name) == (6, 7, "list")
    assert "6 of 7" in caplog.text
    with pytest.raises(FileNotFoundError, match="2 of 3 clips"):  # without a list, complete clips alone count
        build_clips("vgg_ss", tiny_data.root, clip_list=None)


def test_a_folder_without_the_data_set_is_named_with_what_it_holds(tmp_path):
    (tmp_path / "frames").mkdir()
    with pytest.raises(FileNotFoundError, match=r"VGG-SS: .*it holds: frames.*docs/data\.md"):
        build_clips("vgg_ss", tmp_path, clip_list=None)


# ------------------------------------------------------------------------------------- extended sets


@pytest.fixture
def extended(tiny_data, tmp_path):
    """The folder of tiny VGG-SS clips and negatives, and what builds the extended set of them."""
    positives, negatives = map(str, make_extended(tiny_data, tmp_path))
    build = partial(build_clips, "vgg_ss_extended", tiny_data.root, clip_list=positives, negatives=negatives)
    return tiny_data.root / "VGGSound_test", build


def test_negatives_borrow_frames_and_sounds_but_no_boxes(extended, tiny_data):
    folder, build = extended
    (folder / "anno" / "neg_0.xml").write_text(vgg_ss_xml("neg_0", (0, 0, 1, 1)))
    clip_set = build()
    assert clip_set.clip_ids == [*tiny_data.test_ids[:4], "neg_0+neg_1", "neg_1+test_0", "neg_0+neg_0"]
    assert (clip_set.num_listed, clip_set.list_name) == (7, "positives and negatives")
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

    other = build_clips("vgg_ss", tiny_data.root, clip_list=build.keywords["clip_list"])
    assert other.list_sha256 != clip_set.list_sha256
    assert other.clip_ids == list(other.source_ids) == clip_set.clip_ids[:4]


def test_a_positive_keeps_its_degenerate_box_and_needs_one(extended):
    folder, build = extended
    path = folder / "anno" / "test_1.xml"
    path.write_text(vgg_ss_xml("test_1", (0.25, 1, 0.75, 1)))
    batch = batch_of(build())
    assert len(batch.bounding_boxes[1]) == 1 and not batch.ground_truth_maps[1].any()
    entries = [{"file": i, "bbox": [[0, 0, 1, 1]]} for i in ("test_0", "test_2", "test_3")]
    boxes = folder / "boxes.json"
    boxes.write_text(json.dumps([*entries, {"file": "test_1", "bbox": []}]))
    with pytest.raises(FileNotFoundError, match="test_1: its annotation holds no box"):
        build(annotations=boxes)
    lists = {"clip_list": build.keywords["clip_list"]}
    clip_set = build_clips("vgg_ss", folder, **lists, annotations=boxes)
    assert clip_set.clips[1].bounding_boxes.shape == (0, 4)  # an empty truth elsewhere


def test_missing_negatives_are_named(extended):
    folder, build = extended
    (folder / "frame" / "neg_1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 7.*neg_1\+test_0: no frame .*neg_1\.jpg"):
        build()
    left = build(allow_missing=True)
    assert left.clip_ids[4:] == ["neg_0+neg_1", "neg_0+neg_0"]
    assert left.cut.endswith("; 1 of them are missing")
    (folder / "audio" / "neg_1.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 7.*neg_0\+neg_1: no audio .*neg_1\."):
        build()


def test_the_lists_of_extended_sets_must_be_there(extended, tmp_path, monkeypatch):
    folder, build = extended
    monkeypatch.setenv("VSSL_SPLITS", str(tmp_path / "lists"))
    with pytest.raises(ValueError, match=r"positives.*--clip-list"):
        build(clip_list=None)
    with pytest.raises(FileNotFoundError, match=r"get_splits\.sh slavc_vgg_ss_negatives"):
        build(negatives=None)
    with pytest.raises(ValueError, match="--negatives goes with vgg_ss_extended"):
        build_clips("vgg_ss", folder, **build.keywords)


# --------------------------------------------------------------------------------- IS3 and VPO


def test_is3_gives_boxes_and_pairs_packed_too(tmp_path):
    boxes, packed = make_is3(tmp_path / "IS3"), tmp_path / "clips.h5"
    assert pack(["is3", str(tmp_path), str(packed), "--workers", "0"]) == 0
    for root in (tmp_path / "IS3", packed):
        clip_set = build_clips("is3", root, clip_list=None)
        assert clip_set.clip_ids == sorted(boxes)
        assert clip_set.source_ids is None  # their names are not those of training lists
        batch = batch_of(clip_set)
        assert batch.pair_keys == tuple(sorted([*SCENES, *SCENES]))
        for clip_id, truth in zip(batch.clip_ids, batch.ground_truth_maps, strict=True):
            x_min, y_min, x_max, y_max = map(int, boxes[clip_id])
            expected = np.zeros((224, 224))
            expected[y_min:y_max, x_min:x_max] = 1
            np.testing.assert_array_equal(truth, expected)
        np.testing.assert_allclose(batch.bounding_boxes[0], np.array([boxes[batch.clip_ids[0]]]) / 224)
        assert batch.part(slice(1, 3)).pair_keys == batch.pair_keys[1:3]


def test_is3_as_it_is_downloaded(tmp_path):
    boxes = make_is3_download(tmp_path / "IS3")
    batch = batch_of(build_clips("is3", tmp_path, clip_list=None))
    assert batch.clip_ids == tuple(sorted(boxes))
    masks = build_clips("is3_masks", tmp_path, clip_list=None)
    outlined = batch_of(masks, frame_size=224)
    assert outlined.clip_ids == batch.clip_ids and outlined.pair_keys == batch.pair_keys
    # Each clip has a sound of its own, and JPEG's blur around edges is no object.
    assert len({clip.sound for clip in masks.clips}) == 4
    assert np.abs(outlined.ground_truth_maps - batch.ground_truth_maps).mean() < 0.01
    assert (np.asarray(Image.open(masks.clips[0].mask_source)) % 255 != 0).any()


@pytest.mark.parametrize("dataset", ["vpo_ss", "vpo_ms"])
def test_vpo_as_it_is_downloaded(tmp_path, dataset):
    sounds = make_vpo_download(tmp_path, dataset)
    clip_set = build_clips(dataset, tmp_path, clip_list=None, keep_incomplete=True)
    assert {clip.clip_id: clip.audio_source.stem for clip in clip_set.clips} == sounds
    assert [clip.frame_source.stem for clip in clip_set.clips] == [i.split("_")[0] for i in sounds]
    (tmp_path / "audio" / "abcdefghijk_000001.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 clips.*no audio of 000000000540_1"):
        build_clips(dataset, tmp_path, clip_list=None, keep_incomplete=True)
    table = next(tmp_path.glob("*.csv"))
    table.write_text("img_Id,ann_Ids\n1,2\n")
    with pytest.raises(BrokenFileError, match=r"vpo_.s_data_stereo\.csv cannot be read: expected columns"):
        build_clips(dataset, tmp_path, clip_list=None)


@pytest.mark.parametrize("dataset", ["vpo_ss", "vpo_ms"])
def test_vpo_takes_several_boxes_of_a_sound_and_knows_whose_picture_it_is(tmp_path, dataset):
    boxes = {f"000000000540_{i}": [[0, 0, 112, 112], [112, 112, 224, 224]] for i in (1, 2)}
    boxes["000000029299_7"] = [0, 0, 224, 112]
    for number, clip_id in enumerate(boxes):
        write_frame(tmp_path / "visual_frames" / f"{clip_id}.jpg")
        write_sound(tmp_path / "audio_wav" / f"{clip_id}.wav", number)
    entries = [sounded_entry(*entry) for entry in boxes.items()]
    (tmp_path / f"{dataset}_bbox.json").write_text(json.dumps(entries))
    batch = batch_of(build_clips(dataset, tmp_path, clip_list=None), map_size=8)
    assert batch.clip_ids == tuple(boxes)
    assert batch.pair_keys == ("000000000540", "000000000540", "000000029299")
    quarters = np.kron(np.eye(2), np.ones((4, 4)))
    np.testing.assert_array_equal(batch.ground_truth_maps[0], quarters)


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
        np.testing.assert_array_equal(truth, masks[clip_id] > 0)  # MS3's first one is empty
    # The frames of a video hear the same sound, and are different frames.
    videos = [clip_id.rpartition("_")[0] for clip_id in batch.clip_ids]
    same = videos.count(videos[0])
    assert torch.equal(batch.waveforms[0], batch.waveforms[same - 1])
    assert not torch.equal(batch.waveforms[0], batch.waveforms[same])
    assert not torch.equal(batch.frames[0], batch.frames[1])


def test_missing_files_of_avsbench_are_named(tmp_path):
    masks = make_s4(tmp_path)
    (tmp_path / "visual_frames/test/cat/xY9_0_5000/xY9_0_5000_2.png").unlink()
    (tmp_path / "audio_wav/test/dog/-aB_c_1000_6000.wav").unlink()
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{clip_id}\n" for clip_id in masks))
    with pytest.raises(FileNotFoundError, match="4 of 6 clips") as refusal:
        build_clips("avsbench_s4", tmp_path, clip_list=str(listed))
    assert "audio_wav/test/*/-aB_c_1000_6000.wav" in str(refusal.value)
    allowed = build_clips("avsbench_s4", tmp_path, clip_list=str(listed), allow_missing=True)
    assert allowed.clip_ids == ["xY9_0_5000_1", "xY9_0_5000_3"]
    assert allowed.cut.endswith("; 4 of them are missing")


def test_without_masks_it_is_refused(tmp_path):
    make_ms3(tmp_path)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match=r"--annotations .* does not fit avsbench_ms3"):
        build_clips("avsbench_ms3", tmp_path, clip_list=None, annotations=tmp_path / "x.json")
    shutil.rmtree(tmp_path / "gt_masks" / "test")
    with pytest.raises(FileNotFoundError, match=r"No annotations at .*gt_masks/test"):
        build_clips("avsbench_ms3", tmp_path, clip_list=None)


def test_two_videos_of_one_name_are_refused(tmp_path):
    make_s4(tmp_path, videos=("cat/same", "dog/same"))
    with pytest.raises(ValueError, match="same name"):
        build_clips("avsbench_s4", tmp_path, clip_list=None)


# ------------------------------------------------------------------- the other programs on them


@pytest.mark.parametrize(("dataset", "words"), [("avsbench_s4", "masks"), ("vgg_ss_extended", "borrow")])
def test_what_hdf5_files_cannot_hold_is_refused(tiny_data, tmp_path, caplog, dataset, words):
    assert pack([dataset, str(tmp_path), str(tmp_path / "clips.h5")]) == 2
    assert words in caplog.text
    (tmp_path / "clips.h5").write_bytes(b"")
    lists = dict(zip(("clip_list", "negatives"), map(str, make_extended(tiny_data, tmp_path)), strict=True))
    if dataset == "avsbench_s4":
        lists = {"clip_list": None}
    with pytest.raises(ValueError, match=words):
        build_clips(dataset, tmp_path, **lists)


def own_clips(folder, *lines, header="clip,x0,y0,x1,y1"):
    """Pictures and sounds of a dog and a cat, and a CSV of boxes."""
    for index, name in enumerate(("dog", "cat")):
        write_frame(folder / f"{name}.{('jpg', 'png')[index]}", index)
        write_sound(folder / f"{name}.{('wav', 'flac')[index]}", index)
    (folder / "mine.csv").write_text("\n".join([header, *lines, ""]))
    return ["--benchmark", "folder", "--annotations", str(folder / "mine.csv")]


def test_own_clips_have_boxes_in_a_csv(tmp_path, testing_program, capsys):
    given = own_clips(tmp_path, "dog.jpg,.1,.2,.3,.4", "cat,0,0,.5,1", "dog, .5,.5,1,1")
    clips = build_clips("folder", tmp_path, clip_list=None, annotations=tmp_path / "mine.csv").clips
    assert [clip.clip_id for clip in clips] == ["cat", "dog"]
    assert (clips[0].frame_source, clips[0].audio_source) == (tmp_path / "cat.png", tmp_path / "cat.flac")
    np.testing.assert_array_equal(clips[1].bounding_boxes, [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1, 1]])
    assert testing_program.main(["baselines", *given]) == 0
    assert "folder, 2 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "header", "words"),
    [
        (["dog,0,0,1,1"], "clip,xmin,y0,x1", r"mine.csv .*the first line has no x0, y1"),
        (["dog,0,0,1,1", "cat,0,0,50,60"], "clip,x0,y0,x1,y1", r"line 3 has cat and 0, 0, 50, 60; expected"),
        (["dog,.5,0,.5,1"], "clip,x0,y0,x1,y1", r"line 2 has dog and .5, 0, .5, 1; .*x0 < x1"),
        (["dog,0,0,1"], "clip,x0,y0,x1,y1", r"line 2 has dog and 0, 0, 1, ; expected"),
        ([",0,0,1,1"], "clip,x0,y0,x1,y1", r"line 2 has no clip"),
        ([], "clip,x0,y0,x1,y1", r"no line after the first holds a box"),
        (["dog,0,0,1,1"], "clip,x0,y0,x1,y1", r"1 of 2 .*no annotation of cat, expected .*mine.csv"),
        (["dog,0,0,1,1", "cat,0,0,1,1", "owl,0,0,1,1"], "clip,x0,y0,x1,y1", r"no frame of owl, expected"),
    ],
)
def test_slips_in_one_s_own_boxes_are_named(tmp_path, lines, header, words):
    own_clips(tmp_path, *lines, header=header)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        build_clips("folder", tmp_path, clip_list=None, annotations=tmp_path / "mine.csv")


# ------------------------------------------------------------------------- the published annotations


def published(name):
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"no copy of the published annotations at {path}")
    return path


def test_is3_s_boxes_as_published(tmp_path):
    path = tmp_path / "synthetic3240_bbox.json"
    path.write_bytes(gzip.decompress(published("is3_synthetic3240_bbox.json.gz").read_bytes()))
    boxes = read_pixel_json(path)
    scenes = [scene_of(clip_id) for clip_id in boxes]
    assert len(set(scenes)) == 3240 and all(scenes.count(scene) == 2 for scene in scenes[:9])
    # Each pixel of the published boxes comes back through the map's rounding.
    for entry, (box,) in zip(json.loads(path.read_text()), boxes.values(), strict=True):
        assert (224 * box).astype(int).tolist() == entry["gt_box"]
    truth = read_ground_truth("is3", path, None)
    areas = [consensus_map(clip.bounding_boxes, annotators_needed=1).mean() for clip in truth.clips]
    assert sum(areas) / len(areas) == pytest.approx(0.328, abs=5e-4)  # as published
    assert truth.cut == "IS3, 6,480 clips: the complete set"


def test_positives_without_area_keep_their_boxes():
    truth = read_ground_truth("vgg_ss", published("lvs_vggss.json"), None)
    empty = [c.clip_id for c in truth.clips if not consensus_map(c.bounding_boxes, annotators_needed=1).any()]
    assert empty == ["M1P1xla8rg0_000000", "MKC9LvRivTM_000030"]
    assert all(len(clip.bounding_boxes) > 0 for clip in truth.clips)
