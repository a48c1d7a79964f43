"""The SSPL authors' HDF5 files: found, refused in words, and heard and seen as they were."""

import json
import shutil

import h5py
import numpy as np
import pytest
import soundfile
import torch
from command_line import training, validation
from conftest import vgg_ss_xml
from hdf5_inputs import level, real_sounds, write_authors_files

import main
from datasets.audio import AudioConfig, SegmentConfig, VGGishLogMel, level_waveform, load_waveform
from datasets.benchmarks import build_clips
from datasets.clips import AudioVisualClips, BrokenClip
from datasets.frames import FrameGeometry, read_frame
from datasets.hdf5 import close_files, undo_levelling
from datasets.loaders import ClipLoader
from utils.files import BrokenFileError


def pictures(count, seed=0, side=24):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture
def training_files(tmp_path):
    """A folder of five clips, and what was put into it."""
    folder = tmp_path / "10k_unlabeled"
    return folder, write_authors_files(folder, "train", pictures(5), real_sounds(5), "_10k")


# ------------------------------------------------------------------------------------- levelling


def test_levelling_is_undone_up_to_a_constant():
    for sound in real_sounds(12, seed=1):
        restored = undo_levelling(level(sound))
        original = sound - sound.astype(np.float64).mean()
        # 1 - max y is about 2e-3 / R, of which float32 keeps about 4 digits for loud sounds.
        np.testing.assert_allclose(restored, original, atol=1e-4 * max(np.ptp(sound), 1e-6))
        again = level_waveform(torch.from_numpy(restored)[None])
        torch.testing.assert_close(again, torch.from_numpy(level(sound))[None], atol=1e-5, rtol=0)


def test_the_stored_spectrograms_are_never_needed(training_files):
    folder, stored = training_files
    clips = build_clips("flickr", folder, clip_list=None).clips
    window = SegmentConfig()
    waveforms = torch.stack([load_waveform(clip.audio_source, window) for clip in clips])
    log_mel = VGGishLogMel()(level_waveform(waveforms))
    expected = torch.from_numpy(stored["spects"])[:, :, None]
    # Levelling the same sounds in float32 instead of float64 differs by 3e-4 as well: the logarithm
    # begins at 0.01 and makes a hundred times as much of the rounding.
    torch.testing.assert_close(log_mel, expected, atol=5e-4, rtol=0)
    assert (log_mel - expected).abs().mean() < 1e-5


@pytest.mark.usefixtures("narrow")
def test_a_run_on_rows_without_ids_says_so_and_is_resumed_on_as_many_alone(tiny_data, tmp_path, caplog):
    given = training(tiny_data, tmp_path / "run", "--train-set", "flickr", *validation(tiny_data))
    for count, words, status in ((5, "--epochs 1", 0), (8, "--epochs 2 --resume", 2)):
        folder = tmp_path / f"{count}_rows"
        write_authors_files(folder, "train", pictures(count, side=64), real_sounds(count), "_10k")
        assert main.main([*given, "--data-root", str(folder), *words.split()]) == status
    assert "Unknown whether validation clips are trained on" in caplog.text
    assert "was trained with other settings: the training clips" in caplog.text


@pytest.mark.parametrize("samples", [[-1, 0, 1], [-0.5, 0, 0.5], [-1, np.nan, 0.5], []])
def test_what_the_formula_cannot_give_is_refused(samples):
    with pytest.raises(ValueError, match="expected samples from -1 to just under 1, got"):
        undo_levelling(np.array(samples, np.float32))


# ------------------------------------------------------------------------------- frames and sounds


@pytest.mark.parametrize("value", [-1, 256, 0.5, np.nan])
def test_numbers_that_are_no_pixels(training_files, value):
    folder, _ = training_files
    with h5py.File(folder / "h5py_train_frames_10k.h5", "r+") as file:
        file["train_frames"][3, 1, 1, 1] = value
    clips = build_clips("flickr", folder, clip_list=None).clips
    with pytest.raises(BrokenFileError, match=r"row 3 of train_frames cannot.*0 to 255"):
        read_frame(clips[3].frame_source)
    read_frame(clips[2].frame_source)


