"""Scores a trained sound localiser.

    python test.py localisation --checkpoint runs/vggsound/last.pth --benchmark vgg_ss \
        --data-root data/VGGSound_test --clip-list ssl_tie_vgg_ss_4911 --output results/vgg_ss
    python test.py localisation ... --protocol all      # under every scoring rule of the field
    python test.py baselines --benchmark vgg_ss --annotations metadata/lvs_vgg_ss_boxes.json
    python test.py retrieval --checkpoint … --dataset vgg_ss --data-root … --labels … --output …

The checkpoint knows its method and its audio: no model options are needed. Files released by the
authors of SSL-TIE and results folders of SSPL's program are read as they are: ckpts/README.md.
"""

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import opts
from datasets.audio import AudioConfig
from datasets.clip_sets import ClipSet, build_clips
from datasets.clips import AudioVisualClips, Batch, with_wrong_sounds
from datasets.frames import FrameConfig, FrameGeometry, read_frame
from datasets.ground_truth import read_ground_truth
from datasets.labels import read_labels
from datasets.loaders import build_test_loader
from datasets.peer_audio import SpectrogramConfig
from datasets.splits import resolve_clip_list
from datasets.vggish_log_mel import SegmentConfig
from datasets.views import AUDIO_CONFIGS, TestViews
from datasets.watched_workers import dead_workers_named
from models import LOCALISERS, build_localiser
from models.official_weights import convert_ssl_tie_release, is_ssl_tie_release
from models.peer_weights import convert_peer_release
from models.pretrained import (
    PRETRAINED_FOLDERS,
    find_pretrained,
    load_object_prior,
    load_pretrained,
)
from models.sspl_weights import (
    FRAME_FILE,
    RELEASE_FILES,
    convert_sspl_release,
    is_release_folder,
    read_release_folder,
)
from utils.checkpoint import (
    Checkpoint,
    file_sha256,
    find_non_finite,
    parse_checkpoint,
    read_checkpoint_file,
)
from utils.distributed import is_main_process, process_group, rank, shard, world_size
from utils.embeddings import Embeddings, embed_clips, embeddings_identity, read_or_embed
from utils.evaluation import (
    LocalisationResult,
    ObjectPrior,
    OnBatch,
    evaluate_baselines,
    evaluate_localisation,
)
from utils.files import write_atomically
from utils.leaks import find_leak
from utils.pictures import OverlayWriter, PictureCollector, choose_clips
from utils.protocols import LocalisationProtocol, find_protocols
from utils.report import Gallery
from utils.reporting import configure_logging, run_command
from utils.reproducibility import environment_report, pick_device, use_full_float32
from utils.results import (
    EvaluationContext,
    check_results_folder,
    summarise_protocols,
    warnings_of,
    write_results,
)
from utils.retrieval_options import RetrievalOptions
from utils.retrieval_results import retrieve
from utils.tables import headline, render_table, score_table
from utils.visualisation import encode_jpeg

logger = logging.getLogger("test")

BASELINE_BATCH = 32
"""clips scored at once without a model; does not change the scores"""
THUMBNAIL_SIDE = 144
"""of the frames in a retrieval's report, pixels"""


@dataclass(frozen=True)
class TrainedModel:
    """A model rebuilt from a file, ready to localise, and what the file says of it."""

    model: nn.Module
    audio: AudioConfig | SegmentConfig | SpectrogramConfig
    frame: FrameConfig
    checkpoint: Checkpoint
    prior: ObjectPrior | None = None


