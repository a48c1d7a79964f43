"""Every shipped recipe is the published one, and every command of the pages parses."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from shell_scripts import ROOT, ROOTS, run

import opts

SCRIPTS = {path.stem: path for path in (ROOT / "scripts").glob("*.sh")}
LISTS = {
    "Flickr10k": "ssl_tie_flickr_10k",
    "Flickr144k": None,
    "VGGSound10k": "ssl_tie_vggsound_10k",
    "VGGSound144k": "ssl_tie_vggsound_144k",
}
TRAIN = {f"train_{kind}{size}" for size in LISTS for kind in ("", "sspl_")}
PEERS = {  # epochs, and whose list is taken
    "ez_vsl": {"VGGSound10k": (100, "ez_vsl"), "VGGSound144k": (20, "ez_vsl"),
               "Flickr10k": (100, "ez_vsl"), "Flickr144k": (20, "ez_vsl")},
    "slavc": {"VGGSound144k": (20, "ez_vsl")},
    "fnac": {"VGGSound10k": (30, "fnac"), "VGGSound144k": (30, "fnac"),
             "Flickr10k": (30, "ez_vsl"), "Flickr144k": (30, "ez_vsl")},
    "lvs": {"VGGSound144k": (100, "ssl_tie"), "Flickr10k": (100, "ssl_tie"), "Flickr144k": (100, "ez_vsl")},
}  # fmt: skip
TRAIN_PEERS = {f"train_{method}_{size}": (method, size) for method, sizes in PEERS.items() for size in sizes}
AUDMIX = {f"train_{size}_audmix" for size in LISTS}
VGG_SS, FLICKR = ("vgg_ss", "/no/vgg_ss"), ("flickr_soundnet", "/no/flickr_test")
TESTS = {
    "test_VGGSound": (*VGG_SS, "ssl_tie_vgg_ss_4911", {"protocol": None}),  # the benchmark's own
    "test_VGGSound_Flickr": (*FLICKR, "ssl_tie_flickr_249", {"protocol": None}),
    "test_Flickr10k": (*FLICKR, "ssl_tie_flickr_249", {"protocol": None}),
    "test_Flickr144k": (*FLICKR, "ssl_tie_flickr_249", {"protocol": None}),
    "test_sspl_VGGSound": (*VGG_SS, "sspl_vgg_ss_4692", {"protocol": "sspl,ssl_tie"}),
    "test_sspl_Flickr": (*FLICKR, "sspl_flickr_249", {"protocol": "sspl,ssl_tie"}),
    "test_retrieval": (
        *VGG_SS, "ssl_tie_vgg_ss_4911",
        {"directions": "audio_to_audio,audio_to_image,image_to_audio", "ks": "1,5,10", "labels": "mine.csv"},
    ),
    "test_negatives": (
        *VGG_SS, "ssl_tie_vgg_ss_4911",
        {"seeds": 10, "off_screen": "other_class", "threshold": None, "labels": "mine.csv"},
    ),
}  # fmt: skip
RECIPES = {name for name in SCRIPTS if name.startswith(("train_", "test_"))}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def dry_run(start, tmp_path):
    """The options that a script's program would take."""

    def options_of(name, *arguments, **variables):
        finished = start(SCRIPTS[name], "--dry-run", *arguments, cwd=tmp_path, **ROOTS, **variables)
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)

    return options_of


@pytest.mark.parametrize("name", sorted(TRAIN))
def test_a_training_script_is_the_published_recipe(name, dry_run):
    options = dry_run(name)
    size, sspl = name.removeprefix("train_").removeprefix("sspl_"), "sspl" in name
    flickr, optimisation = "Flickr" in size, options["optimisation"]
    assert options["method"] == ("sspl" if sspl else "ssl_tie")
    assert options["data"]["train_set"] == ("flickr" if flickr else "vggsound")
    assert options["data"]["data_root"] == ("/no/flickr" if flickr else "/no/vgg")
    assert options["data"]["clip_list"] == LISTS[size]
    if sspl:
        recipe = {"batch_size": 256, "weight_decay": 1e-4, "epochs": 20, "audio_learning_rate": 2e-5,
                  "pcm_learning_rate": 2e-5, "head_learning_rate": 5e-5}  # fmt: skip
        assert options["run"]["output"] == f"runs/sspl_{size}" and options["run"]["seed"] == 1234
        assert options["model"]["pcm"]
    else:
        recipe = {"batch_size": 32, "weight_decay": 1e-4, "epochs": 100, "learning_rate": 1e-4}
        geometric, size = options["geometric"], options["frame"]["frame_size"]
        assert (options["run"]["seed"], size, geometric["max_rotation"]) == (4, 224, 30)
        assert geometric["equivariance_target"] == "reference"
        assert options["augmentation"]["audio_excerpt_seconds"] == (4.0 if flickr else None)
        assert all(options["augmentation"][part] for part in ("crop", "colour", "grey", "blur", "flip"))
    assert optimisation == recipe


