"""Released weights are known by their content and read to the last tensor; encoders are verified."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT
from golden_inputs import released_shapes
from peer_inputs import ENDINGS, SHAPES, official_file, stretched

from models import released
from models.released import (
    CLASSIFIERS,
    PRETRAINED,
    RELEASES,
    SSPL_FILES,
    UNUSED,
    build_localiser,
    convert_release,
    convert_sspl_release,
    find_pretrained,
    read_any_checkpoint,
    read_pretrained,
)
from utils.checkpoint import Checkpoint, save_checkpoint

SOURCE = Path("release")
ALL_SHAPES = SHAPES | {"ssl_tie": released_shapes("ssl_tie")}


def state_of(method, **config):
    with torch.device("meta"):
        return build_localiser(method, config).state_dict()


def with_module(content):
    return {f"module.{name}": tensor for name, tensor in content.items()}


# ------------------------------------------------------------------- localisers in one file


@pytest.mark.parametrize("method", RELEASES)
@pytest.mark.parametrize("module", [True, False], ids=["with module.", "without"])
def test_a_release_is_known_by_its_keys_and_every_tensor_is_used(method, module):
    official = stretched(ALL_SHAPES[method])
    found, converted = convert_release(official_file(method, official, module=module), SOURCE)
    assert found == method and converted.keys() == state_of(method).keys()
    used = {id(tensor) for tensor in converted.values()}
    unused = {name for name, tensor in official.items() if id(tensor) not in used}
    assert unused == {name for name in official if name.startswith(RELEASES[method].ignored)}
    assert len(converted) == len(official) - len(unused)
    # Layers of no use may be absent or there, and so may counters that only training needs.
    if ENDINGS.get(method):
        official |= {f"{name}weight": torch.zeros(1000, 512) for name in CLASSIFIERS}
    else:
        official = {name: value for name, value in official.items() if not name.startswith(UNUSED)}
    official = {name: value for name, value in official.items() if "num_batches" not in name}
    assert convert_release(official_file(method, official), SOURCE)[0] == method


@pytest.mark.parametrize("method", RELEASES)
@pytest.mark.parametrize("outer", ["module._orig_mod.", "_orig_mod.module."])
def test_wrappers_of_the_network_and_of_its_parts_are_no_names(method, outer):
    official = {n: value for n, value in stretched(ALL_SHAPES[method]).items() if "num_batches" not in n}
    outer = "_orig_mod." if method == "ssl_align" else outer
    wrapped = {outer + n.replace("net.", "net._orig_mod.module.", 1): value for n, value in official.items()}
    found, converted = convert_release({RELEASES[method].entry: wrapped}, SOURCE)
    assert found == method and converted.keys() == state_of(method).keys()


def test_so_are_those_in_a_file_of_this_project(tmp_path):
    shapes = {name: value.shape for name, value in state_of("ssl_tie").items()}
    weights = {f"module._orig_mod.{name}": torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    empty = {"method_config": {}, "audio_config": {}, "frame_config": {}}
    save_checkpoint(tmp_path / "own.pth", Checkpoint(method="ssl_tie", state_dict=weights, **empty))
    assert read_any_checkpoint(tmp_path / "own.pth").state_dict.keys() == state_of("ssl_tie").keys()


def test_further_tensors_are_said_and_left_out_where_the_authors_do_so(caplog):
    official = stretched(ALL_SHAPES["ssl_align"])
    expected = convert_release(official_file("ssl_align", official), SOURCE)
    official |= {f"aud_extra.{place}.weight": torch.zeros(2) for place in range(6)} | {"vision.bias": 3}
    found = convert_release(official_file("ssl_align", official), SOURCE)
    assert found[0] == "ssl_align" and all(found[1][name] is value for name, value in expected[1].items()
                                           if not name.endswith("num_batches_tracked"))  # fmt: skip
    assert "release: 7 tensors unknown: aud_extra.0.weight, aud_extra.1.weight" in caplog.text
    assert "… are left out, as by the program of SSL-Align" in caplog.text


@pytest.mark.parametrize(
    ("epoch", "given"),
    [(17, 17), (17, np.int64(17)), (17, "17"), (17, torch.tensor([17])), (0, None), (0, "best"), (0, np.nan),
     (0, np.inf), (0, [1, 2]), (0, torch.arange(3))],
)  # fmt: skip
def test_the_epoch_of_a_release_is_a_note(epoch, given, tmp_path, caplog):
    path, shapes = tmp_path / "release.pth", ALL_SHAPES["ez_vsl_or_fnac"]
    content = official_file("ez_vsl_or_fnac", stretched(shapes)) | {"epoch": given}
    for decay, program in ((0, "EZ-VSL"), (1e-4, "FNAC"), ("?", None)):
        content["optimizer"] = {"state": {}, "param_groups": [{"weight_decay": decay}]}
        torch.save(content, path)
        checkpoint = read_any_checkpoint(path)
        assert checkpoint.epoch == epoch
        assert checkpoint.selection.get("program", "None").startswith(f"{program}")
        assert (f"{path}: its epoch" in caplog.text) == (epoch == 0)
    path.unlink()


def test_counters_may_be_numbers_of_numpy_or_python():
    official, counter = stretched(ALL_SHAPES["slavc"]), "imgnet.bn1.num_batches_tracked"
    for number in (3, np.int64(3), np.array(3)):
        _, converted = convert_release(official_file("slavc", official | {counter: number}), SOURCE)
        assert torch.equal(converted[counter], torch.tensor(3))


KEY = "imgnet.layer3.0.conv2.weight"
DAMAGES = {
    "1 tensors missing": lambda state: state.pop(KEY),
    "1 tensors unknown: flow_net": lambda state: state.update({"flow_net.weight": torch.zeros(1)}),
    rf"of another shape: {KEY} \(256, 3, 3\), not \(256, 256, 3, 3\)": lambda state: state.update(
        {KEY: state[KEY][0]}
    ),
    rf"1 tensors no number: {KEY} \(NoneType\)": lambda state: state.update({KEY: None}),
    "50 tensors missing: .*…": lambda state: [state.pop(name) for name in [*state] if "layer3" in name],
}


@pytest.mark.parametrize("words", DAMAGES)
def test_whatever_does_not_fit_is_refused_by_name(words):
    official = stretched(ALL_SHAPES["ssl_tie"])
    DAMAGES[words](official)
    with pytest.raises(ValueError, match=rf"^release does not hold the weights of SSL-TIE.*{words}"):
        convert_release(official_file("ssl_tie", official), SOURCE)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {"img_proj1.weight": torch.zeros(1)}},
        {"state_dict": [1], "best_miou": 0.5},
        {"model_state_dict": dict.fromkeys(("audnet.conv1_a.weight", "module.x"))},
    ],
    ids=["empty", "half of SLAVC", "a list", "module. on some"],
)
def test_an_unknown_file_is_told_what_was_looked_for(content):
    with pytest.raises(ValueError, match=r"Looked for: SSL-TIE: state_dict") as caught:
        convert_release(content, SOURCE)
    titles = [row.title for row in RELEASES.values()]
    for part in (str(SOURCE), *titles, "img_proj2.weight", f"It holds: {next(iter(content), 'nothing')}"):
        assert part in str(caught.value)


# ------------------------------------------------------------------- SSPL's results folder


def sspl_files(num_cycles=4):
    files = {name: stretched(released_shapes(name)) for name in SSPL_FILES if num_cycles or "pcm" not in name}
    for norms, number in (("BNPred_step", 2), ("BNError_step", 3)):  # a cycle has so many of each
        left_out = tuple(f"{norms}.{index}." for index in range(number * num_cycles, number * 4))
        files = {name: {k: v for k, v in content.items() if not k.startswith(left_out)}
                 for name, content in files.items()}  # fmt: skip
    return files


@pytest.mark.parametrize("num_cycles", [0, 1, 4], ids=lambda n: f"{n} cycles")
def test_every_tensor_of_the_folder_is_used_and_every_one_of_ours_filled(num_cycles):
    files = sspl_files(num_cycles)
    content = {name: with_module(t) if num_cycles else t for name, t in files.items()}
    config, converted = convert_sspl_release(content, SOURCE)
    assert config == ({"pcm": True, "pcm_cycles": num_cycles} if num_cycles else {"pcm": False})
    assert converted.keys() == state_of("sspl", **config).keys()
    officials = [id(tensor) for tensors in files.values() for tensor in tensors.values()]
    assert sorted(officials) == sorted(id(tensor) for tensor in converted.values())
    if num_cycles == 4:
        pcm, ours = files["pcm_best.pth"], "predictive_coding."
        assert converted[f"{ours}prediction_norms.3.1.weight"] is pcm["BNPred_step.7.weight"]
        assert converted[f"{ours}correction_norms.3.0.weight"] is pcm["BNError_step.9.weight"]
        assert converted[f"{ours}correction_rates.0"] is pcm["a0.0"]


@pytest.mark.parametrize("absent", [(), ("frame_best.pth",), ("frame_best.pth", "pcm_best.pth")], ids=len)
def test_a_results_folder_is_read_and_vgg16_stands_in_for_a_missing_frame_file(tmp_path, absent, monkeypatch):
    for name, content in sspl_files().items():
        if name not in absent:
            torch.save(with_module(content), tmp_path / name)
    (tmp_path / "args.json").write_text("not weights")
    encoder = {name: t for name, t in released_shapes("vgg16").items() if name.startswith("features")}
    stand_in = {name: torch.tensor(-1.0).expand(shape) for name, shape in encoder.items()}
    monkeypatch.setattr(released, "find_pretrained", lambda kind, named: tmp_path / kind)
    monkeypatch.setattr(released, "read_pretrained", lambda kind, path: stand_in)
    checkpoint = read_any_checkpoint(tmp_path)
    assert checkpoint.method == "sspl" and checkpoint.selection == {"kind": "released file"}
    assert checkpoint.method_config["pcm"] == ("pcm_best.pth" not in absent)
    assert checkpoint.state_dict.keys() == state_of("sspl", **checkpoint.method_config).keys()
    bias = checkpoint.state_dict["frame_encoder.features.28.bias"]
    assert (bias[0].item() == -1) == ("frame_best.pth" in absent)


def test_a_folder_without_the_files_or_with_a_damaged_one_is_refused(tmp_path):
    (tmp_path / "last.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"it is a folder.*sound_best\.pth"):
        read_any_checkpoint(tmp_path)
    files = sspl_files()
    del files["pcm_best.pth"]["a0.0"]
    with pytest.raises(ValueError, match=f"{SOURCE} .* 1 tensors missing: pcm_best.pth/a0.0"):
        convert_sspl_release(files, SOURCE)
    del files["sound_best.pth"]
    with pytest.raises(ValueError, match=r"tensors missing: .*sound_best\.pth/"):
        convert_sspl_release(files, SOURCE)
    files = sspl_files()
    files["ssl_head_best.pth"]["module.fc"] = files["ssl_head_best.pth"]["fc"] = torch.zeros(1)
    with pytest.raises(ValueError, match="holds tensors twice"):
        convert_sspl_release(files, SOURCE)


# ------------------------------------------------------------------- pretrained encoders


def sum_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def expect(monkeypatch):
    """Makes the table's row of a kind expect the content of a file, at an address."""

    def change(kind, path, address="http://127.0.0.1:9"):
        row = PRETRAINED[kind]._replace(host=address, file_name=f"{kind}-{sum_of(path)[:8]}.pth")
        monkeypatch.setitem(PRETRAINED, kind, row)

    return change


