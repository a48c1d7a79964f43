"""Options: each is read somewhere, explained, bounded, and recorded."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass, fields
from functools import cache

import pytest
from shell_scripts import ROOT, run_here

import opts
from models import METHODS
from utils.options import Options, field_docstrings, flag, option, parse_group

TRAINING = {name: list(opts.train_groups(name).values()) for name in METHODS}
GROUPS = [*dict.fromkeys(group for groups in TRAINING.values() for group in groups), *opts.TASKS.values()]
MINIMAL = "ssl_tie --train-set vggsound --data-root data --output run".split()
MINIMAL_SSPL = ["sspl", *MINIMAL[1:]]
MINIMAL_TEST = "localisation --checkpoint c --benchmark vgg_ss --data-root d --output o".split()
MINIMAL_VIDEO = "video --checkpoint c --input i --output o".split()
OTHERS = {words[0]: words for words in (MINIMAL_SSPL, MINIMAL_TEST, MINIMAL_VIDEO)}
OF_VIDEOS = ["--audio-step -1", "--smoothing inf", "--opacity 1", "--max-seconds 0", "--threshold 2"]
OF_VIDEOS += [f"--scale {ends}" for ends in ("clip", "0.5,0.5", "0,nan", "0,inf", "0.1", "0,1,2")]


@cache
def parsed_sources():
    folders = ("", "models/**/", "datasets/**/", "utils/**/", "scripts/**/")
    return [ast.parse(path.read_text()) for folder in folders for path in ROOT.glob(f"{folder}*.py")]


def attributes_read(group):
    """Names read as attributes anywhere but in the class's own checks."""
    nodes = [node for tree in parsed_sources() for node in ast.walk(tree)]
    own = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name == group.__name__]
    checks = [item for node in own for item in node.body if getattr(item, "name", "") == "__post_init__"]
    in_checks = {id(inner) for check in checks for inner in ast.walk(check)}
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and id(node) not in in_checks}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_option_is_read(group):
    assert not {field.name for field in fields(group)} - attributes_read(group)


@pytest.mark.parametrize("command", [*TRAINING, *opts.TASKS])
def test_help_names_every_option(command, capsys):
    groups = TRAINING.get(command) or [opts.TASKS[command]]
    with pytest.raises(SystemExit):
        (opts.parse_train_options if command in TRAINING else opts.parse_test_options)([command, "--help"])
    text = capsys.readouterr().out
    shown = {flag(f.name): not f.metadata.get("hidden") for group in groups for f in fields(group)}
    assert all((f"  {name}" in text) == visible for name, visible in shown.items())
    assert all(words for group in groups for words in field_docstrings(group).values())
    assert text.count("\n  --") <= 52
    assert not {name for name, visible in shown.items() if visible} & opts.DROPPED.keys()


def test_help_does_not_wait_for_libraries_that_it_does_not_need():
    slow = "torchvision kornia pandas matplotlib sklearn scipy.stats jinja2 av".split()
    program = f"import sys, main; print([name for name in {slow} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("program", "arguments", "usage", "words"),
    [
        ("main", "ssl_tie --epochz 3", "main.py ssl_tie --train-set {", "--epochz. Did you mean --epochs?"),
        ("main", "ssl_tie stray", "main.py ssl_tie --train-set {", "required"),
        ("main", " ".join([*MINIMAL, "stray"]), "main.py ssl_tie --train-set {", "arguments: stray"),
        ("main", "sspl --temperature 1", "main.py sspl --train-set {", "arguments: --temperature"),
        ("main", "ssl_tie --pcm", "main.py ssl_tie --train-set {", "arguments: --pcm"),
        ("main", "ssl_tei", "main.py {ssl_tie,sspl", "Did you mean ssl_tie?"),
        ("test", "localization", "test.py {localisation,", "Did you mean localisation?"),
        ("test", "video --outptu x", "test.py video --checkpoint PATH", "Did you mean --output?"),
        ("test", "localisation --benchmark vgs_ss", "test.py localisation", "Did you mean vgg_ss?"),
        ("test", "baselines --benchmark avsbench_s4", "test.py baselines", "invalid choice"),
        ("test", "localisation --zzzz", "test.py localisation", "unrecognized arguments: --zzzz.\n"),
    ],
)
def test_a_slip_is_answered_with_its_usage_and_what_was_meant(program, arguments, usage, words):
    status, _, errors = run_here(ROOT / f"{program}.py", arguments.split())
    assert status == 2 and errors.startswith(f"usage: {usage}") and words in errors


