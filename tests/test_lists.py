"""Clip lists: every accepted form, every refusal, fetching, and which published clips were scored."""

import gzip
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest

from datasets import lists
from datasets.lists import (
    LISTS,
    ROWS,
    fetch_list,
    find_leak,
    find_list,
    ids_sha256,
    name_cut,
    published_list,
    read_classes,
    read_clip_list,
)
from utils.evaluation.protocols import PROTOCOLS

ROOT = Path(__file__).resolve().parents[1]
# Copies of the published lists that a developer may keep beside the repository.
PUBLISHED = ROOT.parent / "shared" / "metadata"
TOY = b"first_000001\nsecond_000002\nthird_000003\n"
THE_250 = ["3908875350", "3908875357"]


@cache
def copies():
    """Contents of the copies, by sha256."""
    contents = [path.read_bytes() for path in PUBLISHED.glob("*.*")]
    contents += [gzip.decompress(content) for content in contents if content.startswith(b"\x1f\x8b")]
    return {hashlib.sha256(content).hexdigest(): content for content in contents}


def published_bytes(name):
    return copies().get(LISTS[name].sha256) or pytest.skip(f"no copy of {name} in {PUBLISHED}")


def published_ids(name, folder):
    """Ids of an official list, read from `folder`, which is $VSSL_SPLITS."""
    (folder / LISTS[name].file_name).write_bytes(published_bytes(name))
    return find_list(name, pairs=LISTS[name].pairs).clip_ids


@pytest.fixture
def splits(tmp_path, monkeypatch):
    folder = tmp_path / "lists"
    folder.mkdir()
    monkeypatch.setenv(lists.FOLDER_VARIABLE, str(folder))
    return folder


def write(folder, file_name, content):
    path = folder / file_name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def toy(monkeypatch):
    row = replace(
        LISTS["ssl_tie_vgg_ss_4911"],
        name="toy", clips=3, repository="someone/Lists", commit="abc1234", path="metadata/toy.txt",
        sha256=hashlib.sha256(TOY).hexdigest(),
    )  # fmt: skip
    monkeypatch.setitem(LISTS, "toy", row)
    return row


class Truncating(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(TOY)))
        self.end_headers()
        self.wfile.write(TOY[:5])

    def log_message(self, *_arguments):
        pass


def publish(folder, row, content):
    path = folder / row.repository / row.commit / row.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("file_name", "content", "expected"),
    [
        ("blank.txt", "\na_000001\r\n  \n\n b_000002 ", ("a_000001", "b_000002")),
        ("bom.txt", b"\xef\xbb\xbfa_000001\n", ("a_000001",)),
        ("numbers.csv", "10000130166,202\r\n10007936344,0\r\n", ("10000130166", "10007936344")),
        ("header.csv", "video,audio,label\r\na,a,sounding\r\nb,b,sounding\r\n", ("a", "b")),
        ("header_id.csv", 'Clip_ID,class\n"a","dog bark"\n', ("a",)),
        ("vggsound.csv", 'a,1,"heart, beat",test\na,30,dog,train\n', ("a_000001", "a_000030")),
        ("jpg.txt", "10000130166.jpg\n10007936344.JPG\n", ("10000130166", "10007936344")),
        ("paths.txt", "videos/0/0/0/2615133000.mp4\n0\\1\\33.wav\n", ("2615133000", "33")),
        ("dots.txt", "a.b_000001\nc.2.flac\n--PlJNEnf-s_000288", ("a.b_000001", "c.2", "--PlJNEnf-s_000288")),
        ("is3.json", '[{"image": "x/a_b_1_a.jpg", "audio": "x/a_b_1_a.wav"}]', ("a_b_1_a",)),
        ("ms3.txt", "visual_frames/v_1/v_1.mp4_3.png\n", ("v_1_3",)),
        ("header_words.csv", "YouTube ID,class\na,dog\n", ("a",)),
        ("remarks.csv", "# made by hand\na.mp4\tdog, barking\n", ("a",)),
        ("test.csv", "a_000001.mp4,dog\nb_000002.mp4,cat\n", ("a_000001", "b_000002")),
        ("vggsound_header.csv", "youtube_id,start,label,split\na,30,dog,Train\n", ("a_000030",)),
        ("sounds.txt", "mp3/videos/0/0/0/2615133000.mp4.mp3\n", ("2615133000",)),
        ("same.csv", "video,audio\na.mp4,a.wav\n", ("a",)),
        ("boxes.json", '[{"file": "a", "class": "x", "bbox": []}, {"file": "b"}]', ("a", "b")),
        (
            "milliseconds.txt",
            "gklbB7TYoK4_30000_40000\n1F3_bvIT0ig_0_10000\n-aB_cdefghi_1000_6000\n",
            ("gklbB7TYoK4_000030", "1F3_bvIT0ig_000000", "-aB_cdefghi_1000_6000"),
        ),
    ],
)
def test_accepted_forms(tmp_path, file_name, content, expected):
    path = write(tmp_path, file_name, content)
    clip_list = read_clip_list(path)
    assert clip_list.clip_ids == expected
    assert clip_list.name == Path(file_name).stem
    assert clip_list.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_negatives_are_read(tmp_path):
    content = "\ufeffvideo,audio,label\r\na.mp4,b.wav,non-sounding\r\n\r\na,a,non-sounding\r\n"
    path = write(tmp_path, "mine.csv", content)
    read = read_clip_list(path, pairs=True)
    assert (read.name, read.clip_ids) == ("mine", ("a+b", "a+a"))


