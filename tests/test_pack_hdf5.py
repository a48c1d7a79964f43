"""The packer: nothing is lost on the way, it is small, and it can be stopped at any moment."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import BrokenExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, draw_frame, tone
from hdf5_inputs import real_sounds, write_authors_files
from PIL import Image, ImageFilter

import datasets.pack_hdf5
import datasets.packed_writer
from datasets.audio import AudioConfig, load_waveform
from datasets.clip_sets import build_clips
from datasets.clips import AudioVisualClips, BrokenClip, ClipRequest
from datasets.errors import BrokenFileError
from datasets.frames import FrameGeometry, read_frame
from datasets.hdf5 import FRAMES, SOUNDS, HDF5Row, read_row
from datasets.pack_hdf5 import AUTHORS_BYTES, main
from datasets.packed_writer import PackedClip, PackedWriter
from datasets.packing import PackConfig, Workers, pack_clip
from datasets.vggish_log_mel import SegmentConfig

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]


def pack(*arguments):
    return main([*map(str, arguments), "--workers", "1"])


@pytest.fixture
def packed(tiny_data, tmp_path):
    """VGG-SS test clips, packed."""
    path = tmp_path / "packed" / "clips.h5"
    assert pack("vgg_ss", tiny_data.root, path) == 0
    return path


@pytest.fixture
def training_folder(tmp_path):
    """Flickr's layout with sounds of several kinds; gives the folder of frames and of sounds."""
    frames, sounds = tmp_path / "flickr" / "frames", tmp_path / "flickr" / "audio"
    sounds.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(12):
        (frames / f"clip_{index:02d}").mkdir(parents=True)
        draw_frame(index, rng)[0].save(frames / f"clip_{index:02d}" / "00000003.jpg")
    return frames, sounds


def write_sounds(folder, samples, rate=RATE, suffix="wav", **options):
    for index in range(12):
        soundfile.write(folder / f"clip_{index:02d}.{suffix}", samples, rate, **options)


# ------------------------------------------------------------------------------- nothing is lost


def test_a_packed_benchmark_needs_nothing_else(packed, tiny_data):
    folders = build_clips("vgg_ss", tiny_data.root, clip_list=None)
    shutil.rmtree(tiny_data.root)
    for data_root in (packed, packed.parent):
        clip_set = build_clips("vgg_ss", data_root, clip_list=None)
        assert clip_set.clip_ids == folders.clip_ids
        assert clip_set.list_sha256 == folders.list_sha256
        assert clip_set.ids_known
        for stored, original in zip(clip_set.clips, folders.clips, strict=True):
            assert np.array_equal(stored.bounding_boxes, original.bounding_boxes)
            assert stored.annotators_needed == original.annotators_needed


def test_samples_are_the_same_as_from_folders(packed, tiny_data):
    for random_crop in (False, True):
        folders, stored = (
            AudioVisualClips(
                build_clips("vgg_ss", data_root, clip_list=None).clips,
                geometry=FrameGeometry(64),
                audio=AudioConfig(),
                random_crop=random_crop,
            )
            for data_root in (tiny_data.root, packed)
        )
        for position in range(len(folders)):
            expected, actual = (c[ClipRequest(position, 7)] for c in (folders, stored))
            assert torch.equal(actual.frame, expected.frame)
            assert torch.equal(actual.waveform, expected.waveform)
            if not random_crop:
                assert np.array_equal(actual.ground_truth_map, expected.ground_truth_map)


def test_frames_are_the_bytes_on_disk(packed, tiny_data):
    for clip in build_clips("vgg_ss", packed, clip_list=None).clips:
        original = tiny_data.root / "VGGSound_test" / "frame" / f"{clip.clip_id}.jpg"
        assert read_row(clip.frame_source).tobytes() == original.read_bytes()


