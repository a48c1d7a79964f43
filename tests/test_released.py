"""Released weights are known by their content and read to the last tensor; encoders are verified."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peer_inputs import ENDINGS, SHAPES, official_file, resnet18_shapes, stretched, two_stem_shapes
from sspl_inputs import SOURCE, head_shapes, linears, pcm_shapes, sound_shapes, vgg16_shapes, vggish_shapes

from models import build_localiser, released
from models.released import (
    CLASSIFIERS,
    PRETRAINED,
    RELEASES,
    UNUSED,
    convert_release,
    convert_sspl_release,
    fetch_pretrained,
    find_pretrained,
    load_pretrained,
    read_any_checkpoint,
)
from models.sspl import SSPLConfig

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPTS = Path(__file__).parents[1] / "scripts"
ALL_SHAPES = SHAPES | {"ssl_tie": two_stem_shapes()}
EVERY_RELEASE = pytest.mark.parametrize("method", RELEASES)


def file_of(method, official, *, module=True):
    if method == "ssl_tie":
        return {"state_dict": {f"module.{k}" * module or k: v for k, v in official.items()}, "best_miou": 0.5}
    return official_file(method, official, module=module)


def state_of(method, **config):
    with torch.device("meta"):
        return build_localiser(method, config).state_dict()


# ------------------------------------------------------------------- localisers in one file


@EVERY_RELEASE
@pytest.mark.parametrize("module", [True, False], ids=["with module.", "without"])
def test_a_release_is_known_by_its_keys_and_every_tensor_is_used(method, module):
    official = stretched(ALL_SHAPES[method])
    found, converted = convert_release(file_of(method, official, module=module), SOURCE)
    assert found == method and converted.keys() == state_of(method).keys()
    used = {id(tensor) for tensor in converted.values()}
    unused = {name for name, tensor in official.items() if id(tensor) not in used}
    assert unused == {name for name in official if name.startswith(RELEASES[method].ignored)}
    assert len(converted) == len(official) - len(unused)


@EVERY_RELEASE
def test_layers_of_no_use_may_be_absent_or_there(method):
    shapes = dict(ALL_SHAPES[method])
    if ENDINGS.get(method):
        shapes |= {f"{name}weight": (1000, 512) for name in CLASSIFIERS}
    else:
        shapes = {name: s for name, s in shapes.items() if not name.startswith(UNUSED)}
    shapes = {name: s for name, s in shapes.items() if not name.endswith("num_batches_tracked")}
    assert convert_release(file_of(method, stretched(shapes)), SOURCE)[0] == method


KEY = "imgnet.layer3.0.conv2.weight"
DAMAGES = {
    "1 tensors missing": lambda state: state.pop(KEY),
    "1 tensors unknown: flow_net": lambda state: state.update({"flow_net.weight": torch.zeros(1)}),
    rf"of another shape: {KEY} \(256, 3, 3\), not \(256, 256, 3, 3\)": lambda state: state.update(
        {KEY: state[KEY][0]}
    ),
    "50 tensors missing: .*…": lambda state: [state.pop(name) for name in [*state] if "layer3" in name],
}


@pytest.mark.parametrize("words", DAMAGES)
def test_whatever_does_not_fit_is_refused_by_name(words, method="ssl_tie"):
    official = stretched(ALL_SHAPES[method])
    DAMAGES[words](official)
    with pytest.raises(ValueError, match=words) as caught:
        convert_release(file_of(method, official), SOURCE)
    assert str(caught.value).startswith(f"{SOURCE} does not hold the weights of {RELEASES[method].title}")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"weights": {"conv1": torch.zeros(1)}},
        {"model": {"img_proj1.weight": torch.zeros(1)}},
        {"model": None},
        {"state_dict": [1], "best_miou": 0.5},
        {"model_state_dict": dict.fromkeys(("audnet.conv1_a.weight", "module.x"))},
    ],
    ids=["empty", "foreign", "half of SLAVC", "none", "a list", "module. on some"],
)
def test_an_unknown_file_is_told_what_was_looked_for(content):
    with pytest.raises(ValueError, match=r"Looked for: SSL-TIE: state_dict") as caught:
        convert_release(content, SOURCE)
    titles = ("LVS", "SSL-Align", "EZ-VSL or FNAC", "SLAVC")
    marks = ("audnet.conv1_a.weight", "img_proj2.weight")
    for part in (str(SOURCE), *titles, *marks, f"It holds: {next(iter(content), 'nothing')}"):
        assert part in str(caught.value)


# ------------------------------------------------------------------- SSPL's results folder


def sspl_files(num_cycles=4):
    files = {
        "frame_best.pth": stretched(vgg16_shapes("feat_extractor")),
        "sound_best.pth": stretched(sound_shapes()),
        "pcm_best.pth": stretched(pcm_shapes(num_cycles)),
        "ssl_head_best.pth": stretched(head_shapes()),
    }
    if num_cycles == 0:
        del files["pcm_best.pth"]
    return files


def with_module(content):
    return {f"module.{name}": tensor for name, tensor in content.items()}


@pytest.mark.parametrize("num_cycles", [0, 1, 4], ids=lambda n: f"{n} cycles")
def test_every_tensor_of_the_folder_is_used_and_every_one_of_ours_filled(num_cycles):
    files = sspl_files(num_cycles)
    content = {name: with_module(t) if num_cycles else t for name, t in files.items()}
    config, converted = convert_sspl_release(content, SOURCE)
    assert config == SSPLConfig(pcm=num_cycles > 0, pcm_cycles=num_cycles or 4)
    assert converted.keys() == state_of("sspl", pcm=config.pcm, pcm_cycles=config.pcm_cycles).keys()
    officials = [id(tensor) for tensors in files.values() for tensor in tensors.values()]
    assert sorted(officials) == sorted(id(tensor) for tensor in converted.values())
    if num_cycles == 4:
        assert [len(content) for content in files.values()] == [26, 22, 140, 24]  # as the authors'
        pcm, ours = files["pcm_best.pth"], "predictive_coding."
        assert converted[f"{ours}prediction_norms.3.1.weight"] is pcm["BNPred_step.7.weight"]
        assert converted[f"{ours}correction_norms.3.0.weight"] is pcm["BNError_step.9.weight"]
        assert converted[f"{ours}correction_rates.0"] is pcm["a0.0"]


@pytest.mark.parametrize("absent", [(), ("frame_best.pth",), ("frame_best.pth", "pcm_best.pth")], ids=len)
def test_a_results_folder_is_read_and_vgg16_stands_in_for_a_missing_frame_file(tmp_path, absent, monkeypatch):
    for name, content in sspl_files().items():
        if name not in absent:
            torch.save(with_module(content), tmp_path / name)
    for name in ("args.json", "running_log.txt", "vggish-10086976.pth"):
        (tmp_path / name).write_text("not weights")
    stand_in = {name: torch.tensor(-1.0).expand(s) for name, s in vgg16_shapes("features").items()}
    monkeypatch.setattr(released, "find_pretrained", lambda kind, named: tmp_path / kind)
    monkeypatch.setattr(released, "load_pretrained", lambda kind, path: stand_in)
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
    torch.save({}, tmp_path / "ssl_head_best.pth")
    with pytest.raises(ValueError, match=r"lacks \['sound_best.pth'\]") as caught:
        read_any_checkpoint(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    files = sspl_files()
    del files["pcm_best.pth"]["a0.0"]
    files["ssl_head_best.pth"]["module.fc"] = files["ssl_head_best.pth"]["fc"] = torch.zeros(1)
    with pytest.raises(ValueError, match=f"{SOURCE}/pcm_best.pth .* 1 tensors missing: a0.0"):
        convert_sspl_release(files, SOURCE)
    files["pcm_best.pth"] = sspl_files()["pcm_best.pth"]
    with pytest.raises(ValueError, match=f"{SOURCE}/ssl_head_best.pth holds tensors twice"):
        convert_sspl_release(files, SOURCE)


# ------------------------------------------------------------------- pretrained encoders

CLASSIFIER = linears("classifier", {0: (25088, 4096), 3: (4096, 4096), 6: (4096, 1000)})
ENCODERS = {
    "vgg16": vgg16_shapes("features") | CLASSIFIER,
    "vggish": vggish_shapes(),
    "resnet18": resnet18_shapes(3, classes=1000),
}


def sum_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def expect(monkeypatch):
    """Makes the table's row of a kind expect the content of a file, at an address."""

    def change(kind, path, address="http://127.0.0.1:9"):
        url = f"{address}/{kind}-{sum_of(path)[:8]}.pth"
        monkeypatch.setitem(PRETRAINED, kind, PRETRAINED[kind]._replace(url=url))

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


