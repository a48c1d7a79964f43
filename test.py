"""Scores a trained sound localiser.

    python test.py localisation --checkpoint runs/vggsound/last.pth --benchmark vgg_ss \
        --data-root data/VGGSound_test --clip-list ssl_tie_vgg_ss_4911 --output results/vgg_ss

The checkpoint knows its method and its audio: no model options are needed. Files released by the
authors of SSL-TIE are read as they are, see ckpts/README.md.
"""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import opts
from datasets.audio import AudioConfig
from datasets.clip_sets import ClipSet, build_clips
from datasets.clips import AudioVisualClips, with_wrong_sounds
from datasets.frames import FrameConfig, FrameGeometry
from datasets.loaders import build_test_loader
from datasets.splits import resolve_clip_list
from datasets.views import TestViews
from models import METHODS, build_model
from models.official_weights import convert_ssl_tie_release, is_ssl_tie_release
from utils.checkpoint import (
    Checkpoint,
    file_sha256,
    find_non_finite,
    parse_checkpoint,
    read_checkpoint_file,
)
from utils.evaluation import LocalisationResult, OnBatch, evaluate_localisation
from utils.leaks import find_leak
from utils.pictures import OverlayWriter, PictureCollector, choose_clips
from utils.protocols import PROTOCOLS
from utils.report import Gallery
from utils.reporting import configure_logging, run_command
from utils.reproducibility import environment_report, pick_device, use_full_float32
from utils.results import (
    EvaluationContext,
    check_results_folder,
    headline,
    warnings_of,
    write_results,
)

logger = logging.getLogger("test")


@dataclass(frozen=True)
class TrainedModel:
    """A model rebuilt from a file, ready to localise, and what the file says of it."""

    model: nn.Module
    audio: AudioConfig
    frame: FrameConfig
    checkpoint: Checkpoint


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """Rebuilds a model from any file that can be read.

    Args:
        path: written by main.py, or a released file.
        device: where the model goes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, unknown, or does not fit the model it claims to be.
    """
    content = read_checkpoint_file(path)
    if is_ssl_tie_release(content):
        checkpoint = Checkpoint(
            method="ssl_tie",
            method_config={},
            audio_config={},
            frame_config={},
            state_dict=convert_ssl_tie_release(content["state_dict"], path),
            epoch=int(content.get("epoch", 0)),
            selection={"kind": "released file"},
        )
    else:
        checkpoint = parse_checkpoint(content, path)
    non_finite = find_non_finite(checkpoint.state_dict)
    if non_finite:
        raise ValueError(
            f"{path} holds numbers that are not finite in {len(non_finite)} tensors, first: "
            f"{', '.join(non_finite[:5])}. Training diverged, or the file is damaged."
        )
    if checkpoint.method not in list(METHODS):
        raise ValueError(
            f"{path}: unknown method '{checkpoint.method}'; there are {list(METHODS)}."
        )
    try:
        config = METHODS[checkpoint.method][1](**checkpoint.method_config)
        audio, frame = (
            AudioConfig(**checkpoint.audio_config),
            FrameConfig(**checkpoint.frame_config),
        )
        model = build_model(checkpoint.method, config)
        model.load_state_dict(checkpoint.state_dict)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the model it names: {error}") from error
    return TrainedModel(model.to(device).eval(), audio, frame, checkpoint)


