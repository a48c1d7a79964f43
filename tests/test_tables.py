"""The scores as text: each form stands on its own, parses, and holds what users write."""

import csv
import io
import json
import re

import pytest
import torch
from result_inputs import SHA256, make_context, make_result

from models import METHODS, build_model
from utils.checkpoint import Checkpoint, save_checkpoint
from utils.evaluation.protocols import PROTOCOLS
from utils.evaluation.statistics import SCORE_KEYS
from utils.leaks import find_leak
from utils.results import summarise
from utils.tables import TABLE_FILES, facts_of, headline, render_table, score_table

NASTY = 'a_b & 5 % | #1 $x$ {y} ~^ \\\\ <i> "q" [z] *s* `c`\n\nend'
LISTED = {"clip_list": "ssl_tie_vgg_ss_4911", "num_listed": 6, "missing": ("clip_8 (no frame)", "clip_9")}


@pytest.fixture
def summary():
    leak = find_leak(["clip_0"], [f"clip_{index}" for index in range(4)], purpose="test")
    return summarise(make_result(), make_context(**LISTED, leak=leak, note=NASTY))


def test_headline_for_the_screen():
    line = headline(summarise(make_result(), make_context(num_listed=5)))
    assert line == "vgg_ss, 4 of 5 listed clips"


def test_table_for_the_screen():
    summary = summarise(make_result(), make_context())
    lines = score_table(summary["protocols"], "what was scored").splitlines()
    assert lines[0] == "what was scored"
    assert lines[1].split() == "protocol in percent cIoU@0.5 AUC mean cIoU pointing".split()
    assert [line.split()[:2] for line in (lines[2], lines[7])] == [["ssl_tie", "model"], ["sspl", "model"]]
    assert lines[2].split()[2:] == ["50.00", "42.50", "40.59", "50.00"]
    intervals = summary["rows"][0]["intervals"]
    ends = ["{:.1f}-{:.1f}".format(*intervals[key]) for key in SCORE_KEYS]
    assert lines[3].split() == ["95", "%", "interval", *ends]
    assert lines[4].split() == "centre disc (blind) 0.00 27.50 25.00 -".split()
    assert lines[8].split() == "95 % interval - - - 0.0-100.0".split()  # all clips hit alike
    assert lines[11].split() == "best possible under sspl 100.00 100.00 100.00 -".split()
    assert len({len(line) for line in lines[1:12]}) == 1
    for line, name in zip(lines[12:], ("ssl_tie", "sspl"), strict=True):
        assert line.startswith(f"{name}: {PROTOCOLS[name].description}; list: the published")


BESIDE = [
    PROTOCOLS["ssl_tie"].description,
    PROTOCOLS["sspl"].description,
    "ssl_tie_vgg_ss_4911",
    ("cd" * 32)[:12],
    SHA256[:12],
    "LEAK: 1 of 4 test clips",
    "centre disc (blind)",
    "centre Gaussian (blind)",
    "best possible under ssl_tie",
    "best possible under sspl",
]
"""What must stand beside the scores, in the forms for people and in the CSV."""


def without_escapes(text, form):
    if form == "md":
        return re.sub(r"\\(.)", r"\1", text)
    if form == "tex":
        text = text.replace(r"\textgreater{}", ">").replace(r"\textless{}", "<")
        return re.sub(r"\\([_&%$#{}])", r"\1", text)
    return text


@pytest.mark.parametrize("form", TABLE_FILES)
def test_each_form_holds_what_stands_beside_the_scores(summary, form):
    text = without_escapes(render_table(summary, form), form)
    for words in BESIDE:
        assert words in text, words
    if form != "csv":
        assert "4 scored of 6 listed" in text
        assert "2 without files, 0 unreadable" in text
        assert "95%, percentile bootstrap over clips, 2000 resamples, seed 0" in text
        assert "2 of 6 listed clips are missing" in text  # the warnings, too


