"""Every tensor of the official weights is read, and whatever does not fit is refused by name."""

from pathlib import Path

import pytest
import torch
from sspl_inputs import SOURCE, head_shapes, linears, pcm_shapes, sound_shapes, vgg16_shapes, vggish_shapes

from models.sspl import SSPL, SSPLConfig
from models.sspl_weights import (
    CLASSIFIER,
    FRAME_FILE,
    HEAD_FILE,
    PCM_FILE,
    SOUND_FILE,
    convert_sspl_release,
    convert_vgg16,
    convert_vggish,
    is_release_folder,
    official_prefixes,
    read_release_folder,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def empty(shapes):
    """Tensors without storage: enough for names and shapes."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def official_files(num_cycles=4):
    return {
        FRAME_FILE: empty(vgg16_shapes("feat_extractor")),
        SOUND_FILE: empty(sound_shapes()),
        PCM_FILE: empty(pcm_shapes(num_cycles)),
        HEAD_FILE: empty(head_shapes()),
    }


def with_module(content):
    return {f"module.{name}": tensor for name, tensor in content.items()}


def test_the_release_has_the_authors_sizes():
    files = official_files()
    counts = {FRAME_FILE: 26, SOUND_FILE: 22, PCM_FILE: 140, HEAD_FILE: 24}
    assert {name: len(content) for name, content in files.items()} == counts
    assert len(vggish_shapes()) == 18


@pytest.mark.parametrize("module", [True, False], ids=["with module.", "without"])
@pytest.mark.parametrize("num_cycles", [0, 1, 4, 11], ids=lambda n: f"{n} cycles")
def test_every_official_tensor_is_used_and_every_one_of_ours_filled(num_cycles, module):
    files = official_files(num_cycles)
    if num_cycles == 0:
        del files[PCM_FILE]
    given = {
        name: with_module(content) if module and name != FRAME_FILE else content
        for name, content in files.items()
    }
    config, converted = convert_sspl_release(given, SOURCE)
    assert config == SSPLConfig(pcm=num_cycles > 0, pcm_cycles=num_cycles or 4)
    with torch.device("meta"):
        model = SSPL(config)
    assert converted.keys() == model.state_dict().keys()
    model.load_state_dict(converted, strict=True, assign=True)
    officials = [id(tensor) for content in files.values() for tensor in content.values()]
    assert sorted(officials) == sorted(id(tensor) for tensor in converted.values())


def test_names_of_the_pcm():
    prefixes = official_prefixes(SSPLConfig())
    official = {ours: name for ours, (file, name) in prefixes.items() if file == PCM_FILE}
    assert official["predictive_coding.prediction_norms.3.1."] == "BNPred_step.7."
    assert official["predictive_coding.correction_norms.3.0."] == "BNError_step.9."
    assert official["predictive_coding.correction_rates."] == "a0."
    assert len(set(official.values())) == len(official)


def test_vgg16_stands_in_for_a_missing_frame_file():
    files = official_files()
    frame = files.pop(FRAME_FILE)
    with pytest.raises(ValueError, match=r"holds no frame_best.pth, and no VGG-16"):
        convert_sspl_release(files, SOURCE)
    vgg16 = convert_vgg16(
        {name.replace("feat_extractor", "features"): tensor for name, tensor in frame.items()},
        Path("vgg16.pth"),
    )
    _, converted = convert_sspl_release(files, SOURCE, vgg16=vgg16)
    with torch.device("meta"):
        model = SSPL(SSPLConfig())
    assert converted.keys() == model.state_dict().keys()
    assert converted["frame_encoder.features.28.bias"] is frame["feat_extractor.28.bias"]


def test_torchvision_s_vgg16():
    content = vgg16_shapes("features")
    content |= linears("classifier", {0: (25088, 4096), 3: (4096, 4096), 6: (4096, 1000)})
    official = empty(content)
    converted = convert_vgg16(official, Path("vgg16.pth"))
    assert converted.keys() | CLASSIFIER == official.keys()
    assert len(converted) == 26
    assert all(converted[name] is official[name] for name in converted)
    with torch.device("meta"):
        SSPL(SSPLConfig(pcm=False)).frame_encoder.load_state_dict(converted, strict=True)


def test_the_released_vggish():
    official = empty(vggish_shapes())
    converted = convert_vggish(official, Path("vggish.pth"))
    assert converted.keys() == official.keys()
    assert all(converted[name] is official[name] for name in converted)
    with torch.device("meta"):
        SSPL(SSPLConfig(pcm=False)).audio_encoder.load_state_dict(converted, strict=True)


@pytest.mark.parametrize("absent", [(), (FRAME_FILE,), (FRAME_FILE, PCM_FILE)], ids=len)
def test_a_results_folder_is_read_and_other_files_are_left(tmp_path, absent):
    files = {name: content for name, content in official_files().items() if name not in absent}
    for name, content in files.items():
        # One number, stretched: the file is tiny, its tensors are not.
        stretched = {k: torch.zeros(()).expand(tensor.shape) for k, tensor in content.items()}
        torch.save(with_module(stretched), tmp_path / name)
    for name in ("args.json", "running_log.txt", "ciou_auc.png", "vggish-10086976.pth"):
        (tmp_path / name).write_text("not weights")
    (tmp_path / "visualization").mkdir()
    seen = []

    def read(path):
        seen.append(path)
        return torch.load(path, weights_only=True)

    assert is_release_folder(tmp_path)
    found = read_release_folder(tmp_path, read)
    assert seen == [tmp_path / name for name in found] and found.keys() == files.keys()
    vgg16 = convert_vgg16(empty(vgg16_shapes("features")), Path("vgg16.pth"))
    config, converted = convert_sspl_release(found, tmp_path, vgg16=vgg16)
    assert config.pcm == (PCM_FILE not in absent)
    # Given in vain where the folder has its own: only the replaced one has no storage.
    replaced = converted["frame_encoder.features.0.weight"].device.type == "meta"
    assert replaced == (FRAME_FILE in absent)


def test_a_folder_with_some_of_the_files_is_named_with_what_it_lacks(tmp_path):
    assert not is_release_folder(tmp_path / "nowhere")
    (tmp_path / "last.pth").touch()
    (tmp_path / PCM_FILE).mkdir()
    assert not is_release_folder(tmp_path) and read_release_folder(tmp_path, torch.load) == {}
    torch.save({}, tmp_path / HEAD_FILE)
    assert is_release_folder(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \['sound_best.pth'\]") as caught:
        convert_sspl_release(read_release_folder(tmp_path, torch.load), tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


DAMAGES = {
    "missing": (lambda d: d.pop("a0.0"), "1 tensors missing: a0.0"),
    "unknown": (lambda d: d.update({"a0.3": d["a0.2"]}), "1 tensors unknown: a0.3"),
    "shape": (
        lambda d: d.update({"a0.0": d["a0.0"][0]}),
        r"1 tensors of another shape: a0.0 \(512, 1, 1\), not \(1, 512, 1, 1\)",
    ),
    "no tensor": (lambda d: d.update({"a0.0": 3}), "another shape: a0.0 int, not"),
    "half a cycle": (lambda d: d.pop("BNError_step.11.bias"), "missing: BNError_step.11.bias"),
    "no cycle": (lambda d: [d.pop(name) for name in list(d) if "_step" in name], "25 tensors missing"),
    "twice": (
        lambda d: d.update({"module.a0.0": d["a0.0"]}),
        "holds tensors twice, with and without `module.`",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_is_wrong(damage):
    files = official_files()
    harm, message = DAMAGES[damage]
    harm(files[PCM_FILE])
    with pytest.raises(ValueError, match=message) as caught:
        convert_sspl_release(files, SOURCE)
    assert str(caught.value).startswith(str(SOURCE / PCM_FILE))


def test_other_folders_and_files_are_refused():
    files = official_files()
    del files[HEAD_FILE]
    with pytest.raises(ValueError, match=r"lacks \['ssl_head_best.pth'\]"):
        convert_sspl_release(files, SOURCE)
    with pytest.raises(ValueError, match=r"unknown \['last.pth'\]"):
        convert_sspl_release(official_files() | {"last.pth": {}}, SOURCE)
    with pytest.raises(ValueError, match=r"vggish.pth holds a list, not a state dict"):
        convert_vggish([], Path("vggish.pth"))
    with pytest.raises(ValueError, match="does not hold the weights of VGGish"):
        convert_vggish(empty(vgg16_shapes("features")), Path("vggish.pth"))
    with pytest.raises(ValueError, match="does not hold the weights of VGG-16 of torchvision"):
        convert_vgg16(empty(vggish_shapes()), Path("vgg16.pth"))
