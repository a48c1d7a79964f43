"""Folders of videos become data sets: layouts, failures that are named, stopping and going on."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import soundfile
from command_line import ENVIRONMENT, ROOT
from PIL import Image
from video_inputs import make_video, number_on, tone

from datasets.benchmarks import build_clips
from scripts.prepare_videos import LAYOUTS, PrepareOptions, Task, find_videos, main, prepare_clip
from utils.options import run_in_processes

ARGUMENTS = ["--workers", "1", "--frame-size", "48"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two good videos, one of them in a sub-folder, and one of each kind that fails."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    make_video(folder / "good_1.mp4", seconds=10, options={"preset": "ultrafast"})
    make_video(folder / "more" / "good.2.webm", seconds=6, codec="libvpx", sound_codec="libopus")
    make_video(folder / "mute.mp4", seconds=6, sounds=[])
    make_video(folder / "silent.mkv", seconds=6, sounds=[tone(6, level=0)])
    make_video(folder / "short.mp4", seconds=3)
    make_video(folder / "short_sound.mp4", seconds=6, sounds=[tone(0.5)])
    content = (folder / "good_1.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "text.avi").write_text("no video")
    (folder / "twice.mkv").write_bytes(b"")
    (folder / "twice.ts").write_bytes(b"no video")
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.mp4").write_bytes(b"")
    return folder


FAILURES = {
    "mute": "no_audio_stream",
    "silent": "silent",
    "short": "too_short",
    "short_sound": "too_short",
    "cut": "unreadable",
    "text": "unreadable",
    "twice": "unreadable",
}


def make(video, folder, **options):
    """Prepares one clip called 7; None: it is done."""
    return prepare_clip(Task("7", video, folder, PrepareOptions(frame_size=48, **options)))


def places(folder, layout, clip_id="7"):
    return LAYOUTS[layout].places(folder, clip_id)


def failures(folder):
    with (folder / "failed.csv").open(encoding="utf-8") as file:
        return {row["clip_id"]: row for row in csv.DictReader(file)}


def files(folder):
    paths = [path for path in folder.rglob("*") if path.suffix in {".jpg", ".wav"}]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_folder_of_videos_becomes_data_sets_and_named_failures(videos, tmp_path, capsys):
    prepared = tmp_path / "set"
    assert main([str(videos), str(prepared), *ARGUMENTS]) == 1
    printed = capsys.readouterr().out
    assert "2 of 9 clips are prepared (0 were before)" in printed
    assert "failed, too_short: 2" in printed and "failed, several_videos: 1" in printed
    assert build_clips("vggsound", prepared, clip_list=None).clip_ids == ["good.2", "good_1"]
    lengths = ("good.2 vggsound", 3), ("good_1 vggsound", 3), ("good.2 vgg_ss", 6), ("good_1 vgg_ss", 10)
    for name, seconds in lengths:
        clip_id, layout = name.split()
        frame, sound = places(prepared, layout, clip_id)
        assert (number_on(Image.open(frame)), Image.open(frame).size) == (124, (48, 48))
        info = soundfile.info(sound)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert info.duration == pytest.approx(seconds, abs=0.0125)
    found = failures(prepared)
    assert {clip_id: row["reason"] for clip_id, row in found.items()} == FAILURES
    assert found["short"]["detail"] == ("its pictures end at 3.00 s, frame 125 is shown at 4.98 s")
    assert found["silent"]["video"] == str(videos / "silent.mkv")
    assert all(row["detail"] for row in found.values())
    assert len(files(prepared)) == 8 and not list(prepared.rglob("*.partial"))


def test_names_in_another_encoding_are_escaped(videos, tmp_path, capsys):
    folder, prepared = tmp_path / "videos", tmp_path / "set"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.mp4")).write_text("no video")
    (folder / os.fsdecode(b"good_\xe9.mp4")).hardlink_to(videos / "good_1.mp4")
    (folder / "broken.mp4").symlink_to("absent.mp4")
    assert main([str(folder), str(prepared), *ARGUMENTS]) == 1
    assert "    caf\\udce9: unreadable: " in capsys.readouterr().out
    found = failures(prepared)
    assert found.keys() == {"caf\\udce9", "broken"}
    assert found["broken"]["reason"] == "unreadable" and "there is no such file" in found["broken"]["detail"]
    assert found["caf\\udce9"]["video"] == str(folder / "caf\\udce9.mp4")
    assert main([str(folder), str(prepared), *ARGUMENTS]) == 1
    assert "(1 were before)" in capsys.readouterr().out


def test_a_list_chooses_and_names_what_is_missing(videos, tmp_path):
    for clip_ids, status, reasons in (
        (["good_1", "absent"], 1, {"absent": "no_video"}),
        (["good_1"], 0, {}),
        (["mute"], 2, {"mute": "no_audio_stream"}),
    ):
        folder = tmp_path / "_".join(clip_ids)
        (tmp_path / "list.txt").write_text("\n".join(clip_ids))
        arguments = [str(videos), str(folder), "--clip-list", str(tmp_path / "list.txt")]
        assert main([*arguments, *ARGUMENTS]) == status
        assert {i: row["reason"] for i, row in failures(folder).items()} == reasons
    assert build_clips("vggsound", tmp_path / "good_1", clip_list=None).clip_ids == ["good_1"]


def test_linked_folders_are_followed_and_what_systems_leave_is_not_found(tmp_path):
    for name in ("here/a.mp4", "elsewhere/b.mp4", "here/__MACOSX/c.mp4", "here/._a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for link, place in (("here/link", "elsewhere"), ("elsewhere/back", "here"), ("elsewhere/again", "here")):
        (tmp_path / link).symlink_to(tmp_path / place)  # two loops: 2^40 turns where they are not seen
    videos, _ = find_videos([tmp_path / "here"])
    assert sorted(video.name for video in videos) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("layout", "options"), [*((name, {}) for name in LAYOUTS), ("flickr", {"frame_number": 125})]
)
def test_each_layout_alone_is_found_by_its_reader(videos, tmp_path, layout, options):
    assert make(videos / "good_1.mp4", tmp_path, layout=layout, **options) is None
    frame, sound = places(tmp_path, layout)
    assert number_on(Image.open(frame)) == (62 if layout == "flickr" and not options else 124)  # 2.5 s, 5 s
    if layout in {"vggsound", "flickr"}:  # the boxes of the others come from elsewhere
        clip = build_clips(layout, tmp_path, clip_list=None).clips[0]
        assert (clip.frame_source, clip.audio_source) == (frame, sound)
    expected = 3 if layout == "vggsound" else 10
    assert soundfile.info(sound).duration == pytest.approx(expected, abs=0.02)


def test_all_frames_are_numbered_around_the_same_125(videos, tmp_path):
    for frames in ("used", "all"):
        make(videos / "good_1.mp4", tmp_path / frames, frames=frames)
    used, everything = files(tmp_path / "used"), files(tmp_path / "all")
    assert all(everything[name] == content for name, content in used.items())
    folder = places(tmp_path / "all", "vggsound")[0].parent
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:03d}.jpg" for n in range(1, 251)]
    assert number_on(Image.open(folder / "007.jpg")) == 6


def test_windows_are_the_middle_of_10_s_and_what_lies_behind_is_not_used(tmp_path):
    samples = np.zeros((2, 14 * 48_000), np.float32)
    samples[:, 5 * 48_000 - 50 : 5 * 48_000 + 50] = 0.9
    video = make_video(tmp_path / "v.mkv", seconds=6, sounds=[samples], sound_codec="pcm_s16le")
    make(video, tmp_path)
    for layout, middle in (("vggsound", 1.5), ("vgg_ss", 5.0)):
        waveform, rate = soundfile.read(places(tmp_path, layout)[1])
        assert len(waveform) == 2 * middle * rate
        assert np.flatnonzero(np.abs(waveform) > 0.4).mean() / rate == pytest.approx(middle, abs=1e-3)


def test_a_sound_that_was_cut_off_is_refused(tmp_path):
    video = make_video(tmp_path / "v.mp4", seconds=10, container_options={"movflags": "faststart"})
    content = video.read_bytes()
    for share in range(70, 90, 4):  # the pictures go on until after the frame
        video.write_bytes(content[: len(content) * share // 100])
        assert make(video, tmp_path).reason in {"truncated", "unreadable"}


def test_a_second_run_leaves_finished_clips_alone(videos, tmp_path, capsys):
    folder = tmp_path / "set"
    main([str(videos), str(folder), *ARGUMENTS])
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}
    capsys.readouterr()
    assert main([str(videos), str(folder), *ARGUMENTS]) == 1
    assert "(2 were before)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")} == times
    assert failures(folder).keys() == FAILURES.keys()

    before = files(folder)
    places(folder, "vgg_ss", "good_1")[1].unlink()
    record = folder / "prepared.jsonl"
    record.write_text(record.read_text()[:-10])  # as a power cut leaves it
    main([str(videos), str(folder), *ARGUMENTS])
    assert files(folder) == before
    assert all(json.loads(line) for line in record.read_text().splitlines())


def test_a_changed_video_is_prepared_again(tmp_path):
    folder, found = tmp_path / "videos", []
    folder.mkdir()
    for rate in (25, 30):
        make_video(folder / "a.mp4", seconds=6, rate=rate)
        assert main([str(folder), str(tmp_path / "set"), *ARGUMENTS]) == 0
        found.append(files(tmp_path / "set"))
    assert found[0].keys() == found[1].keys() and found[0] != found[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layout", "stamps"], "--layout"),
        (["--layout", "vgg_ss,vgg_ss"], "--layout"),
        (["--frames", "all", "--layout", "flickr"], "--frames all"),
        (["--frames", "all", "--frame-number", "3"], "--frames all"),
        (["--frame-size", "0"], "--frame-size"),
        (["--workers", "0"], "--workers"),
        (["--audio", "full_10s"], "--audio is no longer there"),
        (["--clip-list", "no_such_list"], "no_such_list"),
    ],
)
def test_bad_options_are_refused_in_words(videos, tmp_path, caplog, arguments, words):
    assert main([str(videos), str(tmp_path / "set"), *arguments]) == 2
    assert words in caplog.text


def test_videos_are_found_by_the_names_that_lists_have(tmp_path):
    names = ("zpWuikVorYg_32000_42000.mp4", "abcdefghijk_000001.mp4.mp4")
    for name in names:
        make_video(tmp_path / name, seconds=6)
    (tmp_path / "list.txt").write_text("\n".join(names))
    given = [str(tmp_path), str(tmp_path / "set"), *ARGUMENTS, "--clip-list", str(tmp_path / "list.txt")]
    assert main(given) == 0
    found = {path.parent.name for path in (tmp_path / "set").rglob("125.jpg")}
    assert found == {"zpWuikVorYg_000032", "abcdefghijk_000001"}


def test_bad_folders_are_refused_in_words(videos, tmp_path, caplog):
    assert main([str(tmp_path / "absent"), str(tmp_path / "set")]) == 2
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), str(tmp_path / "set")]) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    assert main([str(videos), str(tmp_path / "other")]) == 2
    for words in ("No folder of videos", "No video in", "neither empty"):
        assert words in caplog.text
    (tmp_path / "list").write_text("good_1")
    arguments = [str(videos), str(tmp_path / "set"), "--clip-list", str(tmp_path / "list")]
    assert main([*arguments, *ARGUMENTS]) == 0
    assert main([*arguments, "--frame-size", "64"]) == 2
    assert "frame_size 48 instead of 64" in caplog.text


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_leaves_whole_clips_and_goes_on(tmp_path, number, status):
    folder, prepared = tmp_path / "videos", tmp_path / "set"
    folder.mkdir()
    make_video(folder / "clip_0.mp4", seconds=6)
    for index in range(1, 60):
        os.link(folder / "clip_0.mp4", folder / f"clip_{index}.mp4")
    command = [sys.executable, "-m", "scripts.prepare_videos", folder, prepared, "--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, text=True, start_new_session=True, **pipes)
    record = prepared / "prepared.jsonl"
    while run.poll() is None and (not record.exists() or record.read_text().count("\n") < 5):
        time.sleep(0.01)
    run.send_signal(number) if number != signal.SIGINT else os.killpg(run.pid, number)
    if number == signal.SIGKILL:
        os.killpg(run.pid, number)  # its processes are left alone otherwise
    _, words = run.communicate(timeout=60)
    assert run.returncode == status
    assert "Traceback" not in words
    assert record.read_text().count("\n") < 60
    # As if it was killed between making and filling a file.
    half = prepared / "VGGSound" / "total_video_frames" / "half" / "125.jpg"
    half.parent.mkdir(parents=True)
    half.touch()
    for clip in build_clips("vggsound", prepared, clip_list=None).clips:
        Image.open(clip.frame_source).load()
        assert len(soundfile.read(clip.audio_source)[0]) == 48_000
    if number != signal.SIGKILL:
        assert not list(prepared.rglob("*.partial"))
        assert failures(prepared) == {}
    assert main([str(folder), str(prepared)]) == 0
    assert len(build_clips("vggsound", prepared, clip_list=None).clips) == 60
    assert len(record.read_text().splitlines()) == 61


def test_two_runs_do_not_write_into_one_folder(videos, tmp_path, caplog):
    holder = "import sys; from pathlib import Path; from utils.files import lock_folder\n"
    holder += "lock = lock_folder(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as other:
        assert other.stdout.readline() == "locked\n"
        (tmp_path / "prepared.jsonl").touch()
        assert main([str(videos), str(tmp_path)]) == 2
        other.stdin.close()
    assert "Another process writes to" in caplog.text


def die_of_odd_numbers(number):
    if number % 10 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_a_crash_is_the_fault_of_one_task():
    results = list(run_in_processes(die_of_odd_numbers, range(24), num_workers=2))
    assert sorted(number for number, _, has_crashed in results if has_crashed) == [3, 13, 23]
    assert sorted(n for n, _, _ in results) == list(range(24))
    assert all(result == number**2 for number, result, has_crashed in results if not has_crashed)


FOLDERS = "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"  # seven, as in VGGSound's archives


def pack(path, videos, *, folders=FOLDERS, form=tarfile.GNU_FORMAT):
    """Packs {clip id: video} into a .tar or .tar.gz file."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=form) as archive:
        for clip_id, video in videos.items():
            archive.add(video, f"{folders}/{clip_id}.mp4")
        archive.add(path.parent, "._system.mp4", recursive=False)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six videos that differ, by clip id."""
    folder = tmp_path_factory.mktemp("clips")
    sounds = {f"clip_{number}_000030": [tone(6, level=0.1 + number / 10)] for number in range(6)}
    return {i: make_video(folder / f"{i}.mp4", seconds=6, sounds=sound) for i, sound in sounds.items()}


@pytest.mark.parametrize(
    ("suffix", "folders", "form"),
    [(".tar.gz", FOLDERS, tarfile.GNU_FORMAT), (".tar", FOLDERS * 3, tarfile.PAX_FORMAT)],
)
def test_archives_give_what_their_videos_give(clips, tmp_path, capsys, suffix, folders, form):
    ids = list(clips)
    archives = [
        pack(tmp_path / f"{name}{suffix}", {i: clips[i] for i in part}, folders=folders, form=form)
        for name, part in (("00", ids[:3]), ("01", ids[3:]))
    ]
    assert main([*map(str, archives), str(tmp_path / "set"), *ARGUMENTS]) == 0
    assert main([str(clips[ids[0]].parent), str(tmp_path / "expected"), *ARGUMENTS]) == 0
    assert files(tmp_path / "set") == files(tmp_path / "expected")
    assert not list(tmp_path.rglob("*.mp4")) and failures(tmp_path / "set") == {}
    # A whole archive whose clips are there is not read again: its bytes are spoilt here.
    for archive in archives:
        archive.write_bytes(bytes(archive.stat().st_size))
    capsys.readouterr()
    assert main([*map(str, archives), str(tmp_path / "set"), *ARGUMENTS]) == 0
    assert "6 of 6 clips are prepared (6 were before)" in capsys.readouterr().out


def test_an_archive_is_read_on_after_a_stop_and_what_is_listed_is_taken(clips, tmp_path, capsys):
    folder = tmp_path / "archives"
    folder.mkdir()
    pack(folder / "00.tar.gz", clips)
    (tmp_path / "list").write_text("clip_1_000030\nclip_4_000030\nabsent_000001")
    arguments = [str(folder), str(tmp_path / "set"), *ARGUMENTS]
    assert main([*arguments, "--clip-list", str(tmp_path / "list")]) == 1
    reasons = {i: row["reason"] for i, row in failures(tmp_path / "set").items()}
    assert reasons == {"absent_000001": "no_video"}
    sounds = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.wav")}
    assert len(sounds) == 4
    assert main(arguments) == 0
    assert "6 of 6 clips are prepared (2 were before)" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in sounds.items())


def test_a_damaged_archive_names_what_is_lost_and_the_rest_goes_on(clips, tmp_path, capsys):
    ids = list(clips)
    cut = pack(tmp_path / "00.tar.gz", {i: clips[i] for i in ids[:4]})
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) * 6 // 10])
    archives = [str(cut), str(pack(tmp_path / "01.tar", {i: clips[i] for i in ids[4:]}))]
    assert main([*archives, str(tmp_path / "set"), *ARGUMENTS]) == 1
    found = failures(tmp_path / "set")
    assert {row["reason"] for row in found.values()} == {"damaged_archive"}
    assert found.keys() == {ids[2], "00.tar.gz"}
    assert ids[2] in found["00.tar.gz"]["detail"] and "end-of-stream" in found["00.tar.gz"]["detail"]
    assert {path.stem for path in (tmp_path / "set").rglob("*.wav")} == {*ids[:2], *ids[4:]}
    assert "00.tar.gz: damaged_archive" in capsys.readouterr().out
    # A repaired copy fills the gaps.
    whole = pack(tmp_path / "copy.tar.gz", clips)
    assert main([*archives, str(whole), str(tmp_path / "set"), *ARGUMENTS]) == 1
    assert failures(tmp_path / "set").keys() == {"00.tar.gz"}
    assert "6 of 6 clips are prepared (4 were before)" in capsys.readouterr().out


def damage_middle(content):
    middle = len(content) // 2
    return content[:middle] + bytes(200) + content[middle + 200 :]


def damage_entry(content):
    """The check sum of the second clip's entry is wrong."""
    content = bytearray(gzip.decompress(content))
    content[content.index(b"clip_1")] = 0
    return gzip.compress(content)