def test_a_named_file_wins_and_folders_are_looked_through_in_turn(tmp_path):
    folders = (tmp_path / "ckpts", tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    in_hub, mine = tmp_path / "hub" / "vgg16-397923af.pth", tmp_path / "mine.pth"
    in_hub.touch()
    assert find_pretrained("vgg16", None, folders) == in_hub
    with pytest.raises(FileNotFoundError, match=f"is not at {mine}\\. Fetch"):  # never replaced by another
        find_pretrained("vgg16", mine, folders)
    mine.touch()
    assert find_pretrained("vgg16", mine, folders) == mine
    with pytest.raises(FileNotFoundError) as caught:
        find_pretrained("vggish", None, folders)
    for part in ("vggish-10086976.pth", *map(str, folders), "https://github.com/harritaylor", "--vggish",
                 "--random-init", "bash scripts/get_weights.sh vggish"):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", PRETRAINED)
def test_only_verified_weights_fill_the_encoder(tmp_path, expect, kind, monkeypatch):
    path, content, load = tmp_path / "weights.pth", stretched(released_shapes(kind)), torch.load
    # VGGish is published in the format before PyTorch 1.6.
    torch.save(content, path, _use_new_zipfile_serialization=kind != "vggish")
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("loaded unverified"))
    with pytest.raises(ValueError, match=f"begins with {PRETRAINED[kind].digits}") as caught:
        read_pretrained(kind, path)
    for part in (str(path), sum_of(path), f"get_weights.sh {kind}", PRETRAINED[kind].url):
        assert part in str(caught.value)
    monkeypatch.setattr(torch, "load", load)
    expect(kind, path)
    state = read_pretrained(kind, path)
    with torch.device("meta"):
        assert state.keys() == PRETRAINED[kind].build().state_dict().keys()
    assert all(torch.equal(tensor.flatten()[0], content[name].flatten()[0]) for name, tensor in state.items())