@pytest.mark.parametrize(("kind", "mappable"), [("vgg16", True), ("vggish", False), ("resnet18", True)])
def test_only_verified_weights_fill_the_encoder(tmp_path, expect, kind, mappable):
    path = tmp_path / "weights.pth"
    content = stretched(ENCODERS[kind])
    # Not mappable: the format before PyTorch 1.6.
    torch.save(content, path, _use_new_zipfile_serialization=mappable)
    with (
        pytest.raises(ValueError, match=f"begins with {PRETRAINED[kind].digits}") as caught,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("loaded unverified"))
        load_pretrained(kind, path)
    for part in (str(path), sum_of(path), f"get_weights.sh {kind}", PRETRAINED[kind].url):
        assert part in str(caught.value)
    expect(kind, path)
    state = load_pretrained(kind, path)
    with torch.device("meta"):
        assert state.keys() == PRETRAINED[kind].build().state_dict().keys()
    assert all(torch.equal(tensor.flatten()[0], content[name].flatten()[0]) for name, tensor in state.items())


@pytest.fixture
def published(tmp_path, expect, monkeypatch):
    """A folder, of which the files of the table come."""
    folder = tmp_path / "published"
    folder.mkdir()
    for kind in ENCODERS:
        path = folder / kind
        path.write_bytes(f"weights of {kind}".encode())
        expect(kind, path, folder.as_uri())
        path.rename(folder / PRETRAINED[kind].file_name)
    yield folder
    socket.setdefaulttimeout(None)


