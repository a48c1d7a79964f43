"""Checkpoints: what is written comes back, broken and hostile files do not, released ones do."""

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_inputs import official_state_dict

from models.localiser import load_localiser
from models.released import UNUSED
from models.ssl_tie import SSLTIE, SSLTIEConfig
from utils.checkpoint import (
    FORMAT,
    Checkpoint,
    find_non_finite,
    parse_checkpoint,
    read_checkpoint_file,
    save_checkpoint,
)
from utils.files import file_sha256

ROOT = Path(__file__).parents[1]


def build_trained():
    """A small network after two steps of Adam."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=1e-4)
    for _ in range(2):
        take_step(network, optimizer)
    return network, optimizer


def take_step(network, optimizer):
    optimizer.zero_grad()
    network(torch.arange(15.0).reshape(3, 5).sin()).square().sum().backward()
    optimizer.step()


def make_checkpoint(**changes):
    network, optimizer = build_trained()
    values = {
        "method": "ssl_tie",
        "method_config": {"sharpness": 0.03, "tri_map": True},
        "audio_config": {"sample_rate": 16_000},
        "frame_config": {"frame_size": 224},
        "state_dict": network.state_dict(),
        "training_clips": ["clip_1", "clip_2"],
        "training_list": {"name": "my list", "sha256": "ab" * 32},
        "epoch": 7,
        "step": 3,
        "selection": {"kind": "best", "clips": ["clip_9"]},
        "options": {"output": "runs/é", "workers": 0, "resume": None},
        "optimizer": optimizer.state_dict(),
        "progress": {"best_score": 31.5, "history": [{"epoch": 1, "loss": 2.5}]},
    }
    return Checkpoint(**(values | changes))


def read_back(path):
    return parse_checkpoint(read_checkpoint_file(path), path)


def assert_same(found, expected):
    """Equal in type, structure and every bit."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected) and found == expected


# ------------------------------------------------------------------------------ writing, reading


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "new" / "folder" / "last.pth"
    checkpoint = make_checkpoint()
    save_checkpoint(path, checkpoint)
    assert_same(asdict(read_back(path)), asdict(checkpoint))
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]


def test_adam_goes_on_as_if_it_had_not_stopped(tmp_path):
    path = tmp_path / "last.pth"
    network, optimizer = build_trained()
    save_checkpoint(path, make_checkpoint())
    found = read_back(path)
    resumed = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    resumed_optimizer = torch.optim.Adam(resumed.parameters())
    resumed.load_state_dict(found.state_dict)
    resumed_optimizer.load_state_dict(found.optimizer)
    take_step(network, optimizer)
    take_step(resumed, resumed_optimizer)
    assert_same(resumed.state_dict(), network.state_dict())
    assert_same(resumed_optimizer.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("moment", ["torch.save", "fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "last.pth"
    save_checkpoint(path, make_checkpoint(epoch=1))
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    target, name = {"torch.save": (torch, "save"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[
        moment
    ]
    monkeypatch.setattr(target, name, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, make_checkpoint(epoch=2))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"]
    save_checkpoint(path, make_checkpoint(epoch=2))
    assert read_back(path).epoch == 2


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_sha256(path).startswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9c")


# ---------------------------------------------------------------------------------- broken files


def test_missing_file_says_which_there_are(tmp_path):
    for name in ("b.pth", "a.pth.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        read_checkpoint_file(tmp_path / "c.pth")
    message = str(caught.value)
    assert f"No checkpoint at {tmp_path}/c.pth." in message
    assert f"In {tmp_path}/ there are: a.pth.tar, b.pth." in message
    assert "ckpts/README.md" in message and "scripts/train_" in message


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def read_bytes(folder, content):
    path = folder / "some.pth"
    path.write_bytes(content)
    return parse_checkpoint(read_checkpoint_file(path), path)


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
    given = {
        "zip": lambda: saved(content),
        "legacy": lambda: saved(content, _use_new_zipfile_serialization=False),
        "pickle": lambda: pickle.dumps(content, protocol=2),
    }[form]()
    with pytest.raises(ValueError, match=r"some\.pth cannot be loaded as weights"):
        read_bytes(tmp_path, given)
    assert not marker.exists()
    # The same bytes do run code where nobody forbids it.
    if form == "pickle":
        pickle.loads(given)
    else:
        torch.load(io.BytesIO(given), weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><html>Quota exceeded</html>",
        b"word\n",
        b'{"a": 1}',
        b"\xff\xd8",
        b"PK\x03\x04",
        b"\x80",
    ],
)
def test_files_that_are_no_weights(tmp_path, content):
    with pytest.raises(
        ValueError, match=r"some\.pth cannot be loaded as weights.*ckpts/README\.md"
    ) as caught:
        read_bytes(tmp_path, content)
    assert "weights_only" not in str(caught.value)  # torch recommends to switch the protection off


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncated_file_is_a_value_error(tmp_path, zipped):
    content = saved(asdict(make_checkpoint()), _use_new_zipfile_serialization=zipped)
    others = []
    for length in range(0, len(content), 29 if zipped else 13):
        try:
            read_bytes(tmp_path, content[:length])
        except ValueError:
            continue
        except Exception as error:  # noqa: BLE001 - what comes out is what is tested
            others.append(f"{length} bytes: {error!r}")
        else:
            others.append(f"{length} bytes: loaded")
    assert not others


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a checkpoint"),
        (torch.zeros(3), "holds a Tensor, not a checkpoint"),
        ({"state_dict": {}, "epoch": 3}, "format None.*It holds: state_dict, epoch"),
        ({"format": "other-1"}, f"format 'other-1', expected '{FORMAT}'"),
        ({0: 1, "a": 2}, "It holds: 0, a"),
        ({"format": FORMAT}, r"lacks \['audio_config', .*'training_list'\]"),
        ({"format": FORMAT, 0: 1, "a": 2}, r"lacks .*holds unknown \['0', 'a'\]"),
    ],
)
def test_wrong_format(tmp_path, content, message):
    with pytest.raises(ValueError, match=r"some\.pth .*" + message):
        read_bytes(tmp_path, saved(content))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("method", ["ssl_tie"]),
        ("method_config", [1]),
        ("audio_config", None),
        ("state_dict", [1]),
        ("training_clips", "clip_1"),
        ("training_list", "mine"),
        ("epoch", "7"),
        ("selection", ["best"]),
        ("options", None),
        ("optimizer", [1]),
        ("progress", 3),
    ],
)
def test_entries_of_another_type_are_named(tmp_path, entry, value):
    content = {"format": FORMAT, **asdict(make_checkpoint()), entry: value}
    with pytest.raises(ValueError, match=rf"some\.pth: its entry '{entry}' is not an? ") as caught:
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
    assert find_non_finite({}) == []


# ------------------------------------------------------------------------------ rebuilding models


def test_trained_model_comes_back_ready_to_localise(tmp_path):
    path = tmp_path / "some.pth"
    torch.manual_seed(3)
    model = SSLTIE(SSLTIEConfig(sharpness=0.05))
    checkpoint = make_checkpoint(
        method_config={"sharpness": 0.05},
        audio_config={},
        frame_config={"frame_size": 96},
        state_dict=model.state_dict(),
    )
    save_checkpoint(path, checkpoint)
    trained = load_localiser(path, "cpu")
    assert_same(dict(trained.model.state_dict()), dict(model.state_dict()))
    assert not trained.model.training
    assert trained.frame.frame_size == 96
    assert trained.checkpoint.method_config == {"sharpness": 0.05}
    assert trained.checkpoint.training_clips == ["clip_1", "clip_2"]


# -------------------------------------------------------------------------------- released files


def with_old_numpy_name(content):
    """The file as NumPy 1 would have written it: torch.save here writes NumPy 2's names."""
    old, new = b"cnumpy.core.multiarray\nscalar\n", b"cnumpy._core.multiarray\nscalar\n"
    if not zipfile.is_zipfile(io.BytesIO(content)):
        assert content.count(new) == 1
        return content.replace(new, old)
    rewritten = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(rewritten, "w") as target:
        for name in source.namelist():
            entry = source.read(name)
            if name.endswith("/data.pkl"):
                assert entry.count(new) == 1
                entry = entry.replace(new, old)
            target.writestr(name, entry)
    return rewritten.getvalue()


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(3), np.bool_(True), np.arange(3.0)])
def test_other_numpy_values_are_read(tmp_path, value):
    path = tmp_path / "some.pth"
    path.write_bytes(saved({"score": value, "w": torch.ones(2)}))
    np.testing.assert_array_equal(read_checkpoint_file(path)["score"], value)


