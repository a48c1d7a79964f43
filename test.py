"""Scores a trained sound localiser.

    python test.py localisation --checkpoint runs/vggsound/last.pth --benchmark vgg_ss \
        --data-root data/VGGSound_test --clip-list ssl_tie_vgg_ss_4911 --output results/vgg_ss
    python test.py localisation ... --protocol all      # under every scoring rule of the field
    python test.py localisation --from-maps maps.npz --protocol all --output results/again
    python test.py baselines --benchmark vgg_ss --annotations metadata/lvs_vgg_ss_boxes.json
    python test.py retrieval --checkpoint … --dataset vgg_ss --data-root … --labels … --output …
    python test.py negatives --checkpoint … --benchmark vgg_ss --data-root … --labels … --output …
    python test.py video --checkpoint … --input clip.mp4 --output out.mp4       # docs/video.md
    python test.py image --checkpoint … --image photo.jpg --sound dog.wav --output out.png

The checkpoint knows its method and its audio: no model options are needed. Files released by the
authors of SSL-TIE and results folders of SSPL's program are read as they are: ckpts/README.md.
"""

import hashlib
import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import opts
from datasets.annotations import read_labels
from datasets.audio import AudioConfig, load_waveform
from datasets.augmentation import as_float, normalise
from datasets.benchmarks import DATA_SETS, ClipSet, build_clips, read_ground_truth
from datasets.clips import AudioVisualClips, Batch, BrokenClip, Content, with_wrong_sounds
from datasets.frames import FrameGeometry, read_frame, read_frame_size
from datasets.lists import find_leak, find_list, published_list, without_negatives
from datasets.loaders import ClipLoader
from models.localiser import Localiser, load_localiser, localise_video
from models.released import load_object_prior
from utils.distributed import is_main_process, process_group, rank, shard, world_size
from utils.evaluation.localisation import (
    LocalisationResult,
    evaluate_localisation,
    headline_map,
    read_maps,
    save_maps,
    score_table,
)
from utils.evaluation.negatives import MEDIAN_RULE, draw_off_screen, evaluate_negatives, scenes_of
from utils.evaluation.protocols import ObjectMaps, default_protocols, find_protocols
from utils.evaluation.retrieval import (
    Embeddings,
    check_request,
    embed_clips,
    evaluate_retrieval,
    load_embeddings,
    parse_directions,
    parse_ks,
    save_embeddings,
)
from utils.files import BrokenFileError, check_place, file_sha256, moved_when_whole, write_atomically
from utils.reports.localisation import (
    choose_clips,
    describe_extra_metrics,
    localisation_report,
    plain_protocols,
    rule_words,
    score_tables,
)
from utils.reports.negatives import negatives_report
from utils.reports.report import (
    Card,
    EvaluationContext,
    Gallery,
    check_results_folder,
    screen_table,
    write_and_show,
)
from utils.reports.retrieval import retrieval_report
from utils.reports.visualisation import (
    encode_jpeg,
    encode_mp3,
    encode_png,
    format_peak,
    overlay_localisation_map,
)
from utils.training import configure_logging, environment_report, pick_device, run_command, use_full_float32

logger = logging.getLogger("test")

BASELINE_BATCH = 32
"""clips scored at once without a model; does not change the scores"""
HALF_COSINE = ("ez_vsl_or_fnac", "slavc")
"""methods whose authors' similarity is (cosine + 1) / 2; that of all others is the cosine"""
THUMBNAIL_SIDE = 144
"""of the frames in a retrieval's report, pixels"""


