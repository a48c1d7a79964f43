"""The check of a whole data set: each fault is found, named and counted; a clean set passes."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from conftest import RATE, tone
from PIL import Image

from scripts.verify_dataset import PROBLEMS, main


@pytest.fixture
def training(tiny_data):
    """The training set of the tiny data, with eight different sounds."""
    folder = tiny_data.root / "VGGSound"
    for index, clip_id in enumerate(tiny_data.train_ids):
        samples = tone(index, 1 + index / 10)
        soundfile.write(folder / "total_video_3s_audio" / f"{clip_id}.wav", samples, RATE)
    return folder


def verify(root, tmp_path, *arguments, dataset="vggsound"):
    output = tmp_path / "report" / "report.json"
    status = main([dataset, str(root), "--workers", "1", "--output", str(output), *arguments])
    return status, json.loads(output.read_text())


def frame_of(root, clip_id):
    return root / "total_video_frames" / clip_id / "125.jpg"


def sound_of(root, clip_id):
    return root / "total_video_3s_audio" / f"{clip_id}.wav"


def test_a_clean_set_passes(training, tmp_path, capsys):
    status, report = verify(training, tmp_path)
    assert status == 0
    assert report["problems"] == {name: {} for name in PROBLEMS}
    assert report["counts"] == {
        "clips": 8,
        "without_problem": 8,
        "frames_read": 8,
        "sounds_read": 8,
        "found_but_not_listed": 0,
    }
    assert report["frame_sizes"] == [{"width": 96, "height": 96, "clips": 8}]
    (row,) = report["sounds"]
    assert (row["sample_rate"], row["channels"], row["clips"]) == (RATE, 1, 8)
    assert (row["shortest_seconds"], row["longest_seconds"]) == (1.0, 1.7)
    assert row["median_seconds"] == pytest.approx(1.35)
    assert "vggsound (every clip found): 8 clips, 8 without a problem" in capsys.readouterr().out


def test_every_fault_is_found(training, tmp_path, capsys):
    frame_of(training, "train_0").unlink()
    sound_of(training, "train_1").unlink()
    frame_of(training, "train_2").write_bytes(frame_of(training, "train_2").read_bytes()[:300])
    sound_of(training, "train_3").write_bytes(sound_of(training, "train_3").read_bytes()[:900])
    soundfile.write(sound_of(training, "train_4"), np.zeros(RATE), RATE)
    shutil.copy(frame_of(training, "train_5"), frame_of(training, "train_6"))
    shutil.copy(sound_of(training, "train_5"), sound_of(training, "train_6"))
    status, report = verify(training, tmp_path)
    assert status == 1
    assert {name: sorted(clips) for name, clips in report["problems"].items()} == {
        "missing_frame": ["train_0"],
        "missing_sound": ["train_1"],
        "missing_annotation": [],
        "unreadable_frame": ["train_2"],
        "unreadable_sound": ["train_3"],
        "unreadable_mask": [],
        "unreadable_boxes": [],
        "silent": ["train_4"],
        "duplicate_frame": ["train_5", "train_6"],
        "duplicate_sound": ["train_5", "train_6"],
    }
    assert report["counts"]["without_problem"] == 1
    assert "cut off" in report["problems"]["unreadable_sound"]["train_3"]
    assert "train_5, train_6" in report["problems"]["duplicate_sound"]["train_6"]
    printed = capsys.readouterr().out
    assert "  silent: 1\n    train_4: its loudest sample is 0\n" in printed


@pytest.mark.parametrize("suffix", [".mp3", ".wav"])
def test_a_sound_that_was_cut_off_is_named(training, tmp_path, suffix):
    path = sound_of(training, "train_1")
    path.unlink()
    soundfile.write(path.with_suffix(suffix), tone(1, 3.0), RATE)
    content = path.with_suffix(suffix).read_bytes()
    path.with_suffix(suffix).write_bytes(content[: len(content) // 2])
    _, report = verify(training, tmp_path)
    assert "cut off" in report["problems"]["unreadable_sound"]["train_1"]


def test_silent_sounds_are_not_called_duplicates_too(training, tmp_path):
    for clip_id in ("train_1", "train_2"):
        soundfile.write(sound_of(training, clip_id), np.full(RATE, 3e-5), RATE)
    _, report = verify(training, tmp_path)
    assert sorted(report["problems"]["silent"]) == ["train_1", "train_2"]
    assert report["problems"]["duplicate_sound"] == {}


def test_duplicates_are_found_across_formats(training, tmp_path):
    samples, _ = soundfile.read(sound_of(training, "train_1"))
    sound_of(training, "train_2").unlink()
    soundfile.write(sound_of(training, "train_2").with_suffix(".flac"), samples, RATE)
    status, report = verify(training, tmp_path)
    assert status == 1
    assert sorted(report["problems"]["duplicate_sound"]) == ["train_1", "train_2"]


def test_shapes_and_rates_are_reported_but_are_no_problems(training, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(frame_of(training, "train_1"))
    stereo = np.stack([tone(0, 2), tone(1, 2)], axis=1)
    soundfile.write(sound_of(training, "train_1"), stereo, 44_100)
    status, report = verify(training, tmp_path)
    assert status == 0
    assert report["non_square"] == ["train_1"]
    assert [(row["sample_rate"], row["channels"], row["clips"]) for row in report["sounds"]] == [
        (RATE, 1, 7),
        (44_100, 2, 1),
    ]
    assert "frames that are not square: 1" in capsys.readouterr().out


def test_a_list_says_what_is_missing_and_what_is_too_much(training, tmp_path):
    (tmp_path / "clips.txt").write_text("train_1\ntrain_2\nabsent\n")
    status, report = verify(training, tmp_path, "--clip-list", str(tmp_path / "clips.txt"))
    assert status == 1
    assert report["clip_list"] == "clips"
    assert (report["counts"]["clips"], report["counts"]["found_but_not_listed"]) == (3, 6)
    for kind in ("frame", "sound"):
        assert list(report["problems"][f"missing_{kind}"]) == ["absent"]


def test_a_benchmark_needs_its_boxes(tiny_data, tmp_path):
    folder = tiny_data.root / "VGGSound_test"
    for index, clip_id in enumerate(tiny_data.test_ids):
        soundfile.write(folder / "audio" / f"{clip_id}.wav", tone(index, 1 + index / 10), RATE)
    assert verify(tiny_data.root, tmp_path, dataset="vgg_ss")[0] == 0
    (folder / "anno" / "test_3.xml").unlink()
    status, report = verify(tiny_data.root, tmp_path, dataset="vgg_ss")
    assert status == 1
    assert list(report["problems"]["missing_annotation"]) == ["test_3"]
    (folder / "anno" / "test_2.xml").write_text("<annotation><bbox>")
    status, report = verify(tiny_data.root, tmp_path, dataset="vgg_ss")
    assert list(report["problems"]["unreadable_boxes"]) == ["test_2"]


def test_bad_input_is_refused_in_words(training, tmp_path, caplog):
    assert main(["vggsound", str(tmp_path / "absent")]) == 2
    assert main(["vggsound", str(training), "--workers", "0"]) == 2
    assert main(["vggsound", str(training), "--clip-list", "no_such_list"]) == 2
    for words in ("does not exist", "--workers", "no_such_list"):
        assert words in caplog.text
    with pytest.raises(SystemExit) as stopped:
        main(["no_such_set", str(training)])
    assert stopped.value.code == 2