@pytest.mark.parametrize("name", sorted(TRAIN_PEERS))
def test_a_peer_s_script_is_the_published_recipe(name, dry_run):
    options, (method, size) = dry_run(name), TRAIN_PEERS[name]
    epochs, owner = PEERS[method][size]
    assert options["method"] == method and options["run"]["output"] == f"runs/{method}_{size}"
    listed = size.lower().replace("10k", "_10k").replace("144k", "_144k")
    assert options["data"]["clip_list"] == f"{owner}_{listed}"
    assert options["start"]["start"] == ("scratch" if method == "lvs" else "imagenet")
    assert options["optimisation"] == {
        "epochs": epochs, "learning_rate": 1e-4, "batch_size": {"fnac": 256, "lvs": 32}.get(method, 128),
        "weight_decay": 1e-4 if method in ("fnac", "lvs") else 0.0,
    }  # fmt: skip
    assert options["run"]["seed"] == (12345 if method == "fnac" else 4)


@pytest.mark.parametrize("name", sorted(AUDMIX))
def test_audmix_script_is_the_plain_one_with_mixing(name, dry_run):
    found, expected = (dry_run(one, FLICKR_LIST="mine.txt") for one in (name, name.removesuffix("_audmix")))
    assert found.pop("mixing") == expected.pop("mixing") | {"audio_mixing": True}
    assert found["run"].pop("output") == expected["run"].pop("output") + "_audmix"
    assert found == expected


def test_sspl_without_the_pcm_has_its_own_recipe_and_any_list(dry_run):
    options = dry_run("train_sspl_VGGSound10k", "--no-pcm", CLIP_LIST="")
    assert (options["optimisation"]["epochs"], options["data"]["clip_list"]) == (100, None)
    assert dry_run("train_sspl_VGGSound10k", CLIP_LIST="mine.txt")["data"]["clip_list"] == "mine.txt"


@pytest.mark.parametrize("name", sorted(TESTS))
def test_a_test_script_is_the_published_protocol(name, dry_run):
    benchmark, root, clip_list, others = TESTS[name]
    options = dry_run(name, LABELS="mine.csv")
    assert options["dataset" if name == "test_retrieval" else "benchmark"] == benchmark
    assert (options["data_root"], options["clip_list"]) == (root, clip_list)
    assert others.items() <= options.items()