# ---------------------------------------------------------------------------------------- classes

ENTRIES = {"a_000001": {"class": "dog"}, "b_000030": {"class": "speech, woman"}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", 'a_000001,dog\nb_000030,"speech, woman"\n'),
        ("labels.txt", '\ufeffclip_id,label\r\n"a_000001","dog"\r\n\r\nb_000030, "speech, woman"\r\n'),
        ("vggsound.csv", 'a,1,dog,train\nb,30,"speech, woman",test\n'),
        ("test.csv", 'a_000001.mp4,dog\nb_000030.mp4,"speech, woman"\n'),
        ("vggss.json", json.dumps([{"file": name, "bbox": [], **entry} for name, entry in ENTRIES.items()])),
        ("stamps.json", json.dumps({"clips": ENTRIES})),
    ],
)
def test_every_published_form_gives_the_same_classes(name, content, tmp_path):
    path = write(tmp_path, name, content)
    classes, sha256 = read_classes(path, ["b_000030", "a_000001"])
    assert list(classes.items()) == [("b_000030", "speech, woman"), ("a_000001", "dog")]
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"2 of 3 clips have no class, first: c, d.*2 clips"):
        read_classes(path, ["a_000001", "c", "d"])


# -------------------------------------------------------------------------------------- refusals

NO_LIST = [
    ("blank.txt", "\n \n", "names no clips"),
    ("header.csv", "id,label\n", "names no clips"),
    ("empty.json", "[]", "names no clips"),
    ("hole.csv", "a,1\n,2\n", "entry 2 has no clip id"),
    ("binary.txt", b"\xff\xfe\x00a", "UTF-8"),
    ("quote.csv", 'a,"dog\n', "unexpected end of data"),
    ("broken.json", '[{"file": ', "is no list of clips"),
    ("number.json", "3", "is no list of clips"),
    ("object.json", '{"file": "a"}', "is no list of clips .*clips"),
    ("type.json", '[{"file": 3}]', r"an entry has \[3, ''\] instead of text"),
]
NO_CLIPS = [
    ("keys.json", '[{"file": "a"}, {"name": "b"}]', "an entry has .None"),
    ("silent.csv", "video,audio,label\na,a,x\nb,c,x\n", "1 of 2 lines pair a frame"),
]
NO_NEGATIVES = [
    ("n.csv", "", "a line holds an id alone"),
    ("n.csv", "a\nb\n", "a line holds a"),
    ("n.csv", "video,audio,label\n", "names no clips"),
    ("n.csv", "video,audio,label\na,b,sounding\n", "a,b,sounding"),
    ("n.csv", "video,audio,label\na,b\n", "a,b"),
    ("n.csv", "video,audio,label\n,b,non-sounding\n", ",b,non-sounding"),
    ("n.csv", "video,audio,label\na,b,non-sounding\na,b,non-sounding\n", "more than once"),
    ("n.csv", b"\xff\xfe", "UTF-8"),
]
NO_CLASSES = [
    ("l.csv", "a\nb\n", "expected an id and a class, got a. .*id,class"),
    ("l.csv", "a,dog\nb,speech, woman\n", "got b, speech, woman.*double quotes"),
    ("l.csv", "a,first,dog,test\n", "got a, first, dog, test"),
    ("l.csv", "a,dog\nb,\n", "got b, "),
    ("l.csv", "a,dog\nb,cat\na,cat\n", "more than once, first: a"),
    ("l.json", '[{"file": "a", "bbox": []}]', "expected an id and a class, got a"),
    ("l.json", '{"clips": {"a": {"class": 3}}}', "an entry has "),
    ("l.json", '{"clips": {"a": "dog"}}', "is no list of clips"),
]


