"""The files that authors release: official names and shapes, made-up weights."""

import numpy as np
import torch
from golden_inputs import fill_by_formula, released_shapes
from torchvision.models import resnet18

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
    return {
        name: torch.tensor(float(index)).expand(shape) for index, (name, shape) in enumerate(shapes.items())
    }


def filled(shapes):
    """Weights by the goldens' formula, without the momentum copies, which stay stretched."""
    own = {name: shape for name, shape in shapes.items() if not name.startswith("momentum_")}
    return stretched(shapes) | fill_by_formula(own)


def torchvision_features(tensors, network, *, last_stride, stem="conv1"):
    """torchvision's own ResNet-18 up to its last features, with the official weights of a part."""
    reference, prefix = resnet18(), f"{network}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    own["conv1.weight"] = own[f"{stem}.weight"]
    in_channels = own["conv1.weight"].shape[1]
    reference.conv1 = torch.nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    if last_stride == 1:
        reference.layer4[0].conv1.stride = reference.layer4[0].downsample[0].stride = (1, 1)
    wanted = [name for name in reference.state_dict() if not name.startswith("fc.")]
    reference.load_state_dict({name: own[name] for name in wanted}, strict=False)
    return torch.nn.Sequential(*list(reference.children())[:-2]).eval()
