"""Entry point of torch.hub: torch.hub.load(FOLDER, "load_localiser", "ckpts/x.pth", source="local")."""

import sys
from pathlib import Path
from typing import Any

dependencies = [
    "torch",
    "torchvision",
    "torchaudio",
    "numpy",
    "PIL",
    "soundfile",
    "cv2",
    "av",
    "h5py",
    "scipy",
]


def load_localiser(path: str | Path, device: str = "auto") -> Any:  # noqa: ANN401 - imported below only
    """Read a trained model: models.localiser.load_localiser says what it can do."""
    for name in ("datasets", "models", "utils"):
        module = sys.modules.get(name)
        origin = getattr(module, "__file__", None) or ""
        if module is not None and Path(origin).parent != Path(__file__).parent / name:
            raise RuntimeError(
                f"A package '{name}' is imported already ({origin or module}), and this project has "
                "one of that name. Load the localiser in a process that does not import the other."
            )
    from models.localiser import load_localiser as load  # noqa: PLC0415 - after the check

    return load(path, device)
