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
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import opts
from datasets.audio import read_window
from datasets.clip_sets import ClipSet, build_clips
from datasets.clips import with_wrong_sounds
from datasets.frames import FrameGeometry, read_frame
from datasets.ground_truth import read_ground_truth
from datasets.labels import read_labels
from datasets.views import TestViews
from datasets.watched_workers import dead_workers_named
from models.pretrained import load_object_prior
from scripts.scoring import build_loader, describe, with_classes
from scripts.trained_model import TrainedModel, load_model
from utils.checkpoint import file_sha256
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
from utils.pictures import OverlayWriter, PictureCollector, choose_clips
from utils.protocols import LocalisationProtocol, find_protocols
from utils.report import Gallery
from utils.reporting import configure_logging, run_command
from utils.reproducibility import pick_device, use_full_float32
from utils.results import (
    check_results_folder,
    summarise_protocols,
    warnings_of,
    write_results,
)
from utils.retrieval_options import RetrievalOptions
from utils.retrieval_report import Preview
from utils.retrieval_results import retrieve
from utils.sounds import encode_mp3
from utils.tables import headline, render_table, score_table
from utils.visualisation import encode_jpeg

logger = logging.getLogger("test")

BASELINE_BATCH = 32
"""clips scored at once without a model; does not change the scores"""
THUMBNAIL_SIDE = 144
"""of the frames in a retrieval's report, pixels"""


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
    collector = PictureCollector(trained.audio.sample_rate)
    headline_only = [result.by_protocol[0].protocol]
    score(replace(options, workers=0), trained, few, device, headline_only, collector)
    return collector.galleries(chosen)


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
        clips = {clip.clip_id: clip for clip in clip_set.clips}
        thumbnail = FrameGeometry(THUMBNAIL_SIDE, options.frame_geometry)

        def preview_of(clip_id: str) -> Preview:
            clip = clips[clip_id]
            picture = thumbnail.apply_to_frame(read_frame(clip.frame_source))
            sound = read_window(clip.audio_source, trained.audio).numpy()
            return Preview(
                encode_jpeg(np.asarray(picture)), encode_mp3(sound, trained.audio.sample_rate)
            )

        retrieve(options.output, setting, embeddings, device, (options.gallery, preview_of))
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
