"""Every shipped recipe parses, and lets its data folder come from outside."""

import json
import subprocess

import pytest
from shell_scripts import ROOT, ROOTS, run

import opts

ALL_TRAIN_SCRIPTS = sorted((ROOT / "scripts").glob("train_*.sh"))
ALL_TEST_SCRIPTS = sorted((ROOT / "scripts").glob("test_*.sh"))
VARIANTS = ("sspl", "audmix", "openset", "retrieval", "negatives")
TRAIN_SCRIPTS = [p for p in ALL_TRAIN_SCRIPTS if not any(word in p.stem for word in VARIANTS)]
TEST_SCRIPTS = [p for p in ALL_TEST_SCRIPTS if not any(word in p.stem for word in VARIANTS)]
AUDMIX_SCRIPTS = [path for path in ALL_TRAIN_SCRIPTS if "audmix" in path.stem]
SSPL_TRAIN_SCRIPTS = [path for path in ALL_TRAIN_SCRIPTS if "sspl" in path.stem]
SSPL_TEST_SCRIPTS = [path for path in ALL_TEST_SCRIPTS if "sspl" in path.stem]
SSPL_LISTS = {
    "Flickr10k": "ssl_tie_flickr_10k",
    "Flickr144k": None,
    "VGGSound10k": "ssl_tie_vggsound_10k",
    "VGGSound144k": "ssl_tie_vggsound_144k",
}


def test_all_recipes_are_there():
    data_sets = ("Flickr10k", "Flickr144k", "VGGSound10k", "VGGSound144k")
    assert [path.stem for path in TRAIN_SCRIPTS] == [f"train_{name}" for name in data_sets]
    names = ("Flickr10k", "Flickr144k", "VGGSound", "VGGSound_Flickr")
    assert [path.stem for path in TEST_SCRIPTS] == [f"test_{name}" for name in names]
    assert [path.stem for path in SSPL_TRAIN_SCRIPTS] == [f"train_sspl_{name}" for name in data_sets]
    assert [path.stem for path in AUDMIX_SCRIPTS] == [f"train_{name}_audmix" for name in data_sets]
    assert [path.stem for path in SSPL_TEST_SCRIPTS] == ["test_sspl_Flickr", "test_sspl_VGGSound"]


@pytest.mark.parametrize("script", TRAIN_SCRIPTS, ids=lambda path: path.stem)
def test_train_script_is_the_published_recipe(script, tmp_path, start):
    finished = start(script, "--dry-run", cwd=tmp_path, **ROOTS)
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    optimisation = options["optimisation"]
    assert (optimisation["epochs"], optimisation["batch_size"]) == (100, 32)
    assert (optimisation["learning_rate"], optimisation["weight_decay"]) == (1e-4, 1e-4)
    assert (options["run"]["seed"], options["geometric"]["max_rotation"]) == (4, 30)
    flickr = "Flickr" in script.stem
    assert options["data"]["train_set"] == ("flickr" if flickr else "vggsound")
    assert options["augmentation"]["audio_excerpt_seconds"] == (4.0 if flickr else None)
    assert options["data"]["data_root"] == ("/no/flickr" if flickr else "/no/vgg")
    size = script.stem.removeprefix("train_").lower()
    expected = (
        None if size == "flickr144k" else f"ssl_tie_{size.replace('10k', '_10k').replace('144k', '_144k')}"
    )
    assert options["data"]["clip_list"] == expected
    assert all(options["augmentation"][name] for name in ("crop", "colour", "grey", "blur", "flip"))


@pytest.mark.parametrize("name", ["train_VGGSound144k", "train_sspl_Flickr10k", "test_VGGSound"])
def test_a_script_in_its_own_process_says_the_same_from_any_folder(name, start, tmp_path):
    script = ROOT / "scripts" / f"{name}.sh"
    for arguments, status in ((["--dry-run"], 0), (["--dry-run", "--output"], 2)):
        finished = run(script, *arguments, cwd=tmp_path, **ROOTS)
        here = start(script, *arguments, **ROOTS)
        assert (finished.returncode, finished.stdout) == (here.returncode, here.stdout)
        assert finished.returncode == status
        messages = [found.stderr.rpartition("error: ")[2] for found in (finished, here)]
        assert messages[0] == messages[1]


