"""Results side by side: several models, compared clip by clip."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peer_inputs import SHAPES, filled, official_file
from result_inputs import make_context, make_result
from shell_scripts import ROOT, run
from test_reports import make_report

from scripts.collect import compare_results, main, read_models
from utils.evaluation.statistics import SCORE_KEYS, clip_values, compare_paired
from utils.reports.report import render_page, render_table, write_report

FIRST, SECOND = (0.75, 0.25, 0.5, 0.4999999), (0.2, 0.9, 0.1, 0.6)


def score(folder, cious, *, benchmark="vgg_ss", **changes):
    """A folder as test.py leaves it; the consensus IoUs are those under ssl_tie."""
    result = make_result(cious)
    if benchmark == "vgg_ss_extended":
        result.clips["has_object"] = result.clips["clip_id"] != "clip_3"
    write_report(folder, make_report(result, benchmark, num_listed=len(cious), **changes))
    return folder


@pytest.fixture
def folders(tmp_path):
    other = {**make_context().checkpoint, "path": "runs/b.pth", "sha256": "b" * 64}
    second = score(tmp_path / "b", SECOND, checkpoint=other, note="the <second>")
    return {"a": score(tmp_path / "a", FIRST), "b": second}


def test_models_stand_side_by_side_with_their_differences(folders):
    report = compare_results(folders, "compare a b")
    rows = report.tables[0].scores.to_dict("records")
    names = ["a", "b", "centre disc (blind)", "centre Gaussian (blind)"]
    assert [row["predictor"] for row in rows[:4]] == names and len(rows) == 2 * 5
    first, second, disc, *_ = rows
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders.values()]
    for row, summary in zip((first, second), summaries, strict=True):
        assert [row[key] for key in SCORE_KEYS] == [summary["rows"][0][key] for key in SCORE_KEYS]
    # What is rounded up to a hit in the file is none.
    expected = compare_paired(clip_values(SECOND), clip_values(FIRST))
    assert (expected["only_first"], expected["only_second"]) == (2, 2)
    (found,) = [one for one in report.summary["comparisons"] if one["protocol"] == "ssl_tie"]
    assert found["p_value"] == expected["p_value"]
    assert found["differences"] == pytest.approx(expected["differences"], abs=1e-4)
    assert (second["gained"], second["lost"], second["p"]) == ("2", "2", f"{expected['p_value']:.2g}")
    assert second["delta_auc"] == pytest.approx(expected["differences"]["auc"])
    assert first["gained"] == disc["gained"] == "" and np.isnan(disc["delta_auc"])


def test_each_form_and_the_page_name_the_models_and_what_stands_beside_them(folders):
    report = compare_results(folders, "compare a b")
    for form in ("md", "tex", "csv"):
        text = render_table(report, form).replace("\\", "")
        for words in ("runs/b.pth" if form == "csv" else "bbbbbbbbbbbb", "ssl_tie_vgg_ss_4911", "second"):
            assert words in text, (form, words)
    text = render_table(report, "md").replace("\\", "")
    assert text.count("- checkpoint of ") == 2 and "note of b: the <second>" in text
    assert text.count("- clip list: ") == text.count("- leak check: ") == 1  # the same for both
    page = render_page(report)
    assert "b" * 64 in page and "compare a b" in page
    assert page.count('class="plot"') == 2 and "points against a" in page
    assert {"checkpoint_sha256", "leak_checked", "warnings", "delta_auc_low"} <= set(report.csv.columns)
    assert report.clips["model"].tolist() == ["a"] * 4 + ["b"] * 4 and "ssl_tie:ciou" in report.clips


def test_extended_sets_are_compared_where_there_is_an_object(tmp_path):
    folders = {
        name: score(tmp_path / name, cious, benchmark="vgg_ss_extended")
        for name, cious in (("a", FIRST), ("b", SECOND))
    }
    report = compare_results(folders, "x")
    assert report.summary["comparisons"][0]["num_clips"] == 3
    assert "AP" in render_table(report, "md") and report.tables[1].headings["AP"] == "AP"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"benchmark": "flickr_soundnet"}, "benchmark"),
        ({"frame_geometry": "centre_crop", "audio": "shuffled"}, "frame_geometry, audio"),
        ({"cious": FIRST[:3]}, "scored_clips_sha256"),
        ({"boxes": 0.3}, "boxes"),
        ({"rules": True}, "protocols"),
    ],
)
def test_results_of_other_clips_are_refused(folders, tmp_path, changes, words):
    cious, boxes, rules = changes.pop("cious", SECOND), changes.pop("boxes", None), changes.pop("rules", None)
    other = score(tmp_path / "other", cious, **changes)
    if boxes is not None:
        table = pd.read_csv(other / "per_clip.csv")
        table.assign(**{"ssl_tie:disc": boxes}).to_csv(other / "per_clip.csv", index=False)
    if rules:
        summary = json.loads((other / "summary.json").read_text())
        summary["protocols"].pop()
        (other / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=f"a and other cannot be compared: .*differ in.* {words}"):
        compare_results({"a": folders["a"], "other": other}, "x")


def test_damaged_results_are_refused(folders):
    for damage in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        damage(folders["b"] / "summary.json")
        with pytest.raises(ValueError, match="cannot be read: remove it and score"):
            compare_results(folders, "x")


def test_names_are_the_user_s_or_tell_the_models_apart(tmp_path, monkeypatch):
    def names(*words):
        return list(read_models(words))

    assert names("r/a.pth", "r/last.pth", "q/last.pth", "x/r/last.pth.tar") == ["r_a", "r", "q", "x_r_last"]
    assert names("runs/a/last.pth", "s/b c.pt", "our model=x/last.pth") == ["runs_a", "s_b c", "our model"]
    assert names("runs/a/last.pth", "runs/b/last.pth") == ["a", "b"]
    assert names("runs/a.pt1/last.pth", "runs/a.pt2/last.pth") == ["a.pt1", "a.pt2"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    found = read_models(["lr=1", "two=lr=2/last.pth"])
    assert found == {"lr=1": Path("lr=1"), "two": Path("lr=2/last.pth")}


@pytest.mark.slow
def test_files_of_several_methods_are_compared_and_scored_once(tiny_data, tmp_path):
    paths = []
    for name in ("lvs", "ez_vsl_or_fnac"):
        paths.append(tmp_path / f"{name}.pth")
        torch.save(official_file(name, filled(SHAPES[name])), paths[-1])
    out = tmp_path / "out"
    options = (
        f"-- --benchmark vgg_ss --data-root {tiny_data.root} --output {out} --gallery 0 "
        "--protocol ssl_tie,ez_vsl --workers 0 --device cpu"
    ).split()
    script = ROOT / "scripts" / "compare_models.sh"
    named = (f"our LVS={paths[0]}", paths[1])
    finished = run(script, *named, *options)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert [model["name"] for model in summary["models"]] == ["our LVS", "ez_vsl_or_fnac"]
    cious = [pd.read_csv(out / n / "per_clip.csv")["ssl_tie:ciou"] for n in ("our_LVS", "ez_vsl_or_fnac")]
    num_shown = min(6, int((cious[0] != cious[1]).sum()))
    page = (out / "report.html").read_text()
    assert num_shown > 0 and page.count("panel query-row") == num_shown
    assert page.count('<li class="candidate') == 3 * num_shown and "our LVS: cIoU" in page
    assert str(out / "report.html") in finished.stdout and "hits gained" in finished.stdout
    summaries = sorted(out.glob("*/summary.json"))
    times = [path.stat().st_mtime_ns for path in summaries]
    assert len(times) == 2

    again = run(script, *named, *options, "--table", "csv")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("has been scored") == 2
    assert times == [path.stat().st_mtime_ns for path in summaries]
    assert again.stdout == (out / "table.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-- --output o", "two checkpoints or more"),
        ("a.pth -- --output o", "two checkpoints or more"),
        ("a.pth a.pth -- --output o", "each once"),
        ("x/y=a.pth x_y=b.pth -- --output o", "a name of its own, got x/y, x_y"),
        ("a.pth b.pth", "required: --output"),
        ("a.pth b.pth -- --output o --checkpoint c", "stand before `--`"),
        ("a.pth b.pth -- --output o --save-maps=m.npz", "kept as maps.npz"),
        ("a.pth b.pth -- --output o --table html", "invalid choice: 'html'"),
    ],
)
def test_incomplete_commands_are_refused(arguments, words, caplog, capsys):
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(arguments.split()))
    assert words in caplog.text + capsys.readouterr().err


def test_results_of_another_task_are_not_written_over(folders, caplog):
    given = [str(folders["a"]), str(folders["b"]), "--", "--output", str(folders["a"])]
    assert main(given) == 2
    assert "another evaluation (another task)" in caplog.text
