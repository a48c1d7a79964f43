"""A tiny data set in all layouts: a coloured square at a known box, a tone tied to its colour."""

import signal
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from distributed_workers import narrow_encoder
from PIL import Image
from shell_scripts import ROOT, Starts, program_at

from datasets.audio import AudioConfig
from datasets.frames import FrameConfig
from models import ssl_tie
from models.ssl_tie import SSLTIE, SSLTIEConfig
from utils.checkpoint import Checkpoint, save_checkpoint

COLOURS = ((230, 40, 40), (40, 200, 60), (50, 70, 230), (230, 210, 40))
PITCHES = (300.0, 700.0, 1500.0, 3200.0)
SIDE = 96
RATE = 16_000

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells let what they start in the background ignore Ctrl-C; tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class TinyData:
    """Folders of the tiny data set; the ids are train_0 … and test_0 …"""

    root: Path
    train_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    boxes: dict[str, tuple[float, float, float, float]]


def draw_frame(index, rng):
    """A square over at least a third of a grey, noisy frame; its box as fractions."""
    canvas = rng.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8)
    side = SIDE * 5 // 8
    left, top = rng.integers(0, SIDE - side, 2)
    canvas[top : top + side, left : left + side] = COLOURS[index % 4]
    box = (left / SIDE, top / SIDE, (left + side) / SIDE, (top + side) / SIDE)
    return Image.fromarray(canvas), box


def tone(index, seconds=1.0):
    time = np.arange(round(RATE * seconds)) / RATE
    return 0.5 * np.sin(2 * np.pi * PITCHES[index % 4] * time)


def vgg_ss_xml(clip_id, box):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    box_element = f"<bbox><box>{inner}</box></bbox>"
    return f"<annotation><filename>{clip_id}.jpg</filename>{box_element}</annotation>"


@pytest.fixture
def start(tmp_path_factory):
    """Runs scripts with their programs in this process; see shell_scripts."""
    return Starts(tmp_path_factory.mktemp("start"))


@pytest.fixture
def tiny_data(tmp_path):
    """VGGSound training clips and VGG-SS test clips in tmp_path/data."""
    root = tmp_path / "data"
    frames = root / "VGGSound" / "total_video_frames"
    sounds = root / "VGGSound" / "total_video_3s_audio"
    test = root / "VGGSound_test"
    for folder in (frames, sounds, test / "frame", test / "audio", test / "anno"):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    boxes = {}
    train_ids = tuple(f"train_{index}" for index in range(8))
    test_ids = tuple(f"test_{index}" for index in range(6))
    for index, clip_id in enumerate(train_ids):
        picture, boxes[clip_id] = draw_frame(index, rng)
        (frames / clip_id).mkdir()
        picture.save(frames / clip_id / "125.jpg")
        soundfile.write(sounds / f"{clip_id}.wav", tone(index), RATE)
    for index, clip_id in enumerate(test_ids):
        picture, boxes[clip_id] = draw_frame(index, rng)
        picture.save(test / "frame" / f"{clip_id}.jpg")
        soundfile.write(test / "audio" / f"{clip_id}.wav", tone(index), RATE)
        (test / "anno" / f"{clip_id}.xml").write_text(vgg_ss_xml(clip_id, boxes[clip_id]))
    return TinyData(root, train_ids, test_ids, boxes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """File of SSL-TIE at random weights, trained on train_0, for frames of 32 pixels."""
    torch.manual_seed(0)
    audio = AudioConfig(window_seconds=1.0, mel_bins=32, fft_size=512, hop_length=320)
    path = tmp_path_factory.mktemp("checkpoint") / "last.pth"
    save_checkpoint(
        path,
        Checkpoint(
            method="ssl_tie",
            method_config={},
            audio_config=asdict(audio),
            frame_config=asdict(FrameConfig(frame_size=32)),
            state_dict=SSLTIE(SSLTIEConfig()).state_dict(),
            training_clips=["train_0"],
            selection={"kind": "last"},
        ),
    )
    yield path
    path.unlink()  # pytest keeps its folders


@pytest.fixture
def narrow(monkeypatch):
    """Small networks for SSL-TIE, where there is much to train and to save."""
    monkeypatch.setattr(ssl_tie, "ResNet18Encoder", narrow_encoder)


@pytest.fixture(scope="module")
def one_thread():
    """At the size of most tests threads cost more than they give, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def testing_program():
    """test.py as a module."""
    return program_at(ROOT / "test.py")