@pytest.mark.parametrize(
    ("read", "file_name", "content", "message"),
    [
        *((read_clip_list, *row) for row in NO_LIST + NO_CLIPS),
        *((partial(read_clip_list, pairs=True), *row) for row in NO_NEGATIVES),
        *((partial(read_classes, clip_ids=["a"]), *row) for row in NO_LIST + NO_CLASSES),
    ],
)
def test_what_is_no_list_is_refused_in_words(tmp_path, read, file_name, content, message):
    path = write(tmp_path, file_name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_duplicates_are_counted_and_the_first_five_named(tmp_path):
    ids = [f"clip_{number}" for number in range(9)]
    path = write(tmp_path, "twice.txt", "\n".join([*ids, *ids[:6], "videos/clip_6.mp4"]))
    with pytest.raises(ValueError, match="7 of 9 ids occur more than once") as caught:
        read_clip_list(path)
    assert "clip_4" in str(caught.value) and "clip_5" not in str(caught.value)


# -------------------------------------------------------------------------------------- fetching


def test_fetch_from_a_mirror_then_from_disk(toy, splits, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bash scripts/get_splits\.sh toy$"):
        find_list("toy")
    publish(tmp_path, toy, TOY)
    path = fetch_list("toy", splits / "new", tmp_path.as_uri() + "/")
    assert path.read_bytes() == TOY
    assert [entry.name for entry in path.parent.iterdir()] == ["toy.txt"]
    assert fetch_list("toy", splits / "new", "http://127.0.0.1:9") == path
    path.rename(splits / "toy.txt")
    clip_list = find_list("toy")
    assert (clip_list.name, len(clip_list.clip_ids), clip_list.sha256) == ("toy", 3, toy.sha256)


def test_a_file_of_an_official_name_wins(toy, splits, monkeypatch):
    write(splits, "toy", "own_000001\n")
    monkeypatch.chdir(splits)
    assert find_list("toy").clip_ids == ("own_000001",)
    monkeypatch.delenv(lists.FOLDER_VARIABLE)
    assert lists.default_folder() == ROOT / "metadata"


def test_wrong_bytes_are_refused_and_nothing_is_left_or_overwritten(toy, splits, tmp_path):
    other = TOY + b"extra_000004\n"
    publish(tmp_path, toy, other)
    sums = f"has sha256 {hashlib.sha256(other).hexdigest()}, expected {toy.sha256}"
    with pytest.raises(ValueError, match=sums):
        fetch_list("toy", splits / "new", tmp_path.as_uri())
    assert not (splits / "new").exists()
    path = write(splits, "toy.txt", "mine_000001\n")
    for use in (partial(fetch_list, "toy", splits, tmp_path.as_uri()), partial(find_list, "toy")):
        with pytest.raises(ValueError, match=r"toy\.txt is there but has sha256 .* Move it away"):
            use()
    assert path.read_bytes() == b"mine_000001\n"


@pytest.mark.usefixtures("toy")
def test_network_failures(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Truncating)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for address, words in (
        (f"http://127.0.0.1:{server.server_port}", r"\b5\b"), ("http://127.0.0.1:9", "--base-url"),
        ((tmp_path / "none").as_uri(), "No such file"), ("mirror", "unknown url type"),
    ):  # fmt: skip
        with pytest.raises(ConnectionError, match=f"toy: could not download {address}.*{words}"):
            fetch_list("toy", tmp_path / "lists", address)
    server.shutdown()
    server.server_close()
    assert not (tmp_path / "lists").exists()


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="Give the path of your own list") as caught:
        find_list("vgg_ss_9999")
    assert all(name in str(caught.value) for name in LISTS)
    with pytest.raises(ValueError, match="is not an official list"):
        fetch_list("vgg_ss_9999", tmp_path)


def test_command_goes_on_after_a_failure_and_reports_all(tmp_path, toy, capsys):
    publish(tmp_path, toy, TOY)
    names = ["unknown", "toy", "toy", "ssl_tie_flickr_249"]
    assert lists.main([*names, "--folder", str(tmp_path), "--base-url", tmp_path.as_uri()]) == 2
    shown = capsys.readouterr()
    assert shown.out == f"toy: 3 clips, verified: {tmp_path / 'toy.txt'}\n"
    assert shown.err.count("get_splits: ") == 2
    assert "'unknown' is not an official list" in shown.err
    assert "metadata/test_flickr_250.txt" in shown.err
    in_the_way = write(tmp_path, "lists", "a file")
    assert lists.main(["toy", "--folder", str(in_the_way), "--base-url", tmp_path.as_uri()]) == 2
    assert str(in_the_way) in capsys.readouterr().err


def test_command_shows_what_there_is():
    words = [sys.executable, "-m", "datasets.lists", "--list"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_rows_equal_the_published_files(splits, tmp_path, name):
    row = LISTS[name]
    publish(tmp_path, row, published_bytes(name))
    fetch_list(name, splits, tmp_path.as_uri())
    clip_ids = find_list(name, pairs=row.pairs).clip_ids
    assert len(clip_ids) == row.clips
    assert not row.ids_sha256 or ids_sha256(clip_ids) == row.ids_sha256
    with pytest.raises(ValueError, match="--clip-list" if row.pairs else "--negatives"):
        find_list(name, pairs=not row.pairs)


# ------------------------------------------------------------------------------------------ cuts


@pytest.fixture
def cuts(monkeypatch):
    """Two cuts of VGG-SS, of which protocol `mine` published on both, and a list of negatives."""
    first, pairs = LISTS["ssl_tie_vgg_ss_4911"], LISTS["slavc_vgg_ss_negatives"]
    rows = [
        replace(first, name="l1", clips=3, cut="the first", ids_sha256=ids_sha256("abc")),
        replace(first, name="l2", clips=2, cut="the second", ids_sha256=ids_sha256("ab")),
        replace(pairs, clips=1, cut="N", ids_sha256=ids_sha256(["x+y"])),
    ]
    rows = [replace(row, published_by=("mine",)) for row in rows]
    monkeypatch.setattr(lists, "ROWS", rows)


@pytest.mark.parametrize(
    ("benchmark", "clip_ids", "more", "words"),
    [
        ("vgg_ss", "cab", (), "T, 3 clips: the first"),
        ("vgg_ss", "abd", (), "T, 3 clips: none of the published cuts"),
        ("vgg_ss", "abc", ((), 1), "T, 3 clips: the first; 1 of them are missing"),
        ("vgg_ss_extended", "abc", (["x+y"],), "T, 3 clips: the first; 1 negatives: N"),
        ("vgg_ss_extended", "abc", (["y+x"],),
         "T, 3 clips: the first; 1 negatives: none of the published cuts"),
        ("stamps", "a", (), "stamps, 1 clips: no cut of this set is published"),
    ],
)  # fmt: skip
def test_a_cut_is_known_by_its_ids(cuts, benchmark, clip_ids, more, words):
    assert name_cut(benchmark, "T", clip_ids, *more) == words


NEGATIVES = "slavc_vgg_ss_negatives"
VERY, OTHER = (f"published results on {which} clip list" for which in ("this very", "another"))
NONE = "published no result on this clip list"


@pytest.mark.parametrize(
    ("protocol", "benchmark", "clip_ids", "negatives", "expected"),
    [
        ("mine", "vgg_ss", "bca", (), ("the first", "l1", True, f"{VERY} (the first)")),
        ("mine", "vgg_ss", "ab", (), ("the second", "l2", True, f"{VERY} (the second, not the first)")),
        ("mine", "vgg_ss", "abd", (), ("the first", "l1", False, f"{OTHER} (the first): not comparable")),
        ("mine", "vgg_ss", "abc", ["x+y"], ("the first", "l1", False, OTHER)),
        ("mine", "vgg_ss_extended", "abc", ["x+y"], ("the first", NEGATIVES, True, VERY)),
        ("mine", "vgg_ss_extended", "abc", (), ("the first", NEGATIVES, False, OTHER)),
        ("mine", "vgg_ss_extended", "abc", ["y+x"], ("the first", NEGATIVES, False, OTHER)),
        ("theirs", "vgg_ss", "abc", (), (None, None, False, NONE)),
        ("mine", "is3", "abc", (), (None, None, False, NONE)),
    ],
)
def test_published_numbers_belong_to_clips(cuts, protocol, benchmark, clip_ids, negatives, expected):
    found = published_list(protocol, "Me", benchmark, clip_ids, negatives)
    assert (found["cut"], found["name"], found["is_scored"]) == expected[:3]
    assert found["words"].startswith(f"Me {expected[3]}")


def test_rows_are_whole_and_name_protocols_and_benchmarks_that_there_are():
    assert len({row.file_name for row in LISTS.values()}) == len(LISTS)
    for row in ROWS:
        assert set(row.published_by) <= PROTOCOLS.keys()
        assert bool(row.cut) == bool(row.benchmarks) == bool(row.ids_sha256)
        assert bool(row.name) == bool(row.sha256) == bool(row.repository)
        assert row.name or row.cut
    counts = [row.clips for row in ROWS if "vgg_ss" in row.benchmarks]
    assert sorted(counts) == [2425, 2463, 2564, 2575, 4655, 4670, 4692, 4911, 5158]
    # Of the copies none is passed over below because its row has another sha256.
    assert not copies() or sum(row.sha256 in copies() for row in LISTS.values()) >= 28


def test_classes_heard_in_training_are_a_list_of_those_who_published_on_it(splits):
    heard = published_ids("ez_vsl_vgg_ss_heard", splits)
    scored = {name for name in PROTOCOLS if published_list(name, "", "vgg_ss", heard)["is_scored"]}
    assert scored == {"ez_vsl", "fnac_bicubic", "slavc", "slavc_fixed"}


def test_the_two_250_of_flickr_soundnet_differ(splits):
    common = published_ids("ssl_tie_flickr_249", splits)
    assert published_ids("sspl_flickr_249", splits) == published_ids("ssl_tie_flickr_249_csv", splits)
    slavc, senocak = (name_cut("flickr_soundnet", "F", [*common, one]) for one in THE_250)
    assert slavc.endswith("the cut of SLAVC, SSL-Align and ACL, the common 249 and " + THE_250[0])
    assert senocak.endswith(THE_250[1])
    assert "none" in name_cut("flickr_soundnet", "F", [*common, "1"])


@pytest.mark.parametrize(
    ("dataset", "positives", "count", "same_clip"),
    [("vgg_ss", "lvs_vgg_ss_5158", 5158, 379), ("flickr_soundnet", "ssl_tie_flickr_249", 250, 0)],
)
def test_published_negatives_are_recognised(splits, dataset, positives, count, same_clip):
    ids = published_ids(f"slavc_{dataset.removesuffix('_soundnet')}_negatives", splits)
    pairs = [tuple(clip_id.split("+")) for clip_id in ids]
    listed = [*published_ids(positives, splits), *(THE_250[:1] if count == 250 else ())]
    assert len(pairs) == len(listed) == count
    assert sum(video == audio for video, audio in pairs) == same_clip
    # What is not of the test set itself: the clips with sounds that are silent or not seen.
    strangers = {video for video, _ in pairs} - set(listed)
    assert strangers == {audio for _, audio in pairs} - set(listed)
    assert strangers == {video for video, audio in pairs if video == audio}
    words = name_cut(f"{dataset}_extended", "E", listed, ids)
    assert words.endswith(f"; {count:,} negatives: SLAVC's list") and "none" not in words
    assert published_list("slavc", "SLAVC", f"{dataset}_extended", listed, ids)["is_scored"]
    assert "none" in name_cut(f"{dataset}_extended", "E", listed, ids[1:])


def test_clips_in_both_lists_are_counted_and_named():
    training = [f"clip_{index}" for index in (9, 3, 5, 1, 7, 8, 2, 4, 4)]
    scored = tuple(f"clip_{index}" for index in (8, 7, 6, 5, 4, 3, 2, 0))
    leak = find_leak(training, scored, purpose="validation")
    assert leak["checked"] and leak["num_clips"] == 6
    assert leak["first"] == ["clip_2", "clip_3", "clip_4", "clip_5", "clip_7"]
    words = f"LEAK: 6 of 8 validation clips are in the training list, first: {', '.join(leak['first'])}."
    assert leak["message"].startswith(words)
    clean = {"checked": True, "num_clips": 0, "first": [], "message": "No test clip was trained on."}
    assert find_leak(["a", "b"], ["c", "d"], purpose="test") == find_leak([], ["a"], purpose="test") == clean
    unknown = find_leak(None, ["a"], purpose="test")
    assert not unknown["checked"] and unknown["num_clips"] is None
    assert "could not be checked" in unknown["message"] and "--training-list" in unknown["message"]
