"""Readers of the extended benchmarks: positives and the negatives that borrow their files."""

import numpy as np
import pytest
import torch
from benchmark_inputs import batch_of, make_extended, write_frame, write_sound
from conftest import vgg_ss_xml

from datasets.benchmarks import build_clips


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
