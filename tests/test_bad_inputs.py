"""Whatever is wrong with an input, the user reads words: status 2, no traceback, nothing written.

The programs run within this process, as starting Python takes longer than any of the refusals.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from command_line import scoring, training
from conftest import RATE, tone

import main as training_program
from models.ssl_tie import SSLTIE, SSLTIEConfig
from utils.checkpoint import FORMAT, Checkpoint


@dataclass
class Inputs:
    """What a row may spoil."""

    folder: Path
    root: Path
    checkpoint: Path
    output: Path

    def file(self, kind):
        """Of the clip test_3 or, where it is named so, of train_3."""
        places = {
            "frame": "VGGSound_test/frame/test_3.jpg",
            "audio": "VGGSound_test/audio/test_3.wav",
            "boxes": "VGGSound_test/anno/test_3.xml",
            "training frame": "VGGSound/total_video_frames/train_3/125.jpg",
        }
        return self.root / places[kind]


@dataclass(frozen=True)
class Row:
    """One bad input."""

    name: str
    spoil: Callable[[Inputs], object] | None
    words: tuple[str, ...]
    """that the message must hold"""
    arguments: str = ""
    """more of the command line; {folder} is the folder of the inputs"""
    program: str = "test"
    """test or main"""
    first: str = ""
    """another task or method"""
    leaves_results: bool = False
    """known only while decoding: the other clips are scored, and the status tells"""


# ------------------------------------------------------------------------- how inputs are spoilt


def replaced(kind, content):
    """The file of that kind, with other content."""
    return lambda inputs: inputs.file(kind).write_bytes(content)


def absent(kind):
    return lambda inputs: inputs.file(kind).unlink()


def cut(kind, kept):
    return lambda inputs: inputs.file(kind).write_bytes(inputs.file(kind).read_bytes()[:kept])


def extra_file(name, content):
    """A file beside the data, for an option to name."""
    return lambda inputs: (inputs.folder / name).write_bytes(content)


def other_checkpoint(content):
    """Another file stands in for the checkpoint."""

    def spoil(inputs):
        inputs.checkpoint = inputs.folder / "spoilt.pth"
        inputs.checkpoint.write_bytes(content)

    return spoil


def no_checkpoint(inputs):
    inputs.checkpoint = inputs.folder / "absent.pth"


def truncated_checkpoint(inputs):
    content = inputs.checkpoint.read_bytes()
    other_checkpoint(content[: len(content) // 3])(inputs)


def light_weights():
    """Names and shapes of the model's; one stored value stands for all of a tensor."""
    with torch.device("meta"):
        state = SSLTIE(SSLTIEConfig()).state_dict()
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}


def changed_checkpoint(change):
    """A checkpoint whose content went through `change`."""

    def spoil(inputs):
        checkpoint = Checkpoint(
            method="ssl_tie", method_config={}, audio_config={}, frame_config={}, state_dict=light_weights()
        )
        content = {"format": FORMAT, **asdict(checkpoint)}
        change(content)
        inputs.checkpoint = inputs.folder / "spoilt.pth"
        torch.save(content, inputs.checkpoint)

    return spoil


def changed_weights(**changes):
    """Tensors by name, `__` for a dot; None takes one away."""

    def change(content):
        for name, tensor in changes.items():
            content["state_dict"][name.replace("__", ".")] = tensor
            if tensor is None:
                del content["state_dict"][name.replace("__", ".")]

    return changed_checkpoint(change)


def changed_release(**changes):
    """The layout of the released files."""

    def change(content):
        weights = {**light_weights(), **changes}
        weights["audnet.conv1_a.weight"] = weights.pop("audnet.conv1.weight")
        content.clear()
        content.update(state_dict=weights, best_miou=0.5, epoch=3)

    return changed_checkpoint(change)


def written_sound(samples, rate=RATE):
    return lambda inputs: soundfile.write(inputs.file("audio"), samples, rate)


def xml_boxes(*values):
    tags = "".join(f"<v{place}>{value}</v{place}>" for place, value in enumerate(values))
    text = f"<annotation><bbox><box>{tags}</box></bbox></annotation>"
    return replaced("boxes", text.encode())