def config(folder, content):
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return run_here(ROOT / "main.py", ["ssl_tie", "--config", str(folder / "config.json"), "--dry-run"])


def test_a_config_is_a_run_s_or_flat_and_the_command_line_wins(tmp_path):
    given = [*MINIMAL, "--no-crop", "--epochs", "7", "--learning-rate", "3e-4", "--clip-list", "a b"]
    options = opts.as_plain(opts.parse_train_options([*given, "--resume"]))
    flat = {name: value for group in options.values() if group != "ssl_tie" for name, value in group.items()}
    for content in (options, flat | {"audio_encodings": 1}):  # of earlier versions
        status, output, errors = config(tmp_path, content)
        assert status == 0, errors
        again = json.loads(output)
        assert again.pop("run") == {**options["run"], "resume": False, "dry_run": True,
                                    "config": str(tmp_path / "config.json")}  # fmt: skip
        assert again == {name: group for name, group in options.items() if name != "run"}
    arguments = ["ssl_tie", "--config", str(tmp_path / "config.json"), "--crop", "--epochs=9"]
    options = opts.parse_train_options(arguments)
    assert options.augmentation.crop and options.optimisation.epochs == 9 and options.data.clip_list == "a b"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epochz": 3}, "unknown key 'epochz'. Did you mean epochs?"),
        ({"optimisation": {"epochz": 3}}, "unknown key 'epochz'. Did you mean epochs?"),
        ({"optimization": {"epochs": 3}}, "unknown key 'optimization'. Did you mean optimisation?"),
        ({"method": "sspl", "epochs": 3}, "options of the method 'sspl'; this is ssl_tie"),
        ({"micro_batches": 2}, "--micro-batches is no longer there. Lower"),
        ({"sharpness": 1}, "--sharpness is no longer there."),
        ({"epochs": "three"}, "--epochs: invalid int value: 'three'"),
        ([], "expected an object"),
        ("{", "config.json is no JSON"),
    ],
)
def test_a_config_of_another_form_is_refused_in_words(content, words, tmp_path):
    status, _, errors = config(tmp_path, content)
    assert status == 2 and words in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--epochs 0", "--epochs"),
        ("--learning-rate nan", "--learning-rate"),
        ("--learning-rate 0", "--learning-rate"),
        ("--workers -1", "--workers"),
        ("--seed -1", "--seed must be at least 0"),
        ("--seed 100000000000000000000", "--seed"),
        ("--temperature 0", "--temperature"),
        ("--negative-threshold 0.7", r"--negative-threshold \(0.7\) .* --positive-threshold \(0.65\)"),
        ("--equivariance-weight -1", "--equivariance-weight"),
        ("--time-mask 0", "--time-mask"),
        ("--window-seconds 1", "--time-mask"),
        ("--audio-excerpt-seconds 0", "--audio-excerpt-seconds"),
        ("--validation-benchmark vgg_ss", "--validation-root"),
        ("--validation-list x", "--validation-benchmark"),
        ("--micro-batches 2", "--micro-batches is no longer there. [A-Z]"),
        ("--head-megabytes=16", "--head-megabytes is no longer there. [A-Z]"),
        ("--no-tf32", "--no-tf32 is no longer there. [A-Z]"),
        ("--negative-sounds noise --contrastive-weight 0 --transformed-contrastive-weight 0", "the contrast"),
        ("--mixing-start-epoch 1", "--mixing-start-epoch needs --audio-mixing"),
        ("--audio-mixing --mixing-start-epoch 0", "--mixing-start-epoch must be at least 1"),
        ("sspl --random-init --vggish x.pth", "--random-init and --vgg16 or --vggish exclude"),
        ("sspl --frame-size 64", "--no-pcm"),
        ("sspl --no-pcm --pcm-learning-rate 1", "--pcm-learning-rate"),
        ("sspl --segment-seconds 0.5", "--segment-seconds"),
        ("localisation --object-prior 1.5", "--object-prior must be at least 0 and at most 1"),
        ("localisation --object-prior-weights x.pth", "--object-prior-weights needs --object-prior"),
        *((f"video {slip}", slip.split()[0]) for slip in OF_VIDEOS),
    ],
)
def test_nonsense_is_refused_with_the_flag_s_name(arguments, words):
    first, *others = arguments.split()
    given = [*OTHERS[first], *others] if first in OTHERS else [*MINIMAL, first, *others]
    parse = opts.parse_test_options if first in opts.TASKS else opts.parse_train_options
    with pytest.raises(ValueError, match=words):
        parse(given)