def leave_out_end(content):
    members = gzip.decompress(content).rstrip(b"\0")
    return gzip.compress(members + bytes(-len(members) % 512))


@pytest.mark.parametrize(
    ("damage", "fewest", "most"),
    [
        (damage_middle, 2, 5),
        (damage_entry, 1, 1),
        (lambda content: content[:-8] + bytes(4) + content[-4:], 6, 6),  # the check sum of gzip
        (leave_out_end, 6, 6),
        (lambda content: b"<html>Please log in</html>" * 100, 0, 0),
    ],
)
def test_each_damage_of_an_archive_is_named(clips, tmp_path, damage, fewest, most):
    archive = pack(tmp_path / "a.tar.gz", clips)
    archive.write_bytes(damage(archive.read_bytes()))
    status = main([str(archive), str(tmp_path / "set"), *ARGUMENTS])
    found = failures(tmp_path / "set")["a.tar.gz"]
    assert found["reason"] == "damaged_archive" and "Fetch it again" in found["detail"]
    assert "videos were met, the last is " + ("clip_" if most else "none") in found["detail"]
    assert status == (1 if most else 2)
    assert fewest <= len(list((tmp_path / "set").rglob("*.wav"))) // 2 <= most


def test_few_tasks_are_taken_ahead():
    taken = 0

    def tasks():
        nonlocal taken
        for number in range(40):
            taken += 1
            yield number

    for done, _ in enumerate(run_in_processes(abs, tasks(), num_workers=2)):
        assert taken <= done + 5


def test_preparing_starts_without_torch():
    code = "import sys, scripts.prepare_videos; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