@pytest.fixture
def published(tmp_path, expect):
    """A folder, of which the files of the table come."""
    folder = tmp_path / "published"
    folder.mkdir()
    for kind in PRETRAINED:
        path = folder / kind
        path.write_bytes(f"weights of {kind}".encode())
        expect(kind, path, folder.as_uri())
        path.rename(folder / PRETRAINED[kind].file_name)
    yield folder
    socket.setdefaulttimeout(None)


def test_all_files_are_fetched_once_and_verified_again(published, tmp_path, capsys, caplog):
    folder = tmp_path / "deep" / "ckpts"
    assert released.main(["--folder", str(folder)]) == 0
    assert capsys.readouterr().out.count("verified") == 3
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in published.iterdir())
    for path in folder.iterdir():
        assert path.read_bytes() == (published / path.name).read_bytes()
    (published / PRETRAINED["vggish"].file_name).unlink()
    assert released.main(["vggish", "--folder", str(folder)]) == 0  # from the folder
    assert "vgg16" not in capsys.readouterr().out
    cut = folder / PRETRAINED["vggish"].file_name
    cut.write_bytes(b"cut")
    assert released.main(["vggish", "--folder", str(folder)]) == 2
    assert "Move it away and call:" in caplog.text and cut.read_bytes() == b"cut"


