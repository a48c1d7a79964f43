"""Runs of an ablation: skipped, resumed, refused, failed, stopped; and once for real."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import ENVIRONMENT, ROOT, assert_refused

import opts
from scripts import ablate, ablation_runs
from scripts.ablation_grids import Grid, Variant
from scripts.ablation_runs import (
    ProgramFailedError,
    ProgramStoppedError,
    has_scores,
    look_at,
    parse_scorings,
    plan_runs,
    read_checkpoint_of,
    run_program,
)
from utils.checkpoint import Checkpoint, save_checkpoint
from utils.files import file_sha256
from utils.training import Interruption

GRID = Grid("mine", "ssl_tie", (Variant("full"), Variant("plain", ("--no-tri-map",))))
SCORING = [["localisation", "--benchmark", "vgg_ss", "--data-root", "data"]]
TINY = (
    "--window-seconds 1 --mel-bins 32 --fft-size 512 --hop-length 500 --time-mask 5 "
    "--frequency-mask 5 --frame-size 64 --batch-size 4 --workers 0 --device cpu"
).split()


class Programs:
    """Stands in for main.py and test.py: leaves what they leave, and keeps account."""

    def __init__(self):
        self.calls = []
        self.failing = set()
        self.stopping = {}
        """name of the run -> epochs after which it is stopped"""

    def train(self, run, stop, *, resume):
        self.calls.append(("train", run.name, resume))
        if run.name in self.failing:
            raise ProgramFailedError("main.py ended with status 1: no room")
        epoch = self.stopping.pop(run.name, run.epochs)
        leave_checkpoint(run, epoch)
        if epoch < run.epochs:
            raise ProgramStoppedError(130)

    def score(self, run, scoring, stop):
        if has_scores(run, scoring):
            return
        folder, arguments = run.folder / scoring.task, run.test_arguments(scoring)
        listed = opts.parse_test_options(arguments).clip_list
        sha256 = "cd" * 32 if listed is None else file_sha256(Path(listed))
        self.calls.append(("score", run.name))
        folder.mkdir(exist_ok=True)
        rows = [{"name": "model", "kind": "model", "ciou_at_0.5": 10.0 * run.seed, "auc": 1.0,
                 "mean_ciou": 1.0, "pointing_accuracy": 1.0}]  # fmt: skip
        summary = {
            "benchmark": "vgg_ss", "num_clips": 3, "scored_clips_sha256": "aa", "warnings": [],
            "extra_metrics": None,
            "clip_list": {"name": "t", "sha256": sha256}, "environment": {"device": "CPU"},
            "protocols": [{"name": "ssl_tie", "description": "rule", "rows": rows}],
            "checkpoint": {"sha256": file_sha256(run.last_path)},
            "command": "python test.py " + " ".join(arguments),
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))


def leave_checkpoint(run, epoch):
    checkpoint = Checkpoint(
        method="ssl_tie", method_config={}, audio_config={}, frame_config={},
        state_dict={"weight": torch.tensor([float(run.seed), float(epoch)])},
        training_clips=["a"], training_list={"name": "all", "sha256": "12" * 32}, epoch=epoch,
        options=opts.as_plain(run.options),
    )  # fmt: skip
    save_checkpoint(run.last_path, checkpoint)


@pytest.fixture
def programs(monkeypatch):
    own = Programs()
    monkeypatch.setattr(ablate, "train", own.train)
    monkeypatch.setattr(ablate, "score", own.score)
    return own


def runs_in(folder, *options, seeds=(4, 5)):
    recipe = ["--train-set", "vggsound", "--data-root", "data", "--epochs", "3", *options]
    return plan_runs(GRID, folder, seeds, recipe, parse_scorings(SCORING))


def read_table(folder):
    return json.loads((folder / "table.json").read_text())


def test_finished_runs_are_skipped_and_lost_scores_are_made_again(tmp_path, programs, capsys):
    runs = runs_in(tmp_path)
    assert ablate.ablate(GRID, runs, tmp_path, "command") == 0
    assert [call[0] for call in programs.calls] == ["train", "score"] * 4
    assert all(call[2] is False for call in programs.calls if call[0] == "train")
    rows = {row["variant"]: row["scores"]["ciou_at_0.5"] for row in read_table(tmp_path)["sheets"][0]["rows"]}
    assert rows["full"]["mean"] == 45.0 and rows["full"]["values"] == [40.0, 50.0]
    assert "45.00 ± 7.07" in capsys.readouterr().out
    for name in ("table.md", "table.csv", "table.tex", "plot.svg"):
        assert (tmp_path / name).stat().st_size

    programs.calls.clear()
    (runs[1].folder / "localisation" / "summary.json").unlink()
    assert ablate.ablate(GRID, runs, tmp_path, "command") == 0
    assert programs.calls == [("score", runs[1].name)]

    programs.calls.clear()  # other weights: what was scored before is stale
    leave_checkpoint(runs[0], 3)
    checkpoint = torch.load(runs[0].last_path, weights_only=True)
    checkpoint["state_dict"]["weight"] += 1
    torch.save(checkpoint, runs[0].last_path)
    assert ablate.ablate(GRID, runs, tmp_path, "command") == 0
    assert programs.calls == [("score", runs[0].name)]


def test_a_stopped_run_is_resumed_and_the_table_says_what_is_missing(tmp_path, programs):
    runs = runs_in(tmp_path)
    programs.stopping[runs[1].name] = 2
    assert ablate.ablate(GRID, runs, tmp_path, "command") == 130
    table = read_table(tmp_path)
    assert table["unfinished"] == ["plain, seed 4", "full, seed 5", "plain, seed 5"]
    states = [(run["state"], run["epochs"]) for run in table["runs"]]
    assert states == [("scored", 3), ("interrupted", 2), ("not started", 0), ("not started", 0)]

    programs.calls.clear()
    assert ablate.ablate(GRID, runs, tmp_path, "command") == 0
    assert [call for call in programs.calls if call[0] == "train"] == [
        ("train", runs[1].name, True), ("train", runs[2].name, False),
        ("train", runs[3].name, False),
    ]  # fmt: skip
    assert read_table(tmp_path)["unfinished"] == []


def test_more_epochs_go_on_and_fewer_are_refused(tmp_path, programs):
    assert ablate.ablate(GRID, runs_in(tmp_path, seeds=(4,)), tmp_path, "") == 0
    programs.calls.clear()
    longer = runs_in(tmp_path, "--epochs", "5", seeds=(4,))
    assert ablate.ablate(GRID, longer, tmp_path, "") == 0
    assert ("train", longer[0].name, True) in programs.calls
    with pytest.raises(ValueError, match="5 are done, 3 are wanted"):
        ablate.ablate(GRID, runs_in(tmp_path, seeds=(4,)), tmp_path, "")


def test_a_run_of_other_options_is_refused_before_anything_runs(tmp_path, programs):
    assert ablate.ablate(GRID, runs_in(tmp_path, seeds=(5,)), tmp_path, "") == 0
    programs.calls.clear()
    with pytest.raises(ValueError, match=r"--learning-rate was 0\.0001, is 0\.01"):
        ablate.ablate(GRID, runs_in(tmp_path, "--learning-rate", "0.01"), tmp_path, "")
    assert not programs.calls


def test_a_run_of_another_list_is_refused(tmp_path, programs):
    listed = tmp_path / "list.txt"
    listed.write_text("a\n")
    runs = runs_in(tmp_path / "out", "--clip-list", str(listed), seeds=(4,))
    leave_checkpoint(runs[0], 3)
    with pytest.raises(ValueError, match=r"the training list .*list\.txt"):
        ablate.ablate(GRID, runs, tmp_path / "out", "")


def test_a_run_of_another_set_with_equal_ids_is_refused(tmp_path):
    run = runs_in(tmp_path, seeds=(4,))[0]
    leave_checkpoint(run, 3)
    (other,) = runs_in(tmp_path, "--data-root", "elsewhere", seeds=(4,))[:1]
    with pytest.raises(ValueError, match="--data-root was data, is elsewhere"):
        read_checkpoint_of(other)


def test_scores_of_a_list_that_has_changed_are_made_again(tmp_path, programs):
    listed = tmp_path / "test.txt"
    listed.write_text("a\n")
    scorings = parse_scorings([[*SCORING[0], "--clip-list", str(listed)]])
    recipe = ["--train-set", "vggsound", "--data-root", "data"]
    runs = plan_runs(GRID.chosen(["full"]), tmp_path / "out", [4], recipe, scorings)
    assert ablate.ablate(GRID, runs, tmp_path / "out", "") == 0
    assert has_scores(runs[0], runs[0].scorings[0])
    listed.write_text("a\nb\n")
    programs.calls.clear()
    assert ablate.ablate(GRID, runs, tmp_path / "out", "") == 0
    assert programs.calls == [("score", runs[0].name)]


def test_a_failed_run_is_named_the_others_go_on_and_it_is_tried_again(tmp_path, programs):
    runs = runs_in(tmp_path)
    programs.failing.add(runs[0].name)
    assert ablate.ablate(GRID, runs, tmp_path, "") == 1
    table = read_table(tmp_path)
    assert table["failed"] == ["full, seed 4"]
    assert table["runs"][0]["reason"].endswith("no room")
    assert [row["n"] for row in table["sheets"][0]["rows"]] == [1, 2]

    programs.failing.clear()
    assert ablate.ablate(GRID, runs, tmp_path, "") == 0
    assert read_table(tmp_path)["failed"] == []


def test_scores_of_an_interrupted_run_are_not_taken_for_the_finished_one_s(tmp_path, programs):
    (planned,) = plan_runs(
        GRID.chosen(["full"]), tmp_path, [4], ["--train-set", "vggsound", "--data-root", "d"],
        parse_scorings(SCORING),
    )  # fmt: skip
    leave_checkpoint(planned, 2)
    programs.score(planned, planned.scorings[0], None)
    found = look_at(planned, read_checkpoint_of(planned))
    assert (found.state, found.summaries) == ("interrupted", {})


# Programs -------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose programs are a few lines."""

    def write(text):
        (tmp_path / "program.py").write_text(f"import signal, sys, time\n{text}\n")

    monkeypatch.setattr(ablation_runs, "ROOT", tmp_path)
    return write