WINDOWS = [(AudioConfig(window_seconds=1.0), None), (AudioConfig(), 1.3), (SegmentConfig(), None)]


@pytest.mark.parametrize(("window", "excerpt_seconds"), WINDOWS)
def test_a_stored_sound_is_heard_like_a_file(training_files, tmp_path, window, excerpt_seconds):
    folder, stored = training_files
    clip = build_clips("flickr", folder, clip_list=None).clips[1]
    path = tmp_path / "same.wav"
    soundfile.write(path, undo_levelling(stored["audios"][1]), 16_000, subtype="FLOAT")
    heard = load_waveform(clip.audio_source, window, excerpt_seconds=excerpt_seconds)
    expected = load_waveform(path, window, excerpt_seconds=excerpt_seconds)
    assert torch.equal(heard, expected)


# -------------------------------------------------------------------------------- which files, rows


def test_shards_are_joined_in_the_order_of_their_numbers(tmp_path):
    frames, sounds = pictures(22, side=2), real_sounds(22, num_samples=50)
    for number in range(1, 12):  # as words, _10 and _11 come before _2
        part = slice(2 * number - 2, 2 * number)
        write_authors_files(tmp_path, "train", frames[part], sounds[part], f"_144k_{number}", spects=False)
    clips = build_clips("vggsound", tmp_path, clip_list=None).clips
    assert [clip.clip_id for clip in clips] == [f"row_{row:06d}" for row in range(22)]
    for row, clip in enumerate(clips):
        assert np.array_equal(np.asarray(read_frame(clip.frame_source)), frames[row])
        heard = load_waveform(clip.audio_source, AudioConfig(window_seconds=50 / 16_000, fft_size=8))
        assert torch.equal(heard, torch.from_numpy(undo_levelling(level(sounds[row]))))


def test_a_list_of_as_many_lines_names_the_rows(training_files, tmp_path):
    folder, stored = training_files
    path = tmp_path / "mine.csv"
    path.write_text("".join(f"{name},{n}\n" for n, name in enumerate("edcba")))
    clip_set = build_clips("flickr", folder, clip_list=str(path))
    assert clip_set.ids_known
    assert clip_set.clip_ids == list("edcba")
    frame = read_frame(clip_set.clips[4].frame_source)
    assert np.array_equal(np.asarray(frame), stored["frames"][4])
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"names 2 clips.* 5 rows"):
        build_clips("flickr", folder, clip_list=str(path))


def test_sspl_s_vgg_ss_tree(tmp_path, tiny_data):
    """The README's tree: list, boxes, and the test files two folders deeper."""
    root = tmp_path / "sspl" / "VGG-Sound"
    write_authors_files(
        root / "5k_labeled" / "Data", "test", pictures(6), real_sounds(6, num_samples=16_000),
        spects=False,
    )  # fmt: skip
    ids = sorted(tiny_data.test_ids, reverse=True)
    (root / "vggss_test_4692.csv").write_text("".join(f"{clip_id}\n" for clip_id in ids))
    entries = [{"file": i, "class": "x", "bbox": [tiny_data.boxes[i]]} for i in ids]
    (root / "5k_labeled" / "Annotations").mkdir()
    boxes = root / "5k_labeled" / "Annotations" / "vggss_test_5158.json"
    boxes.write_text(json.dumps(entries))
    clip_list = str(root / "vggss_test_4692.csv")
    for data_root in (root, root.parent):
        clip_set = build_clips("vgg_ss", data_root, clip_list=clip_list)
        assert clip_set.clip_ids == ids
        for row, clip in enumerate(clip_set.clips):
            assert clip.frame_source.row == clip.audio_source.row == row
            np.testing.assert_allclose(clip.bounding_boxes, [tiny_data.boxes[clip.clip_id]])
    for annotations in (boxes, None):
        with pytest.raises(ValueError, match=r"no clip ids.*--clip-list.*sspl_vgg_ss_4692"):
            build_clips("vgg_ss", root, clip_list=None, annotations=annotations)
    moved = boxes.rename(root.parent / "elsewhere.json")
    with pytest.raises(FileNotFoundError, match="--annotations"):
        build_clips("vgg_ss", root, clip_list=clip_list)
    named = build_clips("vgg_ss", root, clip_list=clip_list, annotations=moved)
    np.testing.assert_allclose(named.clips[0].bounding_boxes, [tiny_data.boxes[ids[0]]])
    (root / "anno").mkdir()  # boxes in XML beside the HDF5 files
    for clip_id in ids:
        (root / "anno" / f"{clip_id}.xml").write_text(vgg_ss_xml(clip_id, (0, 0, 0.5, 1)))
    clips = build_clips("vgg_ss", root, clip_list=clip_list).clips
    np.testing.assert_allclose(clips[0].bounding_boxes, [(0, 0, 0.5, 1)])