def test_a_list_of_training_clips_goes_with_released_files_alone(dry_run):
    for checkpoint, expected in (("", True), ("/other/flickr10k.pth.tar", True), ("runs/my/last.pth", False)):
        options = dry_run("test_Flickr10k", CHECKPOINT=checkpoint)
        assert options["training_list"] == ("ssl_tie_flickr_10k" if expected else None)
        taken = options["checkpoint"]
        assert taken == checkpoint or taken.endswith("ckpts/flickr10k.pth.tar")
    assert dry_run("test_retrieval", "--checkpoint", "last.pth", LABELS="l")["training_list"] is None


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_arguments_win_over_the_recipe_and_what_is_missing_is_named(name, start, dry_run, tmp_path):
    assert name in TRAIN | AUDMIX | TESTS.keys() | TRAIN_PEERS.keys() or "openset" in name
    finished = start(SCRIPTS[name])
    assert finished.returncode == 2
    assert re.search(r"(VGGSOUND|FLICKR)_(TEST_)?ROOT is not set.* \1_.*ROOT=/", finished.stderr)
    if name.startswith("train_"):
        options = dry_run(name, "--epochs", 3, "--data-root", "mine")
        assert (options["optimisation"]["epochs"], options["data"]["data_root"]) == (3, "mine")
        refused = start(SCRIPTS[name], "--config", "c.json")
        assert refused.returncode == 2 and "main.py METHOD --config FILE" in refused.stderr
    else:
        finished = start(SCRIPTS[name], "--device", "cpu", "--output", tmp_path / "out", **ROOTS)
        assert finished.returncode == 2 and "Traceback" not in finished.stderr
        assert "No checkpoint at" in finished.stderr and "ckpts" in finished.stderr


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_shell_scripts_parse_stop_at_errors_and_explain_themselves(name):
    assert subprocess.run(["bash", "-n", SCRIPTS[name]], check=False).returncode == 0
    assert "set -euo pipefail" in SCRIPTS[name].read_text()
    finished = run(SCRIPTS[name], "--help", VSSL_PYTHON="echo")
    assert finished.returncode == 0, finished.stderr
    assert "Usage: " in finished.stdout or re.fullmatch(r"-P .* --help\n", finished.stdout)


