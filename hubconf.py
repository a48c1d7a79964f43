"""Entry point of torch.hub: torch.hub.load(FOLDER, "load_localiser", "ckpts/x.pth", source="local")."""

import sys
from pathlib import Path
from typing import Any

dependencies = ["torch", "torchvision", "torchaudio", "numpy", "PIL", "soundfile", "cv2", "av", "scipy"]
dependencies += ["h5py", "tqdm"]


def load_localiser(path: str | Path, device: str = "auto") -> Any:  # noqa: ANN401 - a models.localiser.Localiser
    """Read a trained model; see `models.localiser.load_localiser`."""
    here = Path(__file__).resolve().parent
    for name in ("datasets", "models", "utils"):
        origin = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and (not origin or Path(origin).resolve().parent != here / name):
            raise RuntimeError(
                f"A package '{name}' is imported already ({origin}), and this project has one of that name. "
                "Load the localiser in a process that does not import the other."
            )
    from models.localiser import load_localiser as load  # noqa: PLC0415 - after the check

    return load(path, device)