def localisation(device: torch.device, options: opts.LocalisationOptions, command: str) -> int:
    """Score a checkpoint, or maps that it left; return 0, or 2 when clips broke on the way.

    Each process scores its part of the clips; the main one writes the results of all.
    """
    # The model first: that its file is missing is said before the data are looked through.
    source = from_saved_maps
    if options.checkpoint is not None:
        source = partial(from_model, load_localiser(options.checkpoint, device))
    clip_set = build_clips(
        options.benchmark,
        options.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        negatives=options.negatives,
        allow_missing=options.allow_missing,
    )
    context, clips, localise, objects, unreadable = source(device, options, clip_set, command)
    if options.labels is not None:
        context = with_classes(context, options.labels, clip_set.clip_ids)
    benchmark, alpha = DATA_SETS[options.benchmark], context.object_prior
    protocols = find_protocols(options.protocol or default_protocols(benchmark.headline))
    identity = {
        "task": "localisation",
        "benchmark": context.benchmark,
        "protocol": [protocol.name for protocol in protocols],
        "checkpoint": context.checkpoint["sha256"],
        "clip list": context.clip_list_sha256,
        "frame geometry": context.frame_geometry,
        "audio": context.audio,
        "object prior": alpha,
    }
    check_results_folder(options.output, identity)

    own = copy(clips)
    own.clips = shard(clips.clips, rank(), world_size())
    loader = ClipLoader(
        own, batch_size=options.batch_size, workers=options.workers, pin_memory=device.type == "cuda"
    )
    bar = tqdm(total=len(own), desc=options.benchmark, unit="clip", disable=not is_main_process())
    overlays_left = options.max_overlays / world_size()

    def on_batch(batch: Batch, maps: Tensor, cious: Sequence[float]) -> None:
        nonlocal overlays_left
        bar.update(len(cious))
        for place in range(int(min(overlays_left, len(cious)))):
            boxes = batch.bounding_boxes[place]
            _, overlay = draw_clip(batch.frames[place], maps[place], boxes, cious[place])
            path = options.output / "overlays" / f"{batch.clip_ids[place]}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_jpeg(overlay))
            overlays_left -= 1

    with loader, bar:
        result = evaluate_localisation(
            localise,
            (batch.to(device) for batch in loader),
            protocols,
            objects=objects,
            model_name="model" if alpha is None else f"model + object prior (alpha {alpha:g})",
            negatives=benchmark.negatives is not None,
            on_batch=on_batch,
        )
    result = replace(result, unreadable=(*result.unreadable, *unreadable))
    status = 2 if result.unreadable and not options.allow_missing else 0
    if not is_main_process():
        return status

    if not result.headline["has_object"].any():
        raise ValueError(
            f"{options.benchmark}: none of the {len(result.headline)} scored clips has a box, so that there "
            "is nothing to be localised. Score clips with and without an object (--clip-list)."
        )
    if context.classes is not None:
        result.clips["class"] = result.clips["clip_id"].map(context.classes)
    # Saved maps come without their frames.
    galleries = draw_galleries(result, clips, options.gallery) if options.from_maps is None else []
    published = published_lists(result, options.benchmark)
    report = localisation_report(result, context, benchmark, published, identity, galleries)
    write_and_show(options.output, report, options.table)
    # After the results: a disk that is full by now costs no more than the maps.
    if options.save_maps is not None:
        save_maps(options.save_maps, result, asdict(context))
    return status


Source = tuple[
    EvaluationContext,
    AudioVisualClips,
    Callable[[Batch], Tensor],
    Callable[[Batch], ObjectMaps] | None,
    Sequence[tuple[str, str]],
]
"""what stands beside the scores, the clips, their similarity maps, maps of objects to be mixed in,
and clips that could not be decoded when the maps were made"""


def from_model(
    localiser: Localiser,
    device: torch.device,
    options: opts.LocalisationOptions,
    clip_set: ClipSet,
    command: str,
) -> Source:
    """Localise with a checkpoint."""
    assert options.checkpoint is not None, "the caller has loaded it"
    sha256 = file_sha256(options.checkpoint)
    context = describe(options, localiser, clip_set, device, sha256, command)
    method, epoch = localiser.checkpoint.method, localiser.checkpoint.epoch
    logger.info("%s, %d epochs, from %s (sha256 %s)", method, epoch, options.checkpoint, sha256)
    clips = clip_set.clips
    if options.audio == "shuffled":
        clips = tuple(with_wrong_sounds(clips))
    geometry = FrameGeometry(localiser.frame.frame_size, options.frame_geometry)
    decoded = AudioVisualClips(clips, geometry=geometry, audio=localiser.audio)
    model, objects = localiser.model, None
    if options.object_prior is not None:
        alpha, network = options.object_prior, load_object_prior(options.object_prior_weights).to(device)

        def objects(batch: Batch) -> ObjectMaps:
            return ObjectMaps(network.object_maps(normalise(as_float(batch.frames))).float(), alpha)

    def localise(batch: Batch) -> Tensor:
        return model.localise(*model.prepare(batch.frames, batch.waveforms))

    return context, decoded, localise, objects, ()