def json_boxes(box):
    entries = [{"file": f"test_{index}", "bbox": [box]} for index in range(6)]
    return extra_file("boxes.json", json.dumps(entries).encode())


def in_output(name, content):
    """The results folder holds a file."""

    def spoil(inputs):
        inputs.output.mkdir()
        (inputs.output / name).write_bytes(content)

    return spoil


class Foreign:
    """Asks the reader to call a function."""

    def __reduce__(self):
        return print, ("was called",)


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
BOMB = f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a>&l11;</a>'.encode()
UNKNOWN_ENCODING = b'<?xml version="1.0" encoding="klingon"?><annotation/>'
TAKEN = extra_file("output", b"a file, not a folder")
NOT_LOADED = "cannot be loaded as weights"
BROKEN = ("test_3", "1 of 6 clips are missing or broken", "--allow-missing")
UNREAD = "1 clips could not be decoded"
LIST = "--clip-list {folder}/list.txt"
JSON = "--annotations {folder}/boxes.json"

CHECKPOINTS = [
    Row("missing checkpoint", no_checkpoint, ("No checkpoint", "absent.pth")),
    Row("empty checkpoint", other_checkpoint(b""), (NOT_LOADED,)),
    Row("text checkpoint", other_checkpoint(b"Not found\n"), (NOT_LOADED,)),
    Row("truncated checkpoint", truncated_checkpoint, (NOT_LOADED, "cut off")),
    Row("pickle with foreign object", other_checkpoint(pickle.dumps(Foreign(), 2)),
        (NOT_LOADED, "which could run code")),
    Row("wrong format", changed_checkpoint(lambda c: c.update(format="other-9")),
        ("format 'other-9'", FORMAT)),
    Row("missing entry", changed_checkpoint(lambda c: c.pop("optimizer")), ("lacks ['optimizer']",)),
    Row("entry of another type", changed_checkpoint(lambda c: c.update(epoch="last")),
        ("'epoch'", "is not a int", "'last'")),
    Row("weights that are numbers", changed_weights(imgnet__bn1__weight=3.5), ("'state_dict'", "float")),
    Row("missing tensor", changed_weights(imgnet__bn1__weight=None),
        ("does not fit", "Missing key", "imgnet.bn1.weight")),
    Row("unknown tensor", changed_weights(stranger=torch.zeros(2)),
        ("does not fit", "Unexpected key", "stranger")),
    Row("wrong shape", changed_weights(imgnet__bn1__weight=torch.zeros(3)),
        ("does not fit", "size mismatch", "imgnet.bn1.weight")),
    Row("NaN weights", changed_weights(imgnet__bn1__weight=torch.full((64,), np.nan)),
        ("not finite", "imgnet.bn1.weight")),
    Row("unknown method in checkpoint", changed_checkpoint(lambda c: c.update(method="psychic")),
        ("unknown method 'psychic'",)),
    Row("unknown setting in checkpoint", changed_checkpoint(lambda c: c.update(audio_config={"colour": 1})),
        ("'colour'",)),
    Row("release with a stranger", changed_release(stranger=torch.zeros(2)),
        ("1 tensors unknown: stranger",)),
    Row("release with a number", changed_release(stranger=3), ("unknown", "stranger")),
]  # fmt: skip