def read_any_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file of main.py, or in what a method's authors released.

    Args:
        path: of the file, or of the results folder that SSPL's authors' program leaves.

    Raises:
        FileNotFoundError: it is not there, or lacks a file.
        ValueError: it is broken or unknown.
    """
    released = {"kind": "released file"}
    if is_release_folder(path):
        files = read_release_folder(path, read_checkpoint_file)
        vgg16 = None
        if FRAME_FILE not in files:  # always ImageNet's weights, so theirs will do
            vgg16 = load_pretrained("vgg16", find_pretrained("vgg16", None, PRETRAINED_FOLDERS))
        config, state_dict = convert_sspl_release(files, path, vgg16=vgg16)
        return Checkpoint(
            method="sspl",
            method_config=asdict(config),
            audio_config={},
            frame_config={},
            state_dict=state_dict,
            selection=released,
        )
    if path.is_dir():
        raise FileNotFoundError(
            f"No checkpoint at {path}: it is a folder. Name a file, or a results folder of SSPL's "
            f"authors, which holds {', '.join(RELEASE_FILES)}."
        )
    content = read_checkpoint_file(path)
    if "format" in content:
        return parse_checkpoint(content, path)
    if is_ssl_tie_release(content):
        method, state_dict = "ssl_tie", convert_ssl_tie_release(content["state_dict"], path)
    else:
        method, state_dict = convert_peer_release(content, path)
    return Checkpoint(
        method=method,
        method_config={},
        audio_config={},
        frame_config={},
        state_dict=state_dict,
        epoch=int(content.get("epoch", 0)),
        selection=released,
    )


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """Rebuilds a model from any file that can be read.

    Args:
        path: written by main.py, or a released file.
        device: where the model goes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, unknown, or does not fit the model it claims to be.
    """
    checkpoint = read_any_checkpoint(path)
    non_finite = find_non_finite(checkpoint.state_dict)
    if non_finite:
        raise ValueError(
            f"{path} holds numbers that are not finite in {len(non_finite)} tensors, first: "
            f"{', '.join(non_finite[:5])}. Training diverged, or the file is damaged."
        )
    if checkpoint.method not in LOCALISERS:
        raise ValueError(
            f"{path}: unknown method '{checkpoint.method}'; there are {list(LOCALISERS)}."
        )
    try:
        model = build_localiser(checkpoint.method, checkpoint.method_config)
        audio, frame = (
            AUDIO_CONFIGS[checkpoint.method](**checkpoint.audio_config),
            FrameConfig(**checkpoint.frame_config),
        )
        model.load_state_dict(checkpoint.state_dict)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the model it names: {error}") from error
    return TrainedModel(model.to(device).eval(), audio, frame, checkpoint)


def localisation(options: opts.LocalisationOptions, command: str) -> int:
    """Scores a checkpoint on a benchmark; returns 0, or 2 when clips broke on the way."""
    use_full_float32()
    with process_group(pick_device(options.device)) as device, dead_workers_named():
        if not is_main_process():
            logging.getLogger().setLevel(logging.ERROR)
        return localise_on(device, options, command)


def localise_on(device: torch.device, options: opts.LocalisationOptions, command: str) -> int:
    """Scores in this process its part of the clips; the main one writes the results of all."""
    trained = load_model(options.checkpoint, device)
    if options.object_prior is not None:
        network = load_object_prior(options.object_prior_weights).to(device)
        trained = replace(trained, prior=ObjectPrior(network.object_maps, options.object_prior))
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
    if options.labels is not None:
        context = with_classes(context, options.labels, clip_set.clip_ids)
    protocols = find_protocols(options.protocol)
    check_results_folder(options.output, protocols, context)
    overlays = OverlayWriter(options.output / "overlays", options.max_overlays / world_size())
    own = replace(clip_set, clips=shard(clip_set.clips, rank(), world_size()))
    result = score(options, trained, own, device, protocols, overlays, shared=True)
    status = 2 if result.unreadable and not options.allow_missing else 0
    if not is_main_process():
        return status
    galleries = draw_galleries(options, trained, clip_set, result, device)
    for warning in warnings_of(result, context):
        logger.warning("%s", warning)
    summary = write_results(options.output, result, context, galleries)
    report = f"Report: {options.output / 'report.html'}"
    if options.table is not None:
        sys.stdout.write(render_table(summary, options.table))
        logger.info("%s", report)
    else:
        sys.stdout.write(f"{score_table(summary['protocols'], headline(summary))}\n{report}\n")
    return status


def score(
    options: opts.LocalisationOptions,
    trained: TrainedModel,
    clip_set: ClipSet,
    device: torch.device,
    protocols: Sequence[LocalisationProtocol],
    on_batch: OnBatch,
    *,
    shared: bool = False,
) -> LocalisationResult:
    """Runs the evaluation over a clip set, or over this process's share of it."""
    loader = build_loader(options, trained, clip_set, device, protocols[0].map_size)
    name, quiet = options.benchmark, not is_main_process()
    with tqdm(total=len(clip_set.clips), desc=name, unit="clip", disable=quiet) as bar:

        def count(batch, maps, scores) -> None:  # noqa: ANN001 - as OnBatch
            on_batch(batch, maps, scores)
            bar.update(len(scores))

        return evaluate_localisation(
            trained.model,  # type: ignore[arg-type]  # all of LOCALISERS offer localise
            (batch.to(device) for batch in loader),
            TestViews(trained.audio, device),
            protocols,
            count,
            prior=trained.prior,
            shared=shared,
        )


def build_loader(
    options: opts.LocalisationOptions | RetrievalOptions,
    trained: TrainedModel,
    clip_set: ClipSet,
    device: torch.device,
    map_size: int = 1,
) -> DataLoader[Batch]:
    """Decodes the clips as the model wants them, with ground-truth maps of a size."""
    clips = AudioVisualClips(
        clip_set.clips,
        geometry=FrameGeometry(trained.frame.frame_size, options.frame_geometry),
        audio=trained.audio,
        map_size=map_size,
    )
    return build_test_loader(
        clips,
        batch_size=options.batch_size,
        num_workers=options.workers,
        pin_memory=device.type == "cuda",
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
    headline_only = [result.by_protocol[0].protocol]
    score(replace(options, workers=0), trained, few, device, headline_only, collector)
    return collector.galleries(chosen)


def describe(
    options: opts.LocalisationOptions | RetrievalOptions,
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
            "random_encoders": bool((checkpoint.options.get("frozen") or {}).get("random_init")),
        },
        leak=find_leak(trained_on, clip_set.clip_ids, purpose="test"),
        num_chosen_on=len(set(chosen_on) & set(clip_set.clip_ids)),
        object_prior=options.object_prior,
        environment=environment_report(device),
        command=command,
    )


