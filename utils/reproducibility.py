"""Seeds, and what the numbers were made with."""

import platform
from importlib.metadata import version

import torch

PACKAGES = ("torch", "torchvision", "torchaudio", "numpy", "opencv-python-headless", "pillow", "soundfile")
"""Packages whose versions can move a score."""


def seed_everything(seed: int) -> None:
    """Seeds torch on all devices; the networks' initial weights follow from it."""
    torch.manual_seed(seed)


def use_full_float32(full: bool = True) -> None:
    """Keeps GPUs from rounding float32 products to TF32, which moves scores and losses.

    Args:
        full: False lets them.
    """
    torch.backends.cuda.matmul.allow_tf32 = not full
    torch.backends.cudnn.allow_tf32 = not full


def environment_report(device: torch.device) -> dict[str, str]:
    """Versions of Python and of the packages, and the device, for result files."""
    report = {"python": platform.python_version()}
    report.update({package: version(package) for package in PACKAGES})
    if device.type == "cuda":
        report["device"] = torch.cuda.get_device_name(device)
    else:
        report["device"] = f"CPU, {torch.get_num_threads()} threads ({platform.machine()})"
    return report


def pick_device(name: str) -> torch.device:
    """Device by name; `auto` is the GPU where there is one, else the CPU.

    Raises:
        ValueError: unknown name, or a GPU is asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: use auto, cpu, cuda or cuda:<number>.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices. "
            "Use --device cpu, or --device auto to take what is there."
        )
    return device
