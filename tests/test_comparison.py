"""Several models on the same clips: one table, one page, and differences clip by clip."""

import csv
import html
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, ROOT
from peer_inputs import SHAPES, filled, official_file

from scripts.compare_models import main
from utils.comparison import (
    HEADINGS,
    check_comparable,
    compare,
    comparison_markdown,
    table_cells,
    write_comparison,
)
from utils.comparison_tables import COLUMNS_OF_A_MODEL, COLUMNS_OF_CLIPS
from utils.evaluation.metrics import area_under_success, mean_ciou, success_curve, success_rate
from utils.results import PER_CLIP_SCORES
from utils.scored_models import KEPT, distinct_names, read_scored_model

FIRST = (0.75, 0.25, 0.5, 0.1234567, math.nan, 0.49999996)
SECOND = (0.75, 0.625, 0.25, 0.5, 0.5, 0.1)


RULES = ("ssl_tie", "sspl")
NO_INTERVALS = dict.fromkeys(("ciou_at_0.5", "auc", "mean_ciou", "pointing_accuracy"))
CLEAN = {"checked": True, "num_clips": 0, "first": [], "message": "No test clip was trained on."}
LEAKED = {"checked": True, "num_clips": 2, "first": ["x"], "message": "LEAK: 2 of 6 test clips"}


def row(name, kind, cious):
    return {
        "name": name,
        "kind": kind,
        "ciou_at_0.5": 100 * success_rate(cious),
        "auc": 100 * area_under_success(success_curve(cious)),
        "mean_ciou": 100 * mean_ciou(cious),
        "pointing_accuracy": None,
        "intervals": NO_INTERVALS,
    }


def scored(folder, name, cious, *, disc=0.25, rules=RULES, reverse=False, **changes):
    """Results as test.py leaves them, of clips 0, 1, ... under rules that agree."""
    count = len(cious)
    references = {"disc": [disc] * count, "gaussian": [0.5] * count, "ceiling": [1.0] * count}
    kinds = dict.fromkeys(references, "baseline") | {"ceiling": "ceiling"}
    model = "model + object prior (alpha 0.4)" if "object_prior" in changes else "model"
    rows = [row(model, "model", cious), *(row(k, kinds[k], v) for k, v in references.items())]
    summary = {
        "benchmark": "vgg_ss",
        "num_clips": count,
        "num_without_object": 0,
        "extra_metrics": None,
        "rows": rows,
        "protocols": [
            {
                "name": rule,
                "description": "words",
                "published_list": {"words": f"list: of {rule}"},
                "rows": rows,
            }
            for rule in rules
        ],
        "groupings": {},
        "intervals": {"method": "bootstrap", "confidence": 0.95, "resamples": 9, "seed": 0},
        "num_listed": count + 3,
        "complete": False,
        "num_missing": 2,
        "missing": ["clip_x (no frame)", "clip_y (no sound)"],
        "num_unreadable": 1,
        "unreadable": ["clip_z: torn"],
        "clip_list": {"name": "list", "sha256": "cd" * 32},
        "cut": "as published",
        "leak_check": CLEAN,
        "num_clips_epoch_was_chosen_on": 0,
        "note": "",
        "scored_clips_sha256": str(count),
        "frame_geometry": "squash",
        "audio": "own",
        "object_prior": None,
        "checkpoint": {
            "path": f"{name}.pth",
            "sha256": f"{name}_" + "ab" * 31,
            "method": "ssl_tie",
            "epoch": 7,
        },
        "warnings": ["<careful>"],
        "command": "python test.py",
    }
    folder = folder / name
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    lines = []
    for clip, ciou in enumerate(cious):
        others = [f"{values[clip]:.6f}" for values in references.values()]
        scores = [f"{ciou:.6f}", int(ciou >= 0.5), *others] * len(rules)
        lines.append([f"clip_{clip}", 0, *scores, "", "sheep"])
    with (folder / "per_clip.csv").open("w", newline="") as file:
        table = csv.writer(file)
        names = [f"{rule}:{score}" for rule in rules for score in PER_CLIP_SCORES]
        table.writerow(["clip_id", "pointing", *names, "num_boxes", "class"])
        table.writerows(lines[::-1] if reverse else lines)
    return read_scored_model(name, folder)


def read_again(folder, name, summary):
    """A model whose summary has been changed."""
    (folder / name / "summary.json").write_text(json.dumps(summary))
    return read_scored_model(name, folder / name)