@dataclass(frozen=True, kw_only=True)
class Bounded(Options):
    """Bounds of all kinds."""

    count: int = option(1, at_least=1)  # at least 1
    share: float | None = option(None, above=0, at_most=1)
    """a share"""
    colour: str = option(choices=("red", "blue"))
    """of two"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--count 0", "--count must be at least 1, got 0"),
        ("--share 0", "--share must be above 0 and at most 1, got 0.0"),
        ("--share 1.5", "--share must be above 0 and at most 1, got 1.5"),
        ("--share nan", "--share must be above 0 and at most 1, got nan"),
        ("--share=-inf", "--share must be above 0 and at most 1, got -inf"),
    ],
)
def test_bounds_are_named(arguments, words):
    with pytest.raises(ValueError) as refused:
        parse_group(Bounded, "program", "Does.", ["--colour", "red", *arguments.split()])
    assert str(refused.value) == words


def test_values_within_bounds_and_choices(capsys):
    assert parse_group(Bounded, "program", "Does.", ["--colour", "red"]) == Bounded(colour="red")
    assert field_docstrings(Bounded) == {"count": "at least 1", "share": "a share", "colour": "of two"}
    assert parse_group(Bounded, "program", "Does.", "--colour blue --share 1".split()).share == 1
    for arguments in ([], ["--colour", "green"]):
        with pytest.raises(SystemExit):
            parse_group(Bounded, "program", "Does.", arguments)
        assert "--colour" in capsys.readouterr().err


def test_differences_that_matter_on_resume():
    before = opts.as_plain(opts.parse_train_options(MINIMAL))
    same = opts.as_plain(opts.parse_train_options([*MINIMAL, "--epochs", "7", "--workers", "0", "--resume"]))
    others = "--seed 5 --contrastive-weight 0 --no-blur --negative-sounds silence".split()
    other = opts.as_plain(opts.parse_train_options([*MINIMAL, *others]))
    before["mixing"]["mixing_start_epoch"] = 1  # the default of runs begun before; they mix nothing
    del before["negatives"]  # a group of options that was not there yet
    assert opts.differences_that_matter(before, same) == []
    moved = ["--seed was 4, is 5", "--contrastive-weight was 0.5, is 0.0", "--blur was True, is False"]
    moved += ["--negative-sounds was None, is silence"]
    assert opts.differences_that_matter(before, other) == moved
    method = opts.as_plain(opts.parse_train_options(MINIMAL_SSPL))
    assert opts.differences_that_matter(before, method) == ["--method was ssl_tie, is sspl"]
