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

torch.set_num_threads(1)  # as run_tests.sh: at the size of most tests threads cost more than they give
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


def vgg_ss_xml(clip_id, *boxes):
    tags = ("xmin", "ymin", "xmax", "ymax")
    inner = ("".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, box, strict=True)) for box in boxes)
    boxes_element = f"<bbox>{''.join(f'<box>{i}</box>' for i in inner)}</bbox>"
    return f"<annotation><filename>{clip_id}.jpg</filename>{boxes_element}</annotation>"


def write_training_clip(root, clip_id, picture, sound, quality=75):
    """Of VGGSound."""
    frames, sounds = (root / "VGGSound" / part for part in ("total_video_frames", "total_video_3s_audio"))
    (frames / clip_id).mkdir(parents=True)
    sounds.mkdir(exist_ok=True)
    picture.save(frames / clip_id / "125.jpg", quality=quality)
    soundfile.write(sounds / f"{clip_id}.wav", sound, RATE)


def write_test_clip(root, clip_id, picture, sound, *boxes, quality=75):
    """Of VGG-SS."""
    frames, sounds, annotations = (root / "VGGSound_test" / part for part in ("frame", "audio", "anno"))
    for folder in (frames, sounds, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    picture.save(frames / f"{clip_id}.jpg", quality=quality)
    soundfile.write(sounds / f"{clip_id}.wav", sound, RATE)
    (annotations / f"{clip_id}.xml").write_text(vgg_ss_xml(clip_id, *boxes))


@pytest.fixture
def start(tmp_path_factory):
    """Runs scripts with their programs in this process; see shell_scripts."""
    return Starts(tmp_path_factory.mktemp("start"))


@pytest.fixture
def tiny_data(tmp_path):
    """VGGSound training clips and VGG-SS test clips in tmp_path/data."""
    root, rng, boxes = tmp_path / "data", np.random.default_rng(0), {}
    train_ids = tuple(f"train_{index}" for index in range(8))
    test_ids = tuple(f"test_{index}" for index in range(6))
    for index, clip_id in enumerate(train_ids):
        picture, boxes[clip_id] = draw_frame(index, rng)
        write_training_clip(root, clip_id, picture, tone(index))
    for index, clip_id in enumerate(test_ids):
        picture, boxes[clip_id] = draw_frame(index, rng)
        write_test_clip(root, clip_id, picture, tone(index), boxes[clip_id])
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


@pytest.fixture(scope="session")
def testing_program():
    """test.py as a module."""
    return program_at(ROOT / "test.py")