@pytest.fixture
def models(tmp_path):
    return [
        scored(tmp_path, "a", FIRST),
        scored(tmp_path, "b_%", SECOND, object_prior=0.4),
        scored(tmp_path, "c", FIRST),
    ]


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["ckpts/flickr10k.pth.tar", "x/lvs.pth"], ["flickr10k", "lvs"]),
        (["runs/one/last.pth", "runs/two/best.pth"], ["one_last", "two_best"]),
        (["x/model.pth", "y/model.pth"], ["x_model", "y_model"]),
        (["x/last.pth", "z/x/last.pth", "x_last.pth"], ["x_last", "x_last-2", "x_last-3"]),
        (["a/sspl results", "a/b%.pt"], ["sspl_results", "b_"]),
    ],
)
def test_names_are_distinct_and_fit_for_folders(paths, names):
    assert distinct_names([Path(path) for path in paths]) == names


# -------------------------------------------------------------------------------------- differences


def test_differences_are_means_over_the_same_clips(models):
    comparison = compare(models, "the command")
    first, second, third, *references = comparison["protocols"][0]["rows"]
    assert [row["name"] for row in (first, second, third)] == [m.name for m in models]
    assert first["difference"] is None
    assert all(row["difference"] is None for row in references)
    found = second["difference"]
    # 0.49999996 is written as 0.500000, and is no hit.
    hits = [[1, 0, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0]]
    assert found["differences"]["ciou_at_0.5"] == pytest.approx(100 * (4 - 2) / 6)
    assert sum(hits[1]) - sum(hits[0]) == 2
    assert found["success"]["only_first"] == 3
    assert found["success"]["only_second"] == 1
    means = [np.mean(np.nan_to_num(cious)) for cious in (SECOND, FIRST)]
    assert found["differences"]["mean_ciou"] == pytest.approx(100 * (means[0] - means[1]), abs=1e-4)
    for key in ("ciou_at_0.5", "auc", "mean_ciou"):
        assert found["differences"][key] == pytest.approx(second[key] - first[key], abs=1e-4)
        assert third["difference"]["differences"][key] == 0


def test_clips_are_paired_by_id_whatever_their_order(tmp_path):
    models = [scored(tmp_path, "a", FIRST), scored(tmp_path, "b", FIRST, reverse=True)]
    found = compare(models, "")["protocols"][0]["rows"][1]["difference"]
    assert (found["success"]["only_first"], found["success"]["only_second"]) == (0, 0)
    assert found["intervals"]["mean_ciou"] is None  # no clip differs


# ------------------------------------------------------------------------------------------ refusal


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"benchmark": "flickr_soundnet"}, "benchmark"),
        ({"frame_geometry": "centre_crop"}, "frame_geometry"),
        ({"audio": "shuffled"}, "audio"),
    ],
)
def test_results_of_other_settings_are_refused(tmp_path, changes, words):
    models = [scored(tmp_path, "a", FIRST), scored(tmp_path, "b", SECOND, **changes)]
    with pytest.raises(ValueError, match=f"differ in {words}"):
        write_comparison(tmp_path, models, "")
    assert not (tmp_path / "comparison.json").exists()


def test_other_clips_boxes_and_rules_are_refused(tmp_path):
    first = scored(tmp_path, "a", FIRST)
    with pytest.raises(ValueError, match="differ in scored_clips_sha256"):
        check_comparable([first, scored(tmp_path, "b", SECOND[:-1])])
    with pytest.raises(ValueError, match="differ in protocols"):
        check_comparable([first, scored(tmp_path, "c", SECOND, rules=RULES[:1])])
    with pytest.raises(ValueError, match="differ in boxes"):
        check_comparable([first, scored(tmp_path, "d", SECOND, disc=0.3)])


@pytest.mark.parametrize("damage", ["summary", "table", "cut table"])
def test_damaged_results_are_named(tmp_path, damage):
    scored(tmp_path, "a", FIRST)
    table = tmp_path / "a" / "per_clip.csv"
    if damage == "summary":
        (tmp_path / "a" / "summary.json").write_text("{")
    elif damage == "table":
        table.write_text("")
    else:
        table.write_text("\n".join(table.read_text().splitlines()[:-2]) + "\n")
    with pytest.raises(ValueError, match=r"(?s)a.*score the model anew"):
        read_scored_model("a", tmp_path / "a")


# -------------------------------------------------------------------------------------------- files


