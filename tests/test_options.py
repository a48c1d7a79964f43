"""Options: each is read somewhere, refused in words, and recorded."""

import ast
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import pytest

import opts
from datasets.augmentation import AugmentationConfig
from models import METHODS
from utils.options import Options, field_docstrings, flag, option, parse_group

ROOT = Path(__file__).parents[1]
TRAINING = {name: list(opts.train_groups(name).values()) for name in METHODS}
"""Configuration classes of main.py, by method."""
CONFIGS = [
    *dict.fromkeys(config for configs in TRAINING.values() for config in configs),
    opts.LocalisationOptions,
    opts.BaselineOptions,
    opts.RetrievalOptions,
    opts.NegativeOptions,
    opts.VideoOptions,
    opts.ImageOptions,
]
MINIMAL = ["ssl_tie", "--train-set", "vggsound", "--data-root", "data", "--output", "run"]
MINIMAL_SSPL = ["sspl", *MINIMAL[1:]]
MINIMAL_TEST = "localisation --checkpoint c --benchmark vgg_ss --data-root d --output o".split()


@cache
def parsed_sources():
    packages = (
        path for name in ("models", "datasets", "utils", "scripts") for path in (ROOT / name).rglob("*.py")
    )
    return [ast.parse(path.read_text()) for path in [*ROOT.glob("*.py"), *packages]]


def attributes_read(config_class):
    """Names read as attributes anywhere but in the class's own checks."""
    own_checks = set()
    read = []
    for tree in parsed_sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == config_class.__name__:
                checks = (item for item in node.body if getattr(item, "name", "") == "__post_init__")
                own_checks |= {id(inner) for check in checks for inner in ast.walk(check)}
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.append(node)
    return {node.attr for node in read if id(node) not in own_checks}


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_every_option_is_read(config_class):
    unread = {field.name for field in fields(config_class)} - attributes_read(config_class)
    assert not unread


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_every_option_is_documented(config_class):
    documented = field_docstrings(config_class)
    assert {field.name for field in fields(config_class)} == documented.keys()


@pytest.mark.parametrize("method", TRAINING)
def test_option_names_are_unique_within_a_command(method):
    names = [field.name for config_class in TRAINING[method] for field in fields(config_class)]
    assert len(names) == len(set(names))


def test_defaults_are_the_published_recipe():
    options = opts.parse_train_options(MINIMAL)
    model, optimisation = options.model, options.optimisation
    assert (model.positive_threshold, model.negative_threshold) == (0.65, 0.4)
    assert (model.sharpness, model.temperature, model.equivariance_weight) == (0.03, 0.07, 1.0)
    assert (optimisation.epochs, optimisation.batch_size) == (100, 32)
    assert (optimisation.learning_rate, optimisation.weight_decay) == (1e-4, 1e-4)
    assert options.geometric.max_rotation == 30
    assert options.geometric.equivariance_target == "reference"
    assert options.frame.frame_size == 224
    assert options.augmentation == AugmentationConfig()


@pytest.mark.parametrize(
    ("variant", "epochs", "audio", "pcm", "head"),
    [("--pcm", 20, 2e-5, 2e-5, 5e-5), ("--no-pcm", 100, 5e-4, None, 2e-3)],
)
def test_sspl_s_defaults_are_the_authors_for_each_variant(variant, epochs, audio, pcm, head):
    options = opts.parse_train_options([*MINIMAL_SSPL, variant])
    recipe = options.optimisation
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (epochs, 256, 1e-4)
    rates = (recipe.audio_learning_rate, recipe.pcm_learning_rate, recipe.head_learning_rate)
    assert rates == (audio, pcm, head)
    assert options.model.pcm_cycles == 4
    assert options.audio.num_samples == 48_000
    assert not hasattr(options, "geometric")
    assert not options.frozen.random_init


