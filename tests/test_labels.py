"""Class labels: the forms that are published, and what is refused."""

import hashlib
import json

import pytest

from datasets.annotations import read_labels


def write(folder, content, name="labels.csv"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


CONTENTS = {
    "plain": ("labels.csv", 'a_000001,dog\nb_000030,"speech, woman"\n', "CSV of id,label"),
    "header": (
        "labels.txt",
        '\ufeffclip_id,label\r\n"a_000001","dog"\r\n\r\nb_000030, "speech, woman"\r\n',
        "CSV of id,label",
    ),
    "vggsound": ("vggsound.csv", 'a,1,dog,train\nb,30,"speech, woman",test\n', "VGGSound's CSV"),
    "vgg_ss": (
        "vggss.json",
        [
            {"file": "a_000001", "class": "dog", "bbox": []},
            {"file": "b_000030", "class": "speech, woman", "bbox": []},
        ],
        "VGG-SS JSON",
    ),
    "stamps": (
        "stamps.json",
        {"clips": {"a_000001": {"class": "dog"}, "b_000030": {"class": "speech, woman"}}},
        "stamps.json",
    ),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_every_published_form_gives_the_same_classes(case, tmp_path):
    name, content, form = CONTENTS[case]
    path = write(tmp_path, content, name)
    labels = read_labels(path)
    assert labels.classes == {"a_000001": "dog", "b_000030": "speech, woman"}
    assert labels.form == form
    assert labels.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert labels.of(["b_000030", "a_000001", "b_000030"]) == ["speech, woman", "dog", "speech, woman"]


def test_ids_that_begin_with_dashes_and_starts_of_six_digits(tmp_path):
    labels = read_labels(write(tmp_path, "---g-f_I2yQ,1,people marching,test\n-x,123456,a,train\n"))
    assert list(labels.classes) == ["---g-f_I2yQ_000001", "-x_123456"]


def test_clips_without_a_class_are_counted_and_named(tmp_path):
    labels = read_labels(write(tmp_path, "a,dog\nb,cat\n"))
    with pytest.raises(ValueError, match=r"2 of 3 clips have no class, first: c, d\..*2 clips"):
        labels.of(["a", "c", "d"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", "", "names no clips"),
        ("l.csv", "id,label\n", "names no clips"),
        ("l.csv", "a\nb\n", r"lines of \[1\] fields.*id,label"),
        ("l.csv", "a,dog\nb,speech, woman\n", r"lines of \[2, 3\] fields.*double quotes"),
        ("l.csv", "a,first,dog,test\n", r"lines of \[4\] fields"),
        ("l.csv", 'a,"dog\n', "not a CSV"),
        ("l.csv", "a,dog\nb,\n", "entry 2 lacks its id or its class"),
        ("l.csv", "a,dog\nb,cat\na,cat\n", "names a twice, as 'dog' and 'cat'"),
        ("l.json", "{", "not valid JSON"),
        ("l.json", "3", "of another form"),
        ("l.json", {"classes": {}}, "of another form"),
        ("l.json", [{"file": "a", "bbox": []}], 'entry 1 has no text under "file" or "class"'),
        ("l.json", {"clips": {"a": {"class": 3}}}, "entry 1 has no text"),
        ("l.json", {"clips": {"a": "dog"}}, "entry 1 has no text"),
    ],
)
def test_what_is_no_list_of_labels_is_refused_in_words(name, content, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_labels(write(tmp_path, content, name))


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No labels at .*stamps\.json"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"a,\xff\xfe")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_labels(tmp_path / "binary.csv")
