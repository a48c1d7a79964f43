"""What every task of test.py does with a trained model and a benchmark's clips."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from datasets.annotations import read_labels
from datasets.benchmarks import DATA_SETS, ClipSet
from datasets.clips import AudioVisualClips, Content
from datasets.frames import FrameGeometry
from datasets.lists import LISTS, ROWS, find_list, without_negatives
from datasets.loaders import ClipLoader, build_test_loader
from models.localiser import Localiser
from utils.leaks import Leak, find_leak
from utils.published_lists import KnownLists
from utils.results import EvaluationContext
from utils.training import environment_report


class ScoringOptions(Protocol):
    """Options that the tasks share; opts.LocalisationOptions says what each means."""

    @property
    def checkpoint(self) -> Path: ...  # noqa: D102
    @property
    def benchmark(self) -> str: ...  # noqa: D102
    @property
    def data_root(self) -> Path: ...  # noqa: D102
    @property
    def frame_geometry(self) -> Literal["squash", "centre_crop"]: ...  # noqa: D102
    @property
    def training_list(self) -> str | None: ...  # noqa: D102
    @property
    def object_prior(self) -> float | None: ...  # noqa: D102
    @property
    def audio(self) -> str: ...  # noqa: D102
    @property
    def note(self) -> str: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def workers(self) -> int: ...  # noqa: D102


def build_loader(
    options: ScoringOptions,
    trained: Localiser,
    clip_set: ClipSet,
    device: torch.device,
    map_size: int = 1,
    content: Content = "both",
) -> ClipLoader:
    """Decodes the clips as the model wants them, with ground-truth maps of a size."""
    clips = AudioVisualClips(
        clip_set.clips,
        geometry=FrameGeometry(trained.frame.frame_size, options.frame_geometry),
        audio=trained.audio,
        map_size=map_size,
        content=content,
    )
    return build_test_loader(
        clips, batch_size=options.batch_size, num_workers=options.workers, pin_memory=device.type == "cuda"
    )


def describe(
    options: ScoringOptions,
    trained: Localiser,
    clip_set: ClipSet,
    device: torch.device,
    sha256: str,
    command: str,
) -> EvaluationContext:
    """What stands beside the scores."""
    checkpoint = trained.checkpoint
    trained_on: Sequence[str] | None = checkpoint.training_clips
    if options.training_list is not None:
        trained_on = [*(trained_on or ()), *find_list(options.training_list).clip_ids]
    chosen_on = checkpoint.selection.get("clips", ())
    return EvaluationContext(
        benchmark=options.benchmark,
        data_root=str(options.data_root),
        clip_list=clip_set.list_name,
        clip_list_sha256=clip_set.list_sha256,
        num_listed=clip_set.num_listed,
        missing=clip_set.missing,
        frame_geometry=options.frame_geometry,
        audio=options.audio,
        note=options.note,
        checkpoint={
            "path": str(options.checkpoint),
            "sha256": sha256,
            "method": checkpoint.method,
            "method_config": checkpoint.method_config,
            "audio_config": checkpoint.audio_config,
            "frame_config": checkpoint.frame_config,
            "epoch": checkpoint.epoch,
            "selection": {k: v for k, v in checkpoint.selection.items() if k != "clips"},
            "training_list": checkpoint.training_list,
            "random_encoders": bool((checkpoint.options.get("frozen") or {}).get("random_init")),
        },
        leak=_leak_of(trained_on, clip_set),
        num_chosen_on=len(set(chosen_on) & set(clip_set.clip_ids)),
        object_prior=options.object_prior,
        environment=environment_report(device),
        command=command,
        cut=clip_set.cut,
        known_lists=known_lists_of(options.benchmark),
    )


def known_lists_of(benchmark: str) -> KnownLists:
    """Hashes of the lists on which numbers of a benchmark are published."""
    cuts = [row for row in ROWS if benchmark in row.benchmarks]
    return KnownLists(
        files={name: row.sha256 for name, row in LISTS.items()},
        cuts={row.cut: row.ids_sha256 for row in cuts if not row.pairs},
        negative_cut=next((row.ids_sha256 for row in cuts if row.pairs), None),
    )


def _leak_of(trained_on: Sequence[str] | None, clip_set: ClipSet) -> Leak:
    if clip_set.source_ids is not None:
        return find_leak(trained_on, clip_set.source_ids, purpose="test")
    message = (
        f"The clips of {clip_set.dataset} are not called as in lists for training, so an overlap "
        "with the training list could not be looked for."
    )
    return Leak(checked=False, num_clips=None, first=(), message=message)


def with_classes(context: EvaluationContext, path: Path, clip_ids: Sequence[str]) -> EvaluationContext:
    """What stands beside the scores, with the class of each clip from a file.

    The negatives of extended benchmarks take none: what sounds there is not in the picture.
    """
    labels = read_labels(path)
    if DATA_SETS[context.benchmark].negatives:
        clip_ids = without_negatives(clip_ids)
    classes = dict(zip(clip_ids, labels.of(clip_ids), strict=True))
    source = {"path": labels.path, "sha256": labels.sha256, "form": labels.form}
    return replace(context, classes=classes, labels=source)