def test_all_files_are_fetched_once_and_verified_again(published, tmp_path, capsys):
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
    with pytest.raises(ValueError, match="Move it away and call again"):
        fetch_pretrained("vggish", folder)
    assert cut.read_bytes() == b"cut"


def test_what_is_not_the_published_file_is_not_kept(published, tmp_path, caplog):
    wrong = PRETRAINED["vgg16"]
    (published / wrong.file_name).write_bytes(b"a page that asks to log in")
    assert released.main(["--folder", str(tmp_path / "ckpts")]) == 2
    kept = {path.name for path in (tmp_path / "ckpts").iterdir()}
    assert kept == {PRETRAINED[kind].file_name for kind in ("vggish", "resnet18")}
    for words in (wrong.digits, sum_of(published / wrong.file_name), wrong.url):
        assert words in caplog.text


def test_what_cannot_be_fetched_leaves_nothing(published, tmp_path, monkeypatch, capsys):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    (published / PRETRAINED["vgg16"].file_name).unlink()
    with pytest.raises(ConnectionError, match=r"could not download file:.*No such file"):
        fetch_pretrained("vgg16", tmp_path / "ckpts")
    monkeypatch.setattr(torch.hub.shutil, "move", interrupt)
    assert released.main(["vggish", "--folder", str(tmp_path / "ckpts")]) == 130
    assert not list((tmp_path / "ckpts").iterdir())
    with pytest.raises(SystemExit, match="2"):
        released.main(["vgg", "--folder", str(tmp_path)])
    assert "['vgg']; there are: vgg16, vggish, resnet18" in capsys.readouterr().err


def test_without_network_the_script_says_what_to_put_where(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    finished = subprocess.run(
        ["bash", SCRIPTS / "get_weights.sh", "--folder", tmp_path],
        env={
            **{k: v for k, v in os.environ.items() if k.lower() != "no_proxy"},
            "VSSL_PYTHON": sys.executable,
            "https_proxy": f"http://127.0.0.1:{closed}",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 2
    for file in PRETRAINED.values():
        assert f"could not download {file.url}" in finished.stderr
        assert f"by hand as {tmp_path / file.file_name}" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list(tmp_path.iterdir())