def test_the_full_range_of_16_bits_comes_back(training_folder, tmp_path):
    samples = np.arange(-32768, 32768).astype(np.int16)
    write_sounds(training_folder[1], samples)
    assert pack("flickr", training_folder[0].parent, tmp_path / "clips.h5") == 0
    clip = build_clips("flickr", tmp_path / "clips.h5", clip_list=None).clips[3]
    assert np.array_equal(read_row(clip.audio_source), samples)
    window = AudioConfig(window_seconds=65_536 / RATE)
    original = training_folder[1] / "clip_03.wav"
    assert torch.equal(load_waveform(clip.audio_source, window), load_waveform(original, window))


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"),
    [(RATE, 2, "wav"), (44_100, 1, "wav"), (22_050, 2, "mp3"), (48_000, 1, "flac")],
)
def test_other_sounds_differ_by_the_rounding_alone(training_folder, tmp_path, rate, channels, suffix):
    samples = np.repeat(0.4 * np.sin(np.arange(rate) / 9)[:, None], channels, axis=1)
    write_sounds(training_folder[1], samples, rate, suffix)
    assert pack("flickr", training_folder[0].parent, tmp_path / "clips.h5") == 0
    clip = build_clips("flickr", tmp_path / "clips.h5", clip_list=None).clips[0]
    window = AudioConfig(window_seconds=1.0)
    expected = load_waveform(training_folder[1] / f"clip_00.{suffix}", window)
    difference = (load_waveform(clip.audio_source, window) - expected).abs().max()
    assert difference <= 0.5 / 32768 + 1e-7


def test_sounds_beyond_full_scale_are_cut_not_wrapped(training_folder, tmp_path):
    write_sounds(training_folder[1], np.array([1.5, -1.5, 0.25] * 400), subtype="FLOAT")
    assert pack("flickr", training_folder[0].parent, tmp_path / "clips.h5") == 0
    clip = build_clips("flickr", tmp_path / "clips.h5", clip_list=None).clips[0]
    assert read_row(clip.audio_source)[:3].tolist() == [32767, -32768, 8192]


@pytest.mark.parametrize("length", [47_999, 48_001, 160_001, 160_000, 20_000])
@pytest.mark.parametrize("seconds", [3.0, 4.00004])
def test_the_middle_that_is_kept_is_what_sspl_hears(tiny_data, length, seconds):
    samples = np.random.default_rng(length).integers(-9000, 9000, length, dtype=np.int16)
    clip = build_clips("vgg_ss", tiny_data.root, clip_list=None).clips[0]
    soundfile.write(clip.audio_source, samples, RATE)
    stored = pack_clip(clip, PackConfig(seconds=seconds)).sound
    assert len(stored) == min(length, 2 * round(seconds * RATE / 2))
    heard = load_waveform(clip.audio_source, SegmentConfig())
    soundfile.write(clip.audio_source, stored, RATE)
    assert torch.equal(load_waveform(clip.audio_source, SegmentConfig()), heard)


def test_a_clip_list_chooses_from_a_packed_set(packed, tmp_path):
    (tmp_path / "list.txt").write_text("test_4\ntest_1\n")
    clips = build_clips("vgg_ss", packed, clip_list=str(tmp_path / "list.txt"))
    assert clips.clip_ids == ["test_4", "test_1"]
    (tmp_path / "list.txt").write_text("test_4\nabsent\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 clips.*absent"):
        build_clips("vgg_ss", packed, clip_list=str(tmp_path / "list.txt"))


def test_the_list_and_the_boxes_named_are_what_is_packed(tiny_data, tmp_path):
    (tmp_path / "list.txt").write_text("test_4\ntest_1\n")
    boxes = [[0, 0, 0.25, 0.5], [0.5, 0.5, 1, 1]]
    entries = [{"file": i, "class": "x", "bbox": boxes[: 1 + (i == "test_4")]}
               for i in tiny_data.test_ids]  # fmt: skip
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    path = tmp_path / "clips.h5"
    chosen = ("--clip-list", tmp_path / "list.txt", "--annotations", tmp_path / "boxes.json")
    assert pack("vgg_ss", tiny_data.root, path, *chosen) == 0
    clips = build_clips("vgg_ss", path, clip_list=None).clips
    assert [clip.clip_id for clip in clips] == ["test_1", "test_4"]
    assert [clip.bounding_boxes.tolist() for clip in clips] == [boxes[:1], boxes]


