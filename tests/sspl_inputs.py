"""Names, weights, inputs and recorded numbers of SSPL's tests; models filled with the weights."""

import math
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.audio import level_waveform
from models.released import convert_sspl_release
from models.sspl import SSPL

SOURCE = Path("release")
FROZEN = ("frame_encoder.", "audio_encoder.")


def relative(expected):
    """Recorded numbers have five or six digits."""
    return pytest.approx(expected, rel=2e-4)


def mean_and_std(values):
    return [values.mean().item(), values.std(correction=0).item()]


# ------------------------------------------------------------- the authors' names, made up weights


def batch_norm(prefix, channels, *, affine=True):
    shapes = {f"{prefix}.weight": (channels,), f"{prefix}.bias": (channels,)} if affine else {}
    shapes |= {f"{prefix}.running_mean": (channels,), f"{prefix}.running_var": (channels,)}
    return shapes | {f"{prefix}.num_batches_tracked": ()}


def pcm_shapes(num_cycles=4):
    shapes = {"PredProcess.0.weight": (128, 512, 1, 1), "PredProcess.0.bias": (128,)}
    shapes |= {f"PredProcess.{i}.conv2d.weight": (512, 512, 3, 3) for i in (1, 2)}
    shapes |= {
        "ErrorProcess.0.weight": (128, 512, 1, 1),
        "ErrorProcess.1.weight": (512, 512, 3, 3),
        "ErrorProcess.2.convtrans2d.weight": (512, 512, 3, 3),
        "ErrorProcess.3.weight": (512, 512, 1, 1),
        "ErrorProcess.3.bias": (512,),
    }
    shapes |= {f"{rate}.{level}": (1, 512, 1, 1) for rate in ("b0", "a0") for level in range(3)}
    for name, count in (
        ("BNPred", 2),
        ("BNError", 3),
        ("BNPred_step", 2 * num_cycles),
        ("BNError_step", 3 * num_cycles),
    ):
        for index in range(count):
            shapes |= batch_norm(f"{name}.{index}", 512)
    return shapes


def head_shapes():
    shapes = {"projector.layer1.0.weight": (2048, 512)} | batch_norm("projector.layer1.1", 2048)
    shapes |= {"projector.layer2.0.weight": (2048, 2048)} | batch_norm("projector.layer2.1", 2048)
    shapes |= {"projector.layer3.0.weight": (2048, 2048)}
    shapes |= batch_norm("projector.layer3.1", 2048, affine=False)
    shapes |= {"predictor.layer1.0.weight": (512, 2048)} | batch_norm("predictor.layer1.1", 512)
    return shapes | {"predictor.layer2.weight": (2048, 512), "predictor.layer2.bias": (2048,)}