def test_a_failing_program_s_last_error_is_the_reason(project, capfdbinary):
    project('sys.stderr.write("INFO start\\n\\r 3%|# \\rERROR the disk is full\\nEnd\\n"); sys.exit(3)')
    with Interruption() as stop, pytest.raises(ProgramFailedError, match="status 3: the disk is full"):
        run_program("program.py", [], stop)
    assert b"INFO start" in capfdbinary.readouterr().err


def test_a_program_that_says_nothing_fails_in_words(project):
    project("sys.exit(1)")
    with Interruption() as stop, pytest.raises(ProgramFailedError, match="it said nothing"):
        run_program("program.py", [], stop)


def test_a_signal_is_handed_on_once_and_waited_for(project, tmp_path):
    project(
        "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'a').write('told '), "
        "time.sleep(1), open(sys.argv[1], 'a').write('saved'), sys.exit(143)))\n"
        "sys.stderr.write('ready\\n'); time.sleep(60)"
    )
    note = tmp_path / "note"
    with Interruption() as stop:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(ProgramStoppedError) as stopped:
            run_program("program.py", [str(note)], stop)
    assert stopped.value.status == 128 + signal.SIGINT
    assert note.read_text() == "told saved"


def test_a_program_that_was_stopped_by_others_stops_the_ablation(project):
    project(f"sys.exit({128 + signal.SIGTERM})")
    with Interruption() as stop, pytest.raises(ProgramStoppedError) as stopped:
        run_program("program.py", [], stop)
    assert stopped.value.status == 143


