"""Ablations and the comparison of methods: planned, refused, stopped, continued, failed; once for real."""

import json
import shlex
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
from shell_scripts import ROOT, run

import opts
from scripts import ablate, collect

AFTER = "-- --train-set vggsound --data-root d -- localisation --benchmark vgg_ss --data-root d".split()


@pytest.fixture
def programs(monkeypatch):
    """Stands in for main.py and test.py: leaves what they leave, and keeps account."""
    calls, statuses = [], []

    def run_program(command):
        calls.append(command)
        status = statuses.pop(0) if statuses else 0
        if not status:
            output = Path(command[command.index("--output") + 1])
            if command[0] == "main.py":
                (output / "last.pth").touch()
            else:
                output.mkdir()
                seed = int(output.parent.name.removeprefix("seed-"))
                row = {"ciou_at_0.5": 10 * seed, "auc": 1.0, "mean_ciou": 1.0, "pointing_accuracy": None}
                row |= {"name": "model", "kind": "model", "intervals": {"auc": [0.5, 2.0]}}
                disc = row | {"name": "centre disc", "kind": "baseline", "ciou_at_0.5": 7}
                num_hits = seed + 3 * ("silence" in output.parts)
                hits = [1.0] * num_hits + [0.0] * (10 - num_hits)
                clips = {"clip_id": range(10), "ssl_tie:success": hits, "ssl_tie:ciou": hits}
                pd.DataFrame(clips).to_csv(output / "per_clip.csv")
                summary = {
                    "scored_clips_sha256": "a",
                    "num_clips": 10,
                    "identity": {"task": "localisation"},
                    "protocols": [{"name": "ssl_tie", "rows": [row, disc]}],
                }
                (output / "summary.json").write_text(json.dumps(summary))
        return status

    monkeypatch.setattr(ablate, "run_program", run_program)
    return calls, statuses


def start(folder, *options, seeds="4,5", after=AFTER):
    grid = ["negative_sounds", "--variants", "without,silence"]
    return ablate.main([*grid, "--output", str(folder), "--seeds", seeds, *options, *after])


def test_finished_runs_are_skipped_and_the_table_has_mean_and_deviation(tmp_path, programs, capsys):
    calls, _ = programs
    assert start(tmp_path) == 0
    assert [command[0] for command in calls] == ["main.py", "test.py"] * 4
    words = f"--negative-sounds silence --seed 4 --output {tmp_path / 'silence' / 'seed-4'}"
    assert shlex.join(calls[2]).endswith(words)
    assert "45.00 ± 7.07" in capsys.readouterr().out
    lines = (tmp_path / "table.md").read_text().splitlines()
    variants = [line.split()[1] for line in lines if line.startswith("| ")]
    assert variants == ["variant", "without", "silence", "centre"]
    # Means over seeds are .5, 1, 1 and .5 higher on four clips: 2 of 16 choices of signs are as extreme.
    assert lines[7].split()[-4:-1] == ["+30.00", "|", "0.12"]
    first, *rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert first == "rule,variant,seed,clips,ciou_at_0.5,auc,mean_ciou,pointing_accuracy"
    assert len(rows) == 4 + 1

    calls.clear()
    assert start(tmp_path) == 0
    assert not calls
    shutil.rmtree(tmp_path / "silence" / "seed-5" / "localisation")
    assert start(tmp_path, seeds="4,5,6") == 0
    assert len(calls) == 2 + 4
    assert calls[0][-1] == "--resume"


def test_a_stopped_run_is_resumed_and_a_failed_one_named_while_the_others_go_on(tmp_path, programs, caplog):
    calls, statuses = programs
    statuses += [0, 0, 130]
    assert start(tmp_path) == 130
    assert len(calls) == 3
    statuses.append(2)
    assert start(tmp_path) == 1
    assert "Failed: silence, seed 4" in caplog.text
    assert "**Failed: silence, seed 4.**" in (tmp_path / "table.md").read_text()
    assert start(tmp_path) == 0
    calls.clear()
    other = [*AFTER[:2], "vggsound", "--epochs", "3", *AFTER[3:]]
    assert start(tmp_path, after=other) == 2
    assert "other commands" in caplog.text and not calls


