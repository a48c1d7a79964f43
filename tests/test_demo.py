"""The demo: visitors get their heat maps, and nothing else of the computer."""

import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from chromium import find_chromium, open_tab
from command_line import ENVIRONMENT, ROOT, free_port
from conftest import RATE, draw_frame, tone
from localiser_inputs import checkpoint_of
from PIL import Image
from video_inputs import make_video

from models.released import build_localiser, describe_file
from scripts import demo
from scripts.stamps.__main__ import main as make_stamps
from utils.checkpoint import save_checkpoint

ONE, TWO = "ckpts/one.pth", "ckpts/two.pth"
needs_browser = pytest.mark.skipif(
    find_chromium() is None or find_spec("websocket") is None,
    reason="no Chromium, or requirements-dev.txt is not installed",
)


def test_models_are_found_by_name_at_any_depth(tmp_path):
    ckpts, runs = tmp_path / "ckpts", tmp_path / "runs"
    for name in ("ckpts/a.pth", "ckpts/vgg16-397923af.pth", "ckpts/b.pth.tar", "ckpts/README.md",
                 "ckpts/sspl/sound_best.pth", "ckpts/sspl/frame_best.pth", "ckpts/2026/may/c.pt",
                 "ckpts/mine/last.pth", "runs/mine/last.pth", "runs/mine/log.txt", "runs/mine/epoch_3.pth",
                 "runs/grid/one/best.pth"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = ("ckpts/2026/may/c.pt", "ckpts/a.pth", "ckpts/b.pth.tar", "ckpts/mine/last.pth", "ckpts/sspl",
             "runs/grid/one/best.pth", "runs/mine/last.pth")  # fmt: skip
    found = demo.DemoOptions(checkpoints=ckpts, runs=runs).models
    assert found == {name: tmp_path / name for name in names}
    (ckpts / "lost.pth").symlink_to(tmp_path / "nowhere.pth")
    assert demo.DemoOptions(checkpoints=ckpts, runs=runs).models == found
    assert demo.DemoOptions().runs.is_absolute()
    assert demo.DemoOptions(checkpoints=tmp_path / "no", runs=tmp_path / "no").models == {}


def test_examples_are_the_user_s_own(tmp_path):
    mine, folder = tmp_path / "mine", tmp_path / "copies"
    mine.mkdir()
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no video"):
        demo.prepare_examples(mine, folder)
    for name in ("dog.JPG", "dog.wav", "cat.png", "clip.mp4", "notes.txt", "._clip.mp4"):
        (mine / name).touch()
    pair = (folder / "dog.JPG", folder / "dog.wav")
    assert demo.prepare_examples(mine, folder) == ([(folder / "clip.mp4",)], [pair])
    assert not (folder / "notes.txt").exists()


@pytest.mark.parametrize("drawn", [True, False])
def test_examples_are_composed_with_names_and_one_moves(tmp_path, drawn):
    stamps, folder = tmp_path / "stamps", tmp_path / "examples"
    folder.mkdir()
    if not drawn:
        options = "--source procedural --train 1 --test 6 --classes 6 --workers 1".split()
        assert make_stamps([str(stamps), *options]) == 0
    videos, pairs = demo.prepare_examples(None if drawn else stamps, folder)
    assert len(pairs) == 4 and all(path.stem.endswith(" sounds") for path, _ in pairs)
    (video,) = videos[0]
    assert re.fullmatch(r"\w+ \w+, then \w+ \w+", video.stem)
    with av.open(str(video)) as container:
        assert [float(s.duration * s.time_base) for s in container.streams] == pytest.approx([6, 6], abs=0.2)
        first, middle = [frame.to_ndarray().astype(int) for frame in container.decode(video=0)][:31:30]
    assert np.abs(first - middle).mean() > 1


def test_a_checkpoint_says_what_it_has_learned(tmp_path):
    options = "--source procedural --train 4 --test 1 --workers 1"
    assert make_stamps([str(tmp_path / "set"), *options.split()]) == 0
    learned = replace(
        checkpoint_of("ssl_tie", {}), epoch=6, training_clips=["train_000000", "train_000001"],
        training_list={"name": "train"}, options={"data": {"data_root": "set"}},
    )  # fmt: skip
    learned_words = r"6 epochs, trained on 2 clips of set \(list train\), 2 classes: \w+ \w+, .*"
    cases = (
        (learned, f"SSL-TIE run, {learned_words}", ""),
        (replace(learned, options={}, epoch=1), "SSL-TIE run, 1 epoch, .*, classes not known", ""),
        (replace(learned, epoch=0), "SSL-TIE run, 0 .*", "untrained"),
        (replace(learned, options={"frozen": {"random_init": True}}), "SSL-TIE .*", "random encoders"),
        (replace(learned, selection={"kind": "released file"}), "SSL-TIE x, released, .* training data", ""),
    )
    for checkpoint, words, fault in cases:
        save_checkpoint(tmp_path / "run" / "x.pth", checkpoint)
        told = describe_file(tmp_path / "run" / "x.pth", tmp_path)
        assert re.fullmatch(words, told[0]) and told[1] == fault
    (tmp_path / "run" / "x.pth").write_bytes(b"cut off")
    assert describe_file(tmp_path / "run" / "x.pth", tmp_path)[1] == "unreadable"


@dataclass
class Server:
    address: str
    checkpoints: Path
    video: Path
    picture: Path
    sound: Path

    def __post_init__(self):
        self.port = int(self.address.rstrip("/").split(":")[-1])

    def get(self, path):
        """Status and content."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            # By hand, as clients tidy addresses up.
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                               "Connection: close\r\n\r\n".encode())  # fmt: skip
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        return int(answer.split()[1]), answer.split(b"\r\n\r\n", 1)[1]

    def call(self, method, path, **body):
        import httpx  # noqa: PLC0415 - comes with Gradio

        address = f"{self.address}gradio_api/{path}"
        return httpx.request(method, address, timeout=300, trust_env=False, **body)

    def upload(self, name, content):
        """What an endpoint takes for the uploaded file."""
        return as_file(self.call("POST", "upload", files={"files": (name, content)}).json()[0])

    def ask(self, name, *values):
        """What an endpoint returns, or the words of its refusal."""
        number = self.call("POST", f"call/{name}", json={"data": values}).json()["event_id"]
        last = self.call("GET", f"call/{name}/{number}").text.strip().split("\n\n")[-1]
        event, _, data = last.partition("\ndata: ")
        return event.removeprefix("event: "), json.loads(data)


def as_file(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def start_page(*arguments):
    environment = {
        **ENVIRONMENT, "VSSL_PYTHON": sys.executable,
        "GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ANALYTICS_ENABLED": "True",
    }  # fmt: skip
    command = ["bash", ROOT / "scripts" / "demo.sh", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page, as a user starts it, who has dangerous settings of Gradio in the environment."""
    if find_spec("gradio") is None:
        pytest.skip("requirements-demo.txt is not installed")
    folder = tmp_path_factory.mktemp("demo")
    checkpoints, examples = folder / "ckpts", folder / "examples"
    examples.mkdir()
    for seed, name in enumerate(("one.pth", "two.pth")):
        torch.manual_seed(seed)
        weights = build_localiser("ssl_tie", {}).state_dict()
        save_checkpoint(checkpoints / name, checkpoint_of("ssl_tie", weights))
    pictures = [np.asarray(draw_frame(1, np.random.default_rng(3))[0].resize((240, 180)))] * 30
    video = make_video(examples / "clip.mp4", rate=10, seconds=3, pictures=pictures)
    picture, sound = examples / "dog.png", examples / "dog.wav"
    Image.fromarray(pictures[0]).save(picture)
    soundfile.write(sound, tone(1), RATE)
    process = start_page(
        "--port", free_port(), "--checkpoints", checkpoints, "--runs", folder / "none",
        "--examples", examples, "--max-seconds", 2, "--max-mb", 5, "--device", "cpu",
    )  # fmt: skip
    said = process.stdout.readline()
    assert said.startswith("Open http://127.0.0.1:"), process.communicate()[1]
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield Server(said.split()[1], checkpoints, video, picture, sound)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


def fetch(server, shown, path):
    """A file that an endpoint has returned."""
    status, content = server.get(urllib.parse.urlparse(shown["url"]).path)
    assert status == 200
    path.write_bytes(content)
    return path


def test_two_models_localise_a_video_side_by_side(server, tmp_path):
    upload = server.upload("clip.mp4", server.video.read_bytes())
    event, (words, first, second, peaks) = server.ask("localise_video", [ONE, TWO], True, upload)
    assert event == "complete"
    assert words == "\n\n".join(f"**{name}**: 20 frames; only the first 2 s" for name in (ONE, TWO))
    results = [
        fetch(server, shown["value"], tmp_path / Path(shown["label"]).name) for shown in (first, second)
    ]
    for path in results:
        with av.open(str(path)) as container:
            seconds = [float(stream.duration * stream.time_base) for stream in container.streams]
            assert seconds == pytest.approx([2, 2], abs=0.2)  # pictures and sound
    assert results[0].read_bytes() != results[1].read_bytes()
    assert second["visible"] is True and [first["label"], second["label"]] == [ONE, TWO]
    peaks = peaks["value"]
    assert [file["orig_name"] for file in peaks] == ["ckpts_one.pth_peaks.csv", "ckpts_two.pth_peaks.csv"]
    assert fetch(server, peaks[0], tmp_path / "peaks").read_text().startswith("time_seconds,x,y,similarity")


def test_a_picture_and_a_sound_on_one_scale_for_both_models(server, tmp_path):
    picture = server.upload("a.png", server.picture.read_bytes())
    sound = server.upload("a.wav", server.sound.read_bytes())
    event, (words, *shown, _) = server.ask("localise_picture", [ONE, TWO], False, picture, sound)
    said = r": hottest at x \d+, y \d+ pixels: similarity -?0\.\d{3}"
    assert event == "complete" and re.fullmatch(rf"\*\*{ONE}\*\*{said}\n\n\*\*{TWO}\*\*{said}", words)
    paths = [fetch(server, one["value"], tmp_path / f"{n}.png") for n, one in enumerate(shown)]
    first, second, plain = (np.asarray(Image.open(p).convert("RGB")) for p in (*paths, server.picture))
    width = plain.shape[1]
    assert (first[:, :width] != second[:, :width]).any() and (first[:, :width] != plain).any()
    assert first.shape[1] > width and (first[:, width:] == second[:, width:]).all()  # the colour bars


def test_what_is_wrong_is_said_in_the_page_s_own_words(server, tmp_path):
    Image.new("1", (5_001, 5_000)).save(tmp_path / "large.png")
    soundfile.write(tmp_path / "a.flac", tone(1), RATE)
    clip = server.upload("clip.mp4", b"this is no video")
    large = server.upload("large.png", (tmp_path / "large.png").read_bytes())
    sound = server.upload("a.wav", server.sound.read_bytes())
    film = server.upload("film.mp4", (tmp_path / "a.flac").read_bytes())
    (server.checkpoints / "damaged.pth").write_bytes(b"no weights")
    unknown, choose_first = "clip.mp4 cannot be read: it is damaged, or of", "Choose one model or two"
    for name, values, words in (
        ("localise_video", ([ONE], False, clip), unknown),
        ("localise_video", ([ONE], False, film), "film.mp4 has no moving picture. "),
        ("localise_picture", ([ONE], False, large, clip), "The picture is too large: 25 million"),
        ("localise_picture", ([ONE], False, clip, sound), unknown),
        ("localise_video", ([ONE], False, None), choose_first),
        ("localise_picture", ([ONE], False, None, None), choose_first),
        ("localise_video", (["../x.pth"], False, clip), choose_first),
        ("localise_video", (["ckpts/damaged.pth"], False, clip), "That did not work, for a reason that "),
    ):
        event, data = server.ask(name, *values)
        assert event == "error" and data["error"].startswith(words)
        assert str(Path(clip["path"]).parent) not in str(data)
        assert not re.search("Traceback|Error\\(|<class|Errno", str(data))
    assert server.call("POST", "upload", files={"files": ("large.mp4", bytes(5_100_000))}).status_code == 413


def test_no_other_file_can_be_read(server):
    upload = server.upload("../../../evil.txt", b"mine")["path"]
    folder = Path(upload).parents[1]
    assert folder.name == "uploads" and not (folder.parents[2] / "evil.txt").exists()
    assert server.get(f"/gradio_api/file={upload}") == (200, b"mine")

    secret = folder.parent / "secret.txt"
    secret.write_text("the secret")
    wanted = ["/etc/passwd", ROOT / "README.md", server.checkpoints / "one.pth", secret,
              f"{folder}/../secret.txt", f"{folder}/%2e%2e/secret.txt",
              f"{folder}/..%2fsecret.txt", "../secret.txt", "..%2f..%2fsecret.txt",
              f"file://{secret}", f"/{secret}", "/proc/self/environ",
              sys.executable]  # fmt: skip
    prefixes = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/stream/",
                "/static/..", "/assets/../../../../../../../../..", "/assets/..%2f..%2f..%2f..%2f",
                "/gradio_api/deep_link=", "/svelte/..", "/gradio_api/proxy=")  # fmt: skip
    for prefix in prefixes:
        for path in wanted:
            status, content = server.get(f"{prefix}{path}")
            assert status != 200, (prefix, path)
            for words in (b"root:", b"the secret", b"SSL-TIE", b"PYTHONPATH", b"ELF"):
                assert words not in content, (prefix, path)
    for path in (p for p in wanted if not str(p).startswith("file:")):
        event, data = server.ask("localise_video", [ONE], False, as_file(path))
        assert event == "error" and "secret" not in str(data).replace("secret.txt", "")
    for path in ("/monitoring", "/monitoring/summary", "/gradio_api/mcp/", "/gradio_api/runs"):
        assert server.get(path)[0] in (403, 404, 405), path