def from_saved_maps(
    device: torch.device, options: opts.LocalisationOptions, clip_set: ClipSet, command: str
) -> Source:
    """Take the maps of --from-maps; of the clips only their boxes or masks are read."""
    path = options.from_maps
    assert path is not None, "the caller has looked"
    header, places, maps, object_maps = read_maps(path)
    context = EvaluationContext(**header["context"])
    unreadable = [(clip_id, reason) for clip_id, reason in header["unreadable"]]
    different = {*places, *(clip_id for clip_id, _ in unreadable)} ^ set(clip_set.clip_ids)
    if context.benchmark != options.benchmark or different:
        raise ValueError(
            f"{path} holds maps of {len(places)} clips of {context.benchmark} ({context.clip_list}); those "
            f"of {options.benchmark} ({clip_set.list_name}) are others, {len(different)} differ. Name the "
            "same --benchmark, --data-root and --clip-list."
        )
    made = {"made_by": context.command, "made_with": context.environment}
    context = replace(
        context,
        command=command,
        environment=environment_report(device),
        note=options.note or context.note,
        saved_maps={"path": str(path), "sha256": file_sha256(path), **made},
    )
    clips = tuple(clip for clip in clip_set.clips if clip.clip_id in places)
    geometry = FrameGeometry(1, context.frame_geometry)  # type: ignore[arg-type]  # one of its two words
    annotated = AudioVisualClips(clips, geometry=geometry, audio=AudioConfig(), content="truth")

    def stored(batch: Batch, array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(array[[places[clip_id] for clip_id in batch.clip_ids]]).to(device)

    objects, alpha = None, context.object_prior
    if object_maps is not None and alpha is not None:

        def objects(batch: Batch) -> ObjectMaps:
            return ObjectMaps(stored(batch, object_maps), alpha)

    return context, annotated, lambda batch: stored(batch, maps), objects, unreadable


def draw_clip(
    frame: Tensor, heat: Tensor, boxes: NDArray[np.float64] | None, ciou: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw heat map, boxes and score on a frame.

    Args:
        frame: uint8 (3, S, S).
        heat: (M, M) localisation map.
        boxes: (N, 4) fractions of the frame, where there are any.
        ciou: of the clip.

    Returns:
        the frame and its overlay, both (M, M, 3) uint8 RGB.
    """
    picture = frame.permute(1, 2, 0).cpu().numpy()
    if picture.shape[:2] != heat.shape:
        picture = cv2.resize(picture, heat.shape[::-1])
    annotated = np.zeros((0, 4)) if boxes is None else np.clip(boxes, 0, 1)
    visible = (annotated[:, 2:] > annotated[:, :2]).all(axis=1)  # VGG-SS holds inverted boxes: nothing
    # Constant maps lie outside [0, 1] under the median rule, see utils/evaluation/protocols.py.
    shown = heat.clamp(0, 1).cpu().numpy()
    return picture, overlay_localisation_map(picture, shown, annotated[visible], f"cIoU {ciou:.2f}")


def draw_galleries(result: LocalisationResult, clips: AudioVisualClips, count: int) -> list[Gallery]:
    """Draw the best, median and worst clips: their maps are kept, pictures and sounds are read again."""
    places = {clip.clip_id: place for place, clip in enumerate(clips.clips)}
    table = result.headline.reset_index(drop=True)
    galleries = []
    for title, rows in choose_clips(table[table["has_object"]], count).items():
        cards = []
        for row in rows.itertuples():
            sample = clips[places[row.clip_id]]
            if isinstance(sample, BrokenClip):
                continue  # broken between its two readings: left out of the pictures
            heat = headline_map(result, row.Index)
            pictures = draw_clip(sample.frame, heat, sample.bounding_boxes, row.ciou)
            mp3 = encode_mp3(sample.waveform.numpy(), clips.audio.sample_rate)
            cards.append(Card(row.clip_id, f"cIoU {row.ciou:.2f}", [*map(encode_jpeg, pictures)], mp3))
        galleries.append(Gallery(cards, title))
    return galleries


def published_lists(result: LocalisationResult, benchmark: str) -> dict[str, dict[str, Any]]:
    """Say of each rule whether its authors scored these clips."""
    clips = result.headline
    ids = [set(clips["clip_id"][clips["has_object"] == has]) for has in (True, False)]
    return {rule.name: published_list(rule.name, rule.authors, benchmark, *ids) for rule in result.protocols}


def open_clips(
    device: torch.device, options: opts.RetrievalOptions | opts.NegativeOptions, command: str
) -> tuple[Localiser, ClipSet, EvaluationContext]:
    """Load a checkpoint, find the clips, and say what stands beside the scores."""
    localiser, sha256 = load_localiser(options.checkpoint, device), file_sha256(options.checkpoint)
    clip_set = build_clips(
        options.benchmark,
        options.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        allow_missing=options.allow_missing,
    )
    context = describe(options, localiser, clip_set, device, sha256, command)
    if options.labels is not None:
        context = with_classes(context, options.labels, clip_set.clip_ids)
    return localiser, clip_set, context


def build_loader(
    options: opts.LocalisationOptions | opts.RetrievalOptions | opts.NegativeOptions,
    localiser: Localiser,
    clip_set: ClipSet,
    device: torch.device,
    map_size: int = 1,
    content: Content = "both",
) -> ClipLoader:
    """Decode the clips as the model wants them, with ground-truth maps of a size."""
    geometry = FrameGeometry(localiser.frame.frame_size, options.frame_geometry)
    clips = AudioVisualClips(
        clip_set.clips, geometry=geometry, audio=localiser.audio, map_size=map_size, content=content
    )
    return ClipLoader(
        clips, batch_size=options.batch_size, workers=options.workers, pin_memory=device.type == "cuda"
    )


def describe(
    options: opts.LocalisationOptions | opts.RetrievalOptions | opts.NegativeOptions,
    localiser: Localiser,
    clip_set: ClipSet,
    device: torch.device,
    sha256: str,
    command: str,
) -> EvaluationContext:
    """Say what stands beside the scores: clips, checkpoint, leak check, environment."""
    checkpoint = localiser.checkpoint
    trained_on: Sequence[str] | None = checkpoint.training_clips
    if options.training_list is not None:
        trained_on = [*(trained_on or ()), *find_list(options.training_list).clip_ids]
    if clip_set.source_ids is not None:
        leak = find_leak(trained_on, clip_set.source_ids, purpose="test")
    else:
        message = (
            f"The clips of {clip_set.dataset} are not called as in lists for training, so an overlap with "
            "the training list could not be looked for."
        )
        leak = {"checked": False, "num_clips": None, "first": [], "message": message}
    chosen_on = checkpoint.selection.get("clips", ())
    return EvaluationContext(
        benchmark=clip_set.dataset,
        data_root=str(options.data_root),
        clip_list=clip_set.list_name,
        clip_list_sha256=clip_set.list_sha256,
        num_listed=clip_set.num_listed,
        missing=clip_set.missing,
        cut=clip_set.cut,
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
        leak=leak,
        num_chosen_on=len(set(chosen_on) & set(clip_set.clip_ids)),
        object_prior=options.object_prior,
        environment=environment_report(device),
        command=command,
    )


def with_classes(context: EvaluationContext, path: Path, clip_ids: Sequence[str]) -> EvaluationContext:
    """Add the class of each clip from a file.

    The negatives of extended benchmarks take none: what sounds there is not in the picture.
    """
    labels = read_labels(path)
    if DATA_SETS[context.benchmark].negatives:
        clip_ids = without_negatives(clip_ids)
    classes = dict(zip(clip_ids, labels.of(clip_ids), strict=True))
    source = {"path": labels.path, "sha256": labels.sha256, "form": labels.form}
    return replace(context, classes=classes, labels=source)


def baselines(options: opts.BaselineOptions, command: str) -> int:
    """Score blind predictors and ceilings on a benchmark's boxes; return 0."""
    truth = read_ground_truth(options.benchmark, options.annotations, options.clip_list)
    benchmark = DATA_SETS[options.benchmark]
    protocols = find_protocols(options.protocol or default_protocols(benchmark.headline))

    clips = AudioVisualClips(
        truth.clips,
        geometry=FrameGeometry(1),
        audio=AudioConfig(),
        map_size=protocols[0].map_size,
        content="truth",
    )
    loader = ClipLoader(clips, batch_size=BASELINE_BATCH)
    result = evaluate_localisation(None, tqdm(loader, options.benchmark, unit="batch"), protocols)
    scores, extra = score_table(result.clips, benchmark.metrics), describe_extra_metrics(benchmark)
    rules = plain_protocols(result.protocols, scores, extra, published_lists(result, options.benchmark))
    heading = f"{options.benchmark}, {len(truth.clips)} clips of {truth.list_name}, no model"
    notes = [(f"protocol {rule['name']}", rule_words(rule)) for rule in rules]
    sys.stdout.write(f"{screen_table(heading, score_tables(scores, extra), notes)}\n{truth.cut}\n")
    if options.output is not None:
        content = {
            "benchmark": options.benchmark,
            "annotations": str(options.annotations),
            "clip_list": {"name": truth.list_name, "sha256": truth.list_sha256},
            "cut": truth.cut,
            "num_clips": len(truth.clips),
            "protocols": rules,
            "extra_metrics": extra,
            "command": command,
        }
        write_atomically(options.output, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return 0


def retrieval(device: torch.device, options: opts.RetrievalOptions, command: str) -> int:
    """Score which clips find each other; return 0, or 2 when clips broke on the way.

    Each process embeds its part of the clips; the main one searches and writes for all.
    """
    localiser, clip_set, context = open_clips(device, options, command)
    classes, sha256 = context.classes, context.checkpoint["sha256"]
    directions, ks = parse_directions(options.directions), parse_ks(options.ks)
    pooling = None if directions == ("audio_to_audio",) else options.image_pooling
    check_request(len(clip_set.clips), directions, ks, labelled=classes is not None)
    identity = {
        "task": "retrieval",
        "dataset": options.dataset,
        "checkpoint_sha256": sha256,
        "clip_list_sha256": context.clip_list_sha256,
        "frame_geometry": options.frame_geometry,
        "directions": list(directions),
        "ks": list(ks),
        "labels_sha256": context.labels and context.labels["sha256"],
        "image_pooling": pooling,
    }
    check_results_folder(options.output, identity)
    embeddings = embed_all(device, options, localiser, clip_set, sha256, pooling)
    status = 2 if embeddings.unreadable and not options.allow_missing else 0
    if not is_main_process():
        return status

    labels = None if classes is None else [classes[clip_id] for clip_id in embeddings.clip_ids]
    queries, scores = evaluate_retrieval(embeddings, labels, directions, ks, device=device)
    clips = {clip.clip_id: clip for clip in clip_set.clips}
    thumbnail = FrameGeometry(THUMBNAIL_SIDE, options.frame_geometry)

    @cache
    def card_of(clip_id: str) -> Card:
        picture = np.asarray(thumbnail.apply_to_frame(read_frame(clips[clip_id].frame_source)))
        sound = load_waveform(clips[clip_id].audio_source, localiser.audio).numpy()
        return Card(clip_id, "", [encode_jpeg(picture)], encode_mp3(sound, localiser.audio.sample_rate))

    report = retrieval_report(
        queries,
        scores,
        context,
        identity,
        unreadable=embeddings.unreadable,
        num_shown=options.gallery,
        card_of=card_of,
    )
    write_and_show(options.output, report, options.table)
    return status


def embed_all(
    device: torch.device,
    options: opts.RetrievalOptions,
    localiser: Localiser,
    clip_set: ClipSet,
    sha256: str,
    pooling: str | None,
) -> Embeddings:
    """Read the embeddings of all clips from their file; without one, compute and keep them."""
    path = options.embeddings or options.output / "embeddings.npz"
    identity = {
        "checkpoint": sha256,
        "clips": hashlib.sha256("\n".join(clip_set.clip_ids).encode()).hexdigest(),
        "frame geometry": options.frame_geometry,
        "image pooling": pooling,
    }
    known = load_embeddings(path, identity)
    if known is not None:
        logger.info("Embeddings of %d clips from %s.", len(known.clip_ids), path)
        return known
    own = replace(clip_set, clips=shard(clip_set.clips, rank(), world_size()))
    with build_loader(options, localiser, own, device) as loader:
        bar = tqdm(loader, desc="embedding", unit="batch", disable=not is_main_process())
        batches, num_clips = (batch.to(device) for batch in bar), len(clip_set.clips)
        embeddings = embed_clips(localiser.model, batches, num_clips=num_clips, image_pooling=pooling)
    if is_main_process():
        save_embeddings(path, embeddings, identity)
    return embeddings


def negatives(device: torch.device, options: opts.NegativeOptions, command: str) -> int:
    """Score what a model shows for sounds that are not in the picture; return 0, or 2 when clips broke.

    Each process scores its part of the clips; the main one writes the results of all.
    """
    localiser, clip_set, context = open_clips(device, options, command)
    identity = {
        "task": "negative audio",
        "benchmark": options.benchmark,
        "checkpoint_sha256": context.checkpoint["sha256"],
        "clip_list_sha256": context.clip_list_sha256,
        "frame_geometry": options.frame_geometry,
        "num_seeds": options.seeds,
        "off_screen": options.off_screen,
        "labels_sha256": context.labels and context.labels["sha256"],
        "threshold": options.threshold,
        "as_published": None,  # others were written by earlier versions
    }
    check_results_folder(options.output, identity)
    scenes = scenes_of(clip_set.clips, context.classes, options.off_screen)
    # Refused here, if at all: encoding all sounds takes long.
    draw_off_screen(clip_set.clip_ids, scenes, 0)
    own = shard(clip_set.clips, rank(), world_size())

    def read(content: Content, clip_ids: Collection[str] | None) -> Iterator[Batch]:
        clips = tuple(clip for clip in own if clip_ids is None or clip.clip_id in clip_ids)
        part = replace(clip_set, clips=clips)
        loader = build_loader(options, localiser, part, device, MEDIAN_RULE.map_size, content)
        title, hidden = "frames" if content == "frames" else "sounds", not is_main_process()
        with loader, tqdm(total=len(clips), desc=title, unit="clip", disable=hidden) as bar:
            for batch in loader:
                yield batch.to(device)
                bar.update(len(batch))

    half_cosine = localiser.checkpoint.method in HALF_COSINE
    result = evaluate_negatives(
        localiser.model,
        read,
        scenes,
        num_seeds=options.seeds,
        num_samples=localiser.audio.num_samples,
        device=device,
        half_cosine=half_cosine,
        threshold=options.threshold,
    )
    if is_main_process():
        similarity = "(cosine + 1) / 2" if half_cosine else "cosine"
        write_and_show(options.output, negatives_report(result, context, identity, similarity), options.table)
    return 2 if result.unreadable and not options.allow_missing else 0


def video(options: opts.VideoOptions) -> int:
    """Draw where the sound comes from into a video; returns 0."""
    source, output = options.input, options.output
    beside = [output.with_name(f"{output.stem}_{name}") for name in ("contact_sheet.png", "peaks.csv")]
    check_output([output, *beside], ".mp4", [source, options.checkpoint])
    # SIGTERM removes what is half-written, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    use_full_float32()
    localiser = load_localiser(options.checkpoint, options.device, frame_geometry=options.frame_geometry)
    with tqdm(desc=source.name, unit="frame") as bar:

        def count(done: int, expected: int | None) -> None:
            bar.total = expected if expected is None else max(done, expected)
            bar.update(done - bar.n)

        result = localise_video(
            localiser,
            source,
            output,
            opacity=options.opacity,
            box=options.box,
            on_progress=count,
            audio_step=options.audio_step,
            smoothing=options.smoothing,
            batch_size=options.batch_size,
            max_seconds=options.max_seconds,
        )
    if result.silent_frames:
        logger.warning(
            "%s: the sound around %d of %d frames is silent; nothing is drawn on these.",
            source,
            result.silent_frames,
            result.frames,
        )
    sys.stdout.write(
        f"{result.frames} frames, {result.seconds:.2f} s: {output}\n"
        f"Contact sheet: {result.contact_sheet}\nPeaks: {result.peaks}\n"
    )
    return 0


def image(options: opts.ImageOptions) -> int:
    """Draw where a sound comes from into a picture; returns 0."""
    output = options.output
    peak_file = output.with_name(f"{output.stem}_peak.csv")
    check_output([output, peak_file], ".png", [options.image, options.sound, options.checkpoint])
    for flag, path in (("--image", options.image), ("--sound", options.sound)):
        if not path.is_file():
            raise FileNotFoundError(f"{flag}: there is no file {path}.")
    use_full_float32()
    localiser = load_localiser(options.checkpoint, options.device, frame_geometry=options.frame_geometry)
    try:
        width, height = read_frame_size(options.image)
        if width * height > 1e6 * options.max_megapixels:
            raise ValueError(
                f"{options.image} has {width} x {height} pixels; at most {options.max_megapixels:g} million "
                "are taken (--max-megapixels). Make it smaller: the model looks at a few hundred each way."
            )
        picture = read_frame(options.image)
    except BrokenFileError as error:
        expected = "a whole picture that Pillow reads; for a video there is test.py video"
        raise ValueError(f"--image: {error}. Expected {expected}.") from error
    try:
        waveform = load_waveform(options.sound, localiser.audio, max_seconds=options.max_seconds)
    except BrokenFileError as error:
        expected = "a whole sound that libsndfile or FFmpeg reads, of at most --max-seconds"
        raise ValueError(f"--sound: {error}. Expected {expected}.") from error
    heat = localiser(picture, waveform)
    lines = f"x,y,similarity\n{format_peak(heat.peak)}\n"
    with moved_when_whole(peak_file) as first, moved_when_whole(output) as second:
        first.write_text(lines)
        second.write_bytes(encode_png(heat.overlay(opacity=options.opacity, box=options.box)))
    if heat.map is None:
        logger.warning("%s is silent; nothing is drawn.", options.sound)
    if heat.peak is None:
        sys.stdout.write(f"No peak. {output}\n")
    else:
        x, y, similarity = format_peak(heat.peak).split(",")
        sys.stdout.write(f"Peak: x {x}, y {y}, similarity {similarity}. {output}\n")
    return 0


def check_output(outputs: Sequence[Path], suffix: str, sources: Sequence[Path]) -> None:
    """Refuse at once a result of `video` or `image` that could not be written at the end.

    Args:
        outputs: the result, and what is written beside it.
        suffix: what the result's name must end in.
        sources: files that are read.

    Raises:
        ValueError: the name ends otherwise, or one of the files is a folder, or one that is read.
        OSError: nothing can be written there.
    """
    output = outputs[0]
    if output.suffix.lower() != suffix:
        raise ValueError(f"--output must end in {suffix}, got {output}. FFmpeg makes other formats from it.")
    for path in outputs:
        if path.is_dir():
            raise ValueError(f"--output {output}: {path} is a folder; name another file.")
        if any(path.exists() and source.exists() and path.samefile(source) for source in sources):
            raise ValueError(f"--output {output}: {path} is what is read; name another file.")
    check_place(output.parent, f"--output {output}")


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
        return _run_task(options, words)

    return run_command(command)


def in_processes(task: Callable[[torch.device, Any, str], int], options: Any, command: str) -> int:  # noqa: ANN401
    """Run a task in each process of torchrun; only the main one says more than errors."""
    use_full_float32()
    with process_group(pick_device(options.device)) as device:
        if not is_main_process():
            logging.getLogger().setLevel(logging.ERROR)
        return task(device, options, command)


def _run_task(options: opts.TestOptions, words: str) -> int:
    """Hands the options to the task that they belong to; returns its exit status."""
    match options:
        case opts.BaselineOptions():
            return baselines(options, words)
        case opts.RetrievalOptions():
            return in_processes(retrieval, options, words)
        case opts.NegativeOptions():
            return in_processes(negatives, options, words)
        case opts.VideoOptions():
            return video(options)
        case opts.ImageOptions():
            return image(options)
        case opts.LocalisationOptions():
            return in_processes(localisation, options, words)


if __name__ == "__main__":
    sys.exit(main())