FILES = [
    Row("missing data root", None, ("does not exist", "docs/data.md"), "--data-root {folder}/nowhere"),
    Row("missing data root in training", None, ("does not exist", "docs/data.md"),
        "--data-root {folder}/nowhere", program="main"),
    Row("missing frame", absent("frame"), ("no frame", "test_3"), LIST),
    Row("missing audio", absent("audio"), ("no audio", "test_3"), LIST),
    Row("missing annotation", absent("boxes"), ("no annotation", "test_3"), LIST),
    Row("missing frame in training", absent("training frame"), ("no frame", "train_3"), LIST, program="main"),
    Row("zero-length frame", replaced("frame", b""), (*BROKEN, "test_3.jpg")),
    Row("zero-length frame in training", replaced("training frame", b""),
        ("train_3", "1 of 8 clips", "--allow-missing"), program="main"),
    Row("truncated jpeg header", cut("frame", 20), (UNREAD, "test_3.jpg"), leaves_results=True),
    Row("text as jpeg", replaced("frame", b"<html>404</html>"), (UNREAD, "test_3.jpg"), leaves_results=True),
    Row("zero-length wav", replaced("audio", b""), (*BROKEN, "test_3.wav")),
    Row("wav without a sample", written_sound(np.zeros(0)), (UNREAD, "no audio sample"), leaves_results=True),
    Row("text as wav", replaced("audio", b"HTTP 404\n" * 50), (UNREAD, "test_3.wav"), leaves_results=True),
    Row("truncated wav", cut("audio", 900), (UNREAD, "cut off", "bytes"), leaves_results=True),
    Row("odd sample rate", written_sound(tone(3), 15_999), ("test_3", "15999 Hz"), leaves_results=True),
    Row("XML cut off", cut("boxes", 60), (*BROKEN, "not readable as XML")),
    Row("XML bomb", replaced("boxes", BOMB), (*BROKEN, "DOCTYPE")),
    Row("XML of unknown encoding", replaced("boxes", UNKNOWN_ENCODING), (*BROKEN, "unknown encoding")),
    Row("boxes in pixels", xml_boxes(12, 30, 200, 180), (*BROKEN, "fractions")),
    Row("box with three numbers", xml_boxes(0.1, 0.2, 0.6), (*BROKEN, "four numbers")),
    Row("JSON that is none", extra_file("boxes.json", b"[{"), ("boxes.json", "not a list"), JSON),
    Row("JSON box with three numbers", json_boxes([0, 0, 1]), ("boxes.json", "four numbers"), JSON),
    Row("JSON boxes in pixels", json_boxes([12, 30, 200, 180]), ("boxes.json", "fractions"), JSON),
    Row("missing JSON", None, ("No annotations at",), JSON),
]  # fmt: skip

LISTS = [
    Row("empty clip list", extra_file("list.txt", b""), ("list.txt", "no clips"), LIST),
    Row("duplicate ids", extra_file("list.txt", b"test_1\ntest_1\n"),
        ("list.txt", "more than once", "test_1"), LIST),
    Row("list with unknown id", extra_file("list.txt", b"test_1\ntest_99\n"), ("1 of 2 clips", "test_99"),
        LIST),
    Row("unknown list name", None, ("neither an existing file nor an official list",),
        "--clip-list ssl_tie_flickr_9"),
    Row("binary list", extra_file("list.txt", b"\xff\xfe\x00\x81"), ("list.txt", "UTF-8"), LIST),
    Row("empty list in training", extra_file("list.txt", b"\n\n"), ("list.txt", "no clips"), LIST,
        program="main"),
]  # fmt: skip

OPTIONS = [
    Row("unknown benchmark", None, ("--benchmark", "'imagenet'"), "--benchmark imagenet"),
    Row("unknown protocol", None, ("--protocol", "'strict'"), "--protocol strict"),
    Row("unknown task", None, ("telepathy",), first="telepathy"),
    Row("unknown method", None, ("telepathy",), first="telepathy", program="main"),
    Row("unknown option", None, ("unrecognized arguments", "--colour"), "--colour red"),
    Row("unknown option in training", None, ("unrecognized arguments",), "--batch-siz 4", program="main"),
    Row("word for a number", None, ("--epochs", "'many'"), "--epochs many", program="main"),
    Row("validation without its folder", None, ("--validation-root", "go together"),
        "--validation-benchmark vgg_ss", program="main"),
    Row("JSON boxes of another benchmark",
        lambda inputs: (inputs.root / "VGGSound_test").rename(inputs.root / "Flickr_test"),
        ("--annotations", "flickr_soundnet"), f"--benchmark flickr_soundnet {JSON}"),
    Row("window shorter than the FFT", None, ("--window-seconds", "--fft-size"), "--window-seconds 0.01",
        program="main"),
    Row("GPU that is not there", None, ("--device", "cuda:77"), "--device cuda:77"),
    Row("GPU that is not there in training", None, ("--device",), "--device cuda:77", program="main"),
    Row("unknown device", None, ("--device", "abacus"), "--device abacus"),
    Row("Apple's GPU", None, ("--device mps", "cpu", "MPS lacks float64"), "--device mps"),
    Row("Apple's GPU in training", None, ("--device mps", "cpu"), "--device mps", program="main"),
    Row("batch larger than the set", None, ("--batch-size 9", "8 clips"), "--batch-size 9", program="main"),
    Row("batch size 1 in training", None, ("--batch-size",), "--batch-size 1", program="main"),
    Row("batch size 0", None, ("--batch-size",), "--batch-size 0"),
    Row("infinite window", None, ("--window-seconds",), "--window-seconds inf", program="main"),
    Row("excerpt that is no number", None, ("--audio-excerpt-seconds",), "--audio-excerpt-seconds nan",
        program="main"),
    Row("odd frame size", None, ("--frame-size", "32"), "--frame-size 65", program="main"),
    Row("overlays in words", None, ("--save-overlays", "'some'"), "--save-overlays some"),
]  # fmt: skip

