"""Clip lists: every accepted format, every refusal, and fetching over a local server."""

import functools
import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from datasets import splits
from datasets.clip_lists import MEDIA_SUFFIXES, read_clip_list
from datasets.official_splits import OFFICIAL_SPLITS, OfficialSplit
from datasets.splits import fetch_split, resolve_clip_list, resolve_negatives

ROOT = Path(__file__).resolve().parents[1]
# Copies of the published lists that a developer may keep beside the repository.
PUBLISHED = ROOT.parent / "shared" / "metadata"
PUBLISHED_PREFIXES = {
    "jinxiang-liu/SSL-TIE": "ssl_tie_",
    "hche11/Localizing-Visual-Sounds-the-Hard-Way": "lvs_",
    "zjsong/SSPL": "sspl_",
    "stoneMo/EZ-VSL": "ezvsl_",
    "stoneMo/SLAVC": "slavc_",
}
TOY = b"first_000001\nsecond_000002\nthird_000003\n"


def published_bytes(split):
    copy = PUBLISHED / (PUBLISHED_PREFIXES[split.repository] + Path(split.path).name)
    packed = copy.with_name(copy.name + ".gz")
    if packed.is_file():
        return gzip.decompress(packed.read_bytes())
    if not copy.is_file():
        pytest.skip(f"no copy of the published list at {copy}")
    return copy.read_bytes()


def write(folder, file_name, content):
    path = folder / file_name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def toy_split(monkeypatch):
    split = OfficialSplit(
        "someone/Lists",
        "abc1234",
        "metadata/toy.txt",
        3,
        hashlib.sha256(TOY).hexdigest(),
        "toy.txt",
        "three clips",
    )
    monkeypatch.setitem(OFFICIAL_SPLITS, "toy", split)
    return split


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments):
        pass


class TruncatingHandler(QuietHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(TOY)))
        self.end_headers()
        self.wfile.write(TOY[:5])


