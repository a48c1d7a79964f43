"""Goldens of the training code of LVS, EZ-VSL, FNAC and SLAVC: numbers, and inputs and weights from seeds."""

from pathlib import Path

import numpy as np
import torch
from golden_inputs import arrays, formula_weight
from peer_inputs import SHAPES, official_file
from torch import nn

from datasets.clips import Batch
from models.released import build_localiser, convert_release

BASE, DIM = 300_000, 512  # added to every seed; features
TYPES = {"f32": torch.float32, "f64": torch.float64}


def golden(method, case):
    """Arrays whose keys begin with a case of a method, by the rest."""
    prefix = f"{method}/{case}"
    found = {key: value for key, value in arrays("methods").items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in found.items()}


def random(offset):
    return np.random.RandomState(BASE + offset)


def probe(offset, shape):
    return random(offset).randn(*shape)


def head_features(offset, batch, side, *, relu=False):
    """Frame features (B, 512, side, side) and pooled sounds (B, 512), with near duplicates, float64."""
    r = random(offset)
    latent = r.randn(batch, DIM)
    latent[1] = 0.95 * latent[0] + 0.3 * latent[1]
    heard = latent.copy()
    heard[2] = 0.7 * latent[2] + 0.7 * latent[3]
    sound = heard + 0.6 * r.randn(batch, DIM)
    centre = r.rand(batch, 2) * (side - 1)
    rows, columns = np.mgrid[:side, :side]
    distance = (rows - centre[:, 0, None, None]) ** 2 + (columns - centre[:, 1, None, None]) ** 2
    weight = 1.5 * np.exp(-distance / (2 * (side / 5) ** 2))
    visual = weight[:, None] * latent[:, :, None, None] + r.randn(batch, DIM, side, side)
    return (np.maximum(visual, 0), np.maximum(sound, 0)) if relu else (visual, sound)


def sound_map(offset, sound):
    """Sound features (B, 512, 3, 4) whose maximum over positions is `sound`."""
    drop = random(offset).rand(len(sound), DIM, 3, 4)
    drop[:, :, 1, 2] = 0
    return sound[:, :, None, None] - drop


def kept_features(*offsets):
    """Factors (6, K, 512, 7, 7) of dropouts that keep a tenth."""
    return np.stack([(random(o).rand(6, DIM, 7, 7) < 0.1) / 0.1 for o in offsets], axis=1)


def near_identity(projections, offsets):
    """Fill projections, each by its offset."""
    for part, offset in zip(projections, offsets, strict=True):
        r = random(offset)
        weight, bias = np.eye(DIM) + 0.3 * r.randn(DIM, DIM) / np.sqrt(DIM), 0.05 * r.randn(DIM)
        part.weight.data.copy_(torch.tensor(weight).view_as(part.weight))
        part.bias.data.copy_(torch.tensor(bias))


class Shifted(nn.Module):
    """An encoder that adds a tensor to what it is given."""

    def __init__(self, shift):
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, features):
        return features + self.shift


def head(method, dtype, config, features):
    """A model whose encoders pass on features (V, A), with the goldens' projections."""
    model = build_localiser(method, config).to(dtype).train()
    model.imgnet = model.audnet = nn.Identity()
    near_identity(model.img_proj, (31,) if len(model.img_proj) == 1 else (60, 61)[: len(model.img_proj)])
    near_identity(model.aud_proj, (32,) if len(model.aud_proj) == 1 else (62, 63)[: len(model.aud_proj)])
    if method == "slavc":
        near_identity(model.momentum_img_proj, (70, 71))
        near_identity(model.momentum_aud_proj, (72, 73))
        model.momentum_imgnet = Shifted(0.3 * probe(34, features[0].shape))
        model.momentum_audnet = Shifted(0.3 * probe(35, features[1].shape[:2])[..., None, None])
    return model.to(dtype)


def frames(offset, batch):
    """Normalised frames (B, 3, 224, 224)."""
    r = random(offset)
    coarse = np.kron(r.randn(batch, 3, 7, 7), np.ones((1, 1, 32, 32)))
    return torch.tensor(coarse + 0.3 * r.randn(batch, 3, 224, 224)).float()


def log_spectrograms(offset, batch, num_frames):
    """What the sound encoders hear, (B, 1, 257, T)."""
    r = random(offset)
    steps = -(-num_frames // 20)
    coarse = np.kron(r.randn(batch, 1, 13, steps), np.ones((1, 1, 20, 20)))[:, :, :257, :num_frames]
    return torch.tensor(-0.8 + 0.25 * coarse + 0.08 * r.randn(batch, 1, 257, num_frames)).float()


def golden_model(method, config):
    """The whole network, from a released file whose weights follow from the place of their names."""
    release = "ez_vsl_or_fnac" if method in ("ez_vsl", "fnac") else method
    names = sorted(name for name in SHAPES[release] if not name.startswith(("conv3", "norm3", "vision_fc1")))
    base = {"lvs": 10_000, "ez_vsl": 20_000, "fnac": 30_000, "slavc": 40_000}[method]
    official = {
        name: torch.tensor(formula_weight(name, SHAPES[release][name], random(base + place)))
        for place, name in enumerate(names)
    }
    model = build_localiser(method, config)
    model.load_state_dict(convert_release(official_file(release, official), Path("release"))[1])
    return model


def batch_of(model, sizes):
    """A decoded batch of noise, a picture (height, width) each."""
    generator = torch.Generator().manual_seed(0)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pictures = torch.randint(0, 256, (len(sizes), 3, height, width), generator=generator, dtype=torch.uint8)
    sounds = torch.rand(len(sizes), model.audio.num_samples, generator=generator) - 0.5
    names = tuple(map(str, range(len(sizes))))
    return Batch(names, pictures, sounds, (None,) * len(sizes), None, (), tuple(sizes))