def test_facts_are_never_empty(summary):
    assert all(name and words for name, words in facts_of(summary))
    assert [name for name, _ in facts_of(summary)].count("warning") == len(summary["warnings"]) == 2
    without_note = {**summary, "note": ""}
    assert "note" in dict(facts_of(summary)) and "note" not in dict(facts_of(without_note))


def test_json_is_the_whole_summary(summary):
    assert json.loads(render_table(summary, "json")) == json.loads(json.dumps(summary))


def test_csv_repeats_everything_in_each_line(summary):
    rows = list(csv.DictReader(io.StringIO(render_table(summary, "csv"))))
    assert [(row["protocol"], row["kind"]) for row in rows] == [
        (name, kind) for name in ("ssl_tie", "sspl") for kind in ("model", "baseline", "baseline", "ceiling")
    ]
    model = summary["rows"][0]
    for key in SCORE_KEYS:
        found = [float(rows[0][key + suffix]) for suffix in ("", "_low", "_high")]
        assert found == pytest.approx([model[key], *model["intervals"][key]], abs=1e-4)
    assert rows[1]["pointing_accuracy"] == rows[1]["auc_low"] == ""
    for row in rows:
        assert row["note"] == NASTY
        assert row["clip_list_sha256"] == "cd" * 32
        assert row["checkpoint_sha256"] == SHA256
        assert (row["num_clips"], row["num_listed"], row["num_missing"]) == ("4", "6", "2")
        assert (row["leak_checked"], row["num_leaked"]) == ("1", "1")
        assert row["rule"] == PROTOCOLS[row["protocol"]].description
        assert row["warnings"].count("LEAK") == 1


@pytest.mark.parametrize("form", ["md", "tex", "csv", "json"])
def test_which_published_cut_was_scored_stands_in_each_form(form):
    cut = "VGG-SS, 4 clips: none of the published cuts"
    assert cut in render_table(summarise(make_result(), make_context(cut=cut)), form)


def test_csv_says_that_a_leak_could_not_be_checked():
    unknown = make_context(leak=find_leak(None, ["clip_0"], purpose="test"))
    rows = csv.DictReader(io.StringIO(render_table(summarise(make_result(), unknown), "csv")))
    assert {(row["leak_checked"], row["num_leaked"]) for row in rows} == {("0", "")}


def test_markdown_table_has_as_many_cells_in_each_line(summary):
    lines = render_table(summary, "md").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 8
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}
    model = summary["rows"][0]
    lower, upper = model["intervals"]["auc"]
    assert f" {model['auc']:.2f} [{lower:.2f}, {upper:.2f}] |" in table[2]
    assert " 25.00 | - |" in table[3]
    (note,) = [line for line in lines if line.startswith("- note: ")]
    assert note.endswith(r"\<i\> \"q\" \[z\] \*s\* \`c\` end".replace('\\"', '"'))


def latex_tokens(text):
    """Commands, escaped characters and single characters."""
    return re.findall(r"\\[A-Za-z]+|\\.|[^\\]", text, re.DOTALL)


def test_latex_is_balanced_and_escaped(summary):
    text = render_table(summary, "tex")
    depth, environments = 0, []
    for token in latex_tokens(text):
        depth += (token == "{") - (token == "}")
        assert depth >= 0
    assert depth == 0
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        environments.append(name) if kind == "begin" else None
        assert kind == "begin" or environments.pop() == name
    assert not environments
    (body,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*)\\end\{tabular\}", text, re.DOTALL)
    columns, rows = body[0], body[1].replace("\\hline\n", "").strip().splitlines()
    assert len(columns) == 6 and len(rows) == 1 + 8
    for row in rows:
        assert row.endswith(r" \\")
        assert latex_tokens(row).count("&") == len(columns) - 1
    outside = text.replace(body[1], "")
    assert not {"&", "%", "$", "#", "_", "~", "^"} & set(latex_tokens(outside))
    assert not {"%", "$", "#", "_", "~", "^", "<", ">", '"'} & set(latex_tokens(body[1]))