def test_help_installs_nothing(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name, given in (("demo", ["--help"]), ("run", ["main.py", "ssl_tie", "--help"])):
        finished = run(tmp_path / "scripts" / f"{name}.sh", *given, VSSL_PYTHON="")
        assert finished.returncode == 2 and "bash scripts/setup.sh makes it" in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scripts"]


# ----------------------------------------------------------------------------------- pages


def commands_of(page):
    """Lines of the page that call a script, with the options in brackets; … is any word."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^((?:[A-Z_]+=\S+ )*bash scripts/.*)$", text, re.M)
    return [shlex.split(re.sub(r"[][]", "", line).replace("…", "x"), comments=True) for line in lines]


@pytest.mark.parametrize("words", [pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")
                                   for page in PAGES for words in commands_of(page)])  # fmt: skip
def test_commands_of_the_pages_parse(words, start):
    place = words.index("bash")
    variables, (script, *arguments) = dict(word.split("=", 1) for word in words[:place]), words[place + 1 :]
    name = script.removeprefix("scripts/").removesuffix(".sh")
    assert name in SCRIPTS
    if name in RECIPES or arguments[:1] in (["main.py"], ["test.py"]):
        finished = start(ROOT / script, *arguments, "--dry-run", **{**ROOTS, **variables})
        assert finished.returncode == 0, finished.stderr
        return
    # Others work at once, so that their options are only looked up.
    sources = [path for name in ("scripts", "models", "datasets") for path in (ROOT / name).rglob("*.py")]
    known = "".join(path.read_text() for path in (*sources, ROOT / "opts.py"))
    for option in {word for word in arguments if re.match("--[a-z]", word)} - {"--help"}:
        field = option[2:].removeprefix("no-").replace("-", "_")
        assert f'"{option}"' in known or re.search(rf"^    {field}: ", known, re.M), option


# ------------------------------------------------------------------------------ quickstart


@pytest.mark.parametrize("size", ["small", "full"])
def test_quickstart_prints_its_training_options(size):
    finished = run(SCRIPTS["quickstart"], "--dry-run", QUICKSTART_SIZE=size)
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    assert options["frame"]["frame_size"] == {"small": 96, "full": 224}[size]
    assert options["audio"]["mel_bins"] == {"small": 64, "full": 257}[size]
    if size == "small":  # the grid's variant `full` is the quickstart's run
        grid = json.loads((ROOT / "scripts" / "grids.json").read_text())["quickstart"]
        assert grid["variants"]["full"] == ""
        given = ["--train-set", "vggsound", "--data-root", "data", "--output", "run"]
        ablated = opts.as_plain(opts.parse_train_options([grid["method"], *grid["options"].split(), *given]))
        assert {key: options[key] for key in options.keys() - {"data", "run"}} == {
            key: ablated[key] for key in ablated.keys() - {"data", "run"}
        }
        assert options["run"]["seed"] == ablated["run"]["seed"]


@pytest.mark.parametrize("missing", [None, "vgg16-397923af.pth", "vggish-10086976.pth"])
def test_quickstart_of_sspl_is_random_only_without_its_encoders(tmp_path, missing):
    if missing and (ROOT / "ckpts" / missing).is_file():
        pytest.skip("the weights are there")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name in {"vgg16-397923af.pth", "vggish-10086976.pth"} - {missing}:
        (folder / name).touch()
    given = {"QUICKSTART_SIZE": "small", "TORCH_HOME": str(tmp_path)}
    finished = run(SCRIPTS["quickstart"], "--method", "sspl", "--dry-run", **given)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["frozen"]["random_init"] == (missing is not None)
    assert ("encoders stay RANDOM" in finished.stderr) == (missing is not None)


@pytest.mark.parametrize("words", ["--output x", "--clip-list mine.txt", "--config c.json"])
def test_quickstart_refuses_what_its_scoring_would_not_follow(words):
    finished = run(SCRIPTS["quickstart"], *words.split(), "--dry-run")
    assert finished.returncode == 2 and "QUICKSTART_OUTPUT" in finished.stderr


def test_quickstart_refuses_another_size():
    finished = run(SCRIPTS["quickstart"], QUICKSTART_SIZE="huge")
    assert finished.returncode == 2 and "huge" in finished.stderr


@pytest.mark.slow
def test_quickstart_from_nothing_to_a_report(tmp_path):
    for attempt in range(2):
        finished = run(
            SCRIPTS["quickstart"],
            *"--epochs 1 --batch-size 8 --frame-size 64 --device cpu --workers 0".split(),
            QUICKSTART_SIZE="small",
            QUICKSTART_DATA=str(tmp_path / "data"),
            QUICKSTART_OUTPUT=str(tmp_path / "run"),
            QUICKSTART_STAMPS="--source procedural --train 16 --test 12",
        )
        assert finished.returncode == 0, finished.stderr
        assert ("nothing to do" in finished.stderr) == (attempt == 1)
    report = tmp_path / "run" / "results" / "test" / "report.html"
    scores, _, end = finished.stdout.rpartition("\n\n")
    assert re.search(r"^ssl_tie +centre Gaussian \(blind\) +\d", scores, re.M)
    lines = end.splitlines()
    assert lines[0].startswith("With another clip's sound") and re.match(r" *ssl_tie +SSL-TIE run", lines[1])
    assert lines[2:4] == [f"Report: {report}", "Next:"]
    image = " ".join(lines[5:7]).replace("\\", "").split()
    finished = run(ROOT / image[1], *image[2:-1], str(tmp_path / "heat.png"))
    assert finished.returncode == 0, finished.stderr
    page = report.read_text()
    assert "data:image/jpeg" in page
    assert "SSL-TIE run, 1 epoch, on stamps: test, 12 clips (procedural set)" in page
    assert "scripts/run.sh test.py localisation" in page and "../wrong_sound/report.html" in page


# ------------------------------------------------------------------------------- check_gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_check_gpu_says_that_there_is_none():
    finished = run(SCRIPTS["check_gpu"])
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and "no GPU here" in finished.stderr


@pytest.mark.slow
def test_check_gpu_takes_its_whole_path_on_a_cpu(tmp_path):
    output = tmp_path / "check"
    finished = run(SCRIPTS["check_gpu"], "--quick", CHECK_OUTPUT=str(output))
    assert finished.returncode == 0, finished.stderr
    report = json.loads((output / "check_gpu.json").read_text())
    lines = report["speed"]
    assert "1 passed" in report["tests"] and report["learning"]["test"]["num_clips"] == 12
    assert [(line["case"], line["batch_size"]) for line in lines[:2]] == [("train", 2), ("train", 4)]
    assert {line["case"] for line in lines} == {"train", "loader", "evaluate"}
    for row in ("train +plain +4", "loader +workers_1 +4", "evaluate +batches_all_rules +4", "ssl_tie"):
        assert re.search(rf"^ *{row} +\S", finished.stdout, re.M), row
    assert "1 passed" in finished.stdout.splitlines()[-1]
    again = run(SCRIPTS["check_gpu"], "--quick", CHECK_OUTPUT=str(output))
    assert again.returncode == 2 and "CHECK_OUTPUT" in again.stderr
