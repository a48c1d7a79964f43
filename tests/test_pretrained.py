"""The frozen encoders' weights: fetched from a local server, found, verified, read or refused."""

import functools
import hashlib
import http.server
import os
import pickle
import runpy
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from peer_inputs import resnet18_shapes
from sspl_inputs import linears, vgg16_shapes, vggish_shapes

from models import pretrained
from models.object_prior import ObjectPrior, convert_resnet18
from models.pretrained import PRETRAINED, fetch_pretrained, find_pretrained, load_pretrained
from models.sspl import SSPL, SSPLConfig
from models.sspl_weights import convert_vgg16, convert_vggish

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPTS = Path(__file__).parents[1] / "scripts"
CLASSIFIER = linears("classifier", {0: (25088, 4096), 3: (4096, 4096), 6: (4096, 1000)})
SHAPES = {
    "vgg16": vgg16_shapes("features") | CLASSIFIER,
    "vggish": vggish_shapes(),
    "resnet18": resnet18_shapes(3, classes=1000),
}


def sum_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_weights(path, kind, *, mappable=True):
    """A file with the published names and shapes; each tensor is one number, stretched."""
    content = {
        name: torch.tensor(float(index)).expand(shape)
        for index, (name, shape) in enumerate(SHAPES[kind].items())
    }
    torch.save(content, path, _use_new_zipfile_serialization=mappable)
    return content


@pytest.fixture
def expect(monkeypatch):
    """Makes the table's row of a kind expect another file."""

    def change(kind, **entries):
        monkeypatch.setitem(PRETRAINED, kind, replace(PRETRAINED[kind], **entries))

    return change


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch, expect):
    """A folder, of which the files of the table come, and the requests that were made."""
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setattr(QuietHandler, "requests", [])
    handler = functools.partial(QuietHandler, directory=str(folder))
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
    for kind in SHAPES:
        path = folder / f"{kind}.pth"
        path.write_bytes(f"weights of {kind}".encode())
        expect(
            kind, url=f"http://127.0.0.1:{serving.server_port}/{path.name}", sha256_prefix=sum_of(path)[:8]
        )
    yield folder, QuietHandler.requests
    serving.shutdown()
    serving.server_close()


@pytest.fixture
def get_weights():
    """The program, in this process, so that it sees the changed table."""
    timeout = socket.getdefaulttimeout()
    yield runpy.run_path(str(SCRIPTS / "get_weights.py"))["main"]
    socket.setdefaulttimeout(timeout)


# ------------------------------------------------------------------------------------------- table


def test_the_table_is_of_the_published_files():
    assert {kind: file.file_name for kind, file in PRETRAINED.items()} == {
        "vgg16": "vgg16-397923af.pth",
        "vggish": "vggish-10086976.pth",
        "resnet18": "resnet18-f37072fd.pth",
    }
    for file in PRETRAINED.values():
        assert file.file_name.endswith(f"-{file.sha256_prefix}.pth")
        assert file.url.startswith("https://")
    assert PRETRAINED["vgg16"].convert is convert_vgg16
    assert PRETRAINED["vggish"].convert is convert_vggish
    assert PRETRAINED["resnet18"].convert is convert_resnet18


# ----------------------------------------------------------------------------------------- finding


def test_a_given_file_wins_and_folders_are_looked_through_in_turn(tmp_path):
    folders = [tmp_path / name for name in ("ckpts", "hub", "nowhere")]
    for folder in folders[:2]:
        folder.mkdir()
        (folder / "vgg16-397923af.pth").touch()
    mine = tmp_path / "mine.pth"
    mine.touch()
    assert find_pretrained("vgg16", mine, folders) == mine
    assert find_pretrained("vgg16", None, folders) == folders[0] / "vgg16-397923af.pth"
    (folders[0] / "vgg16-397923af.pth").unlink()
    assert find_pretrained("vgg16", None, folders) == folders[1] / "vgg16-397923af.pth"


def test_a_missing_file_is_named_with_all_that_helps(tmp_path):
    folders = [tmp_path / "ckpts", tmp_path / "hub"]
    help_of = ("https://github.com/harritaylor", "10086976", "--vggish", "--random-init",
               "bash scripts/get_weights.sh vggish")  # fmt: skip
    with pytest.raises(FileNotFoundError) as caught:
        find_pretrained("vggish", None, folders)
    for part in ("vggish-10086976.pth", *map(str, folders), *help_of):
        assert part in str(caught.value)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "vggish-10086976.pth").touch()
    mine = tmp_path / "mine.pth"
    with pytest.raises(FileNotFoundError) as caught:  # a given file is never replaced by another
        find_pretrained("vggish", mine, folders)
    for part in (f"is not at {mine}", *help_of):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match="--object-prior-weights") as caught:
        find_pretrained("resnet18", None, folders)
    assert "--random-init" not in str(caught.value)  # of no use to an object prior


