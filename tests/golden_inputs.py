"""Weights and inputs of the goldens, from their formulas; the golden files themselves."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).parent / "goldens"
FULL_GOLDENS = Path(__file__).parents[2] / "shared" / "goldens"


@cache
def arrays(name):
    with np.load(GOLDENS / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


@cache
def records(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())


def released_shapes(name):
    """Official names and shapes of a released file."""
    if name == "ssl_tie":
        pairs = ((name, text.strip("()").split(",")) for name, text, *_ in records("state_dict_keys"))
        return {name: tuple(int(size) for size in sizes if size.strip()) for name, sizes in pairs}
    return {name: tuple(shape) for name, shape in records("released_names")[name].items()}


def official_state_dict():
    """The 257 tensors of a release file of SSL-TIE, filled by the goldens' formula."""
    return fill_by_formula(released_shapes("ssl_tie"))


def fill_by_formula(shapes):
    return {
        name: torch.tensor(formula_weight(name, shape, np.random.RandomState(index)))
        for index, (name, shape) in enumerate(shapes.items())
    }


def formula_weight(name, shape, random):
    if name.endswith("num_batches_tracked"):
        return np.int64(7)
    if name.endswith("running_mean"):
        return (0.2 * random.randn(*shape)).astype(np.float32)
    if name.endswith("running_var"):
        return (0.5 + random.rand(*shape)).astype(np.float32)
    if name.endswith("bias"):
        return (0.05 * random.randn(*shape)).astype(np.float32)
    if len(shape) == 1:
        return (1 + 0.1 * random.randn(*shape)).astype(np.float32)
    fan = np.prod(shape[1:]) / 2 if len(shape) == 4 else shape[1]
    return (random.randn(*shape) * np.sqrt(1 / fan)).astype(np.float32)


def frames(step=0, batch_size=4, size=224):
    b = np.arange(batch_size)[:, None, None, None] + 4 * step
    c = np.arange(3)[None, :, None, None]
    i = np.arange(size)[None, None, :, None]
    j = np.arange(size)[None, None, None, :]
    waves = np.sin(0.05 * (b + 1) * i + c) + np.cos(0.03 * (c + 1) * j - b) * np.cos(0.02 * i)
    noise = np.random.RandomState(1000 + step).randn(batch_size, 3, size, size)
    return torch.tensor((waves + 0.2 * noise).astype(np.float32))


def spectrograms(step=0, batch_size=4):
    b = np.arange(batch_size)[:, None, None, None] + 4 * step
    f = np.arange(257)[None, None, :, None] / 257
    t = np.arange(670)[None, None, None, :] / 670
    waves = -40 + 25 * np.sin(2 * np.pi * (f * (b + 1.5) + t * (b + 2)))
    noise = np.random.RandomState(2000 + step).randn(batch_size, 1, 257, 670)
    return torch.tensor((waves + 5 * noise).astype(np.float32))
