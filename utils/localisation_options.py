"""What test.py localises, and what it scores without a model."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from utils.evaluation.protocols import find_protocols
from utils.files import check_place

Benchmark = Literal[
    "vgg_ss", "flickr_soundnet", "stamps", "vgg_ss_extended", "flickr_soundnet_extended", "is3",
    "vpo_ss", "vpo_ms", "avsbench_s4", "avsbench_ms3",
]  # fmt: skip
"""Data sets in which it is known what makes the sound."""

SAID_BY_SAVED_MAPS = (
    "checkpoint", "save_maps", "frame_geometry", "training_list", "object_prior", "object_prior_weights",
    "audio", "save_overlays", "gallery",
)  # fmt: skip
"""Options that a file of saved maps leaves without meaning."""


@dataclass(frozen=True, kw_only=True)
class LocalisationOptions:
    """What to score, and how."""

    checkpoint: Path | None = None
    """written by main.py, or a released file (ckpts/README.md)"""
    benchmark: Benchmark
    """data set with boxes or masks, see docs/data.md for its folders"""
    data_root: Path
    """folder of the benchmark"""
    output: Path
    """folder for summary.json, per_clip.csv, table.md, .tex and .csv, report.html and overlays"""
    save_maps: Path | None = None
    """file for the similarity maps, to be scored again by --from-maps; none: they are not kept"""
    from_maps: Path | None = None
    """file of --save-maps to be scored, instead of a checkpoint"""
    protocol: str | None = None
    """scoring rules, commas between them, the headline first, or all (docs/evaluation.md); none:
    ssl_tie,sspl, after the rule under which metrics of the benchmark's own are published"""
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    annotations: Path | None = None
    """JSON with the boxes instead of those beside the clips: VGG-SS, IS3, VPO"""
    negatives: str | None = None
    """of the extended benchmarks: file of video,audio,label; none: SLAVC's official list"""
    frame_geometry: Literal["squash", "centre_crop"] = "squash"
    """how frames that are not square become so; boxes follow"""
    training_list: str | None = None
    """list that was trained on, beside the ids in the checkpoint (released files hold none)"""
    object_prior: float | None = None
    """share of the model's map beside one of objects, 0 to 1 (docs/peers.md); none: it alone"""
    object_prior_weights: Path | None = None
    """torchvision's resnet18-f37072fd.pth; none: looked up by name in ckpts/ and torch hub"""
    labels: Path | None = None
    """file with each clip's class (docs/evaluation.md), for scores by class; none: without"""
    table: Literal["md", "tex", "csv", "json"] | None = None
    """print only the scores, in this form and with what belongs to them; none: for reading"""
    audio: Literal["own", "shuffled"] = "own"
    """sound of each clip: its own, or another clip's, as a control of what the sound contributes"""
    allow_missing: bool = False
    """score what is there; every result says what is not"""
    save_overlays: str = "0"
    """number of overlay pictures to write, or all"""
    note: str = ""
    """words that go into every result, e.g. what is special about the data"""
    gallery: int = 8
    """best, median and worst clips shown in report.html, of each"""
    batch_size: int = 32
    """clips scored at once; does not change the scores"""
    workers: int = 4
    """decoding processes; 0 decodes in the main process"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    dry_run: bool = False
    """print all options and stop"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        self._check_source()
        if self.save_overlays != "all" and not self.save_overlays.isdecimal():
            raise ValueError(f"--save-overlays takes a number or 'all', got {self.save_overlays!r}")
        if self.protocol is not None:
            _check_protocols(self.protocol)
        if self.object_prior is not None and not 0 <= self.object_prior <= 1:
            raise ValueError(f"--object-prior must be from 0 to 1, got {self.object_prior}")
        if self.object_prior_weights is not None and self.object_prior is None:
            raise ValueError("--object-prior-weights needs --object-prior.")
        if self.batch_size < 1 or self.workers < 0 or self.gallery < 0:
            raise ValueError(
                "--batch-size must be at least 1, --workers and --gallery 0 or more, got "
                f"{self.batch_size}, {self.workers}, {self.gallery}"
            )

    def _check_source(self) -> None:
        """Refuses too little to score, and options that saved maps would leave unread."""
        if self.save_maps is not None:
            if self.save_maps.is_dir():
                raise ValueError(f"--save-maps {self.save_maps} is a folder; name a file.")
            check_place(self.save_maps.parent, f"--save-maps {self.save_maps}")
        if self.from_maps is None:
            if self.checkpoint is None:
                raise ValueError("--checkpoint is missing; or name saved --from-maps.")
            return
        defaults = {field.name: field.default for field in fields(self)}
        unread = [
            f"--{name.replace('_', '-')}"
            for name in SAID_BY_SAVED_MAPS
            if getattr(self, name) != defaults[name]
        ]
        if unread:
            raise ValueError(
                f"{', '.join(unread)} cannot be given beside --from-maps: the file says from which model its "
                "maps come, and holds no frames."
            )

    @property
    def max_overlays(self) -> float:
        """Overlay pictures to write; infinite for all."""
        return float("inf") if self.save_overlays == "all" else int(self.save_overlays)


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """What to score without a model: blind predictors and ceilings, from boxes alone."""

    benchmark: Benchmark
    """data set with boxes"""
    annotations: Path
    """JSON with the boxes (VGG-SS, IS3, VPO), or a folder of XML files <id>.xml"""
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    protocol: str | None = None
    """scoring rules, commas between them, or all (docs/evaluation.md); none: ssl_tie,sspl, after
    the rule under which metrics of the benchmark's own are published"""
    output: Path | None = None
    """JSON file for the scores; none: only on the screen"""
    dry_run: bool = False
    """print all options and stop"""

    def __post_init__(self) -> None:
        """Refuses unknown rules."""
        if self.protocol is not None:
            _check_protocols(self.protocol)


def _check_protocols(names: str) -> None:
    try:
        find_protocols(names)
    except ValueError as error:
        raise ValueError(f"--protocol: {error}") from error
