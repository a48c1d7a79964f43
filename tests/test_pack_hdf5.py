"""The packer: nothing is lost on the way, and what is damaged is found."""

import io
import json
import os
import shutil

import h5py
import numpy as np
import pytest
import soundfile
import torch
from benchmark_inputs import make_vpo_download
from command_line import scoring
from conftest import RATE, draw_frame
from hdf5_inputs import real_sounds, write_authors_files
from peer_inputs import SHAPES, filled, official_file

from datasets.audio import AudioConfig, SegmentConfig, load_waveform
from datasets.benchmarks import build_clips
from datasets.frames import read_frame
from datasets.hdf5 import FRAMES, HDF5Row, close_files, read_row
from scripts.pack_hdf5 import main
from utils.files import BrokenFileError


def pack(*arguments):
    return main([*map(str, arguments), "--workers", "0"])


@pytest.fixture
def packed(tiny_data, tmp_path):
    """VGG-SS test clips, packed."""
    path = tmp_path / "packed" / "clips.h5"
    assert pack("vgg_ss", tiny_data.root, path) == 0
    return path


# ------------------------------------------------------------------------------- nothing is lost


def test_a_packed_benchmark_needs_nothing_else(packed, tiny_data):
    folders = build_clips("vgg_ss", tiny_data.root, clip_list=None)
    frames = {clip.clip_id: clip.frame_source.read_bytes() for clip in folders.clips}
    shutil.rmtree(tiny_data.root)
    for data_root in (packed, packed.parent):
        clip_set = build_clips("vgg_ss", data_root, clip_list=None)
        assert clip_set.clip_ids == folders.clip_ids
        assert clip_set.list_sha256 == folders.list_sha256
        assert clip_set.ids_known
        for stored, original in zip(clip_set.clips, folders.clips, strict=True):
            assert np.array_equal(stored.bounding_boxes, original.bounding_boxes)
            assert stored.annotators_needed == original.annotators_needed
            assert read_row(stored.frame_source).tobytes() == frames[stored.clip_id]


def test_the_full_range_of_16_bits_comes_back(tiny_data, tmp_path):
    folder = tiny_data.root / "VGGSound_test" / "audio"
    samples = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(folder / "test_0.wav", [1.5, -1.5, 0.25] * 400, RATE, subtype="FLOAT")
    soundfile.write(folder / "test_1.wav", samples, RATE)
    assert pack("vgg_ss", tiny_data.root, tmp_path / "clips.h5") == 0
    loud, clip = build_clips("vgg_ss", tmp_path / "clips.h5", clip_list=None).clips[:2]
    assert read_row(loud.audio_source)[:3].tolist() == [32767, -32768, 8192]  # cut, not wrapped
    window = AudioConfig(window_seconds=65_536 / RATE)
    original = load_waveform(folder / "test_1.wav", window)
    assert torch.equal(load_waveform(clip.audio_source, window), original)


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
    frames = np.stack([np.asarray(draw_frame(index, rng)[0]) for index in range(4)])
    write_authors_files(tmp_path / "theirs", "train", frames, real_sounds(4), "_10k", spects=False)
    assert pack("flickr", tmp_path / "theirs", tmp_path / "clips.h5") == 0
    theirs = build_clips("flickr", tmp_path / "theirs", clip_list=None)
    ours = build_clips("flickr", tmp_path / "clips.h5", clip_list=None)
    assert ours.clip_ids == theirs.clip_ids
    assert not ours.ids_known and ours.source_ids is None
    for stored, original in zip(ours.clips, theirs.clips, strict=True):
        encoded = io.BytesIO()
        read_frame(original.frame_source).save(encoded, "JPEG", quality=95, subsampling=0)
        assert read_row(stored.frame_source).tobytes() == encoded.getvalue()
        heard = [load_waveform(clip.audio_source, SegmentConfig()) for clip in (stored, original)]
        assert (heard[0] - heard[1]).abs().max() <= 0.5 / 32768 + 1e-7


# ------------------------------------------------------------------------- refusals and damage


def test_clips_that_share_a_sound_are_not_packed(tmp_path, caplog):
    make_vpo_download(tmp_path / "vpo", "vpo_ss")
    assert pack("vpo_ss", tmp_path / "vpo", tmp_path / "clips.h5") == 2
    assert "some clips share a sound" in caplog.text and not (tmp_path / "clips.h5").exists()


def test_sounds_of_which_the_mean_is_packed_are_none_for_ssl_align(
    tiny_data, tmp_path, testing_program, caplog
):
    torch.save(official_file("ssl_align", filled(SHAPES["ssl_align"])), tmp_path / "ssl_align.pth")
    assert pack("vgg_ss", tiny_data.root, tmp_path / "clips.h5") == 0
    given = scoring(
        tiny_data, tmp_path / "ssl_align.pth", tmp_path / "out", "--data-root", tmp_path / "clips.h5"
    )
    assert testing_program.main(given) == 2
    assert "SSL-Align hears the left channel" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("vgg_ss {data}/nowhere {out}/clips.h5", "does not exist"),
        ("vgg_ss {data} {out}/clips.h5 --sample-rate 8000", "packed at 16 kHz"),
        ("vgg_ss {data} {out}/clips.h5 --clip-list nowhere", "nowhere"),
        ("vgg_ss {data} {data}/VGGSound_test/frame/test_0.jpg/clips.h5", "File exists"),
    ],
)
def test_bad_input_is_refused_in_words(tiny_data, tmp_path, caplog, arguments, words):
    given = arguments.format(data=tiny_data.root, out=tmp_path / "out").split()
    assert pack(*given) == 2
    assert words in caplog.text and "Traceback" not in caplog.text
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_decoded_is_named_and_left_out_when_allowed(tiny_data, tmp_path, caplog):
    path = tmp_path / "clips.h5"
    frame = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    frame.write_bytes(frame.read_bytes()[:1500])  # the header is whole
    assert main(["vgg_ss", str(tiny_data.root), str(path), "--workers", "2"]) == 2
    assert "test_3.jpg cannot be read" in caplog.text and "--allow-missing" in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    assert pack("vgg_ss", tiny_data.root, path, "--allow-missing") == 0
    assert "test_3 is left out" in caplog.text
    clip_ids = build_clips("vgg_ss", path, clip_list=None).clip_ids
    assert clip_ids == [i for i in tiny_data.test_ids if i != "test_3"]
    before = path.read_bytes()
    assert pack("vgg_ss", tiny_data.root, path) == 2
    assert "there already" in caplog.text and path.read_bytes() == before


def test_other_files_are_named(packed):
    with pytest.raises(ValueError, match=r"holds clips of vgg_ss, expected stamps"):
        build_clips("stamps", packed, clip_list=None)
    for row in (HDF5Row(packed, FRAMES, 99), HDF5Row(packed, "pictures", 0)):
        with pytest.raises(BrokenFileError, match=f"row {row.row} of {row.key}"):
            read_frame(row)
    close_files()
    with h5py.File(packed, "r+") as file:
        file.attrs["format"] = "vssl-clips-1"
    with pytest.raises(BrokenFileError, match=r"expected 'vssl-clips-2'; pack it again"):
        build_clips("vgg_ss", packed, clip_list=None)
    for share in (0.5, 0):
        os.truncate(packed, int(share * packed.stat().st_size))
        with pytest.raises(BrokenFileError, match="not a whole HDF5 file"):
            build_clips("vgg_ss", packed, clip_list=None)
