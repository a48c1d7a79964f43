"""Readers of every layout; what is missing or broken is counted and named."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from conftest import RATE, draw_frame, tone, vgg_ss_xml

from datasets.benchmarks import build_clips


def test_vggsound_training_layout(tiny_data):
    for root in (tiny_data.root, tiny_data.root / "VGGSound"):
        clips = build_clips("vggsound", root, clip_list=None)
        assert clips.clip_ids == sorted(tiny_data.train_ids)
        assert clips.list_name == "every clip found"
        assert clips.missing == ()
        assert all(clip.bounding_boxes is None for clip in clips.clips)
        assert clips.clips[0].frame_source.name == "125.jpg"


@pytest.mark.parametrize("dataset", ["vgg_ss", "stamps"])
def test_vgg_ss_layout_with_xml(tiny_data, dataset):
    clips = build_clips(dataset, tiny_data.root, clip_list=None)
    assert clips.dataset == dataset
    assert clips.clip_ids == sorted(tiny_data.test_ids)
    for clip in clips.clips:
        np.testing.assert_allclose(clip.bounding_boxes, [tiny_data.boxes[clip.clip_id]])
        assert clip.annotators_needed == 1


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


@pytest.mark.parametrize("audio_folder", ["audio", "wav", "mp3"])
def test_flickr_test_layout(tmp_path, audio_folder):
    for name in ("frame", audio_folder, "anno"):
        (tmp_path / name).mkdir()
    picture, _ = draw_frame(0, np.random.default_rng(0))
    picture.save(tmp_path / "frame" / "10.jpg")
    suffix = "mp3" if audio_folder == "mp3" else "wav"
    soundfile.write(tmp_path / audio_folder / f"10.{suffix}", tone(0), RATE)
    numbers = "<xmin>64</xmin><ymin>0</ymin><xmax>256</xmax><ymax>128</ymax>"
    box = f"<bbox><name>x</name>{numbers}</bbox>"
    (tmp_path / "anno" / "10.xml").write_text(f"<a><p1>{box}</p1><p2>{box}</p2></a>")
    clip = build_clips("flickr_soundnet", tmp_path, clip_list=None).clips[0]
    np.testing.assert_allclose(clip.bounding_boxes, 2 * [[0.25, 0, 1, 0.5]])
    assert clip.annotators_needed == 2


def test_sspl_s_flickr_test_layout(tmp_path):
    data = tmp_path / "SoundNet_Flickr" / "5k_labeled" / "Data"
    boxes = data.parent / "Annotations"
    for folder in (data / "frames", data / "audio", boxes):
        folder.mkdir(parents=True)
    draw_frame(0, np.random.default_rng(0))[0].save(data / "frames" / "10.jpg")
    soundfile.write(data / "audio" / "10.wav", tone(0), RATE)
    numbers = "<xmin>64</xmin><ymin>0</ymin><xmax>256</xmax><ymax>128</ymax>"
    (boxes / "10.xml").write_text(f"<a><p1><bbox><name>x</name>{numbers}</bbox></p1></a>")
    (tmp_path / "flickr_test249_in5k.csv").write_text("10,202\n")
    for root in (tmp_path, tmp_path / "SoundNet_Flickr"):
        clip_list = str(tmp_path / "flickr_test249_in5k.csv")
        clip = build_clips("flickr_soundnet", root, clip_list=clip_list).clips[0]
        np.testing.assert_allclose(clip.bounding_boxes, [[0.25, 0, 1, 0.5]])
        assert clip.audio_source == root.joinpath(*data.relative_to(root).parts, "audio", "10.wav")


@pytest.mark.parametrize("audio_folder", ["mp3", "wav", "audio"])
def test_flickr_training_layout(tmp_path, audio_folder):
    (tmp_path / "frames" / "77").mkdir(parents=True)
    (tmp_path / audio_folder).mkdir()
    draw_frame(0, np.random.default_rng(0))[0].save(tmp_path / "frames" / "77" / "00000003.jpg")
    soundfile.write(tmp_path / audio_folder / "77.flac", tone(0), RATE)
    clips = build_clips("flickr", tmp_path, clip_list=None)
    assert clips.clips[0].audio_source.suffix == ".flac"
    assert clips.clips[0].frame_source.name == "00000003.jpg"


def test_clip_list_gives_the_order(tiny_data, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("test_4.jpg\ntest_1.jpg\n")
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=str(path))
    assert clips.clip_ids == ["test_4", "test_1"]
    assert clips.num_listed == 2
    assert clips.list_name != "every clip found"


def test_missing_files_are_counted_and_named(tiny_data, tmp_path, caplog):
    test = tiny_data.root / "VGGSound_test"
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{i}\n" for i in (*tiny_data.test_ids, "never_there")))
    (test / "frame" / "test_0.jpg").unlink()
    (test / "audio" / "test_1.wav").unlink()
    (test / "anno" / "test_2.xml").unlink()
    (test / "frame" / "test_3.jpg").unlink()
    (test / "anno" / "test_4.xml").write_text("no XML")
    with pytest.raises(FileNotFoundError, match="6 of 7 clips") as refusal:
        build_clips("vgg_ss", tiny_data.root, clip_list=str(path))
    words = str(refusal.value)
    assert "--allow-missing" in words
    for clip_id in ("test_0", "test_1", "test_2", "test_3", "test_4"):
        assert clip_id in words
    assert "never_there" not in words  # only the first five
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=str(path), allow_missing=True)
    assert clips.clip_ids == ["test_5"]
    assert len(clips.missing) == 6
    assert clips.num_listed == 7
    assert "6 of 7" in caplog.text


def test_without_a_list_only_complete_clips_count(tiny_data):
    (tiny_data.root / "VGGSound_test" / "audio" / "test_1.wav").unlink()
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=None)
    assert clips.num_listed == 5
    assert "test_1" not in clips.clip_ids


def test_broken_annotation_is_refused_before_the_start(tiny_data):
    (tiny_data.root / "VGGSound_test" / "anno" / "test_2.xml").write_text("<a><bbox><b>")
    with pytest.raises(FileNotFoundError, match=r"test_2.*XML"):
        build_clips("vgg_ss", tiny_data.root, clip_list=None)


def test_annotation_without_boxes_is_an_empty_truth(tiny_data):
    path = tiny_data.root / "VGGSound_test" / "anno" / "test_2.xml"
    path.write_text("<annotation></annotation>")
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=None)
    assert clips.clips[2].bounding_boxes.shape == (0, 4)
    path.write_text(vgg_ss_xml("test_2", (0, 0, 1, 1)))


@pytest.mark.parametrize(("dataset", "error"), [("no_such_set", ValueError), ("vgg_ss", FileNotFoundError)])
def test_unknown_set_and_missing_folder(tmp_path, dataset, error):
    with pytest.raises(error, match=r"vgg_ss|VGG-SS"):
        build_clips(dataset, tmp_path / "nowhere", clip_list=None)


def test_annotations_belong_to_vgg_ss(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="--annotations"):
        build_clips("vggsound", tiny_data.root, clip_list=None, annotations=tmp_path / "x.json")
