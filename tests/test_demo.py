"""The demo: visitors get their heat maps, and nothing else of the computer."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from chromium import find_chromium, open_tab
from command_line import ENVIRONMENT, ROOT, free_port
from PIL import Image

from models import build_localiser
from scripts import demo, demo_jobs
from scripts.demo_examples import make_examples
from utils.checkpoint import Checkpoint, save_checkpoint
from utils.options import field_docstrings

PAGE_PYTHON = ROOT / ".venv-demo" / "bin" / "python"
needs_page = pytest.mark.skipif(
    not PAGE_PYTHON.is_file(), reason="no Gradio: bash scripts/setup.sh requirements-demo.txt .venv-demo"
)
needs_browser = pytest.mark.skipif(
    find_chromium() is None or find_spec("websocket") is None,
    reason="no Chromium, or requirements-dev.txt is not installed",
)
NO_SECOND = "none"


# Without Gradio


FAKE_WORKER = """
import json, sys, time
for line in sys.stdin:
    request = json.loads(line)
    if request["task"] == "count":
        for done in range(3):
            print(json.dumps({"progress": [done, 3]}), flush=True)
        print(json.dumps({"result": request}), flush=True)
    elif request["task"] == "refuse":
        print(json.dumps({"error": "no, " + request["paths"]["checkpoint"]}), flush=True)
    elif request["task"] == "die":
        sys.exit(3)
    else:
        time.sleep(60)