OUTPUTS = [
    Row("output is a file", TAKEN, ("output",)),
    Row("output is a file in training", TAKEN, ("output",), program="main"),
    Row("results of something else", in_output("summary.json", b'{"title": "not of this program"}'),
        ("summary.json", "--output")),
    Row("second run in the same folder", in_output("last.pth", b"weights"),
        ("a run lives in this folder", "--resume"), program="main"),
    Row("nothing to resume", None, ("Nothing to resume",), "--resume", program="main"),
    Row("resuming from a broken file", in_output("last.pth", b"weights"), (NOT_LOADED, "last.pth"),
        "--resume", program="main"),
]  # fmt: skip

ROWS = [*CHECKPOINTS, *FILES, *LISTS, *OPTIONS, *OUTPUTS]


# ------------------------------------------------------------------------------------- the test


@pytest.fixture
def inputs(tiny_data, tmp_path, checkpoint):
    return Inputs(tmp_path, tiny_data.root, checkpoint, tmp_path / "output")


def command_line(row, inputs):
    given = row.arguments.format(folder=inputs.folder).split()
    words = scoring(inputs, inputs.checkpoint, inputs.output, *given)
    if row.program == "main":
        words = training(inputs, inputs.output, "--epochs", 1, *given)
    return [row.first or words[0], *words[1:]]


def left_in(folder):
    """Every file with its content, but the lock of an output folder; None for what is not there."""
    if not folder.exists():
        return None
    inside = sorted(path for path in folder.rglob("*") if path != folder / ".lock")
    files = [folder] if folder.is_file() else inside
    return [(path, path.read_bytes() if path.is_file() else None) for path in files]


def run(program, arguments):
    try:
        return program.main(arguments)
    except SystemExit as stop:  # how argparse refuses
        return stop.code


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "_"))
def test_bad_input_is_refused_in_words(row, inputs, testing_program, capsys, caplog):
    if row.arguments == LIST:  # rows about the list itself write their own
        prefix = "train" if row.program == "main" else "test"
        (inputs.folder / "list.txt").write_text(f"{prefix}_1\n{prefix}_3\n")
    if row.spoil is not None:
        row.spoil(inputs)
    before = left_in(inputs.output)
    program = training_program if row.program == "main" else testing_program
    status = run(program, command_line(row, inputs))
    printed = capsys.readouterr()
    message = caplog.text + printed.err
    assert status == 2, message
    for word in row.words:
        assert word in message
    assert "Traceback" not in message
    assert "was called" not in printed.out
    assert row.leaves_results or left_in(inputs.output) == before


def test_the_inputs_are_good_before_they_are_spoilt(inputs, testing_program, capsys):
    """Otherwise any row could pass for another reason than its own."""
    row = Row("whole", None, ())
    assert run(testing_program, command_line(row, inputs)) == 0
    assert "cIoU@0.5" in capsys.readouterr().out
    row = Row("whole", None, (), "--dry-run", "main")
    assert run(training_program, command_line(row, inputs)) == 0