def test_the_authors_files_can_be_packed(tmp_path):
    rng = np.random.default_rng(0)
    frames = np.stack([np.asarray(picture_like_a_photo(rng)) for _ in range(9)])
    write_authors_files(tmp_path / "theirs", "train", frames, real_sounds(9), "_10k")
    assert pack("flickr", tmp_path / "theirs", tmp_path / "clips.h5") == 0
    theirs = build_clips("flickr", tmp_path / "theirs", clip_list=None)
    ours = build_clips("flickr", tmp_path / "clips.h5", clip_list=None)
    assert ours.clip_ids == theirs.clip_ids
    assert not ours.ids_known
    for stored, original in zip(ours.clips, theirs.clips, strict=True):
        encoded = io.BytesIO()
        read_frame(original.frame_source).save(encoded, "JPEG", quality=95, subsampling=0)
        assert read_row(stored.frame_source).tobytes() == encoded.getvalue()
        heard = [load_waveform(clip.audio_source, SegmentConfig()) for clip in (stored, original)]
        assert (heard[0] - heard[1]).abs().max() <= 0.5 / 32768 + 1e-7


def test_a_packed_set_can_be_packed_again(packed, tmp_path):
    assert pack("vgg_ss", packed, tmp_path / "again.h5") == 0
    assert (tmp_path / "again.h5").read_bytes() == packed.read_bytes()


def test_frames_can_be_squashed(tiny_data, tmp_path):
    assert pack("vgg_ss", tiny_data.root, tmp_path / "clips.h5", "--frame-size", 48) == 0
    clip = build_clips("vgg_ss", tmp_path / "clips.h5", clip_list=None).clips[0]
    frame = read_frame(clip.frame_source)
    assert frame.size == (48, 48)
    original = read_frame(tiny_data.root / "VGGSound_test" / "frame" / "test_0.jpg")
    expected = FrameGeometry(48).apply_to_frame(original)
    assert np.abs(np.asarray(frame).astype(int) - np.asarray(expected)).mean() < 2


# -------------------------------------------------------------------------------------- size