def serve(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder, the address at which it is served, and no proxy in between."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = serve(functools.partial(QuietHandler, directory=str(folder)))
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def publish(folder, split, content):
    path = folder / split.repository / split.commit / split.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def run_cli(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "datasets.splits", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("file_name", "content", "expected"),
    [
        ("lf.txt", "a_000001\nb_000002\n", ("a_000001", "b_000002")),
        ("crlf.txt", "a_000001\r\nb_000002\r\n", ("a_000001", "b_000002")),
        ("no_end.txt", "a_000001\nb_000002", ("a_000001", "b_000002")),
        ("blank.txt", "\na_000001\n  \n\n b_000002 \n", ("a_000001", "b_000002")),
        ("bom.txt", b"\xef\xbb\xbfa_000001\n", ("a_000001",)),
        ("numbers.csv", "10000130166,202\r\n10007936344,0\r\n", ("10000130166", "10007936344")),
        ("header.csv", "video,audio,label\r\na,a,sounding\r\nb,b,sounding\r\n", ("a", "b")),
        ("header_id.csv", "Clip_ID,class\na,dog\n", ("a",)),
        ("quoted.csv", '"a","dog bark"\n', ("a",)),
        ("jpg.txt", "10000130166.jpg\n10007936344.JPG\n", ("10000130166", "10007936344")),
        ("paths.txt", "videos/0/0/0/2615133000.mp4\n0\\1\\33.wav\n", ("2615133000", "33")),
        ("dots.txt", "a.b_000001\nc.2.flac\n", ("a.b_000001", "c.2")),
        ("dash.txt", "--PlJNEnf-s_000288\n", ("--PlJNEnf-s_000288",)),
        ("boxes.json", '[{"file": "a", "class": "x", "bbox": []}, {"file": "b"}]', ("a", "b")),
    ],
)
def test_accepted_formats(tmp_path, file_name, content, expected):
    path = write(tmp_path, file_name, content)
    clip_list = read_clip_list(path)
    assert clip_list.clip_ids == expected
    assert clip_list.name == Path(file_name).stem
    assert clip_list.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", sorted(MEDIA_SUFFIXES))
def test_every_media_suffix_is_cut(tmp_path, suffix):
    assert read_clip_list(write(tmp_path, "l.txt", f"x/a_1{suffix}\n")).clip_ids == ("a_1",)


def test_duplicates_are_counted_and_the_first_five_named(tmp_path):
    ids = [f"clip_{number}" for number in range(9)]
    path = write(tmp_path, "twice.txt", "\n".join([*ids, *ids[:7]]))
    with pytest.raises(ValueError, match="7 of 9 ids occur more than once") as caught:
        read_clip_list(path)
    assert "clip_4" in str(caught.value)
    assert "clip_5" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_same_clip_under_two_spellings_is_a_duplicate(tmp_path):
    with pytest.raises(ValueError, match="1 of 1 ids"):
        read_clip_list(write(tmp_path, "l.txt", "a.jpg\nvideos/a.mp4\n"))


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        ("empty.txt", "", "names no clips"),
        ("blank.txt", "\n \n", "names no clips"),
        ("header.csv", "video,label\n", "names no clips"),
        ("empty.json", "[]", "names no clips"),
        ("hole.csv", "a,1\n,2\n", "entry 2 has no clip id"),
        ("binary.txt", b"\xff\xfe\x00a", "not text in UTF-8"),
        ("broken.json", '[{"file": ', "not valid JSON"),
        ("object.json", '{"file": "a"}', "JSON dict"),
        ("keys.json", '[{"file": "a"}, {"image": "b"}]', "entry 2 has no text"),
        ("type.json", '[{"file": 3}]', "entry 1 has no text"),
        ("silent.csv", "video,audio,label\na,a,x\nb,c,x\n", "1 of 2 lines pair a frame"),
    ],
)
def test_refused_contents(tmp_path, file_name, content, message):
    path = write(tmp_path, file_name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_clip_list(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No clip list at .*absent\.txt.*get_splits\.sh"):
        read_clip_list(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="is a folder"):
        read_clip_list(tmp_path)


def test_fetch_over_http_then_from_disk(tmp_path, toy_split, mirror):
    served, address = mirror
    publish(served, toy_split, TOY)
    path = fetch_split("toy", tmp_path / "lists", base_url=address + "/")
    assert path.read_bytes() == TOY
    assert [entry.name for entry in path.parent.iterdir()] == ["toy.txt"]
    assert fetch_split("toy", tmp_path / "lists", base_url="http://127.0.0.1:9") == path
    assert resolve_clip_list("toy", tmp_path / "lists").clip_ids[0] == "first_000001"


def test_fetch_from_a_file_address_shows_progress_for_big_files(tmp_path, toy_split, monkeypatch):
    monkeypatch.setattr(splits, "_PROGRESS_FROM_BYTES", 1)
    publish(tmp_path, toy_split, TOY)
    path = fetch_split("toy", tmp_path / "lists", base_url=tmp_path.as_uri())
    assert path.read_bytes() == TOY


def test_wrong_bytes_are_refused_and_nothing_is_left(tmp_path, toy_split, mirror):
    served, address = mirror
    publish(served, toy_split, TOY + b"extra_000004\n")
    with pytest.raises(ValueError, match="has sha256") as caught:
        fetch_split("toy", tmp_path / "lists", base_url=address)
    assert toy_split.sha256 in str(caught.value)
    assert hashlib.sha256(TOY + b"extra_000004\n").hexdigest() in str(caught.value)
    assert not (tmp_path / "lists").exists()


def test_wrong_count_is_refused(tmp_path, toy_split, monkeypatch):
    four = OfficialSplit(toy_split.repository, "abc1234", toy_split.path, 4, toy_split.sha256, "toy.txt", "")
    monkeypatch.setitem(OFFICIAL_SPLITS, "toy", four)
    publish(tmp_path, four, TOY)
    with pytest.raises(ValueError, match="has 3 clips, expected 4"):
        fetch_split("toy", tmp_path / "lists", base_url=tmp_path.as_uri())
    assert not (tmp_path / "lists").exists()


def test_a_changed_local_list_is_neither_used_nor_overwritten(tmp_path, toy_split, mirror):
    served, address = mirror
    publish(served, toy_split, TOY)
    path = write(tmp_path, "toy.txt", "mine_000001\n")
    with pytest.raises(ValueError, match=r"toy\.txt is there but has sha256 .* Move it away"):
        fetch_split("toy", tmp_path, base_url=address)
    with pytest.raises(ValueError, match=r"has sha256 .*get_splits\.sh toy --folder "):
        resolve_clip_list("toy", tmp_path)
    assert path.read_bytes() == b"mine_000001\n"


def test_missing_on_the_server(tmp_path, toy_split, mirror):
    with pytest.raises(ConnectionError, match="HTTP 404") as caught:
        fetch_split("toy", tmp_path / "lists", base_url=mirror[1])
    assert toy_split.repository in str(caught.value)
    assert toy_split.path in str(caught.value)
    assert not (tmp_path / "lists").exists()


@pytest.mark.usefixtures("toy_split", "mirror")
def test_network_failures(tmp_path):
    server = serve(TruncatingHandler)
    with pytest.raises(ConnectionError, match=r"could not download .*\b5\b"):
        fetch_split("toy", tmp_path / "lists", base_url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"could not download http://127.*--base-url"):
        fetch_split("toy", tmp_path / "lists", base_url=f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(ConnectionError, match=r"No such file"):
        fetch_split("toy", tmp_path / "lists", base_url=(tmp_path / "none").as_uri())
    with pytest.raises(ValueError, match="--base-url 'mirror' is not"):
        fetch_split("toy", tmp_path / "lists", base_url="mirror")
    assert not (tmp_path / "lists").exists()


def test_a_folder_that_cannot_be_written(tmp_path, toy_split):
    publish(tmp_path, toy_split, TOY)
    in_the_way = write(tmp_path, "lists", "a file")
    with pytest.raises(OSError, match=r"toy: could not write .*--folder"):
        fetch_split("toy", in_the_way, base_url=tmp_path.as_uri())


def test_resolve_prefers_an_existing_file(tmp_path, toy_split, monkeypatch):
    write(tmp_path, "toy", "own_000001\n")
    monkeypatch.chdir(tmp_path)
    own = resolve_clip_list("toy", tmp_path)
    assert own.clip_ids == ("own_000001",)
    assert own.sha256 != toy_split.sha256
    assert resolve_clip_list(tmp_path / "toy") == own


def test_resolve_official_names(tmp_path, toy_split, monkeypatch):
    monkeypatch.setenv(splits.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"bash scripts/get_splits\.sh toy$"):
        resolve_clip_list("toy")
    write(tmp_path, "toy.txt", TOY)
    clip_list = resolve_clip_list("toy")
    assert (clip_list.name, len(clip_list.clip_ids)) == ("toy", 3)
    assert clip_list.sha256 == toy_split.sha256


def test_default_folder_is_in_the_repository(monkeypatch):
    monkeypatch.delenv(splits.FOLDER_VARIABLE, raising=False)
    assert splits.default_folder() == ROOT / "metadata"


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="Give the path of your own list") as caught:
        resolve_clip_list("vgg_ss_9999", tmp_path)
    assert all(name in str(caught.value) for name in OFFICIAL_SPLITS)
    with pytest.raises(ValueError, match="is not an official list"):
        fetch_split("vgg_ss_9999", tmp_path)


def test_cli_fetches_what_is_named(tmp_path, toy_split, capsys):
    publish(tmp_path, toy_split, TOY)
    arguments = ["toy", "toy", "--folder", str(tmp_path), "--base-url", tmp_path.as_uri()]
    assert splits.main(arguments) == 0
    assert capsys.readouterr().out == f"toy: 3 clips, verified: {tmp_path / 'toy.txt'}\n"


def test_cli_goes_on_after_a_failure_and_reports_all(tmp_path, toy_split, capsys):
    publish(tmp_path, toy_split, TOY)
    names = ["unknown", "toy", "ssl_tie_flickr_249"]
    arguments = [*names, "--folder", str(tmp_path / "lists"), "--base-url", tmp_path.as_uri()]
    assert splits.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("toy: 3 clips")
    assert "2 of 3 lists failed" in shown.err
    assert "'unknown' is not an official list" in shown.err
    assert "metadata/test_flickr_250.txt" in shown.err


def test_cli_process_lists_and_fails_without_a_traceback(tmp_path, mirror):
    listed = run_cli("--list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in OFFICIAL_SPLITS)

    publish(mirror[0], OFFICIAL_SPLITS["ssl_tie_flickr_249"], b"other\n")
    failed = run_cli("--base-url", mirror[1], VSSL_SPLITS=str(tmp_path / "lists"))
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("HTTP 404") == len(OFFICIAL_SPLITS) - 1
    assert failed.stderr.count("has sha256") == 1
    assert not (tmp_path / "lists").exists()


def test_official_file_names_are_distinct():
    file_names = [split.file_name for split in OFFICIAL_SPLITS.values()]
    assert len(set(file_names)) == len(file_names)
    assert all(Path(file_name).stem in OFFICIAL_SPLITS for file_name in file_names)


@pytest.mark.parametrize("name", OFFICIAL_SPLITS)
def test_official_splits_equal_the_published_files(tmp_path, name):
    split = OFFICIAL_SPLITS[name]
    write(tmp_path, split.file_name, published_bytes(split))
    if split.pairs:
        found = resolve_negatives(name, tmp_path)
        assert len(found.negatives) == split.num_clips
        with pytest.raises(ValueError, match="--negatives"):
            resolve_clip_list(name, tmp_path)
    else:
        found = resolve_clip_list(name, tmp_path)
        assert len(found.clip_ids) == split.num_clips
        with pytest.raises(ValueError, match="--clip-list"):
            resolve_negatives(name, tmp_path)
    assert found.sha256 == split.sha256


def test_cli_process_fetches_all_published_lists(tmp_path):
    for split in OFFICIAL_SPLITS.values():
        publish(tmp_path / "mirror", split, published_bytes(split))
    address = (tmp_path / "mirror").as_uri()
    fetched = run_cli("--folder", tmp_path / "lists", "--base-url", address)
    assert fetched.returncode == 0, fetched.stderr
    assert len(list((tmp_path / "lists").iterdir())) == len(OFFICIAL_SPLITS)
