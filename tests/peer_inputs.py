"""The files that authors release: official names and shapes, made-up weights."""

import zlib
from functools import cache

import numpy as np
import torch
from golden_inputs import fill_by_formula, released_shapes

SLAVC = released_shapes("slavc")
SHAPES = {
    "lvs": released_shapes("ssl_tie"),  # SSL-TIE took over the networks of LVS
    "ssl_align": released_shapes("ssl_tie"),
    "ez_vsl_or_fnac": released_shapes("ez_vsl_or_fnac"),
    "slavc": SLAVC | {f"momentum_{name}": shape for name, shape in SLAVC.items()},
}
SCORES = {
    "ez_vsl_or_fnac": {"best_cIoU": np.float64(0.8), "best_Auc": np.float64(0.6)},
    "slavc": {"best_Precision": 0.8, "best_AP": 0.5, "best_F1": np.float64(0.6)},
}
ENDINGS = {"lvs": (), "ssl_align": (), "ez_vsl_or_fnac": ("",), "slavc": ("1", "2")}


def official_file(name, tensors, *, module=True):
    """A release file's content around official tensors."""
    module = {"lvs": True, "ssl_align": False}.get(name, module)
    weights = {f"module.{key}": value for key, value in tensors.items()} if module else tensors
    if name in ("lvs", "ssl_align"):
        return {"model_state_dict": dict(weights)}
    if name == "ssl_tie":
        return {"state_dict": dict(weights), "best_miou": 0.5}
    return {"model": dict(weights), "optimizer": {"state": {}}, "epoch": 17, **SCORES[name]}


def stretched(shapes):
    """Tensors of one number each: names, shapes and a storage are all they have."""
    return {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def filled(shapes):
    """Weights by the goldens' formula, without the momentum copies, which stay stretched."""
    own = {name: shape for name, shape in shapes.items() if not name.startswith("momentum_")}
    return stretched(shapes) | fill_by_formula(own)


# ------------------------------------- inputs of goldens/peers.npz, exact on every machine, by formulas


@cache
def golden_weights(peer):
    """Tensors that follow from their official names; made once for those that read the same file."""
    shapes = {name: shape for name, shape in SHAPES[peer].items() if not name.startswith("momentum_")}
    return {name: torch.from_numpy(np.asarray(golden_weight(name, shape))) for name, shape in shapes.items()}


def golden_weight(name, shape):
    if name.endswith("num_batches_tracked"):
        return np.int64(3)
    noise = np.random.RandomState(zlib.crc32(name.encode()) % 2**31).standard_normal(int(np.prod(shape)))
    noise = noise.reshape(shape)
    if name.endswith("running_var"):
        return (0.5 + 0.5 * noise * noise).astype(np.float32)
    if len(shape) == 1:
        mean, size = {"running_mean": (0, 0.1), "weight": (1, 0.1), "bias": (0, 0.05)}[name.split(".")[-1]]
    else:
        mean, size = 0, np.sqrt(2 / np.prod(shape[1:]))
    return (mean + size * noise).astype(np.float32)


def golden_frame(clip):
    """uint8 (256, 256, 3): smooth colours."""
    base = np.random.RandomState(100 + clip).randint(0, 256, (9, 9, 3)).astype(np.int64)
    low, part = np.divmod(np.arange(256), 32)
    rows = base[low] * (32 - part)[:, None, None] + base[low + 1] * part[:, None, None]
    both = rows[:, low] * (32 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    return (both // 1024).astype(np.uint8)


def golden_sound(clip, length=160_000):
    """int16 (L,) at 16 kHz: noise and four rectangular waves that come and go."""
    random, time = np.random.RandomState(200 + clip), np.arange(length)
    sums = np.cumsum(np.append(0, random.randint(-3000, 3001, length + 64)))
    sound = (sums[8:] - sums[:-8])[:length] // 8
    for period, size in zip(random.randint(20, 400, 4), random.randint(500, 4000, 4), strict=True):
        on = (time // random.randint(9000, 40000)) % 2
        sound = sound + on * np.where((time // period) % 2 == 0, size, -size)
    return sound.clip(-32000, 32000).astype(np.int16)


def golden_boxes(clip):
    """(N, 4) fractions."""
    random, boxes = np.random.RandomState(300 + clip), []
    for _ in range(1 + clip % 3):
        left, top = random.randint(0, 160, 2)
        width, height = random.randint(60, 160, 2)
        boxes.append([left, top, min(320, left + width), min(320, top + height)])
    return np.array(boxes) / 320