def picture_like_a_photo(rng):
    """Shapes with soft and hard edges, shading and a little grain, 256 x 256."""
    noise = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    picture = noise.resize((256, 256), Image.Resampling.BICUBIC)
    mask = Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).resize((256, 256))
    sharp = mask.point(lambda v: 255 * (v > 150)).filter(ImageFilter.GaussianBlur(0.7))
    other = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize((256, 256))
    picture.paste(other, mask=sharp)
    grain = rng.normal(0, 3, (256, 256, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def test_it_is_at_least_five_times_smaller(training_folder, tmp_path, capsys):
    frames, sounds = training_folder
    rng = np.random.default_rng(1)
    for index in range(12):
        path = frames / f"clip_{index:02d}" / "00000003.jpg"
        picture_like_a_photo(rng).save(path, quality=95)
    write_sounds(sounds, real_sounds(2)[1])
    path = tmp_path / "clips.h5"
    assert pack("flickr", frames.parent, path) == 0
    assert AUTHORS_BYTES == 1_052_160
    ratio = 12 * AUTHORS_BYTES / path.stat().st_size
    assert ratio >= 5
    printed = capsys.readouterr().out
    assert f"12 clips, {path.stat().st_size} bytes: {ratio:.1f} x smaller" in printed
    assert f"--data-root {path}" in printed


# ---------------------------------------------------------------------------------- stopping


@pytest.fixture
def slow_folder(tmp_path):
    """300 clips of which some hundred a second can be packed."""
    frames, sounds = tmp_path / "flickr" / "frames", tmp_path / "flickr" / "audio"
    sounds.mkdir(parents=True)
    encoded, sound = io.BytesIO(), io.BytesIO()
    picture_like_a_photo(np.random.default_rng(0)).resize((600, 600)).save(encoded, "JPEG")
    soundfile.write(sound, tone(0), RATE, format="wav")
    for index in range(300):
        (frames / f"clip_{index:03d}").mkdir(parents=True)
        (frames / f"clip_{index:03d}" / "00000003.jpg").write_bytes(encoded.getvalue())
        (sounds / f"clip_{index:03d}.wav").write_bytes(sound.getvalue())
    return frames.parent


def start(folder, path, **variables):
    return subprocess.Popen(
        ["bash", ROOT / "scripts" / "pack_hdf5.sh", "flickr", folder, path, "--workers", "1"],
        env={**os.environ, "VSSL_PYTHON": sys.executable, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_commit(process, path):
    """Until some clips are safe, but not all."""
    journal = path.with_name(f"{path.name}.partial") / "journal.jsonl"
    while process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") > 1:
            return
        time.sleep(0.005)
    raise AssertionError(process.communicate())


def processes_marked(mark):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_after_kill_9_it_goes_on_and_gives_the_same_file(slow_folder, tmp_path, caplog):
    path, mark = tmp_path / "clips.h5", uuid.uuid4().hex
    process = start(slow_folder, path, VSSL_TEST_MARK=mark)
    wait_for_commit(process, path)
    process.kill()
    process.communicate()
    assert not path.exists()
    deadline = time.monotonic() + 20
    while processes_marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_marked(mark) == []  # workers do not outlive the program
    with caplog.at_level("INFO"):
        assert pack("flickr", slow_folder, path) == 0
    assert "Going on with" in caplog.text
    assert not path.with_name("clips.h5.partial").exists()
    assert pack("flickr", slow_folder, tmp_path / "at_once.h5") == 0
    assert path.read_bytes() == (tmp_path / "at_once.h5").read_bytes()


def test_sigterm_keeps_what_is_packed_and_says_so(slow_folder, tmp_path):
    path = tmp_path / "clips.h5"
    process = start(slow_folder, path)
    wait_for_commit(process, path)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Call again with the same options" in message
    assert "Traceback" not in message
    assert not path.exists()
    assert pack("flickr", slow_folder, path) == 0
    assert len(build_clips("flickr", path, clip_list=None).clips) == 300


def clip_of(index):
    return PackedClip(f"clip_{index}", b"frame" * (index + 1), np.arange(index + 1, dtype="i2"), None)


def written(path, indices=range(10)):
    settings = {"dataset": "flickr", "sample_rate": 16_000}
    with PackedWriter(path, settings) as writer:
        for index in indices:
            if f"clip_{index}" not in writer.clip_ids:
                writer.append(clip_of(index))
        writer.publish(writer.write_unchecked(lambda _: None))
    return path.read_bytes()


class _Signal(KeyboardInterrupt):
    """As a handler would raise it, anywhere."""


@pytest.mark.parametrize("call", range(14))
def test_a_signal_in_the_middle_of_a_commit_spoils_nothing(tmp_path, monkeypatch, call):
    monkeypatch.setattr(datasets.packed_writer, "CLIPS_PER_COMMIT", 2)
    expected = written(tmp_path / "whole.h5")
    path, fsync, calls = tmp_path / "clips.h5", os.fsync, []

    def stop_once(descriptor):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise _Signal
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", stop_once)
    with pytest.raises(_Signal):
        written(path)
    assert written(path) == expected


@pytest.mark.parametrize("lost", range(0, 400, 23))
def test_whatever_the_disk_had_at_the_crash(tmp_path, monkeypatch, lost):
    """The journal cut anywhere, and more of the content than it knows of."""
    monkeypatch.setattr(datasets.packed_writer, "CLIPS_PER_COMMIT", 1)
    expected = written(tmp_path / "whole.h5")
    path = tmp_path / "clips.h5"
    with PackedWriter(path, {"dataset": "flickr", "sample_rate": 16_000}) as writer:
        for index in range(6):
            writer.append(clip_of(index))
    journal = writer.folder / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[: max(0, journal.stat().st_size - lost)])
    with (writer.folder / "frames").open("ab") as file:
        file.write(b"half a fra")
    with PackedWriter(path, {"dataset": "flickr", "sample_rate": 16_000}) as writer:
        writer.append(clip_of(len(writer.clip_ids)))  # and a second crash
    assert written(path) == expected


def test_content_shorter_than_its_journal_is_refused(tmp_path):
    with PackedWriter(tmp_path / "clips.h5", {}) as writer:
        writer.append(clip_of(3))
    os.truncate(writer.folder / "sounds", 3)
    with pytest.raises(ValueError, match="shorter than its journal"):
        PackedWriter(tmp_path / "clips.h5", {})


def test_two_at_once_are_refused(tmp_path):
    with PackedWriter(tmp_path / "clips.h5", {}), pytest.raises(ValueError, match="Another process writes"):
        PackedWriter(tmp_path / "clips.h5", {})
    PackedWriter(tmp_path / "clips.h5", {})


def numbers_and_their_squares(numbers, power):
    return [number**power for number in numbers]


def test_workers_keep_the_order():
    with Workers(2) as workers:
        assert list(workers.map(numbers_and_their_squares, range(100), 2)) == [
            number**2 for number in range(100)
        ]


def die_at_the_first(numbers, _):
    if 0 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return numbers


@pytest.mark.timeout(60)
def test_the_other_workers_do_not_wait_for_one_that_died():
    with Workers(3) as workers, pytest.raises(BrokenExecutor):
        list(workers.map(die_at_the_first, range(100), None))


def die_at_once(clips, config):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_told_and_nothing_hangs(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.pack_hdf5, "pack_task", die_at_once)
    arguments = ["vgg_ss", str(tiny_data.root), str(tmp_path / "clips.h5"), "--workers", "3"]
    assert main(arguments) == 1
    assert "a worker process died" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments) == 0


# -------------------------------------------------------------------------------- several files


def test_several_files_are_one_set(tiny_data, tmp_path, capsys):
    folder = tmp_path / "packed"
    arguments = ("vgg_ss", tiny_data.root, folder / "clips.h5", "--clips-per-file", 4)
    assert pack(*arguments) == 0
    assert f"--data-root {folder}\n" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["clips_0001.h5", "clips_0002.h5"]
    clips = build_clips("vgg_ss", folder, clip_list=None)
    assert clips.clip_ids == sorted(tiny_data.test_ids)
    first = (folder / "clips_0001.h5").read_bytes()
    (folder / "clips_0002.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"of 2 parts, \[2\] are missing"):
        build_clips("vgg_ss", folder, clip_list=None)
    before = (folder / "clips_0001.h5").stat().st_mtime_ns
    assert pack(*arguments) == 0  # goes on with the part that is missing
    assert (folder / "clips_0001.h5").stat().st_mtime_ns == before
    assert build_clips("vgg_ss", folder, clip_list=None).clip_ids == sorted(tiny_data.test_ids)
    assert pack(*arguments) == 2
    assert "there already" in capsys.readouterr().err
    assert pack(*arguments, "--seconds", 0.5) == 2
    assert "other settings" in capsys.readouterr().err
    assert (folder / "clips_0001.h5").read_bytes() == first
    shutil.copy(folder / "clips_0001.h5", folder / "clips_copy.h5")
    with pytest.raises(ValueError, match="both hold the clip test_0"):
        build_clips("vgg_ss", folder, clip_list=None)


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("vgg_ss {data} {out}/clips.txt", "ends in .h5"),
        ("vgg_ss {data} {out}/other.h5 --clips-per-file 2", "call it clips.h5"),
        ("vgg_ss {data}/nowhere {out}/clips.h5", "does not exist"),
        ("vgg_ss {data} {out}/clips.h5 --sample-rate 8", "--sample-rate"),
        ("vgg_ss {data} {out}/clips.h5 --seconds 0", "--seconds"),
        ("vgg_ss {data} {out}/clips.h5 --seconds nan", "--seconds"),
        ("vgg_ss {data} {out}/clips.h5 --frame-size 0", "--frame-size"),
        ("vgg_ss {data} {out}/clips.h5 --clip-list nowhere", "nowhere"),
        ("vgg_ss {data} {data}/VGGSound_test/frame/test_0.jpg/clips.h5", ""),
    ],
)
def test_bad_input_is_refused_in_words(tiny_data, tmp_path, capsys, arguments, words):
    given = arguments.format(data=tiny_data.root, out=tmp_path / "out").split()
    assert pack(*given) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--workers 0", "--clips-per-file x", "--seconds x"])
def test_bad_options_are_refused(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["vgg_ss", "a", "b.h5", *option.split()])
    assert stop.value.code == 2
    assert option.split()[0] in capsys.readouterr().err


def test_an_existing_file_stays_as_it_is(packed, tiny_data, capsys):
    before = packed.read_bytes()
    assert pack("vgg_ss", tiny_data.root, packed) == 2
    assert "there already" in capsys.readouterr().err
    assert packed.read_bytes() == before


def test_partial_files_of_other_settings_are_refused(tiny_data, tmp_path, capsys):
    path = tmp_path / "clips.h5"
    frame = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(whole[: len(whole) // 2])  # the header is whole
    assert pack("vgg_ss", tiny_data.root, path) == 2
    message = capsys.readouterr().err
    assert "test_3.jpg cannot be read" in message
    assert "--allow-missing" in message
    assert pack("vgg_ss", tiny_data.root, path, "--seconds", 0.5) == 2
    assert "seconds: None then, 0.5 now" in capsys.readouterr().err
    frame.write_bytes(whole)
    assert pack("vgg_ss", tiny_data.root, path) == 0
    assert len(build_clips("vgg_ss", path, clip_list=None).clips) == 6


def test_what_cannot_be_decoded_is_left_out_when_allowed(tiny_data, tmp_path, caplog):
    path = tmp_path / "clips.h5"
    frame = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    frame.write_bytes(frame.read_bytes()[:1500])
    assert pack("vgg_ss", tiny_data.root, path, "--allow-missing") == 0
    assert "test_3 is left out" in caplog.text
    assert "test_3" not in build_clips("vgg_ss", path, clip_list=None).clip_ids


# ---------------------------------------------------------------------------------------- damage


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("key", [FRAMES, SOUNDS])
def test_one_wrong_bit_is_a_broken_clip(packed, key):
    with h5py.File(packed) as file:
        start = file[key].id.get_offset()
        row_start, row_end = file[f"{key}_offsets"][2:4]
        size = file[key].dtype.itemsize
    flip(packed, start + size * (row_start + row_end) // 2)
    clips = build_clips("vgg_ss", packed, clip_list=None).clips
    loaded = AudioVisualClips(clips, geometry=FrameGeometry(32), audio=AudioConfig())
    broken = [isinstance(loaded[ClipRequest(row, 0)], BrokenClip) for row in range(6)]
    assert broken == [row == 2 for row in range(6)]
    assert "checksum" in loaded[ClipRequest(2, 0)].reason
    assert f"row 2 of {key}" in loaded[ClipRequest(2, 0)].reason


@pytest.mark.parametrize(
    "name", ["clip_ids", "frames_offsets", "sounds_offsets", "sounds_crc32", "bounding_boxes"]
)
def test_a_wrong_bit_in_the_tables_is_found_before_the_start(packed, name):
    with h5py.File(packed) as file:
        start = file[name].id.get_offset()
    flip(packed, start + 1)
    with pytest.raises(BrokenFileError, match=r"clips\.h5 cannot be read: .* damaged"):
        build_clips("vgg_ss", packed, clip_list=None)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_file_cut_off_is_found_before_the_start(packed, share):
    os.truncate(packed, int(share * packed.stat().st_size))
    with pytest.raises(BrokenFileError, match="not a whole HDF5 file"):
        build_clips("vgg_ss", packed, clip_list=None)


def test_foreign_and_wrong_files_are_named(packed, tmp_path):
    with pytest.raises(ValueError, match=r"holds clips of vgg_ss, expected stamps"):
        build_clips("stamps", packed, clip_list=None)
    with h5py.File(tmp_path / "clips.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(BrokenFileError, match=r"format is None, expected 'vssl-clips-1'"):
        build_clips("vgg_ss", tmp_path / "clips.h5", clip_list=None)


def test_a_row_that_is_not_there_is_named(packed):
    for row in (HDF5Row(packed, FRAMES, 99), HDF5Row(packed, "pictures", 0)):
        with pytest.raises(BrokenFileError, match=f"row {row.row} of {row.key}"):
            read_frame(row)