"""


@pytest.fixture
def process():
    process = demo_jobs.ModelProcess([sys.executable, "-c", FAKE_WORKER], timeout=20)
    yield process
    process.close()


def test_a_request_has_progress_and_a_result(process):
    steps = []
    result = process.ask(lambda done, expected: steps.append((done, expected)), task="count", a=1)
    assert result == {"task": "count", "a": 1}
    assert steps == [(0, 3), (1, 3), (2, 3)]


def test_a_process_that_died_is_started_anew(process):
    with pytest.raises(demo_jobs.JobError, match="stopped unexpectedly"):
        process.ask(task="die")
    assert process.ask(task="count") == {"task": "count"}


def test_a_request_that_takes_too_long_is_ended():
    process = demo_jobs.ModelProcess([sys.executable, "-c", FAKE_WORKER], timeout=2)
    with pytest.raises(demo_jobs.JobError, match="longer than 2 s"):
        process.ask(task="sleep")
    assert process._process is None
    assert process.ask(task="count") == {"task": "count"}
    process.close()


def test_requests_take_turns(process):
    with ThreadPoolExecutor(4) as visitors:
        results = list(visitors.map(lambda n: process.ask(task="count", n=n), range(12)))
    assert [result["n"] for result in results] == list(range(12))


def test_refusals_do_not_tell_where_files_are(process, tmp_path):
    class Refusing:
        def ask(self, on_progress, task, **request):
            return process.ask(on_progress, task="refuse", **request)

    model = tmp_path / "secret" / "a.pth"
    jobs = demo_jobs.Jobs(Refusing(), lambda: {"a": model}, tmp_path / "results", limit=30)
    with pytest.raises(demo_jobs.JobError, match=r"^no, a\.pth$"):
        jobs.localise_picture("a", "/p.png", "/s.wav", {})
    with pytest.raises(demo_jobs.JobError, match=r"no model '\.\./b' any more"):
        jobs.localise_picture("../b", "/p.png", "/s.wav", {})


def test_old_results_are_removed(process, tmp_path):
    jobs = demo_jobs.Jobs(process, lambda: {"a": tmp_path / "a"}, tmp_path / "results", limit=30)
    old, new = tmp_path / "results" / "old", tmp_path / "results" / "new"
    for folder, age in ((old, demo_jobs.KEPT_SECONDS + 60), (new, 60)):
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    jobs._remove_old()
    assert new.exists() and not old.exists()


def test_models_are_found_by_name(tmp_path):
    ckpts, runs = tmp_path / "ckpts", tmp_path / "runs"
    for name in ("ckpts/a.pth", "ckpts/vgg16.pth", "ckpts/b.pth.tar", "ckpts/README.md",
                 "ckpts/sspl/frame.pth", "ckpts/sspl/sound.pth", "ckpts/half/frame.pth",
                 "runs/mine/last.pth", "runs/mine/log.txt", "runs/mine/epoch_3.pth"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    known = {"not_models": ["vgg16.pth"], "release_files": ["frame.pth", "sound.pth"]}
    found = demo_jobs.find_models(ckpts, runs, **known)
    assert found == {
        "a.pth": ckpts / "a.pth",
        "b.pth.tar": ckpts / "b.pth.tar",
        "sspl": ckpts / "sspl",
        "mine/last.pth": runs / "mine" / "last.pth",
    }
    assert demo_jobs.find_models(tmp_path / "no", tmp_path / "no", **known) == {}


def stream_seconds(path):
    with av.open(str(path)) as container:
        return {s.type: float(s.duration * s.time_base) for s in container.streams}


def test_drawn_examples_are_shown_as_long_as_they_sound(tmp_path):
    made = make_examples(tmp_path, None)
    assert len(made["pairs"]) == 4 and len(made["videos"]) == 2
    for picture, sound in made["pairs"]:
        assert Image.open(picture).size == (256, 256)
        assert soundfile.info(sound).duration == 3
    for (video,) in made["videos"]:
        seconds = stream_seconds(video)
        assert seconds["video"] == pytest.approx(6, abs=0.01)
        assert seconds["audio"] == pytest.approx(6, abs=0.1)


def test_one_s_own_examples(tmp_path):
    source, folder = tmp_path / "mine", tmp_path / "copies"
    source.mkdir()
    folder.mkdir()
    with pytest.raises(ValueError, match="neither a video"):
        make_examples(folder, source)
    for name in ("dog.JPG", "dog.wav", "cat.png", "clip.mp4", "notes.txt"):
        (source / name).touch()
    made = make_examples(folder, source)
    assert made == {
        "videos": [[str(folder / "clip.mp4")]],
        "pairs": [[str(folder / "dog.JPG"), str(folder / "dog.wav")]],
    }
    with pytest.raises(FileNotFoundError, match="no folder"):
        make_examples(folder, tmp_path / "nowhere")


@pytest.mark.parametrize("option", ["max_mb", "max_seconds", "max_waiting", "timeout", "port"])
def test_limits_that_let_nothing_through_are_refused(option):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} must be"):
        demo.DemoOptions(model_python=Path(sys.executable), **{option: 0})


def test_every_option_is_explained_and_read():
    source = (ROOT / "scripts" / "demo.py").read_text().split("def find_examples")[1]
    for name, words in field_docstrings(demo.DemoOptions).items():
        assert words and f"options.{name}" in source
    assert demo.DemoOptions(model_python=Path(sys.executable)).host == "127.0.0.1"


# With the page


@dataclass
class Server:
    address: str
    process: subprocess.Popen
    checkpoints: Path
    video: Path
    picture: Path
    sound: Path

    @property
    def port(self):
        return int(self.address.rstrip("/").split(":")[-1])

    def get(self, path):
        """Status and content."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            # By hand, as clients tidy addresses up.
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                               "Connection: close\r\n\r\n".encode())  # fmt: skip
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        return int(answer.split()[1]), answer.split(b"\r\n\r\n", 1)[1]

    def upload(self, name, content):
        border = uuid.uuid4().hex
        head = f'Content-Disposition: form-data; name="files"; filename="{name}"'
        body = f"--{border}\r\n{head}\r\n\r\n".encode() + content + f"\r\n--{border}--\r\n".encode()
        kind = f"multipart/form-data; boundary={border}"
        request = urllib.request.Request(self.address + "gradio_api/upload", body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)[0]

    def ask(self, name, *values):
        """What an endpoint returns, or the words of its refusal."""
        where = f"{self.address}gradio_api/call/{name}"
        body = json.dumps({"data": values}).encode()
        request = urllib.request.Request(where, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            number = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{where}/{number}", timeout=300) as answer:
            last = answer.read().decode().strip().split("\n\n")[-1]
        event, _, data = last.partition("\ndata: ")
        return event.removeprefix("event: "), json.loads(data)


def as_file(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def save_model(path, seed):
    torch.manual_seed(seed)
    checkpoint = Checkpoint(
        method="ssl_tie",
        method_config={},
        audio_config={"window_seconds": 1.0, "fft_size": 256, "hop_length": 200, "mel_bins": 32},
        frame_config={"frame_size": 96},
        state_dict=build_localiser("ssl_tie", {}).state_dict(),
    )
    save_checkpoint(path, checkpoint)


def start_page(*arguments):
    environment = {
        **ENVIRONMENT, "VSSL_PYTHON": sys.executable,
        "GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ANALYTICS_ENABLED": "True",
    }  # fmt: skip
    command = ["bash", ROOT / "scripts" / "demo.sh", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page, as a user starts it, who has dangerous settings of Gradio in the environment."""
    folder = tmp_path_factory.mktemp("demo")
    drawn, checkpoints = folder / "drawn", folder / "ckpts"
    drawn.mkdir()
    made = make_examples(drawn, None)
    for seed, name in enumerate(("one.pth", "two.pth")):
        save_model(checkpoints / name, seed)
    process = start_page(
        "--port", free_port(), "--checkpoints", checkpoints, "--runs", folder / "none",
        "--examples", drawn, "--max-seconds", 2, "--max-mb", 5, "--device", "cpu",
    )  # fmt: skip
    said = process.stdout.readline()
    if not said.startswith("Open http://127.0.0.1:"):
        process.terminate()
        pytest.fail(f"{said}{process.communicate()[1]}")
    picture, sound = made["pairs"][0]
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield Server(
        said.split()[1], process, checkpoints, Path(made["videos"][0][0]), Path(picture), Path(sound)
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


@needs_page
def test_two_models_localise_a_video_side_by_side(server, tmp_path):
    upload = server.upload("clip.mp4", server.video.read_bytes())
    event, (words, first, second, peaks) = server.ask(
        "localise_video", as_file(upload), "one.pth", "two.pth", True, 0.0
    )
    assert event == "complete"
    assert "one.pth: 2" in words and "two.pth: 2" in words and "the first 2 s" in words
    contents = []
    for shown in (first, second):
        status, content = server.get(urllib.parse.urlparse(shown["value"]["url"]).path)
        assert status == 200
        (tmp_path / "got.mp4").write_bytes(content)
        seconds = stream_seconds(tmp_path / "got.mp4")
        assert seconds["video"] == pytest.approx(2, abs=0.2)
        assert seconds["audio"] == pytest.approx(2, abs=0.2)
        contents.append(content)
    assert contents[0] != contents[1]
    assert second["visible"] is True and (first["label"], second["label"]) == ("one.pth", "two.pth")
    assert [file["orig_name"] for file in peaks] == ["one.pth_peaks.csv", "two.pth_peaks.csv"]
    for file in peaks:
        status, content = server.get(urllib.parse.urlparse(file["url"]).path)
        assert status == 200 and content.startswith(b"time_seconds,x,y,similarity")


@needs_page
def test_a_picture_and_a_sound(server, tmp_path):
    picture = server.upload("a.png", server.picture.read_bytes())
    samples, rate = soundfile.read(server.sound)
    soundfile.write(tmp_path / "a.wav", samples[:rate], rate)  # no longer than this page takes
    sound = server.upload("a.wav", (tmp_path / "a.wav").read_bytes())
    event, (words, first, second, _) = server.ask(
        "localise_picture", as_file(picture), as_file(sound), "two.pth", NO_SECOND, False
    )
    assert (event, words) == ("complete", "two.pth")
    assert second["visible"] is False
    status, content = server.get(urllib.parse.urlparse(first["value"]["url"]).path)
    (tmp_path / "got.png").write_bytes(content)
    assert status == 200
    drawn, plain = (np.asarray(Image.open(path).convert("RGB"), dtype=int)
                    for path in (tmp_path / "got.png", server.picture))  # fmt: skip
    assert drawn.shape == plain.shape and np.abs(drawn - plain).mean() > 5


@needs_page
def test_what_is_wrong_is_said_on_the_page(server):
    upload = server.upload("clip.mp4", b"this is no video")
    event, data = server.ask("localise_video", as_file(upload), "one.pth", NO_SECOND, False, 0)
    assert event == "error" and data["error"].startswith("clip.mp4")
    assert str(Path(upload).parent) not in data["error"]
    event, data = server.ask("localise_video", None, "one.pth", NO_SECOND, False, 0)
    assert event == "error" and "Upload or record a video first" in data["error"]
    event, data = server.ask("localise_picture", None, None, "one.pth", NO_SECOND, False)
    assert event == "error" and "Give a picture and a sound first" in data["error"]
    event, _ = server.ask("localise_video", as_file(upload), "../x.pth", NO_SECOND, False, 0)
    assert event == "error"


@needs_page
def test_uploads_have_a_largest_size(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.upload("large.mp4", bytes(5_100_000))
    assert refused.value.code == 413


@needs_page
def test_no_other_file_can_be_read(server):
    upload = server.upload("../../../evil.txt", b"mine")
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
        event, data = server.ask("localise_video", as_file(path), "one.pth", NO_SECOND, False, 0)
        assert event == "error" and "secret" not in str(data).replace("secret.txt", "")
    for path in ("/monitoring", "/monitoring/summary", "/gradio_api/mcp/", "/gradio_api/runs"):
        assert server.get(path)[0] in (403, 404, 405), path


@needs_page
def test_an_upload_that_names_a_file_does_not_show_it(server):
    secret = server.checkpoints / "secret.ts"
    with av.open(str(server.video)) as source, av.open(str(secret), "w") as target:
        streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                target.mux(packet)
    with av.open(str(secret)) as container:
        assert container.streams.video
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\n{secret}\n#EXT-X-ENDLIST\n"
    for name, content in (
        ("a.m3u8", playlist),
        ("a.mp4", playlist),
        ("a.ffconcat", f"ffconcat version 1.0\nfile {secret}\n"),
    ):
        upload = server.upload(name, content.encode())
        event, data = server.ask("localise_video", as_file(upload), "one.pth", NO_SECOND, False, 0)
        assert event == "error", name
        assert "cannot be localised" in data["error"]


@needs_page
def test_a_picture_s_size_has_a_limit(server, tmp_path):
    Image.new("1", (5_001, 5_000)).save(tmp_path / "large.png")
    sound = server.upload("a.wav", server.sound.read_bytes())
    large = server.upload("large.png", (tmp_path / "large.png").read_bytes())
    files = map(as_file, (large, sound))
    event, data = server.ask("localise_picture", *files, "one.pth", NO_SECOND, False)
    assert event == "error" and "at most 25 million" in data["error"]


@needs_page
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
        event, data = server.ask("localise_video", as_file(address), "one.pth", NO_SECOND, False, 0)
        assert event == "error" and "not its address" in data["error"]
        other.shutdown()
    assert asked == []


@needs_page
def test_visitors_queue(server):
    upload = as_file(server.upload("clip.mp4", server.video.read_bytes()))
    names = ["one.pth", "two.pth", "one.pth", "two.pth"]
    with ThreadPoolExecutor(4) as visitors:
        answers = list(visitors.map(
            lambda name: server.ask("localise_video", upload, name, NO_SECOND, False, 0), names
        ))  # fmt: skip
    assert Counter(event for event, _ in answers) == {"complete": 4}
    assert [data[0].split(":")[0] for _, data in answers] == names


@needs_page
def test_only_this_computer_can_open_the_page(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses the address to send from
        own = probe.getsockname()[0]
        if not own.startswith("127."):
            with pytest.raises(OSError, match=r"refused|timed out"):
                socket.create_connection((own, server.port), timeout=5)
    listening = Path("/proc/net/tcp").read_text().split("\n")[1:-1]
    at_port = [line.split()[1] for line in listening if line.split()[3] == "0A"]
    places = [place for place in at_port if int(place.split(":")[1], 16) == server.port]
    assert places and {place.split(":")[0] for place in places} == {"0100007F"}


@needs_page
@needs_browser
def test_a_visitor_uploads_waits_and_sees_the_result(server, tmp_path):
    profile = tmp_path / "profile"
    profile.mkdir()
    with open_tab(server.address, profile) as tab:
        tab.wait_for("!!document.querySelector('#video_input input[type=file]')")
        choose(tab, "#second_model", "two.pth")
        tab.upload("#video_input input[type=file]", server.video)
        tab.wait_for("(document.querySelector('#video_input video') || {}).readyState >= 1")
        tab.evaluate("document.querySelector('#localise_video').click()")
        for name in ("video_first", "video_second"):
            tab.wait_for(f"(document.querySelector('#{name} video') || {{}}).readyState >= 2")
        played = tab.evaluate(
            """(async () => {
                const video = document.querySelector('#video_second video');
                video.muted = true;
                await video.play();
                await new Promise(done => video.ontimeupdate = () =>
                    video.currentTime > 0.2 && done());
                return [video.duration, video.videoWidth, video.videoHeight];
            })()"""
        )
        assert played[0] == pytest.approx(2, abs=0.2) and played[1:] == [256, 256]
        words = tab.evaluate("document.querySelector('#video_words').innerText")
        assert "one.pth: " in words and "two.pth: " in words
        tab.save_screenshot(Path(os.environ.get("VSSL_SCREENSHOT", tmp_path / "page.png")))
        hosts = {urllib.parse.urlparse(a).netloc for a in tab.addresses if a.startswith("http")}
        assert hosts == {f"127.0.0.1:{server.port}"}  # no font, script or counter from elsewhere


def choose(tab, dropdown, label):
    """Opens a dropdown of Gradio and takes an entry, as the mouse does."""
    field, entries = f"document.querySelector('{dropdown} input')", f"'{dropdown} li'"
    entry = f"[...document.querySelectorAll({entries})].find(e => e.innerText.includes('{label}'))"
    # Again and again, as a page that is still being built does not listen.
    tab.wait_for(f"{field}.dispatchEvent(new Event('focus')) && !!{entry}")
    tab.evaluate(f"{entry}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    tab.wait_for(f"{field}.value === '{label}'")


@needs_page
def test_without_a_model_the_page_does_not_start(tmp_path):
    process = start_page("--port", free_port(), "--checkpoints", tmp_path, "--runs", tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == ""
    assert "There is no model in" in err and "Traceback" not in err