def test_what_is_not_the_published_file_or_interrupted_is_not_kept(
    published, tmp_path, caplog, capsys, monkeypatch
):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    wrong, folder = PRETRAINED["vgg16"], tmp_path / "ckpts"
    (published / wrong.file_name).write_bytes(b"a page that asks to log in")
    assert released.main(["--folder", str(folder)]) == 2
    kept = {path.name for path in folder.iterdir()}
    assert kept == {PRETRAINED[kind].file_name for kind in ("vggish", "resnet18")}
    for words in (wrong.digits, sum_of(published / wrong.file_name), wrong.url):
        assert words in caplog.text
    monkeypatch.setattr(torch.hub.shutil, "move", interrupt)
    assert released.main(["vggish", "--folder", str(tmp_path / "other")]) == 130
    assert not list((tmp_path / "other").iterdir())
    with pytest.raises(SystemExit, match="2"):
        released.main(["vgg", "--folder", str(tmp_path)])
    assert "['vgg']; there are: vgg16, vggish, resnet18" in capsys.readouterr().err


def test_without_network_the_script_says_what_to_put_where(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
    environment |= {"VSSL_PYTHON": sys.executable, "https_proxy": f"http://127.0.0.1:{closed}"}
    finished = subprocess.run(
        ["bash", ROOT / "scripts" / "get_weights.sh", "--folder", tmp_path],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    for file in PRETRAINED.values():
        assert f"could not download {file.title} from {file.url}" in finished.stderr
        assert f"by hand as {tmp_path / file.file_name}" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list(tmp_path.iterdir())