def test_all_forms_hold_the_same_table(models, tmp_path):
    comparison = write_comparison(tmp_path / "out", models, "compare a b")
    out = tmp_path / "out"
    assert json.loads((out / "comparison.json").read_text()) == json.loads(json.dumps(comparison))
    assert comparison["compared_with"] == "a (ssl_tie)"
    assert [one["object_prior"] for one in comparison["models"]] == [None, 0.4, None]
    cells = table_cells(comparison)
    assert cells[0] == list(HEADINGS)
    assert len(cells) == 1 + 2 * (3 + 3)  # two rules; three models, disc, Gaussian, ceiling
    with (out / "comparison.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    apart = table_cells(comparison, apart=True)
    assert len(apart[0]) == len(HEADINGS) + 2 * 7  # four scores and three differences
    assert [line[: len(apart[0])] for line in lines] == apart
    assert lines[0][len(apart[0]) :] == [*COLUMNS_OF_CLIPS, *COLUMNS_OF_A_MODEL]
    for line, numbers in zip(cells[1:], apart[1:], strict=True):
        named = dict(zip(apart[0], numbers, strict=True))
        for heading, cell in zip(HEADINGS[2:9], line[2:9], strict=True):
            assert "[" in cell or not named[f"{heading} low"]
            ends = [named[heading], named[f"{heading} low"], named[f"{heading} high"]]
            assert cell == ("{} [{}, {}]".format(*ends) if "[" in cell else ends[0])
    markdown = (out / "comparison.md").read_text()
    assert markdown == comparison_markdown(models, comparison)
    table = markdown.split("\n\n")[0].splitlines()
    assert len(table) == len(cells) + 1
    assert all(line.count("|") == len(HEADINGS) + 1 for line in table)
    latex = (out / "comparison.tex").read_text()
    assert r"b\_\%" in latex
    assert latex.split(r"\end{tabular}")[0].count(r"\\") == len(cells)
    assert latex.replace(r"\_", "").count("_") == 0


@pytest.fixture
def unlike(tmp_path):
    """Two models, of which only the second has a leak, a note and a clip list of its own."""
    changes = {"leak_check": LEAKED, "note": "a | note", "num_missing": 5}
    changes["clip_list"] = {"name": "longer", "sha256": "ef" * 32}
    return [scored(tmp_path, "a", FIRST), scored(tmp_path, "b", SECOND, **changes)]


def test_comparison_json_keeps_what_stands_beside_each_models_scores(unlike, tmp_path):
    write_comparison(tmp_path, unlike, "compare a b")
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    for model, kept in zip(unlike, comparison["models"], strict=True):
        assert kept == {"name": model.name} | {key: model.summary[key] for key in KEPT}
    assert [model["leak_check"] for model in comparison["models"]] == [CLEAN, LEAKED]
    assert [model["num_missing"] for model in comparison["models"]] == [2, 5]
    published = [one["published_list"]["words"] for one in comparison["protocols"]]
    assert published == ["list: of ssl_tie", "list: of sspl"]


def test_facts_stand_once_where_all_agree_and_else_with_their_model(unlike, tmp_path):
    write_comparison(tmp_path, unlike, "compare a b")
    facts = (tmp_path / "comparison.md").read_text().split("\n\n")[1].splitlines()
    first, second = (model.name for model in unlike)
    assert [line for line in facts if line.startswith(("- clips", "- missing", "- clip list"))] == [
        "- clips: 6 scored of 9 listed",
        f"- missing of {first}: 2 without files, 1 unreadable",
        f"- clip list of {first}: list (sha256 cdcdcdcdcdcd)",
        f"- missing of {second}: 5 without files, 1 unreadable",
        f"- clip list of {second}: longer (sha256 efefefefefef)",
    ]
    assert "- protocol sspl: words; list: of sspl" in facts
    assert f"- leak check of {first}: No test clip was trained on." in facts
    assert f"- leak check of {second}: LEAK: 2 of 6 test clips" in facts
    assert f"- checkpoint of {first}: ssl\\_tie, 7 epochs (sha256 a\\_ababababab)" in facts
    assert f"- note of {second}: a \\| note" in facts
    assert f"- warning of {first}: \\<careful\\>" in facts
    latex = (tmp_path / "comparison.tex").read_text().split(r"\end{tabular}")[1]
    for words in ("LEAK: 2 of 6 test clips", "longer (sha256 efefefefefef)", "of ssl", "careful"):
        assert words in latex
    page = html.unescape((tmp_path / "report.html").read_text())
    for words in ("No test clip was trained on.", "LEAK: 2 of 6 test clips", "ef" * 32, "cd" * 32):
        assert page.count(f"{words}<") + page.count(f"{words})<") == 1
    assert "words; list: of sspl<" in page
    assert "a/report.html, b/report.html, beside this page" in page


def test_a_clean_leak_check_stands_beside_every_model(models, tmp_path):
    write_comparison(tmp_path, models, "compare a b c")
    for name in ("comparison.md", "comparison.tex", "report.html"):
        assert (tmp_path / name).read_text().count("No test clip was trained on.") == len(models)


def test_scores_have_their_intervals(models):
    comparison = compare(models, "compare a b")
    row = comparison["protocols"][0]["rows"][0]
    row |= {"auc": 40.0, "intervals": {**row["intervals"], "auc": (38.125, 41.5)}}
    words, numbers = (table_cells(comparison, apart=apart)[:2] for apart in (False, True))
    assert dict(zip(*words, strict=True))["AUC"] == "40.00 [38.12, 41.50]"
    named = dict(zip(*numbers, strict=True))
    assert [named[f"AUC{end}"] for end in ("", " low", " high")] == ["40.00", "38.12", "41.50"]


def test_each_line_of_the_csv_stands_on_its_own(unlike, tmp_path):
    write_comparison(tmp_path, unlike, "compare a b")
    with (tmp_path / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    first, second, *references = lines[:5]
    for line, model in ((first, unlike[0]), (second, unlike[1])):
        assert line["model"] == model.name
        assert line["checkpoint_sha256"] == model.summary["checkpoint"]["sha256"]
        assert line["clip_list_sha256"] == model.summary["clip_list"]["sha256"]
        assert line["warnings"] == "<careful>"
    assert [line["num_missing"] for line in (first, second)] == ["2", "5"]
    assert [(line["leak_checked"], line["num_leaked"]) for line in (first, second)] == [
        ("1", "0"),
        ("1", "2"),
    ]
    assert len(references) == 3
    for line in references:  # computed from the first model's clips, without any model
        assert line["clip_list_sha256"] == "cd" * 32
        assert {line[name] for name in COLUMNS_OF_A_MODEL} == {""}
    assert [line["list_of_rule"] for line in lines[4:6]] == ["list: of ssl_tie", "list: of sspl"]


@pytest.mark.parametrize("entry", ["leak_check", "missing", "groupings"])
def test_results_without_what_must_stand_beside_them_are_refused(tmp_path, entry):
    summary = scored(tmp_path, "a", FIRST).summary
    del summary[entry]
    with pytest.raises(ValueError, match=f"(?s){entry}.*score the model anew"):
        read_again(tmp_path, "a", summary)


def test_models_stand_side_by_side_within_each_group(tmp_path):
    def group(name, rate):
        return {
            "name": name,
            "num_clips": 3,
            "few_clips": True,
            **dict.fromkeys(NO_INTERVALS, rate),
            "pointing_accuracy": None,
            "intervals": NO_INTERVALS,
            "best_blind": 12.5,
            "ceiling": 87.5,
        }

    models = []
    for name, rates in (("a", (10.0, 30.0, 20.0)), ("b", (99.0, 1.0, 2.0))):
        words = {"class": "<labels>", "box_size": "sizes"}
        summary = scored(tmp_path, name, FIRST, groupings=words).summary
        for one in summary["protocols"]:
            by_class = list(map(group, ("cat", "dog", "<cow>"), rates))
            one["groups"] = {"class": by_class, "box_size": list(map(group, ("small",), rates))}
        models.append(read_again(tmp_path, name, summary))
    write_comparison(tmp_path, models, "compare a b")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<summary>By class</summary>") == len(RULES)
    assert page.count("<summary>By box size</summary>") == len(RULES)
    assert "Groups: &lt;labels&gt;." in page
    start = page.index("<summary>By class</summary>")
    by_class = html.unescape(page[start : page.index("</details>", start)])
    rows = [part.split("<span")[0] for part in by_class.split('<th scope="row">')[1:]]
    # The first model's best class first; the second's row below the first's.
    assert rows == [f"{name}: {model.name}" for name in ("dog", "<cow>", "cat") for model in models]
    rates = [part.split('"')[0] for part in by_class.split('data-value="')[2::6]]
    assert list(map(float, rates)) == [30, 1, 20, 2, 10, 99]


def test_one_page_with_a_row_and_a_curve_for_each_model(models, tmp_path):
    write_comparison(tmp_path / "out", models, "compare a b")
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    for model in models:
        assert page.count(f">{model.name}<") >= 4  # row and legend, under each of two rules
    assert page.count("<figure") == 2
    assert page.count('<polyline class="curve model') == 2 * 3
    assert ">+33.3 points against a (ssl_tie): 3 hits gained, 1 lost, p = 0.62<" in page


def test_metrics_of_the_benchmark_stand_beside_the_usual_scores(tmp_path):
    extra = {"published_under": "slavc", "shown": ["AP"], "words": {"AP": "area", "AP@0.75": "less"}}
    models = []
    for name, ap in (("a", 12.345), ("b", 67.891)):
        summary = scored(tmp_path, name, FIRST, num_without_object=3).summary
        for one in summary["protocols"]:
            one["rows"] = [
                {**row, "extra": {"AP": ap, "AP@0.75": None}, "extra_intervals": {"AP": (1.5, 2.5)}}
                for row in one["rows"]
            ]
        models.append(read_again(tmp_path, name, summary | {"extra_metrics": extra}))
    comparison = write_comparison(tmp_path / "out", models, "compare a b")
    cells = table_cells(comparison)
    assert cells[0] == [*HEADINGS, "AP"]
    assert [line[-1] for line in cells[1:3]] == ["12.35 [1.50, 2.50]", "67.89 [1.50, 2.50]"]
    assert {len(line) for line in cells} == {len(HEADINGS) + 1}
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"12.345000"' in page and '"67.891000"' in page and "AP@0.75" in page
    assert "3 without an object: not in cIoU" in page


# -------------------------------------------------------------------------------------- the program


def compare_models(*arguments):
    return subprocess.run(
        ["bash", ROOT / "scripts" / "compare_models.sh", *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        env={**ENVIRONMENT, "VSSL_PYTHON": sys.executable},
        timeout=300,
    )


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
    finished = compare_models(*paths, *options)
    assert finished.returncode == 0, finished.stderr
    comparison = json.loads((out / "comparison.json").read_text())
    names = ["lvs (lvs)", "ez_vsl_or_fnac (ez_vsl_or_fnac)"]
    assert [model["name"] for model in comparison["models"]] == names
    assert f"| ez_vsl | {names[1]} |" in finished.stdout
    assert (out / "comparison.md").read_text() in finished.stdout
    assert all(f"- leak check of {name}: " in finished.stdout.replace("\\", "") for name in names)
    assert "<summary>By box size</summary>" in (out / "report.html").read_text()
    assert str(out / "report.html") in finished.stdout
    summaries = sorted(out.glob("*/summary.json"))
    times = [path.stat().st_mtime_ns for path in summaries]
    assert len(times) == 2

    again = compare_models(*paths, *options, "--table", "csv")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("has been scored") == 2
    assert times == [path.stat().st_mtime_ns for path in summaries]
    assert again.stdout == (out / "comparison.csv").read_text()
    summaries[0].unlink()
    anew = compare_models(*paths, *options, "--table", "csv")
    assert anew.returncode == 0, anew.stderr
    assert anew.stdout == (out / "comparison.csv").read_text()
    assert "Report: " in anew.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("a.pth -- --output o", "two checkpoints or more"),
        ("a.pth b.pth", "--output is missing"),
        ("a.pth b.pth -- --output o --checkpoint c", "stand before `--`"),
        ("a.pth b.pth -- --output o --save-maps m.npz", "--save-maps names one file"),
        ("a.pth b.pth -- --output o --table html", "invalid choice: 'html'"),
    ],
)
def test_incomplete_commands_are_refused(arguments, words):
    finished = compare_models(*arguments.split())
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("option", ["--output", "--checkpoint", "--save-maps", "--table"])
def test_an_option_without_its_value_is_refused(option, caplog):
    status = main(["a.pth", "b.pth", "--", "--benchmark", "vgg_ss", option])
    assert status == 2
    assert [record.getMessage() for record in caplog.records] == [f"argument {option}: expected one argument"]


def test_a_model_that_cannot_be_scored_is_named(tmp_path):
    finished = compare_models(
        tmp_path / "a.pth", tmp_path / "b.pth", "--", "--benchmark", "vgg_ss", "--data-root",
        tmp_path, "--output", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert finished.returncode == 2
    assert "No checkpoint at" in finished.stderr
    assert f"Scoring {tmp_path / 'a.pth'} ended with status 2" in finished.stderr