def test_an_upload_that_names_a_file_does_not_show_it(server):
    secret = server.checkpoints / "secret.ts"
    make_video(secret, seconds=1.0)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\n{secret}\n#EXT-X-ENDLIST\n"
    concatenation = f"ffconcat version 1.0\nfile {secret}\n"
    for name, content in (("a.m3u8", playlist), ("a.mp4", playlist), ("a.ffconcat", concatenation)):
        upload = server.upload(name, content.encode())
        event, data = server.ask("localise_video", [ONE], False, upload)
        assert event == "error" and f"{name} cannot be read" in data["error"]


def test_nothing_is_fetched_on_a_visitor_s_behalf(server):
    asked = []

    class Recorder(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - as above

    with http.server.HTTPServer(("127.0.0.1", 0), Recorder) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{other.server_port}/clip.mp4"
        event, data = server.ask("localise_video", [ONE], False, as_file(address))
        assert event == "error" and "not its address" in data["error"]
        other.shutdown()
    assert asked == []


def test_only_this_computer_can_open_the_page(server):
    listening = Path("/proc/net/tcp").read_text().split("\n")[1:-1]
    at_port = [line.split()[1] for line in listening if line.split()[3] == "0A"]
    places = [place for place in at_port if int(place.split(":")[1], 16) == server.port]
    assert places and {place.split(":")[0] for place in places} == {"0100007F"}


@needs_browser
def test_a_visitor_uploads_waits_sees_the_result_and_tries_an_example(server, tmp_path):
    profile = tmp_path / "profile"
    profile.mkdir()
    with open_tab(server.address, profile) as tab:
        tab.wait_for("!!document.querySelector('#video_input input[type=file]')")
        tab.wait_for("document.querySelector('#about').innerText.includes('it has learned nothing')")
        choose(tab, "#models", f"{ONE} (untrained)")
        tab.upload("#video_input input[type=file]", server.video)
        tab.wait_for("(document.querySelector('#video_input video') || {}).readyState >= 1")
        tab.evaluate("document.querySelector('#localise_video').click()")
        for name in ("video_first", "video_second"):
            tab.wait_for(f"(document.querySelector('#{name} video') || {{}}).readyState >= 2")
        words = tab.evaluate("document.querySelector('#video_words').innerText")
        assert f"{ONE}: " in words and f"{TWO}: " in words
        tab.evaluate("[...document.querySelectorAll('button[role=tab]')].pop().click()")
        tab.wait_for("document.querySelector('#picture_examples').innerText.includes('dog')")
        tab.evaluate("document.querySelector('#picture_examples .thumbnail-item').click()")
        tab.wait_for("document.querySelectorAll('#picture_first img, #picture_second img').length === 2")
        hosts = {urllib.parse.urlparse(a).netloc for a in tab.addresses if a.startswith("http")}
        assert hosts == {f"127.0.0.1:{server.port}"}  # no font, script or counter from elsewhere


def choose(tab, dropdown, label):
    """Opens a dropdown of Gradio and takes one more entry, as the mouse does."""
    field, entries = f"document.querySelector('{dropdown} input')", f"'{dropdown} li'"
    entry = f"[...document.querySelectorAll({entries})].find(e => e.innerText.includes('{label}'))"
    # Again and again, as a page that is still being built does not listen.
    tab.wait_for(f"{field}.dispatchEvent(new Event('focus')) && !!{entry}")
    tab.evaluate(f"{entry}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    tab.wait_for(f"document.querySelectorAll('{dropdown} .token').length === 2")


def test_without_a_model_the_page_does_not_start(tmp_path):
    process = start_page("--port", free_port(), "--checkpoints", tmp_path, "--runs", tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == ""
    assert "There is no model in" in err and "Traceback" not in err
