"""Options of `test.py negatives`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.evaluation.negatives import CLASSES_WANTED, OffScreen


@dataclass(frozen=True, kw_only=True)
class NegativeOptions:
    """Which clips are scored with sounds that are not theirs, and how."""

    checkpoint: Path
    """written by main.py, or a released file (ckpts/README.md)"""
    benchmark: Literal[
        "vgg_ss", "flickr_soundnet", "stamps", "is3", "vpo_ss", "vpo_ms", "avsbench_s4",
        "avsbench_ms3",
    ]  # fmt: skip
    """data set with boxes or masks whose sounds are all in the picture, see docs/data.md"""
    data_root: Path
    """folder of the benchmark"""
    output: Path
    """folder for summary.json, per_clip.csv, table.md, .tex and .csv and report.html"""
    seeds: int = 10
    """draws of the noise and of the off-screen sound of each clip: seeds 0, 1 …"""
    off_screen: OffScreen = "other_class"
    """off-screen sounds: of a clip of another class, or of any other clip, class unknown"""
    labels: Path | None = None
    """file with each clip's class (docs/evaluation.md); none: only where the ids tell it"""
    threshold: float | None = None
    """universal threshold on the model's similarity; none: third quartile over these negatives"""
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    annotations: Path | None = None
    """JSON with the boxes instead of those beside the clips: VGG-SS, IS3, VPO"""
    frame_geometry: Literal["squash", "centre_crop"] = "squash"
    """how frames that are not square become so; boxes follow"""
    training_list: str | None = None
    """list that was trained on, beside the ids in the checkpoint (released files hold none)"""
    table: Literal["md", "tex", "csv", "json"] | None = None
    """print only the scores, in this form and with what belongs to them; none: for reading"""
    allow_missing: bool = False
    """score what is there; every result says what is not"""
    note: str = ""
    """words that go into every result, e.g. what is special about the data"""
    batch_size: int = 32
    """clips scored at once; does not change the scores but for rounding"""
    workers: int = 4
    """decoding processes; 0 decodes in the main process"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    dry_run: bool = False
    """print all options and stop"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        if self.seeds < 1 or self.batch_size < 1 or self.workers < 0:
            raise ValueError(
                "--seeds and --batch-size must be at least 1 and --workers 0 or more, got "
                f"{self.seeds}, {self.batch_size}, {self.workers}"
            )
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(f"--threshold must be from -1 to 1, got {self.threshold}")
        # Of IS3 the ids tell the class; all others are refused before anything is read.
        if self.labels is None and self.off_screen == "other_class" and self.benchmark != "is3":
            raise ValueError(CLASSES_WANTED)

    # What an evaluation's description asks for by localisation's names.

    @property
    def audio(self) -> str:
        """Each clip has its own sound beside the negatives."""
        return "own"

    @property
    def object_prior(self) -> None:
        """Maps are the model's alone."""
        return