def test_a_foreign_object_is_named(tmp_path):
    path = tmp_path / "some.pth"
    path.write_bytes(saved({"w": torch.ones(2), "args": argparse.Namespace(lr=1)}))
    with pytest.raises(ValueError, match=r"some\.pth .*argparse\.Namespace") as caught:
        read_checkpoint_file(path)
    assert "download" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("rename", [with_old_numpy_name, bytes], ids=["NumPy 1", "NumPy 2"])
def test_best_score_as_a_numpy_scalar_is_read(tmp_path, zipped, rename):
    content = {"best_miou": np.float64(0.37), "state_dict": OrderedDict(w=torch.ones(2))}
    path = tmp_path / "released.pth.tar"
    path.write_bytes(rename(saved(content, _use_new_zipfile_serialization=zipped)))
    found = read_checkpoint_file(path)
    assert found["best_miou"] == 0.37
    assert torch.equal(found["state_dict"]["w"], torch.ones(2))


@pytest.fixture(scope="module")
def official():
    return official_state_dict()


def write_release(path, state_dict, **more):
    """A file of the released layout: NumPy scalar, Adam of torch 1.7, about 96 MB of weights."""
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}
    content = {
        "epoch": 31,
        "state_dict": state_dict,
        "best_miou": np.float64(0.386),
        "optimizer": {"state": {}, "param_groups": [{**group, "amsgrad": False, "params": [0]}]},
        "iteration": 4800,
        **more,
    }
    path.write_bytes(with_old_numpy_name(saved(content)))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_file_gives_the_right_weights(tmp_path, official, prefix):
    path = tmp_path / "released.pth.tar"
    write_release(path, {prefix + name: tensor for name, tensor in official.items()})
    trained = load_localiser(path, "cpu")
    path.unlink()  # pytest keeps its folders
    state = trained.model.state_dict()
    unused = (*UNUSED, "audnet.conv1_a.weight")
    kept = {name for name in official if not name.startswith(unused)}
    assert state.keys() == kept | {"audnet.conv1.weight"}
    for name in kept:
        assert torch.equal(state[name], official[name]), name
    assert torch.equal(state["audnet.conv1.weight"], official["audnet.conv1_a.weight"])
    assert not trained.model.training
    assert trained.checkpoint.epoch == 31
    assert trained.checkpoint.training_clips is None
    assert trained.checkpoint.selection == {"kind": "released file"}
    assert trained.frame.frame_size == 224