def test_folders_and_hdf5_together_are_refused(training_files, tmp_path):
    folder, _ = training_files
    for name in ("frames", "wav"):
        (folder / name).mkdir()
    with pytest.raises(ValueError, match=r"several ways.*frames/.*h5py_train_") as refusal:
        build_clips("flickr", folder, clip_list=None)
    assert "Expected one" in str(refusal.value)
    shutil.rmtree(folder / "frames")
    (folder / "clips.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several ways.*clips\.h5.*h5py_train_"):
        build_clips("flickr", folder, clip_list=None)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("audios", lambda array: array[:3], "frames_10k.h5 5 and .*audios_10k.h5 3"),
        ("frames", lambda array: array.transpose(0, 3, 1, 2), "expected .N, 256, 256, 3"),
        ("frames", lambda array: array.astype(np.int64), "int64, expected"),
        ("audios", lambda array: array.astype(np.float64), "float64, expected"),
        ("audios", lambda array: array[..., None], "expected .N, 48000"),
        ("frames", None, "no data set 'train_frames', it has: pictures"),
        ("audios", "cut", "audios_10k.h5 cannot be read: not a whole HDF5 file"),
    ],
)
def test_arrays_of_another_form_are_refused(training_files, kind, change, words):
    path, key = training_files[0] / f"h5py_train_{kind}_10k.h5", f"train_{kind}"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:100_000])
    else:
        with h5py.File(path, "r+") as file:
            array = file[key][()]
            del file[key]
            file[key if change else "pictures"] = change(array) if change else array
    with pytest.raises(ValueError, match=words):
        build_clips("flickr", training_files[0], clip_list=None)


@pytest.mark.parametrize(
    "names",
    [
        ["frames_10k"],
        ["audios_10k"],
        ["spects_10k"],
        ["frames_10k", "audios_10k", "frames_144k_1", "audios_144k_1"],
        ["frames_144k_1", "audios_144k_1", "frames_144k_3", "audios_144k_3"],
    ],
)
def test_files_that_are_not_one_set_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / f"h5py_train_{name}.h5").touch()
    with pytest.raises(ValueError, match=rf"must hold one set.*It holds h5py_train_{min(names)}\.h5"):
        build_clips("flickr", tmp_path, clip_list=None)


# ---------------------------------------------------------------------------------- open files


def as_clips(clip_set):
    return AudioVisualClips(clip_set.clips, geometry=FrameGeometry(32), audio=AudioConfig(window_seconds=1.0))


def test_damage_found_while_training_is_named_and_never_replaced(training_files):
    folder, _ = training_files
    clips = as_clips(build_clips("flickr", folder, clip_list=None))
    path = folder / "h5py_train_audios_10k.h5"
    close_files()
    with h5py.File(path, "r+") as file:
        file["train_audios"][1, 7] = 3
    broken = clips[1]
    assert isinstance(broken, BrokenClip)
    assert "row 1 of train_audios" in broken.reason
    assert not isinstance(clips[2], BrokenClip)
    (folder / "h5py_train_frames_10k.h5").unlink()
    close_files()
    assert isinstance(clips[2], BrokenClip)


def test_workers_read_what_this_process_reads(training_files):
    clips = as_clips(build_clips("flickr", training_files[0], clip_list=None))
    expected = [clips[i] for i in range(5)]  # the files are open now
    loader = ClipLoader(clips, batch_size=2, workers=2)
    frames = torch.cat([batch.frames for batch in loader])
    assert torch.equal(frames, torch.stack([sample.frame for sample in expected]))