def convolutions(prefix, channels):
    """Shapes of 3 x 3 convolutions: layer number -> (inputs, outputs)."""
    shapes = {}
    for layer, (inputs, outputs) in channels.items():
        shapes[f"{prefix}.{layer}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"{prefix}.{layer}.bias"] = (outputs,)
    return shapes


def linears(prefix, sizes):
    shapes = {}
    for layer, (inputs, outputs) in sizes.items():
        shapes[f"{prefix}.{layer}.weight"] = (outputs, inputs)
        shapes[f"{prefix}.{layer}.bias"] = (outputs,)
    return shapes


def vggish_shapes():
    channels = {0: (1, 64), 3: (64, 128), 6: (128, 256), 8: (256, 256), 11: (256, 512)}
    sizes = {0: (12288, 4096), 2: (4096, 4096), 4: (4096, 128)}
    return convolutions("features", channels | {13: (512, 512)}) | linears("embeddings", sizes)


def sound_shapes():
    return vggish_shapes() | linears("fc", {0: (128, 512), 2: (512, 512)})


def vgg16_shapes(prefix):
    layers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    return convolutions(prefix, dict(zip(layers, pairwise(widths), strict=True)))


def fill(shapes):
    """The recorded numbers' weights: a formula of each tensor's place, name and shape."""
    filled = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            filled[name] = torch.tensor(0)
            continue
        count = math.prod(shape)
        values = np.random.RandomState(1000 + index).standard_normal(count)
        if name.endswith("running_var"):
            values = 1 + 0.5 * values**2
        elif name.endswith(("running_mean", "bias")):
            values *= 0.1
        elif name.startswith("b0."):
            values = 0.5 + 0.1 * values
        elif name.startswith("a0.") or len(shape) == 1:
            values = 1 + 0.1 * values
        else:
            values *= math.sqrt(2 * shape[0] / count)
        filled[name] = torch.tensor(values, dtype=torch.float32).reshape(shape)
    return filled


def normal(seed, *shape):
    values = np.random.RandomState(seed).standard_normal(shape)
    return torch.tensor(values, dtype=torch.float32)


# ------------------------------------------------------------------------------- models and inputs


@cache
def release():
    """The authors' four files, filled by the formula; VGG-16, of which nothing is recorded, not."""
    generator = torch.Generator().manual_seed(0)
    frame = {
        name: torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        for name, shape in vgg16_shapes("feat_extractor").items()
    }
    shapes = {
        "sound_best.pth": sound_shapes(),
        "pcm_best.pth": pcm_shapes(),
        "ssl_head_best.pth": head_shapes(),
    }
    return {"frame_best.pth": frame} | {name: fill(of_file) for name, of_file in shapes.items()}


def build(*, pcm=True):
    """A model with the weights of the release; those of the frozen encoders are shared."""
    files = {name: content for name, content in release().items() if pcm or name != "pcm_best.pth"}
    config, state = convert_sspl_release(files, SOURCE)
    assert config.pcm == pcm
    state = {k: v if k.startswith(FROZEN) else v.clone() for k, v in state.items()}
    with torch.device("meta"):  # nothing is drawn for weights that are replaced anyway
        model = SSPL(config)
    model.load_state_dict(state, strict=True, assign=True)
    return model


@cache
def golden_clips():
    """Maps of both views, audio target and audio embedding of four clips."""
    view_1 = normal(1, 4, 512, 14, 14)
    return {
        "maps": (view_1, view_1 + 0.5 * normal(2, 4, 512, 14, 14)),
        "target": F.normalize(normal(3, 4, 128).clamp_min(0), dim=1),
        "embedding": normal(4, 4, 512),
    }


def golden_views(model):
    clips = golden_clips()
    return [model.process_view(features, clips["embedding"], clips["target"]) for features in clips["maps"]]


def golden_waveform():
    time = np.arange(48_000) / 16_000
    samples = 0.5 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 3000 * time)
    return level_waveform(torch.tensor(samples, dtype=torch.float32)[None])


# -------------------------------------------------------------------------------- recorded numbers

WITH_PCM = {
    "eval": {
        "aligned": [-0.029883, 1.261771, -0.94821, -1.78879, -2.91359],
        "aligned_2_std": 1.439684,
        "similarity": [0.006729, 0.039773],
        "attention_mean": 0.485195,
        "pooled": [-209.8268, -14.12138, -65.30705],
        "projection": [121.66574, -16.04208, -151.94348],
        "loss": -0.0113961,
    },
    "train": {
        "aligned": [-0.011607, 1.094616, 0.72266, -0.38467, -0.86927],
        "aligned_2_std": 1.098915,
        "similarity": [0.004445, 0.041073],
        "attention_mean": 0.509875,
        "pooled": [-41.63997, 10.23116, -31.44003],
        "projection": [-0.91556, -1.4445, 1.20842],
        "loss": -0.0028693,
    },
}

GRADIENT_NORMS = {
    "correction_rates.0": 0.014022,
    "prediction_rates.2": 0.088463,
    "predict_level_2.weight": 7.902,
    "correct_level_1.weight": 0.24951,
    "output.bias": 0.016105,
}
