"""Ablations: planned, run, resumed, refused, gathered; the programs are stood in for or tiny."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from xml.etree import ElementTree

import pytest

import opts
from scripts.ablation_grids import GRIDS, Grid, Variant, find_grid
from scripts.ablation_runs import parse_scorings, plan_runs
from utils.ablation import READERS, AblationRun, gather, mean_and_deviation
from utils.ablation_plot import render_plot
from utils.ablation_tables import render_csv, render_latex, render_markdown
from utils.evaluation.negatives import DEAF, DISC

RECIPE = ["--train-set", "vggsound", "--data-root", "data"]
SCORING = [["localisation", "--benchmark", "vgg_ss", "--data-root", "data"]]


def planned(grid, *options, seeds=(4,), folder=Path("out")):
    return plan_runs(grid, folder, seeds, [*RECIPE, *options], parse_scorings(SCORING))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_each_variant_of_a_grid_is_a_setting_of_its_own(grid):
    runs = planned(grid)
    settings = [opts.as_plain(run.options) for run in runs]
    for setting in settings:
        del setting["run"]["output"]
    assert len({json.dumps(setting) for setting in settings}) == len(grid.variants)


def test_the_first_variant_of_the_papers_grids_is_the_published_recipe():
    for name in ("ssl_tie", "sspl"):
        grid = GRIDS[name]
        first = planned(grid)[0].options
        own = opts.parse_train_options([grid.method, *RECIPE, "--output", str(first.run.output)])
        assert first == own


@pytest.mark.parametrize(
    ("variant", "groups"),
    [
        ("no_appearance", {"augmentation"}),
        ("no_spec_augment", {"augmentation"}),
        ("no_geometric", {"model"}),
        ("no_equivariance", {"model"}),
        ("no_equivariance_gradient", {"model"}),
        ("no_tri_map", {"model"}),
        ("no_hard_negatives", {"model"}),
        ("masked_target", {"geometric"}),
        ("audio_mixing", {"mixing"}),
    ],
)
def test_a_variant_changes_only_what_its_name_says(variant, groups):
    runs = {run.variant.name: opts.as_plain(run.options) for run in planned(GRIDS["ssl_tie"])}
    full, changed = runs["full"], runs[variant]
    differing = {name for name in full if full[name] != changed[name]} - {"run"}
    assert differing == groups


def test_a_variant_wins_over_shared_options_and_seeds_take_turns():
    grid = Grid("mine", "ssl_tie", (Variant("a"), Variant("b", ("--epochs", "7"))), ("--epochs", "5"))
    runs = planned(grid, "--batch-size", "8", seeds=(1, 2))
    assert [(run.variant.name, run.seed) for run in runs] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [run.epochs for run in runs] == [5, 7, 5, 7]
    assert [run.options.run.seed for run in runs] == [1, 1, 2, 2]
    assert {run.options.optimisation.batch_size for run in runs} == {8}
    assert runs[3].options.run.output == Path("out/b/seed-2")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "must hold"),
        ("{", "no JSON"),
        ('{"method": "ssl_tie", "variants": {}}', "has none"),
        ('{"method": "nobody", "variants": {"a": ""}}', "nobody"),
        ('{"method": "ssl_tie", "variants": {"a": 3}}', "must hold"),
        ('{"method": "ssl_tie", "variants": {"../a": ""}}', "names a folder"),
        ('{"method": "ssl_tie", "variants": {"a": ""}, "seeds": "4"}', "seeds"),
    ],
)
def test_a_grid_file_that_is_none_is_refused_in_words(tmp_path, content, words):
    path = tmp_path / "grid.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        find_grid(str(path))


def test_a_grid_file_is_read(tmp_path):
    path = tmp_path / "tau.json"
    content = {"method": "ssl_tie", "options": "--epochs 2", "variants": {"a": "", "b": "--no-crop"}}
    path.write_text(json.dumps(content))
    grid = find_grid(str(path))
    assert (grid.name, grid.options) == ("tau", ("--epochs", "2"))
    assert grid.variants == (Variant("a"), Variant("b", ("--no-crop",)))
    assert grid.chosen(["b"]).variants == (Variant("b", ("--no-crop",)),)
    with pytest.raises(ValueError, match="no variant c; there are a, b"):
        grid.chosen(["c"])


@pytest.mark.parametrize("option", ["--output=x", "--seed", "--resume", "--dry-run"])
def test_options_that_the_ablation_gives_are_refused(option):
    with pytest.raises(ValueError, match=option.split("=")[0]):
        planned(GRIDS["ssl_tie"], option)


@pytest.mark.parametrize("sections", [[], [[]], [["nothing"]], [["localisation"]] * 2])
def test_scorings_that_cannot_be_gathered_are_refused(sections):
    with pytest.raises(ValueError, match="localisation"):
        parse_scorings(sections)


# Gathering ------------------------------------------------------------------------------------

SCORE_KEYS = ("ciou_at_0.5", "auc", "mean_ciou", "pointing_accuracy")


def summary_of(scores, *, clips="aa", command="python test.py"):
    """What test.py localisation leaves, as far as it is read."""
    rows = [{"name": "model", "kind": "model", **dict(zip(SCORE_KEYS, scores, strict=True))}]
    blind = dict.fromkeys(SCORE_KEYS, 20.0) | {"pointing_accuracy": None}
    rows.append({"name": "disc (blind)", "kind": "baseline", **blind})
    return {
        "benchmark": "stamps",
        "num_clips": 10,
        "scored_clips_sha256": clips,
        "clip_list": {"name": "test", "sha256": "cd" * 32},
        "protocols": [{"name": "ssl_tie", "description": "the rule | in words", "rows": rows}],
        "checkpoint": {"sha256": "ab" * 32},
        "extra_metrics": None,
        "warnings": [],
        "environment": {"device": "CPU"},
        "command": command,
    }


def ablation_run(variant, seed, scores=None, **changes):
    own = AblationRun(
        variant=variant,
        seed=seed,
        folder=f"out/{variant}/seed-{seed}",
        state="not started" if scores is None else "scored",
        command=f"python main.py {variant} {seed}",
        checkpoint_sha256=None if scores is None else f"{seed}" * 64,
        training_list={"sha256": "ef" * 32},
        summaries={} if scores is None else {"localisation": summary_of(scores)},
    )
    return replace(own, **changes)


GRID = {
    "name": "mine", "method": "ssl_tie", "options": ["--epochs", "2"], "words": "",
    "variants": [{"name": n, "options": [], "words": ""} for n in ("full", "a_b", "lone", "bad")],
}  # fmt: skip


def gathered():
    runs = [
        ablation_run("full", 4, (40.0, 41.0, 42.0, 43.0)),
        ablation_run("full", 5, (50.0, 43.5, 42.0, 46.0)),
        ablation_run("full", 6, (57.0, 44.0, 42.0, 49.0)),
        ablation_run("a_b", 4, (30.0, 31.0, 32.0, None)),
        ablation_run("a_b", 5, (32.0, 31.0, 32.0, None)),
        ablation_run("lone", 4, (12.345, 13.0, 14.0, 15.0)),
        ablation_run("lone", 5),
        ablation_run("bad", 4, state="failed", reason="no <room> | left"),
    ]
    return gather(runs, grid=GRID, command="ablate", environment={"device": "CPU"})


def test_mean_and_deviation_are_the_sample_s():
    values = [40.0, 50.0, 57.0]
    mean = sum(values) / 3
    by_hand = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert mean_and_deviation(values) == pytest.approx((mean, by_hand))
    assert mean_and_deviation([3.0]) == (3.0, None)
    assert mean_and_deviation([3.0, None]) == (3.0, None)
    assert mean_and_deviation([None]) == (None, None)


def test_the_table_holds_means_deviations_and_what_is_not_there():
    result = gathered()
    (sheet,) = result["sheets"]
    rows = {row["variant"]: row for row in sheet["rows"]}
    assert [row["n"] for row in sheet["rows"]] == [3, 2, 1, 0]
    assert rows["full"]["scores"]["ciou_at_0.5"]["deviation"] == stdev([40, 50, 57])
    assert result["failed"] == ["bad, seed 4"] and result["unfinished"] == ["lone, seed 5"]
    lines = render_markdown(result).splitlines()
    assert "| full | 3 | 49.00 ± 8.54 | 42.83 ± 1.61 | 42.00 ± 0.00 | 46.00 ± 3.00 |" in lines
    assert "| lone | 1 | 12.35 | 13.00 | 14.00 | 15.00 |" in lines  # a single run deviates from none
    assert "| bad | 0 |  |  |  |  |" in lines
    assert "| disc (blind) |  | 20.00 | 20.00 | 20.00 |  |" in lines
    assert "**Failed: bad, seed 4.**" in lines and "**Not finished: lone, seed 5.**" in lines
    assert any("failed: no <room> \\| left" in line for line in lines)
    assert "python main.py a_b 5" in lines


def test_the_csv_gives_each_run_its_checkpoint_and_its_command():
    lines = list(csv.DictReader(render_csv(gathered()).splitlines()))
    runs = [line for line in lines if line["kind"] == "run"]
    assert [(line["variant"], line["seed"]) for line in runs][:2] == [("full", "4"), ("full", "5")]
    assert runs[1]["checkpoint_sha256"] == "5" * 64
    assert runs[1]["training_list_sha256"] == "ef" * 32
    assert runs[1]["command"] == "python main.py full 5"
    deviations = {line["variant"]: line for line in lines if line["kind"] == "deviation"}
    assert deviations["lone"]["ciou_at_0.5"] == ""
    assert float(deviations["full"]["ciou_at_0.5"]) == pytest.approx(stdev([40, 50, 57]), abs=1e-4)
    assert [line["variant"] for line in lines if line["kind"] == "failed"] == ["bad"]


def test_the_latex_table_escapes_and_names_what_is_left_out():
    text = render_latex(gathered())
    assert r"a\_b & 2 & 31.00 $\pm$ 1.41" in text
    assert "% not in the means: bad, seed 4; lone, seed 5" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_the_plot_puts_scores_where_they_belong():
    drawn = ElementTree.fromstring(render_plot(gathered()))
    name = "{http://www.w3.org/2000/svg}"
    dots = [dot for dot in drawn.iter(f"{name}circle") if dot.get("class") == "mean"]
    runs = [dot for dot in drawn.iter(f"{name}circle") if dot.get("class") == "run"]
    assert len(dots) == 11 and len(runs) == 3 * 6 + 4  # three variants; one without pointing
    first = [float(dot.get("cx")) for dot in runs[:3]]  # full: 40, 50, 57
    assert (first[1] - first[0]) / (first[2] - first[1]) == pytest.approx(10 / 7, rel=0.02)
    texts = ["".join(text.itertext()) for text in drawn.iter(f"{name}text")]
    assert "full (n = 3)" in texts and "- - disc (blind)" in texts
    width, height = map(float, drawn.get("viewBox").split()[2:])
    for dot in (*dots, *runs):
        assert 0 < float(dot.get("cx")) < width and 0 < float(dot.get("cy")) < height


def test_nothing_scored_is_no_error():
    result = gather([ablation_run("full", 4)], grid=GRID, command="", environment={"device": "CPU"})
    assert "Not finished: full, seed 4" in render_markdown(result)
    assert "nothing scored yet" in render_plot(result)
    assert render_latex(result).startswith("% not in the means")


def test_scores_of_other_clips_are_refused():
    other = {"localisation": summary_of((1.0, 2.0, 3.0, 4.0), clips="bb")}
    runs = [ablation_run("full", 4, (1.0, 2.0, 3.0, 4.0)), ablation_run("a_b", 4, (1, 2, 3, 4))]
    gather(runs, grid=GRID, command="", environment={"device": "CPU"})
    runs[1] = replace(runs[1], summaries=other)
    with pytest.raises(ValueError, match="scored_clips_sha256"):
        gather(runs, grid=GRID, command="", environment={"device": "CPU"})


def test_scores_of_a_benchmark_s_own_are_gathered_too():
    summary = summary_of((1.0, 2.0, 3.0, 4.0)) | {"extra_metrics": {"shown": ["AP"], "words": {}}}
    for value, row in enumerate(summary["protocols"][0]["rows"]):
        row["extra"] = {"AP": float(value), "hidden": 9.0}
    (sheet,) = READERS["localisation"](summary)
    assert sheet.headings["AP"] == "AP" and "hidden" not in sheet.headings
    assert sheet.scores["AP"] == 0.0 and sheet.references["disc (blind)"]["AP"] == 1.0


def test_scores_with_negative_sounds_are_gathered_beside_a_blind_guess():
    scores = {"f_loc": 50.0, "pia_noise": 12.5, "iou_own~silence": 3.0}
    summary = summary_of((1.0, 2.0, 3.0, 4.0)) | {
        "scores": {key: {"mean": v, "sd": 1.0, "interval": None} for key, v in scores.items()},
        "without_ears": {DEAF: {"f_loc": 40.0}, DISC: {"f_loc": 30.0, "pia_noise": 50.0}},
        "threshold": {"source": "negatives"},
    }
    (sheet,) = READERS["negatives"](summary)
    assert sheet.headings == {"f_loc": "F_LOC", "pia_noise": "pIA, noise"}
    assert sheet.scores == {"f_loc": 50.0, "pia_noise": 12.5}
    assert sheet.references == {DISC: {"f_loc": 30.0, "pia_noise": 50.0}}  # the same for all models