# ----------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("mappable", [True, False], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("kind", SHAPES)
def test_verified_weights_fill_the_encoder(tmp_path, expect, kind, mappable):
    path = tmp_path / "weights.pth"
    content = write_weights(path, kind, mappable=mappable)
    expect(kind, sha256_prefix=sum_of(path)[:8])
    state = load_pretrained(kind, path)
    with torch.device("meta"):
        model = SSPL(SSPLConfig(pcm=False))
        prior = ObjectPrior()
    encoder = {"vgg16": model.frame_encoder, "vggish": model.audio_encoder, "resnet18": prior.encoder}[kind]
    encoder.load_state_dict(state, strict=True, assign=True)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor.flatten()[0], content[name].flatten()[0]), name


def test_a_file_with_another_sum_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "vgg16-397923af.pth"
    write_weights(path, "vgg16")
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("loaded unverified"))
    with pytest.raises(ValueError, match="begins with 397923af") as caught:
        load_pretrained("vgg16", path)
    for part in (str(path), sum_of(path), "get_weights.sh vgg16", "download.pytorch.org"):
        assert part in str(caught.value)


def test_other_weights_and_code_are_refused_even_with_the_right_sum(tmp_path, expect):
    path = tmp_path / "weights.pth"
    write_weights(path, "vggish")
    expect("vgg16", sha256_prefix=sum_of(path)[:8])
    with pytest.raises(ValueError, match=f"{path} does not hold the weights of VGG-16"):
        load_pretrained("vgg16", path)
    torch.save({"features.0.weight": Path("code")}, path)
    expect("vgg16", sha256_prefix=sum_of(path)[:8])
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        load_pretrained("vgg16", path)


# ---------------------------------------------------------------------------------------- fetching


def test_all_files_are_fetched_once_and_verified_again(server, tmp_path, get_weights, capsys):
    published, requests = server
    folder = tmp_path / "deep" / "ckpts"
    assert get_weights(["--folder", str(folder)]) == 0
    assert sorted(requests) == ["/resnet18.pth", "/vgg16.pth", "/vggish.pth"]
    assert capsys.readouterr().out.count("verified") == 3
    for kind in SHAPES:
        assert (folder / f"{kind}.pth").read_bytes() == (published / f"{kind}.pth").read_bytes()
    assert len(list(folder.iterdir())) == 3

    assert get_weights(["vggish", "--folder", str(folder)]) == 0
    assert len(requests) == 3
    assert "vgg16" not in capsys.readouterr().out

    (folder / "vggish.pth").write_bytes(b"cut")
    with pytest.raises(ValueError, match="Move it away and call again"):
        fetch_pretrained("vggish", folder)
    assert (folder / "vggish.pth").read_bytes() == b"cut"


def test_what_is_not_the_published_file_is_not_kept(server, tmp_path, get_weights, caplog):
    published, _ = server
    (published / "vgg16.pth").write_bytes(b"a page that asks to log in")
    expected = PRETRAINED["vgg16"].sha256_prefix
    assert get_weights(["--folder", str(tmp_path / "ckpts")]) == 2
    kept = sorted(path.name for path in (tmp_path / "ckpts").iterdir())
    assert kept == ["resnet18.pth", "vggish.pth"]
    assert expected in caplog.text and sum_of(published / "vgg16.pth") in caplog.text
    assert PRETRAINED["vgg16"].url in caplog.text


def test_a_file_that_is_not_there_is_an_error(server, tmp_path):
    published, _ = server
    (published / "vgg16.pth").unlink()
    with pytest.raises(ConnectionError, match=r"could not download http.*HTTP Error 404"):
        fetch_pretrained("vgg16", tmp_path / "ckpts")
    assert not list((tmp_path / "ckpts").iterdir())


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch, get_weights):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained.torch.hub.shutil, "move", interrupt)
    assert get_weights(["vgg16", "--folder", str(tmp_path / "ckpts")]) == 130
    assert not list((tmp_path / "ckpts").iterdir())


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


def test_unknown_names_are_refused_with_the_known_ones(tmp_path, get_weights, caplog):
    assert get_weights(["vgg", "--folder", str(tmp_path)]) == 2
    assert "['vgg']; there are: vgg16, vggish, resnet18" in caplog.text
