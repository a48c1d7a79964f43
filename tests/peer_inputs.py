"""The files that peers' authors release: official names and shapes, made-up weights."""

import numpy as np
import torch
from golden_inputs import formula_weight, records
from sspl_inputs import batch_norm
from torchvision.models import resnet18


def resnet18_shapes(in_channels, prefix="", classes=0):
    """torchvision's names, written out; with a classifier if there are classes."""
    shapes = {f"{prefix}conv1.weight": (64, in_channels, 7, 7)} | batch_norm(f"{prefix}bn1", 64)
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name = f"{prefix}layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, before, 3, 3)
            shapes |= batch_norm(f"{name}.bn1", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            shapes |= batch_norm(f"{name}.bn2", width)
            if before != width:
                shapes[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
                shapes |= batch_norm(f"{name}.downsample.1", width)
            before = width
    if classes:
        shapes |= {f"{prefix}fc.weight": (classes, 512), f"{prefix}fc.bias": (classes,)}
    return shapes


def two_stem_shapes():
    """LVS and SSL-Align: the 257 names of SSL-TIE, which took the networks over."""
    return {
        name: tuple(int(size) for size in text.strip("()").split(",") if size.strip())
        for name, text, *_ in records("state_dict_keys")
    }


def projected_shapes(*endings):
    shapes = resnet18_shapes(3, "imgnet.") | resnet18_shapes(1, "audnet.")
    for ending in endings:
        shapes[f"img_proj{ending}.weight"] = (512, 512, 1, 1)
        shapes[f"aud_proj{ending}.weight"] = (512, 512)
        shapes |= {f"{kind}_proj{ending}.bias": (512,) for kind in ("img", "aud")}
    return shapes


def slavc_shapes():
    own = projected_shapes("1", "2")
    return own | {f"momentum_{name}": shape for name, shape in own.items()}


SHAPES = {
    "lvs": two_stem_shapes(),
    "ssl_align": two_stem_shapes(),
    "ez_vsl_or_fnac": projected_shapes(""),
    "slavc": slavc_shapes(),
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
    return {"model": dict(weights), "optimizer": {"state": {}}, "epoch": 17, **SCORES[name]}


def stretched(shapes):
    """Tensors of one number each: names, shapes and a storage are all they have."""
    return {
        name: torch.tensor(float(index)).expand(shape) for index, (name, shape) in enumerate(shapes.items())
    }


def filled(shapes):
    """Weights by the goldens' formula, without the momentum copies, which stay stretched."""
    own = {
        name: torch.tensor(formula_weight(name, shape, np.random.RandomState(index)))
        for index, (name, shape) in enumerate(shapes.items())
        if not name.startswith("momentum_")
    }
    return stretched(shapes) | own


def torchvision_features(tensors, network, *, last_stride, stem="conv1"):
    """torchvision's own ResNet-18 up to its last features, with the official weights of a part."""
    reference = resnet18()
    own = {
        name.removeprefix(f"{network}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{network}.")
    }
    own["conv1.weight"] = own[f"{stem}.weight"]
    in_channels = own["conv1.weight"].shape[1]
    reference.conv1 = torch.nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    if last_stride == 1:
        reference.layer4[0].conv1.stride = reference.layer4[0].downsample[0].stride = (1, 1)
    wanted = [name for name in reference.state_dict() if not name.startswith("fc.")]
    reference.load_state_dict({name: own[name] for name in wanted}, strict=False)
    return torch.nn.Sequential(*list(reference.children())[:-2]).eval()