@pytest.mark.parametrize("script", AUDMIX_SCRIPTS, ids=lambda path: path.stem)
def test_audmix_script_is_the_plain_one_with_mixing(script, start):
    plain = script.with_name(script.name.replace("_audmix", ""))
    found, expected = (
        json.loads(start(path, "--dry-run", **ROOTS, FLICKR_LIST="mine.txt").stdout)
        for path in (script, plain)
    )
    assert found.pop("mixing") == expected.pop("mixing") | {"audio_mixing": True}
    assert found["run"].pop("output") == expected["run"].pop("output") + "_audmix"
    assert found == expected


@pytest.mark.parametrize("script", SSPL_TRAIN_SCRIPTS, ids=lambda path: path.stem)
def test_sspl_train_script_is_the_authors_recipe(script, tmp_path, start):
    finished = start(script, "--dry-run", cwd=tmp_path, **ROOTS)
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    size = script.stem.removeprefix("train_sspl_")
    flickr = size.startswith("Flickr")
    assert options["method"] == "sspl" and options["model"]["pcm"]
    assert options["data"]["train_set"] == ("flickr" if flickr else "vggsound")
    assert options["data"]["data_root"] == ("/no/flickr" if flickr else "/no/vgg")
    assert options["data"]["clip_list"] == SSPL_LISTS[size]
    assert options["run"]["output"] == f"runs/sspl_{size}" and options["run"]["seed"] == 1234
    recipe = {"batch_size": 256, "weight_decay": 1e-4, "epochs": 20, "audio_learning_rate": 2e-5,
              "pcm_learning_rate": 2e-5, "head_learning_rate": 5e-5}  # fmt: skip
    assert options["optimisation"] == recipe


def test_sspl_without_the_pcm_has_its_own_recipe_and_any_list(start):
    script = ROOT / "scripts" / "train_sspl_VGGSound10k.sh"
    finished = start(script, "--dry-run", "--no-pcm", **ROOTS, CLIP_LIST="")
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    recipe = {"batch_size": 256, "weight_decay": 1e-4, "epochs": 100, "audio_learning_rate": 5e-4,
              "pcm_learning_rate": None, "head_learning_rate": 2e-3}  # fmt: skip
    assert options["optimisation"] == recipe
    assert options["data"]["clip_list"] is None
    finished = start(script, "--dry-run", **ROOTS, CLIP_LIST="mine.txt")
    assert json.loads(finished.stdout)["data"]["clip_list"] == "mine.txt"


@pytest.mark.parametrize("script", ALL_TRAIN_SCRIPTS, ids=lambda path: path.stem)
def test_arguments_win_over_the_recipe(script, start):
    finished = start(script, "--dry-run", "--epochs", 3, "--data-root", "mine", **ROOTS)
    options = json.loads(finished.stdout)
    assert options["optimisation"]["epochs"] == 3
    assert options["data"]["data_root"] == "mine"


@pytest.mark.parametrize("script", [*ALL_TRAIN_SCRIPTS, *ALL_TEST_SCRIPTS], ids=lambda path: path.stem)
def test_without_a_data_folder_the_option_is_named(script, start):
    finished = start(script)
    assert finished.returncode == 2
    assert "--data-root" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("script", TEST_SCRIPTS, ids=lambda path: path.stem)
def test_test_script_prints_its_options(script, start):
    finished = start(script, "--dry-run", **ROOTS)
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    vgg_ss = script.stem == "test_VGGSound"
    assert options["benchmark"] == ("vgg_ss" if vgg_ss else "flickr_soundnet")
    assert options["clip_list"] == ("ssl_tie_vgg_ss_4911" if vgg_ss else "ssl_tie_flickr_249")
    assert options["protocol"] is None  # the benchmark's own, tests/test_benchmark_metrics.py


@pytest.mark.parametrize("script", SSPL_TEST_SCRIPTS, ids=lambda path: path.stem)
def test_sspl_test_script_prints_its_options(script, start):
    finished = start(script, "--dry-run", **ROOTS)
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    flickr = script.stem == "test_sspl_Flickr"
    assert options["benchmark"] == ("flickr_soundnet" if flickr else "vgg_ss")
    assert options["clip_list"] == ("sspl_flickr_249" if flickr else "sspl_vgg_ss_4692")
    assert options["protocol"] == "sspl,ssl_tie"


