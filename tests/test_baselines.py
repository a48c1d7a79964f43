"""Blind baselines from the boxes alone, through the command line."""

import json

import numpy as np
import pytest

from datasets.benchmarks import read_ground_truth
from utils.evaluation.protocols import PROTOCOLS

BOXES = {
    "middle": [[0.25, 0.25, 0.75, 0.75]],
    "everything": [[0.0, 0.0, 1.0, 1.0]],
    "corner": [[0.0, 0.0, 0.25, 0.25]],
    "two": [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]],
}


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "vggss.json"
    path.write_text(json.dumps([{"file": name, "bbox": boxes} for name, boxes in BOXES.items()]))
    return path


@pytest.fixture
def baselines(testing_program, annotations):
    """Runs the task; returns its exit status."""

    def run(*arguments):
        given = ["--benchmark", "vgg_ss", "--annotations", annotations, *arguments]
        return testing_program.main(["baselines", *map(str, given)])

    return run


def results_of(path):
    """The file, and its rows by rule and predictor."""
    content = json.loads(path.read_text())
    return content, {
        protocol["name"]: {row["name"].split(" of ")[0]: row for row in protocol["rows"]}
        for protocol in content["protocols"]
    }


def test_scores_of_made_up_boxes(baselines, tmp_path, capsys):
    output = tmp_path / "new" / "blind.json"
    assert baselines("--protocol", "all", "--output", output) == 0
    _, rows = results_of(output)
    assert list(rows) == list(PROTOCOLS)
    # The whole frame is right about 'everything' and about three quarters of the frame.
    whole = rows["sspl"]["whole frame (blind)"]
    assert whole["ciou_at_0.5"] == 50
    assert whole["mean_ciou"] == pytest.approx(100 * (1 / 4 + 1 + 1 / 16 + 3 / 4) / 4)
    # The square of 158 pixels: 112^2 of 158^2 is .502, and 158^2 of 224^2 is .498.
    assert rows["sspl"]["centre square (blind)"]["ciou_at_0.5"] == 25
    assert rows["ssl_tie"]["ceiling"]["ciou_at_0.5"] == 50
    assert rows["ez_vsl"]["ceiling"]["ciou_at_0.5"] == 75
    assert rows["sspl"]["ceiling"]["auc"] == 100
    shown = capsys.readouterr().out
    assert shown.startswith("vgg_ss, 4 clips of every clip annotated, no model, in percent")
    for name, protocol in PROTOCOLS.items():
        assert f"\n{name}: {protocol.authors} published " in shown


def test_only_listed_clips_are_scored_and_nothing_is_written_unasked(baselines, tmp_path):
    listed, output = tmp_path / "list.txt", tmp_path / "blind.json"
    listed.write_text("everything\ntwo\n")
    before = sorted(tmp_path.rglob("*"))
    assert baselines("--clip-list", listed) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert baselines("--clip-list", listed, "--output", output) == 0
    content, rows = results_of(output)
    assert (content["num_clips"], content["clip_list"]["name"]) == (2, "list")
    assert list(rows) == ["ssl_tie", "sspl"]
    assert rows["sspl"]["whole frame (blind)"]["ciou_at_0.5"] == 100


def test_is3_has_its_pairs_without_a_model_too(baselines, tmp_path, capsys):
    boxes = {"cat_dog_1_cat": [62, 62, 162, 162], "cat_dog_1_dog": [0, 0, 224, 224],
             "owl_fox_2_owl": [0, 0, 224, 224], "owl_fox_2_fox": [0, 0, 224, 215]}  # fmt: skip
    path, output = tmp_path / "is3.json", tmp_path / "blind.json"
    entries = [{"image": f"i/{n}.jpg", "audio": f"a/{n}.wav", "gt_box": box} for n, box in boxes.items()]
    path.write_text(json.dumps(entries))
    assert baselines("--benchmark", "is3", "--annotations", path, "--output", output) == 0
    content, rows = results_of(output)
    assert list(rows) == ["ssl_align_adaptive", "ssl_tie", "sspl"]
    whole = rows["sspl"]["whole frame (blind)"]
    assert whole["ciou_at_0.5"] == 75 and whole["extra"]["IIoU"] == 50
    shown = capsys.readouterr().out
    assert "IIoU" in shown and shown.endswith(f"\n{content['cut']}\n")
    assert content["cut"] == "IS3, 4 clips: none of the published cuts"
    assert "IAUC" in content["extra_metrics"]["words"]
    assert not content["protocols"][0]["published_list"]["is_scored"]


def test_xml_folder_equals_the_json(annotations, tmp_path):
    folder = tmp_path / "anno"
    folder.mkdir()
    for name, boxes in BOXES.items():
        blocks = "".join(f"<bbox><b>{''.join(f'<v>{v}</v>' for v in box)}</b></bbox>" for box in boxes)
        (folder / f"{name}.xml").write_text(f"<a>{blocks}</a>")
    from_json = read_ground_truth("vgg_ss", annotations, None)
    from_xml = read_ground_truth("vgg_ss", folder, None)
    assert from_xml.clip_ids == from_json.clip_ids == sorted(BOXES)
    assert from_xml.list_sha256 == from_json.list_sha256
    for one, other in zip(from_xml.clips, from_json.clips, strict=True):
        np.testing.assert_array_equal(one.bounding_boxes, other.bounding_boxes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clip-list", "{folder}/list.txt"], ("1 of 2 clips", "stranger", "--clip-list")),
        (["--annotations", "{folder}/no.json"], ("no.json", "get_splits.sh")),
        (["--annotations", "{folder}/empty"], ("No annotations at", "empty")),
        (["--benchmark", "flickr_soundnet"], ("does not fit flickr_soundnet",)),
    ],
)
def test_wrong_input_is_refused_in_words(baselines, tmp_path, caplog, arguments, words):
    (tmp_path / "list.txt").write_text("middle\nstranger\n")
    (tmp_path / "empty").mkdir()
    output = tmp_path / "blind.json"
    given = [word.format(folder=tmp_path) for word in arguments]
    assert baselines("--output", output, *given) == 2
    for word in words:
        assert word in caplog.text
    assert "Traceback" not in caplog.text
    assert not output.exists()