def localisation(options: opts.LocalisationOptions, command: str) -> int:
    """Scores a checkpoint on a benchmark; returns 0, or 2 when clips broke on the way."""
    device = pick_device(options.device)
    use_full_float32()
    trained = load_model(options.checkpoint, device)
    sha256 = file_sha256(options.checkpoint)
    logger.info(
        "%s, %d epochs, from %s (sha256 %s)",
        trained.checkpoint.method,
        trained.checkpoint.epoch,
        options.checkpoint,
        sha256,
    )
    clip_set = build_clips(
        options.benchmark,
        options.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        allow_missing=options.allow_missing,
    )
    if options.audio == "shuffled":
        clip_set = replace(clip_set, clips=tuple(with_wrong_sounds(clip_set.clips)))
    context = describe(options, trained, clip_set, device, sha256, command)
    check_results_folder(options.output, options.protocol, context)
    overlays = OverlayWriter(options.output / "overlays", options.max_overlays)
    result = score(options, trained, clip_set, device, on_batch=overlays)
    galleries = draw_galleries(options, trained, clip_set, result, device)
    for warning in warnings_of(result, context):
        logger.warning("%s", warning)
    summary = write_results(options.output, result, context, galleries)
    sys.stdout.write(headline(summary) + "\n")
    for scores in result.references:
        row = scores.summary()
        sys.stdout.write(
            f"  {row['name']}: cIoU@0.5 {row['ciou_at_0.5']:.2f}  AUC {row['auc']:.2f}\n"
        )
    sys.stdout.write(f"Report: {options.output / 'report.html'}\n")
    return 2 if result.unreadable and not options.allow_missing else 0


def score(
    options: opts.LocalisationOptions,
    trained: TrainedModel,
    clip_set: ClipSet,
    device: torch.device,
    on_batch: OnBatch,
) -> LocalisationResult:
    """Runs the evaluation over a clip set."""
    protocol = PROTOCOLS[options.protocol]
    clips = AudioVisualClips(
        clip_set.clips,
        geometry=FrameGeometry(trained.frame.frame_size, options.frame_geometry),
        audio=trained.audio,
        map_size=protocol.map_size,
    )
    loader = build_test_loader(
        clips,
        batch_size=options.batch_size,
        num_workers=options.workers,
        pin_memory=device.type == "cuda",
    )
    with tqdm(total=len(clips), desc=options.benchmark, unit="clip") as bar:

        def count(batch, maps, scores) -> None:  # noqa: ANN001 - as OnBatch
            on_batch(batch, maps, scores)
            bar.update(len(scores))

        return evaluate_localisation(
            trained.model,  # type: ignore[arg-type]  # every method of METHODS offers localise
            (batch.to(device) for batch in loader),
            TestViews(trained.audio, device),
            protocol,
            count,
        )


def draw_galleries(
    options: opts.LocalisationOptions,
    trained: TrainedModel,
    clip_set: ClipSet,
    result: LocalisationResult,
    device: torch.device,
) -> list[Gallery]:
    """Best, median and worst clips; decoded once more, as they are known only at the end."""
    chosen = choose_clips(result.model.clips, options.gallery)
    wanted = {clip_id for clip_ids in chosen.values() for clip_id in clip_ids}
    if not wanted:
        return []
    few = replace(clip_set, clips=tuple(c for c in clip_set.clips if c.clip_id in wanted))
    collector = PictureCollector()
    score(replace(options, workers=0), trained, few, device, on_batch=collector)
    return collector.galleries(chosen)


def describe(
    options: opts.LocalisationOptions,
    trained: TrainedModel,
    clip_set: ClipSet,
    device: torch.device,
    sha256: str,
    command: str,
) -> EvaluationContext:
    """What stands beside the scores."""
    checkpoint = trained.checkpoint
    trained_on: Sequence[str] | None = checkpoint.training_clips
    if options.training_list is not None:
        trained_on = [*(trained_on or ()), *resolve_clip_list(options.training_list).clip_ids]
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
        },
        leak=find_leak(trained_on, clip_set.clip_ids, purpose="test"),
        num_chosen_on=len(set(chosen_on) & set(clip_set.clip_ids)),
        environment=environment_report(device),
        command=command,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 for bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    configure_logging()

    def command() -> int:
        options = opts.parse_test_options(given)
        if options.dry_run:
            sys.stdout.write(json.dumps(opts.as_plain(options), indent=2) + "\n")
            return 0
        return localisation(options, "python test.py " + shlex.join(given))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