@pytest.mark.parametrize("size", ["small", "full"])
def test_quickstart_prints_its_training_options(size):
    finished = run(ROOT / "scripts" / "quickstart.sh", "--dry-run", QUICKSTART_SIZE=size)
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    assert options["frame"]["frame_size"] == {"small": 96, "full": 224}[size]
    assert options["audio"]["mel_bins"] == {"small": 64, "full": 257}[size]
    if size == "small":
        grid = json.loads((ROOT / "scripts" / "grids.json").read_text())["quickstart"]
        assert grid["variants"]["full"] == ""
        given = ["--train-set", "vggsound", "--data-root", "data", "--output", "run"]
        ablated = opts.as_plain(opts.parse_train_options([grid["method"], *grid["options"].split(), *given]))
        places = {"data", "run"}
        assert {key: options[key] for key in options.keys() - places} == {
            key: ablated[key] for key in ablated.keys() - places
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
    quickstart = ROOT / "scripts" / "quickstart.sh"
    given = {"QUICKSTART_SIZE": "small", "TORCH_HOME": str(tmp_path)}
    finished = run(quickstart, "--method", "sspl", "--dry-run", **given)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["frozen"]["random_init"] == (missing is not None)
    assert ("encoders stay RANDOM" in finished.stderr) == (missing is not None)


def test_quickstart_refuses_another_size():
    finished = run(ROOT / "scripts" / "quickstart.sh", QUICKSTART_SIZE="huge")
    assert finished.returncode == 2
    assert "huge" in finished.stderr


@pytest.mark.parametrize("script", ALL_TEST_SCRIPTS, ids=lambda path: path.stem)
def test_test_script_wants_its_checkpoint(script, tmp_path, start):
    finished = start(script, "--device", "cpu", "--output", tmp_path / "out", **ROOTS)
    assert finished.returncode == 2
    assert "No checkpoint at" in finished.stderr
    assert "ckpts" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda p: p.stem)
def test_shell_scripts_parse_and_stop_at_errors(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.slow
def test_quickstart_from_nothing_to_a_report(tmp_path):
    def quickstart():
        return run(
            ROOT / "scripts" / "quickstart.sh",
            *"--epochs 1 --batch-size 8 --frame-size 64 --device cpu --workers 0".split(),
            QUICKSTART_SIZE="small",
            QUICKSTART_DATA=str(tmp_path / "data"),
            QUICKSTART_OUTPUT=str(tmp_path / "run"),
            QUICKSTART_STAMPS="--source procedural --train 16 --test 12",
        )

    finished = quickstart()
    assert finished.returncode == 0, finished.stderr
    report = tmp_path / "run" / "results" / "test" / "report.html"
    assert str(report) in finished.stdout
    assert "data:image/jpeg" in report.read_text()
    assert "stamps (procedural set)" in report.read_text()
    assert json.loads((tmp_path / "data" / "stamps.json").read_text())["source"] == "procedural"

    again = quickstart()
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr


def test_the_retrieval_script_prints_its_options(start):
    finished = start(ROOT / "scripts" / "test_retrieval.sh", "--dry-run", **ROOTS, LABELS="mine.csv")
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    assert (options["dataset"], options["data_root"]) == ("vgg_ss", "/no/vgg_ss")
    assert (options["clip_list"], options["labels"]) == ("ssl_tie_vgg_ss_4911", "mine.csv")
    assert options["directions"] == "audio_to_audio,audio_to_image,image_to_audio"
    assert options["ks"] == "1,5,10"


def test_the_negatives_script_prints_its_options(start):
    finished = start(ROOT / "scripts" / "test_negatives.sh", "--dry-run", **ROOTS, LABELS="mine.csv")
    assert finished.returncode == 0, finished.stderr
    options = json.loads(finished.stdout)
    assert (options["benchmark"], options["data_root"]) == ("vgg_ss", "/no/vgg_ss")
    assert (options["clip_list"], options["labels"]) == ("ssl_tie_vgg_ss_4911", "mine.csv")
    assert (options["seeds"], options["off_screen"]) == (10, "other_class")
    assert options["threshold"] is None