# For real -------------------------------------------------------------------------------------

SCRIPT = ["bash", str(ROOT / "scripts" / "ablate.sh")]
AS_HERE = {**ENVIRONMENT, "VSSL_PYTHON": sys.executable}


def ablate_sh(*arguments):
    return subprocess.run(
        [*SCRIPT, *map(str, arguments)], capture_output=True, check=False, text=True, env=AS_HERE, timeout=300
    )


def test_dry_run_prints_every_command_and_writes_nothing(tmp_path):
    output = tmp_path / "out"
    finished = ablate_sh(
        "sspl", "--output", output, "--seeds", "1,2", "--dry-run",
        "--", "--train-set", "flickr", "--data-root", "data",
        "--", "localisation", "--benchmark", "flickr_soundnet", "--data-root", "data",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert sum(line.startswith("python main.py sspl") for line in lines) == 4
    assert sum(line.startswith("python test.py localisation") for line in lines) == 4
    assert f"--no-pcm --seed 2 --output {output}/no_pcm/seed-2" in finished.stdout
    assert not output.exists()


def test_what_is_wrong_is_said_before_anything_runs(tmp_path):
    finished = ablate_sh("sspl", "--output", tmp_path / "out")
    assert_refused(finished, "localisation")
    after = ["--", "--train-set", "vggsound", "--data-root", "d", "--", *SCORING[0]]
    finished = ablate_sh("nothing", "--output", tmp_path / "out", *after)
    assert_refused(finished, "no grid 'nothing'", "sspl_cycles")
    finished = ablate_sh("sspl", "--seeds", "4,4", "--output", tmp_path / "o", *after)
    assert_refused(finished, "--seeds", "4,4")
    assert not (tmp_path / "out").exists()


def real_command(tiny_data, output, *, variants, epochs):
    arguments = [
        "ssl_tie", "--output", output, "--variants", variants, "--",
        "--train-set", "vggsound", "--data-root", tiny_data.root, "--epochs", epochs, *TINY,
        "--", "localisation", "--benchmark", "vgg_ss", "--data-root", tiny_data.root,
        "--workers", "0", "--gallery", "0", "--device", "cpu",
    ]  # fmt: skip
    return list(map(str, arguments))


def check_real_table(output, *, variants, epochs):
    table = read_table(output)
    assert not table["failed"] and not table["unfinished"]
    assert [run["variant"] for run in table["runs"]] == variants
    for one in table["runs"]:
        assert one["checkpoint_sha256"] == file_sha256(Path(one["folder"]) / "last.pth")
        assert one["evaluations"]["localisation"]["command"].startswith("python test.py local")
        assert one["last_epoch"]["epoch"] == epochs


def test_a_real_run_ends_in_a_table(tiny_data, tmp_path):
    output = tmp_path / "out"
    finished = ablate_sh(*real_command(tiny_data, output, variants="no_tri_map", epochs=1))
    assert finished.returncode == 0, finished.stderr
    assert "| no_tri_map | 1 |" in finished.stdout
    check_real_table(output, variants=["no_tri_map"], epochs=1)


@pytest.mark.slow
def test_a_real_ablation_is_stopped_goes_on_and_ends_in_a_table(tiny_data, tmp_path):
    output = tmp_path / "out"
    arguments = real_command(tiny_data, output, variants="full,no_tri_map", epochs=2)
    command = [*SCRIPT, *arguments]
    first = output / "full" / "seed-4"
    with subprocess.Popen(command, env=AS_HERE, stderr=subprocess.PIPE, text=True) as begun:
        while not (first / "last.pth").exists() and begun.poll() is None:
            time.sleep(0.1)
        begun.send_signal(signal.SIGINT)
        _, errors = begun.communicate(timeout=200)
    assert begun.returncode == 130, errors
    assert "call again to go on" in errors and "Traceback" not in errors
    assert "Not finished" in (output / "table.md").read_text()

    finished = ablate_sh(*arguments)
    assert finished.returncode == 0, finished.stderr
    check_real_table(output, variants=["full", "no_tri_map"], epochs=2)
