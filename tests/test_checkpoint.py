"""Checkpoints: what is written comes back, broken and hostile files do not."""

import argparse
import io
import os
import pickle
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten

from utils.checkpoint import (
    FORMAT,
    Checkpoint,
    find_non_finite,
    parse_checkpoint,
    read_checkpoint_file,
    save_checkpoint,
)


def make_checkpoint(**changes):
    values = {
        "method": "ssl_tie",
        "method_config": {"sharpness": 0.03, "tri_map": True},
        "audio_config": {"sample_rate": 16_000},
        "frame_config": {"frame_size": 224},
        "state_dict": {"weight": torch.rand(4, 5), "num_batches_tracked": torch.tensor(2)},
        "training_clips": ["clip_1", "clip_2"],
        "training_list": {"name": "my list", "sha256": "ab" * 32},
        "epoch": 7,
        "step": 3,
        "selection": {"kind": "best", "clips": ["clip_9"]},
        "options": {"output": "runs/é", "workers": 0, "resume": None},
        "optimizer": {
            "state": {0: {"step": torch.tensor(2.0), "exp_avg": torch.rand(4, 5).bfloat16()}},
            "param_groups": [{"lr": 1e-2, "betas": (0.9, 0.999), "fused": True, "params": [0]}],
        },
        "progress": {"best_score": 31.5, "history": [{"epoch": 1, "loss": 2.5}]},
    }
    return Checkpoint(**(values | changes))


def read(path):
    return parse_checkpoint(read_checkpoint_file(path), path)


def assert_same(found, expected):
    """Equal in type, structure and every bit."""
    found, structure = tree_flatten(found)
    expected, expected_structure = tree_flatten(expected)
    assert structure == expected_structure
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        else:
            assert one == other


# ------------------------------------------------------------------------------ writing, reading


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "new" / "folder" / "last.pth"
    checkpoint = make_checkpoint()
    save_checkpoint(path, checkpoint)
    assert_same(asdict(read(path)), asdict(checkpoint))
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]


@pytest.mark.parametrize(("owner", "name"), [(torch, "save"), (os, "fsync"), (Path, "replace")])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, owner, name):
    path = tmp_path / "last.pth"
    save_checkpoint(path, make_checkpoint(epoch=1))
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, make_checkpoint(epoch=2))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"]
    save_checkpoint(path, make_checkpoint(epoch=2))
    assert read(path).epoch == 2


# ---------------------------------------------------------------------------------- broken files


def test_missing_file_says_which_there_are(tmp_path):
    for name in ("b.pth", "a.pth.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    words = rf"No checkpoint at {tmp_path}/c\.pth\. In .*/ there are: a\.pth\.tar, b\.pth\. See ckpts/README"
    with pytest.raises(FileNotFoundError, match=words):
        read_checkpoint_file(tmp_path / "c.pth")


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def read_bytes(folder, content):
    path = folder / "some.pth"
    path.write_bytes(content)
    return read(path)


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, form):
    marker = tmp_path / "was_here"
    content = {"format": FORMAT, "state_dict": {}, "best_miou": Hostile(marker)}
    if form == "pickle":
        hostile = pickle.dumps(content, protocol=2)
    else:
        hostile = saved(content, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"some\.pth cannot be loaded as weights"):
        read_bytes(tmp_path, hostile)
    assert not marker.exists()
    # The same bytes do run code where nobody forbids it.
    if form == "pickle":
        pickle.loads(hostile)
    else:
        torch.load(io.BytesIO(hostile), weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncated_file_and_what_is_no_file_of_weights_is_a_value_error(tmp_path, zipped):
    content = saved(asdict(make_checkpoint()), _use_new_zipfile_serialization=zipped)
    foreign = [b"<!DOCTYPE html><html>Quota exceeded</html>", b"word\n", b"\xff\xd8", b"PK\x03\x04", b"\x80"]
    cut = [content[:length] for length in range(0, len(content), 29 if zipped else 13)]
    for damaged in (*foreign, *cut):
        words = r"some\.pth cannot be loaded as weights.*ckpts/README\.md"
        with pytest.raises(ValueError, match=words) as caught:
            read_bytes(tmp_path, damaged)
        assert "weights_only" not in str(caught.value)  # torch recommends to switch the protection off


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a checkpoint"),
        (torch.zeros(3), "holds a Tensor, not a checkpoint"),
        ({"args": argparse.Namespace(lr=1)}, r"it holds argparse\.Namespace, which could"),
        ({"state_dict": {}, 0: 3}, "format None.*It holds: state_dict, 0"),
        ({"format": FORMAT, 0: 1, "a": 2}, r"lacks \['audio_config', .*ing_list'\].*unknown \['0', 'a'\]"),
        *(
            ({"format": FORMAT, **asdict(make_checkpoint()), name: one}, f"entry '{name}' is not a {kind}")
            for name, one, kind in (
                ("method", ["ssl_tie"], "str, but"),
                ("audio_config", None, "dict, but 'None'"),
                ("state_dict", [1], r"dict, but '\[1\]'"),
                ("training_clips", "clip_1", "list"),
                ("optimizer", [1], "dict"),
            )
        ),
    ],
)
def test_other_content_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=r"some\.pth.*" + message) as caught:
        read_bytes(tmp_path, saved(content))
    assert "\n" not in str(caught.value)


def test_numbers_that_are_not_finite_are_found():
    state = {
        "good": torch.ones(3),
        "nan": torch.tensor([1.0, float("nan")]),
        "half": torch.tensor([float("-inf")], dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "none": torch.zeros(0),
    }
    assert find_non_finite(state) == ["nan", "half"]


# -------------------------------------------------------------------------------- released files


def saved_by_numpy_1(content):
    """A file of torch's old form with the name that NumPy 1 gave its scalars; torch writes NumPy 2's here."""
    old, new = b"cnumpy.core.multiarray\nscalar\n", b"cnumpy._core.multiarray\nscalar\n"
    written = saved(content, _use_new_zipfile_serialization=False)
    assert written.count(new) == 1
    return written.replace(new, old)


@pytest.mark.parametrize("save", [saved, saved_by_numpy_1])
def test_scores_as_numpy_values_are_read(tmp_path, save):
    path = tmp_path / "released.pth.tar"
    path.write_bytes(save({"best_miou": np.float64(0.37), "state_dict": OrderedDict(w=torch.ones(2))}))
    found = read_checkpoint_file(path)
    assert found["best_miou"] == 0.37
    assert torch.equal(found["state_dict"]["w"], torch.ones(2))
    values = [np.float32(0.5), np.int64(3), np.bool_(True), np.arange(3.0), np.str_("adam"), np.complex64(1j)]
    path.write_bytes(saved({"scores": values}))
    for value, expected in zip(read_checkpoint_file(path)["scores"], values, strict=True):
        np.testing.assert_array_equal(value, expected)