def test_an_option_of_the_other_method_is_unknown(capsys):
    for arguments in ([*MINIMAL_SSPL, "--temperature", "1"], [*MINIMAL, "--pcm"]):
        with pytest.raises(SystemExit) as stop:
            opts.parse_train_options(arguments)
        assert stop.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_values_reach_the_options():
    options = opts.parse_train_options(
        [*MINIMAL, "--no-colour", "--epochs", "3", "--equivariance-target", "masked", "--resume"]
    )
    assert not options.augmentation.colour
    assert options.augmentation.blur
    assert options.optimisation.epochs == 3
    assert options.geometric.equivariance_target == "masked"
    assert options.run.resume


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--batch-size", "1"], "--batch-size"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--audio-excerpt-seconds", "nan"], "--audio-excerpt-seconds"),
        (["--window-seconds", "inf"], "--window-seconds"),
        (["--window-seconds", "1"], "--time-mask"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--workers", "-1"], "--workers"),
        (["--temperature", "0"], "--temperature"),
        (["--negative-threshold", "0.9"], "--negative-threshold"),
        (["--equivariance-weight", "-1"], "--equivariance-weight"),
        (["--frame-size", "100"], "--frame-size"),
        (["--window-seconds", "0.001"], "--window-seconds"),
        (["--time-mask", "0"], "--time-mask"),
        (["--audio-excerpt-seconds", "0"], "--audio-excerpt-seconds"),
        (["--validation-benchmark", "vgg_ss"], "--validation-root"),
        (["--validation-list", "x"], "--validation-benchmark"),
        (["--validation-protocol", "strict"], "--validation-protocol .*ssl_tie, sspl.*'strict'"),
    ],
)
def test_nonsense_is_refused_with_the_flag_s_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        opts.parse_train_options([*MINIMAL, *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["ssl_tie"],
        ["no_such_method"],
        [*MINIMAL, "--no-such-option"],
        [*MINIMAL, "--epoch", "3"],
        [*MINIMAL, "--train-set", "imagenet"],
    ],
)
def test_unknown_and_missing_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        opts.parse_train_options(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class Bounded(Options):
    """Bounds of all kinds."""

    count: int = option(1, at_least=1)
    """at least 1"""
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
    assert parse_group(Bounded, "program", "Does.", "--colour blue --share 1".split()).share == 1
    for arguments in ([], ["--colour", "green"]):
        with pytest.raises(SystemExit):
            parse_group(Bounded, "program", "Does.", arguments)
        assert "--colour" in capsys.readouterr().err


def test_overlays_take_a_number_or_all():
    assert opts.parse_test_options([*MINIMAL_TEST, "--save-overlays", "all"]).max_overlays == float("inf")
    assert opts.parse_test_options([*MINIMAL_TEST, "--save-overlays", "3"]).max_overlays == 3
    with pytest.raises(ValueError, match="--save-overlays"):
        opts.parse_test_options([*MINIMAL_TEST, "--save-overlays", "some"])


def test_differences_that_matter():
    before = opts.as_plain(opts.parse_train_options(MINIMAL))
    same = opts.as_plain(opts.parse_train_options([*MINIMAL, "--epochs", "7", "--workers", "0"]))
    other = opts.as_plain(opts.parse_train_options([*MINIMAL, "--seed", "5", "--no-blur"]))
    assert opts.differences_that_matter(before, same) == []
    found = " ".join(opts.differences_that_matter(before, other))
    assert "--seed" in found
    assert "--blur" in found


@pytest.mark.parametrize("method", TRAINING)
def test_help_names_every_option(method, capsys):
    with pytest.raises(SystemExit):
        opts.parse_train_options([method, "--help"])
    text = capsys.readouterr().out
    for config_class in TRAINING[method]:
        for field in fields(config_class):
            assert (flag(field.name) in text) == (not field.metadata.get("hidden"))
    assert text.count("\n  --") <= 50


def test_resuming_as_another_method_names_the_method():
    before = opts.as_plain(opts.parse_train_options(MINIMAL))
    now = opts.as_plain(opts.parse_train_options(MINIMAL_SSPL))
    assert "--method was ssl_tie, is sspl" in opts.differences_that_matter(before, now)
