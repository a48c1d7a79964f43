"""A localiser whose maps are known in advance, for tests of what surrounds one."""

import torch
import torch.nn.functional as F
from torch import nn

from datasets.audio import AudioConfig
from datasets.frames import FrameConfig
from models.localiser import Localiser
from models.ssl_tie import SSLTIE, SSLTIEConfig
from utils.checkpoint import Checkpoint

CELLS = 4
AUDIO = AudioConfig(window_seconds=1.0, mel_bins=32)


class Spotlight(nn.Module):
    """The map is the brightness of the frame's cells plus the mean level of the sound."""

    def __init__(self, audio):
        super().__init__()
        self.front_end = audio.build_front_end()
        self.shift = nn.Parameter(torch.zeros(()))

    def visual_features(self, frames):
        return F.adaptive_avg_pool2d(frames.mean(dim=1), CELLS) + self.shift

    def sound_features(self, spectrograms):
        return spectrograms.flatten(1).mean(dim=1, keepdim=True) / 100

    def compare(self, visual, sound):
        return visual + sound[:, :, None]


def spotlight(audio=AUDIO):
    return Localiser(
        Spotlight(audio).eval(), audio, FrameConfig(frame_size=32), checkpoint_of("spotlight", {})
    )


def checkpoint_of(method, state_dict):
    """Of a model that hears AUDIO and sees frames of 64 pixels."""
    return Checkpoint(
        method=method,
        method_config={},
        audio_config={"window_seconds": AUDIO.window_seconds, "mel_bins": AUDIO.mel_bins},
        frame_config={"frame_size": 64},
        state_dict=state_dict,
    )


def small_ssl_tie():
    """SSL-TIE at random weights, for frames of 64 pixels: maps of 4 x 4."""
    torch.manual_seed(0)
    model = SSLTIE(SSLTIEConfig(), audio=AUDIO).eval()
    checkpoint = checkpoint_of("ssl_tie", model.state_dict())
    return Localiser(model, AUDIO, FrameConfig(frame_size=64), checkpoint)