def test_latex_keeps_what_the_user_wrote_in_one_line(summary):
    (note,) = [line for line in render_table(summary, "tex").splitlines() if "note: " in line]
    back = note.split("note: ")[1].removesuffix(r"\\")
    for name, letter in {"textasciitilde": "~", "textasciicircum": "^", "textbar": "|"}.items():
        back = back.replace(f"\\{name}{{}}", letter)
    back = back.replace(r"\textless{}", "<").replace(r"\textgreater{}", ">").replace("''", '"')
    back = re.sub(r"\\([&%$#_{}])", r"\1", back.replace(r"\textbackslash{}", "\0"))
    assert back.replace("\0", "\\") == " ".join(NASTY.split())


def test_a_form_that_is_not_there_is_an_error(summary):
    with pytest.raises(KeyError):
        render_table(summary, "xlsx")


# ------------------------------------------------------------------------------ the command line


@pytest.fixture
def localise(tiny_data, tmp_path, testing_program, one_thread, capsys):
    """Scores a fresh network on the tiny data set: status, and what is on the two channels."""
    torch.manual_seed(0)
    config = METHODS["ssl_tie"].config()
    checkpoint = Checkpoint(
        method="ssl_tie",
        method_config={},
        audio_config={},
        frame_config={"frame_size": 64},
        state_dict=build_model("ssl_tie", config).state_dict(),
    )
    save_checkpoint(tmp_path / "fresh.pth", checkpoint)

    def localise(*arguments):
        given = [
            "localisation", "--checkpoint", tmp_path / "fresh.pth", "--benchmark", "vgg_ss",
            "--data-root", tiny_data.root, "--output", tmp_path / "out", "--workers", 0,
            "--device", "cpu", "--gallery", 0, *arguments,
        ]  # fmt: skip
        status = testing_program.main(list(map(str, given)))
        return status, *capsys.readouterr()

    return localise


def test_a_table_alone_is_on_the_screen_and_classes_are_read(localise, tiny_data, tmp_path, caplog):
    labels = tmp_path / "labels.csv"
    lines = [f"{clip_id},class {index % 2}" for index, clip_id in enumerate(tiny_data.test_ids)]
    labels.write_text("\n".join(["clip_id,label", *lines]))
    status, shown, _ = localise("--table", "csv", "--labels", labels)
    assert status == 0
    assert shown == (tmp_path / "out" / "table.csv").read_text()
    (first, *_) = csv.DictReader(io.StringIO(shown))
    assert (first["num_clips"], first["protocol"]) == ("6", "ssl_tie")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["labels"]["form"] == "CSV of id,label"
    groups = summary["protocols"][0]["groups"]
    assert [(one["name"], one["num_clips"]) for one in groups["class"]] == [("class 0", 3), ("class 1", 3)]
    assert [(one["name"], one["num_clips"]) for one in groups["number_of_boxes"]] == [("1", 6)]
    assert [one["name"] for one in groups["box_size"]] == ["large"]  # 60 of 96 pixels to a side

    labels.write_text("\n".join(lines[1:]))
    status, shown, _ = localise("--labels", labels)
    assert (status, shown) == (2, "")
    assert "1 of 6 clips have no class" in caplog.text


def test_json_on_the_screen_is_the_summary(localise, tmp_path):
    status, shown, _ = localise("--table", "json")
    assert (status, shown) == (0, (tmp_path / "out" / "summary.json").read_text())


def test_without_a_form_the_table_is_for_reading(localise):
    status, shown, _ = localise()
    assert status == 0
    assert shown.startswith("vgg_ss, 6 of 6 listed clips\n")
    assert "95 % interval" in shown and shown.rstrip().endswith("report.html")
