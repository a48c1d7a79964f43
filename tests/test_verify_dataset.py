"""The check of a whole data set: each fault is found, named and counted; a clean set passes."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from benchmark_inputs import SCENES, make_extended, make_is3, make_s4
from conftest import RATE, vgg_ss_xml

from scripts.verify_dataset import PROBLEMS, main


@pytest.fixture
def training(tiny_data):
    """The training set of the tiny data, with eight different sounds."""
    folder = tiny_data.root / "VGGSound"
    for index in range(8):
        soundfile.write(sound_of(folder, index), noise(index), RATE)
    return folder


def noise(seed):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, RATE)


def frame_of(root, index):
    return root / "total_video_frames" / f"train_{index}" / "125.jpg"


def sound_of(root, index):
    return root / "total_video_3s_audio" / f"train_{index}.wav"


def verify(root, tmp_path, *arguments, dataset="vggsound"):
    output = tmp_path / "report" / "report.json"
    status = main([dataset, str(root), "--workers", "1", "--output", str(output), *map(str, arguments)])
    return status, json.loads(output.read_text())


def found(report):
    return {name: sorted(clips) for name, clips in report["problems"].items() if clips}


def test_a_clean_set_passes_and_a_list_says_what_is_missing(training, tmp_path, capsys):
    status, report = verify(training, tmp_path)
    assert status == 0
    assert report["problems"] == {name: {} for name in PROBLEMS}
    assert (report["num_clips"], report["num_without_problem"]) == (8, 8)
    assert "vggsound (every clip found): 8 clips, 8 without a problem" in capsys.readouterr().out
    (tmp_path / "clips.txt").write_text("train_1\ntrain_2\nabsent\n")
    status, report = verify(training, tmp_path, "--clip-list", tmp_path / "clips.txt")
    assert (status, report["clip_list"], report["num_clips"]) == (1, "clips", 3)
    assert found(report) == {"missing": ["absent"]}


def test_every_fault_is_found(training, tmp_path, capsys):
    frame_of(training, 0).unlink()
    sound_of(training, 1).unlink()
    frame_of(training, 2).write_bytes(frame_of(training, 2).read_bytes()[:300])
    sound_of(training, 3).write_bytes(sound_of(training, 3).read_bytes()[:900])
    sound_of(training, 4).unlink()
    soundfile.write(sound_of(training, 4).with_suffix(".flac"), np.full(RATE, 3e-5), RATE)
    shutil.copy(frame_of(training, 5), frame_of(training, 6))
    samples, _ = soundfile.read(sound_of(training, 5))
    sound_of(training, 6).unlink()
    soundfile.write(sound_of(training, 6).with_suffix(".flac"), samples, RATE)  # the same, stored otherwise
    soundfile.write(sound_of(training, 7), np.full(RATE, 3e-5), RATE)
    status, report = verify(training, tmp_path)
    assert status == 1
    assert found(report) == {
        "missing": ["train_0", "train_1"],
        "unreadable": ["train_2", "train_3"],
        "silent": ["train_4", "train_7"],
        "duplicate_frame": ["train_5", "train_6"],
        "duplicate_sound": ["train_5", "train_6"],
    }
    assert report["num_without_problem"] == 0
    problems = report["problems"]
    assert "no frame" in problems["missing"]["train_0"] and "no audio" in problems["missing"]["train_1"]
    assert "125.jpg cannot be read" in problems["unreadable"]["train_2"]
    assert "cut off" in problems["unreadable"]["train_3"]
    assert "train_5, train_6" in problems["duplicate_sound"]["train_6"]
    assert "  silent: 2\n    train_4: its loudest sample is" in capsys.readouterr().out


def test_boxes_that_are_missing_or_unreadable_are_named_even_where_none_is_left(tiny_data, tmp_path):
    folder, clip_ids = tiny_data.root / "VGGSound_test" / "anno", list(tiny_data.test_ids)
    (folder / f"{clip_ids[0]}.xml").unlink()
    broken = ("<a></a>", vgg_ss_xml("x", (60, 9, 80, 90)), vgg_ss_xml("x", ("0,2", "0,3", "0,6", "0,8")),
              "<a><object><bndbox><xmin>1</xmin></bndbox></object></a>", "<a><bbox>")  # fmt: skip
    for clip_id, content in zip(clip_ids[1:], broken, strict=True):
        (folder / f"{clip_id}.xml").write_text(content)
    status, report = verify(tiny_data.root, tmp_path, dataset="vgg_ss")
    assert status == 1 and found(report) == {"missing": clip_ids}
    expected = ("no annotation", "no box", "fractions", "0,2", "bndbox", "no element found")
    for part, reason in zip(expected, report["problems"]["missing"].values(), strict=True):
        assert part in reason
    for name in ("frame", "audio", "anno"):
        shutil.rmtree(folder.with_name(name))
        folder.with_name(name).mkdir()
    assert main(["vgg_ss", str(tiny_data.root)]) == 2


def test_what_is_shared_by_design_is_no_duplicate(tiny_data, tmp_path):
    make_is3(tmp_path / "is3")
    make_s4(tmp_path / "s4")
    assert verify(tmp_path / "is3", tmp_path, dataset="is3")[0] == 0
    assert verify(tmp_path / "s4", tmp_path, dataset="avsbench_s4")[0] == 0
    frames = tmp_path / "is3" / "visual_frames"
    shutil.copy(frames / f"{SCENES[0]}_cat.jpg", frames / f"{SCENES[1]}_bird.jpg")
    assert len(verify(tmp_path / "is3", tmp_path, dataset="is3")[1]["problems"]["duplicate_frame"]) == 3
    mask = next((tmp_path / "s4" / "gt_masks" / "test").rglob("*_2.png"))
    mask.write_bytes(mask.read_bytes()[:60])
    assert found(verify(tmp_path / "s4", tmp_path, dataset="avsbench_s4")[1]) == {"unreadable": [mask.stem]}
    # The negatives of an extended set borrow frames and sounds.
    positives, negatives = make_extended(tiny_data, tmp_path)
    lists = ("--clip-list", positives, "--negatives", negatives)
    report = verify(tiny_data.root, tmp_path, *lists, dataset="vgg_ss_extended")[1]
    assert report["num_clips"] == 7 and set(found(report)) <= {"duplicate_sound"}


def test_bad_input_is_refused_in_words(training, tmp_path, caplog):
    assert main(["vggsound", str(tmp_path / "absent")]) == 2
    assert main(["vggsound", str(training), "--workers", "0"]) == 2
    assert main(["vggsound", str(training), "--clip-list", "no_such_list"]) == 2
    assert main(["vggsound", str(training), "--output", str(tmp_path)]) == 2
    for words in ("does not exist", "--workers", "no_such_list", "is a folder; name a file"):
        assert words in caplog.text
    with pytest.raises(SystemExit) as stopped:
        main(["no_such_set", str(training)])
    assert stopped.value.code == 2