def test_a_test_that_lacks_clips_is_made_again(tmp_path, programs, monkeypatch):
    assert start(tmp_path, seeds="4") == 0
    path = tmp_path / "silence" / "seed-4" / "localisation" / "summary.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"complete": False}))
    calls = []

    def run_program(command):
        calls.append(command[0])
        path.write_text(whole)
        return 0

    monkeypatch.setattr(ablate, "run_program", run_program)
    assert start(tmp_path, seeds="4") == 0
    assert calls == ["main.py", "test.py"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", *AFTER], "nothing cannot be read: it must be one of"),
        (["sspl", "--variants", "with_pcm,x", *AFTER], "not x"),
        (["sspl", *AFTER[: AFTER.index("localisation") - 1]], "localisation"),
        (
            ["sspl", "--", "--train-set", "vggsound", "--data-root", "d", "--pcm-cycles", "0", *AFTER[5:]],
            "--pcm-cycles",
        ),
        (["BAD.json", *AFTER], "it has no variants"),
        (["sspl", *AFTER, *AFTER[AFTER.index("localisation") - 1 :]], "Each task can be named once"),
    ],
)
def test_what_is_wrong_is_said_before_all(tmp_path, programs, caplog, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BAD.json").write_text('{"method": "sspl", "variants": {}}')
    assert ablate.main([arguments[0], "--output", "out", *arguments[1:]]) == 2
    assert words in caplog.text
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_the_commands_of_a_grid_of_one_s_own(tmp_path, capsys):
    path = tmp_path / "mine.json"
    grid = {"method": "ssl_tie", "options": "--epochs 2", "variants": {"warm": "--temperature 0.1"}}
    path.write_text(json.dumps(grid))
    assert ablate.main([str(path), "--output", str(tmp_path / "o"), "--dry-run", *AFTER]) == 0
    train, test = map(shlex.split, capsys.readouterr().out.splitlines())
    assert train[:5] == ["python", "main.py", "ssl_tie", "--epochs", "2"]
    assert train[train.index("--temperature") + 1] == "0.1"
    assert test[test.index("--checkpoint") + 1] == str(tmp_path / "o" / "warm" / "seed-4" / "last.pth")
    assert not (tmp_path / "o").exists()


def test_a_signal_is_handed_on_and_waited_for(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'w').write('saved'), sys.exit(143)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(collect, "ROOT", tmp_path)
    assert collect.run_program(["program.py", str(tmp_path / "note")]) == 143
    assert (tmp_path / "note").read_text() == "saved"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


COMPARE = ROOT / "scripts" / "compare_methods.sh"


def test_every_method_has_a_row_in_the_comparison():
    grid = ablate.GRIDS["methods"]
    assert set(grid["variants"]) == set(opts.METHODS)
    ablate.plan(grid, "4", "sspl", Path("d"), [AFTER[1:5]])  # the dry run leaves it out without encoders


def test_a_dry_run_prints_what_compares_the_methods(tmp_path):
    finished = run(COMPARE, "--dry-run", "--output", tmp_path / "o", "--", "--epochs", "7", COMPARE_DATA="d")
    assert finished.returncode == 0, finished.stderr
    commands = [shlex.split(line) for line in finished.stdout.splitlines()]
    sspl_left_out = "SSPL is left out. vgg16-" in finished.stderr
    assert len(commands) == 2 * 5 * (len(opts.METHODS) - sspl_left_out)
    assert [command[1:3] for command in commands[:5]] == [
        *(["main.py", "ssl_tie"], ["test.py", "localisation"], ["test.py", "retrieval"]),
        *(["test.py", "negatives"], ["scripts/benchmark.py", "train"]),
    ]
    assert all("--epochs 6 --batch-size 32 --frame-size 96" in shlex.join(one) for one in commands[::5])
    assert all(one.index("7") > one.index("6") for one in commands[::5])
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_methods_are_compared_for_real_and_only_once(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    made = run(ROOT / "scripts" / "make_stamps.sh", data, *"--source procedural --train 8 --test 12".split())
    assert made.returncode == 0, made.stderr
    words = ["--output", out, "--seeds", "4", "--variants", "ssl_tie,ez_vsl"]
    words += "-- --epochs 1 --batch-size 4 --device cpu".split()
    finished = run(COMPARE, *words, COMPARE_DATA=str(data))
    assert finished.returncode == 0, finished.stderr
    overview = finished.stdout.split("##")[0]
    for heading in ablate.GRIDS["methods"]["overview"]:
        assert heading in overview
    assert "| ez_vsl " in overview and "| centre disc (blind) " in overview and "| chance " in overview
    assert "every method from random weights" in overview and finished.stdout.count("against ssl_tie") == 2
    again = run(COMPARE, *words, COMPARE_DATA=str(data))
    assert again.stdout == finished.stdout and "Training" not in again.stderr