def with_classes(
    context: EvaluationContext, path: Path, clip_ids: Sequence[str]
) -> EvaluationContext:
    """What stands beside the scores, with the class of each clip from a file."""
    labels = read_labels(path)
    classes = dict(zip(clip_ids, labels.of(clip_ids), strict=True))
    source = {"path": labels.path, "sha256": labels.sha256, "form": labels.form}
    return replace(context, classes=classes, labels=source)


def retrieval(options: RetrievalOptions, command: str) -> int:
    """Scores which clips find each other; returns 0, or 2 when clips broke on the way."""
    use_full_float32()
    with process_group(pick_device(options.device)) as device, dead_workers_named():
        if not is_main_process():
            logging.getLogger().setLevel(logging.ERROR)
        return retrieve_on(device, options, command)


def retrieve_on(device: torch.device, options: RetrievalOptions, command: str) -> int:
    """Embeds in this process its part of the clips; the main one searches and writes for all."""
    trained, sha256 = load_model(options.checkpoint, device), file_sha256(options.checkpoint)
    clip_set = build_clips(
        options.dataset,
        options.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        allow_missing=options.allow_missing,
    )
    context = describe(options, trained, clip_set, device, sha256, command)
    labels = None if options.labels is None else read_labels(options.labels)
    setting = options.setting(context, labels)
    setting.check(options.output, clip_set.clip_ids)
    own = replace(clip_set, clips=shard(clip_set.clips, rank(), world_size()))

    def embed() -> Embeddings:
        loader = build_loader(options, trained, own, device)
        bar = tqdm(loader, desc="embedding", unit="batch", disable=not is_main_process())
        return embed_clips(
            trained.model,
            (batch.to(device) for batch in bar),
            TestViews(trained.audio, device),
            num_clips=len(own.clips),
            image_pooling=options.pooling,
        )

    identity = embeddings_identity(sha256, clip_set.clip_ids, options.frame_geometry)
    embeddings = read_or_embed(options.embeddings_file, identity, options.pooling, embed)
    if is_main_process():
        sources = {clip.clip_id: clip.frame_source for clip in clip_set.clips}
        thumbnail = FrameGeometry(THUMBNAIL_SIDE, options.frame_geometry)

        def picture_of(clip_id: str) -> bytes:
            return encode_jpeg(np.asarray(thumbnail.apply_to_frame(read_frame(sources[clip_id]))))

        retrieve(options.output, setting, embeddings, device, (options.gallery, picture_of))
    return 2 if embeddings.unreadable and not options.allow_missing else 0


def baselines(options: opts.BaselineOptions, command: str) -> int:
    """Scores blind predictors and ceilings on a benchmark's boxes; returns 0."""
    truth = read_ground_truth(options.benchmark, options.annotations, options.clip_list)
    protocols = find_protocols(options.protocol)
    maps = truth.maps(map_size=protocols[0].map_size, batch_size=BASELINE_BATCH)
    with tqdm(total=len(truth.boxes), desc=options.benchmark, unit="clip") as bar:

        def counted() -> Iterator[tuple[list[str], NDArray[np.float32]]]:
            for clip_ids, of_clips in maps:
                yield clip_ids, of_clips
                bar.update(len(clip_ids))

        by_protocol = summarise_protocols(evaluate_baselines(counted(), protocols))
    heading = f"{options.benchmark}, {len(truth.boxes)} clips of {truth.list_name}, no model"
    sys.stdout.write(score_table(by_protocol, heading) + "\n")
    if options.output is not None:
        content = {
            "benchmark": options.benchmark,
            "annotations": str(options.annotations),
            "clip_list": {"name": truth.list_name, "sha256": truth.list_sha256},
            "num_clips": len(truth.boxes),
            "protocols": by_protocol,
            "command": command,
        }
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(options.output, text.encode())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 for bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    configure_logging()

    def command() -> int:
        options = opts.parse_test_options(given)
        if options.dry_run:
            sys.stdout.write(json.dumps(opts.as_plain(options), indent=2) + "\n")
            return 0
        words = "python test.py " + shlex.join(given)
        if isinstance(options, opts.BaselineOptions):
            return baselines(options, words)
        if isinstance(options, RetrievalOptions):
            return retrieval(options, words)
        return localisation(options, words)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
