"""What an ablation compares: the papers' parts, switched off one at a time, and grids of users.

A grid is a method and its variants, each some options of `main.py METHOD` behind those that all
variants share. A later option wins, so that a variant may undo what is shared. Which parts the
papers switch off is known from the switches of the authors' programs; the papers' tables also hold
rows without a switch (other networks), which are not here.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models import METHODS

_FIT_FOR_FOLDERS = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    """of the row and of the runs' folder"""
    options: tuple[str, ...] = ()
    """of main.py, behind those that all variants share"""
    words: str = ""
    """what it changes"""

    def __post_init__(self) -> None:
        """Refuses names that no folder can have."""
        if not _FIT_FOR_FOLDERS.fullmatch(self.name):
            raise ValueError(
                f"The variant {self.name!r} needs a name of letters, digits and . _ + - that "
                "begins with a letter or a digit: it names a folder."
            )


@dataclass(frozen=True)
class Grid:
    """A method and its variants; the first is what the others are compared with."""

    name: str
    method: str
    variants: tuple[Variant, ...]
    options: tuple[str, ...] = ()
    """of main.py, shared by all variants, before the user's"""
    words: str = ""

    def __post_init__(self) -> None:
        """Refuses what cannot be run or told apart."""
        if self.method not in METHODS:
            raise ValueError(
                f"The grid {self.name!r} names the method {self.method!r}; there are {', '.join(METHODS)}."
            )
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            raise ValueError(
                f"The grid {self.name!r} needs variants, each with its own name"
                + (f"; twice there: {', '.join(twice)}" if twice else ", and has none")
            )

    def chosen(self, names: Sequence[str]) -> "Grid":
        """The grid with only some of its variants, in its own order.

        Raises:
            ValueError: it has no such variant.
        """
        known = [variant.name for variant in self.variants]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"The grid {self.name!r} has no variant {', '.join(unknown)}; there are {', '.join(known)}."
            )
        return replace(self, variants=tuple(v for v in self.variants if v.name in names))


def _variant(name: str, options: str, words: str) -> Variant:
    return Variant(name, tuple(shlex.split(options)), words)


_PLAIN_FRAMES = "--no-crop --no-colour --no-grey --no-blur --no-flip"
_SSL_TIE = (
    _variant("full", "", "the method as it is"),
    _variant(
        "no_appearance",
        f"{_PLAIN_FRAMES} --no-spec-augment",
        "frames are neither cropped, coloured, greyed, blurred nor mirrored, sounds not masked",
    ),
    _variant("no_spec_augment", "--no-spec-augment", "sounds are not masked"),
    _variant(
        "no_geometric",
        "--transformed-contrastive-weight 0 --equivariance-weight 0",
        "no transformed frames: neither their contrast nor equivariance",
    ),
    _variant(
        "no_equivariance",
        "--equivariance-weight 0",
        "transformed frames are contrasted, their maps are not compared (lambda = 0)",
    ),
    _variant(
        "no_equivariance_gradient",
        "--no-equivariance-gradient",
        "equivariance does not move the map of the plain frames",
    ),
    _variant("no_tri_map", "--no-tri-map", "hard negatives begin where positives end"),
    _variant("no_hard_negatives", "--no-hard-negatives", "the frame's own background is no part"),
    _variant(
        "masked_target",
        "--equivariance-target masked",
        "equivariance without blur and blank borders (not in the paper)",
    ),
    _variant("audio_mixing", "--audio-mixing", "sounds are mixed with their nearest others"),
)
_SMALL_RECIPE = tuple(
    "--no-crop --no-colour --no-grey --no-blur --no-scaling --learning-rate 5e-4 --batch-size 16 "
    "--epochs 2 --frame-size 64 --window-seconds 3 --mel-bins 32 --fft-size 2048 "
    "--hop-length 1280 --time-mask 10 --frequency-mask 5".split()
)
_NOT_IN_SMALL = ("no_spec_augment", "no_equivariance_gradient", "masked_target", "audio_mixing")
# The options of quickstart.sh at its small size; a test holds the two together.
_QUICKSTART_RECIPE = tuple(
    "--no-crop --no-colour --no-grey --no-blur --no-scaling --learning-rate 3e-4 "
    "--window-seconds 3 --mel-bins 64 --fft-size 1024 --hop-length 640 --time-mask 20 "
    "--frequency-mask 9 --frame-size 96 --epochs 6".split()
)
_SSL_TIE_SMALL = (
    *(variant for variant in _SSL_TIE if variant.name not in _NOT_IN_SMALL),
    _variant(
        "all_appearance",
        "--crop --colour --grey --blur",
        "frames are also cropped, coloured, greyed and blurred, as in the paper",
    ),
)
_SILENCE_NOISE = _variant(
    "silence_noise", "--negative-sounds silence,noise", "both are negatives of every frame"
)
_NEGATIVE_SOUNDS = (
    _variant("without", "", "the method as it is"),
    _SILENCE_NOISE,
    _variant("silence", "--negative-sounds silence", "silence alone"),
    _variant("noise", "--negative-sounds noise", "white noise alone"),
)
_SSPL = (
    _variant("with_pcm", "--pcm", "with the predictive coding module"),
    _variant("no_pcm", "--no-pcm", "without it, at the authors' own rates and epochs for that"),
)
_SSPL_CYCLES = tuple(
    _variant(f"cycles_{count}", f"--pcm --pcm-cycles {count}", f"T = {count}") for count in range(1, 7)
)

GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("ssl_tie", "ssl_tie", _SSL_TIE, words="parts of SSL-TIE, one at a time"),
        Grid(
            "ssl_tie_small",
            "ssl_tie",
            _SSL_TIE_SMALL,
            _SMALL_RECIPE,
            "parts of SSL-TIE in runs of minutes on a CPU: docs/reproduction.md",
        ),
        Grid(
            "negative_sounds",
            "ssl_tie",
            _NEGATIVE_SOUNDS,
            words="sounds that no frame shows as negatives of SSL-TIE",
        ),
        Grid(
            "negative_sounds_small",
            "ssl_tie",
            _NEGATIVE_SOUNDS,
            _SMALL_RECIPE,
            "the same in runs of minutes on a CPU: docs/reproduction.md",
        ),
        Grid(
            "quickstart",
            "ssl_tie",
            (*_SSL_TIE_SMALL, _SILENCE_NOISE),
            _QUICKSTART_RECIPE,
            "parts of SSL-TIE and silence and noise as negatives in the quickstart's own runs",
        ),
        Grid("sspl", "sspl", _SSPL, words="SSPL with and without its predictive coding module"),
        Grid("sspl_cycles", "sspl", _SSPL_CYCLES, words="cycles of the predictive coding module"),
    )
}


def find_grid(name: str) -> Grid:
    """A grid by its name, or from a JSON file.

    The file holds `method`, `variants` (name -> options, one text as on the command line) and, if
    wanted, `options` that all variants share:

        {"method": "ssl_tie", "options": "--epochs 20",
         "variants": {"full": "", "tau_0.1": "--temperature 0.1"}}

    Args:
        name: a key of GRIDS, or the path of a file.

    Raises:
        ValueError: neither, or the file is not of this form.
    """
    if name in GRIDS:
        return GRIDS[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"There is no grid {name!r}: it is neither one of {', '.join(GRIDS)} nor a JSON file."
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # of JSON or of the encoding
        raise ValueError(f"{path} is no JSON file: {error}") from error
    return _grid_from(content, path)


def _grid_from(content: Any, path: Path) -> Grid:  # noqa: ANN401 - whatever the file holds
    form = (
        f'{path} must hold {{"method": …, "variants": {{name: "--options …"}}}} and, if wanted, '
        '"options": "--shared …"'
    )
    if not isinstance(content, Mapping) or not {"method", "variants"} <= content.keys():
        raise ValueError(f"{form}.")
    unknown = content.keys() - {"method", "variants", "options"}
    variants, shared = content["variants"], content.get("options", "")
    texts = [shared, *variants.values()] if isinstance(variants, Mapping) else [None]
    if unknown or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{form}; unknown: {', '.join(sorted(unknown)) or 'nothing'}.")
    return Grid(
        path.stem,
        str(content["method"]),
        tuple(_variant(variant, text, "") for variant, text in variants.items()),
        tuple(shlex.split(shared)),
    )
