"""Options of `test.py retrieval`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.reports.report import EvaluationContext
from utils.retrieval import find_directions, find_ks
from utils.retrieval_results import LabelsLike, RetrievalSetting


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """What to retrieve, and how it is scored."""

    checkpoint: Path
    """written by main.py, or a released file (ckpts/README.md)"""
    dataset: Literal["vgg_ss", "flickr_soundnet", "stamps", "vggsound", "flickr"]
    """data set of the clips, see docs/data.md for its folders"""
    data_root: Path
    """folder of the data set"""
    output: Path
    """folder for summary.json, per_query.csv, table.md, .tex and .csv, report.html and
    embeddings.npz"""
    labels: Path | None = None
    """class of each clip: CSV of id,label, VGGSound's CSV, VGG-SS JSON or stamps.json; none: only
    R@k between sounds and frames"""
    directions: str = "audio_to_audio,audio_to_image,image_to_audio"
    """what is found by what, commas between them"""
    ks: str = "1,5,10"
    """numbers of neighbours that count, commas between them"""
    image_pooling: Literal["max", "mean", "positions"] = "max"
    """from a frame's map to its embedding: maximum or mean over positions, or all positions, of
    which a sound's best counts (memory: as many times more)"""
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    annotations: Path | None = None
    """VGG-SS JSON with the boxes, where the data has no XML files; boxes are not used"""
    frame_geometry: Literal["squash", "centre_crop"] = "squash"
    """how frames that are not square become so"""
    training_list: str | None = None
    """list that was trained on, beside the ids in the checkpoint (released files hold none)"""
    embeddings: Path | None = None
    """file that keeps the embeddings, read instead of the clips where it is there; none:
    embeddings.npz in --output"""
    table: Literal["md", "tex", "csv", "json"] | None = None
    """print only the scores, in this form and with what belongs to them; none: for reading"""
    allow_missing: bool = False
    """score what is there; every result says what is not"""
    note: str = ""
    """words that go into every result, e.g. what is special about the data"""
    gallery: int = 4
    """best, median and worst queries shown in report.html, of each and for each direction"""
    batch_size: int = 32
    """clips embedded at once; does not change the scores but for rounding"""
    workers: int = 4
    """decoding processes; 0 decodes in the main process"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    dry_run: bool = False
    """print all options and stop"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        for flag, parse, text in (
            ("--directions", find_directions, self.directions),
            ("--ks", find_ks, self.ks),
        ):
            try:
                parse(text)
            except ValueError as error:
                raise ValueError(f"{flag} {error}") from error
        if self.batch_size < 1 or self.workers < 0 or self.gallery < 0:
            raise ValueError(
                "--batch-size must be at least 1, --workers and --gallery 0 or more, got "
                f"{self.batch_size}, {self.workers}, {self.gallery}"
            )

    @property
    def pooling(self) -> str | None:
        """Of the frames; None where only sounds are retrieved with sounds."""
        return None if self.directions == "audio_to_audio" else self.image_pooling

    @property
    def embeddings_file(self) -> Path:
        """Where the embeddings are kept."""
        return self.embeddings or self.output / "embeddings.npz"

    def setting(self, context: EvaluationContext, labels: LabelsLike | None) -> RetrievalSetting:
        """What stands beside the scores.

        Args:
            context: clips and checkpoint.
            labels: read from `labels`.
        """
        directions, ks = find_directions(self.directions), find_ks(self.ks)
        return RetrievalSetting(context, directions, ks, labels, self.pooling)

    # What an evaluation's description asks for by localisation's names.

    @property
    def benchmark(self) -> str:
        """The data set."""
        return self.dataset

    @property
    def audio(self) -> str:
        """Each clip has its own sound."""
        return "own"

    @property
    def object_prior(self) -> None:
        """Retrieval has none."""
        return
