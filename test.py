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
import os
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import opts
from datasets.audio import AudioConfig, load_waveform
from datasets.benchmarks import DATA_SETS, build_clips, read_ground_truth
from datasets.clips import AudioVisualClips, Batch, Content, Sample, with_wrong_sounds
from datasets.frames import FrameConfig, FrameGeometry, as_float, normalise, read_frame, to_picture
from datasets.hdf5 import HDF5Row
from datasets.lists import JOIN, find_leak, find_list, published_list, read_classes
from datasets.loaders import ClipLoader
from models.localiser import load_localiser, localise_frames
from models.released import load_object_prior, name_model
from utils.checkpoint import Checkpoint
from utils.distributed import is_main_process, process_group, rank, shard, world_size
from utils.evaluation import localisation as localising
from utils.evaluation import negatives as negative_sounds
from utils.evaluation import retrieval as retrieving
from utils.evaluation.protocols import ObjectMaps
from utils.files import check_place, file_sha256, moved_when_whole, write_atomically
from utils.options import run_command
from utils.reports import localisation as reporting
from utils.reports import report as pages
from utils.reports import visualisation as drawing
from utils.reports.negatives import clip_words, negatives_report, shown_clips
from utils.reports.retrieval import retrieval_report
from utils.training import environment_report, pick_device

logger = logging.getLogger("test")

THUMBNAIL_SIDE = 144  # of the frames in a retrieval's report, pixels

Unreadable = Sequence[tuple[str, str]]
"""(clip id, reason) of each clip that broke while being decoded"""


class Evaluation:
    """The frame of localisation, retrieval and negatives: clips and provenance before, results after.

    Each process scores its part of the clips; the main one writes the results of all.
    """

    def __init__(self, options: opts.Scoring, command: str, device: torch.device) -> None:
        """Load the model and list the clips."""
        self.options, self.command, self.device = options, command, device
        # The model first: that its file is missing is said before the data are looked through.
        self.localiser = None
        if options.checkpoint is not None:
            clip_seconds = DATA_SETS[options.benchmark].clip_seconds
            self.localiser = load_localiser(options.checkpoint, device, clip_seconds=clip_seconds)
        which = {name: getattr(options, name) for name in opts.WHICH_CLIPS}
        self.clip_set = build_clips(options.benchmark, options.data_root, **which)
        self.clips = self.clip_set.clips
        if self.localiser is not None:
            if self.localiser.audio.left_channel and isinstance(self.clips[0].audio_source, HDF5Row):
                raise ValueError("SSL-Align hears the left channel; HDF5 files hold the mean: use folders.")
            self.model, self.audio = self.localiser.model, self.localiser.audio
            self.geometry = FrameGeometry(self.localiser.frame.frame_size, options.frame_geometry)
            self.context = self.describe(self.localiser.checkpoint)

    def describe(self, checkpoint: Checkpoint) -> pages.EvaluationContext:
        """Say what stands beside the scores: clips, checkpoint, leak check, environment."""
        options, clip_set = self.options, self.clip_set
        assert options.checkpoint is not None, "it has been loaded"
        trained_on: Sequence[str] | None = checkpoint.training_clips
        if options.training_list is not None:
            trained_on = [*(trained_on or ()), *find_list(options.training_list).clip_ids]
        model = name_model(checkpoint, options.checkpoint)
        if options.object_prior is not None:
            model += f" + object prior (alpha {options.object_prior:g})"
        copied = ("method", "method_config", "audio_config", "frame_config", "epoch", "training_list")
        start = (checkpoint.options.get("start") or {}).get("start")
        leak = find_leak(trained_on, clip_set.source_ids, purpose="test")
        began_anew = start in (None, "scratch", "imagenet")
        if not (began_anew or leak["num_clips"] or options.training_list):
            words = f"Training began with {start}; which clips that had learned from is not known. Name its "
            words += "list with --training-list."
            leak |= {"checked": False, "num_clips": None, "message": words}
        return pages.EvaluationContext(
            model=model,
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
                "sha256": file_sha256(options.checkpoint),
                **{name: getattr(checkpoint, name) for name in copied},
                "selection": {k: v for k, v in checkpoint.selection.items() if k != "clips"},
                "start": start,
                "random_encoders": bool((checkpoint.options.get("frozen") or {}).get("random_init")),
            },
            leak=leak,
            num_chosen_on=len({*checkpoint.selection.get("clips", ())} & {*clip_set.clip_ids}),
            object_prior=options.object_prior,
            environment=environment_report(self.device),
            command=self.command,
        )

    def claim(self, task: str, settings: Mapping[str, Any]) -> None:
        """Refuse a folder with the results of another evaluation; add the clips' classes."""
        context = self.context
        if self.options.labels is not None:
            path, clip_ids = self.options.labels, self.clip_set.clip_ids
            if DATA_SETS[self.options.benchmark].negatives:  # what sounds there is not in the picture
                clip_ids = [clip_id for clip_id in clip_ids if JOIN not in clip_id]
            classes, sha256 = read_classes(path, clip_ids)
            source = {"path": str(path), "sha256": sha256}
            self.context = context = replace(context, classes=classes, labels=source)
        self.identity = {
            "task": task,
            "benchmark": context.benchmark,
            "checkpoint": context.checkpoint["sha256"],
            "clip list": context.clip_list_sha256,
            "frame geometry": context.frame_geometry,
            "labels": context.labels and context.labels["sha256"],
            **settings,
        }
        pages.check_results_folder(self.options.output, self.identity)

    def read_again(self, clip_ids: Collection[str]) -> dict[str, Sample]:
        """Read clips as a page shows them, in a size that people can see; what breaks now is left out."""
        chosen = [clip for clip in self.clips if clip.clip_id in clip_ids]
        geometry = replace(self.geometry, frame_size=drawing.GALLERY_SIDE)
        clips = AudioVisualClips(chosen, geometry=geometry, audio=self.audio)
        samples = (clips[place] for place in range(len(clips)))
        return {sample.clip_id: sample for sample in samples if isinstance(sample, Sample)}

    def encode_sound(self, sample: Sample) -> bytes:
        """MP3 of what the model hears."""
        return drawing.encode_mp3(sample.waveform.numpy(), self.audio.sample_rate)

    def batches(
        self, title: str, chosen: Collection[str] | None = None, content: Content = "both"
    ) -> Iterator[Batch]:
        """Decode this process's part of the clips, of those that are chosen, behind a progress bar."""
        own = shard(self.clips, rank(), world_size())
        own = [clip for clip in own if chosen is None or clip.clip_id in chosen]
        size, workers = self.options.batch_size, self.options.workers
        pinned = self.device.type == "cuda"
        clips = AudioVisualClips(own, geometry=self.geometry, audio=self.audio, content=content)
        loader = ClipLoader(clips, batch_size=size, workers=workers, pin_memory=pinned)
        hidden = not is_main_process()
        with loader, tqdm(total=len(own), desc=title, unit="clip", disable=hidden) as bar:
            for batch in loader:
                yield batch.to(self.device)
                bar.update(len(batch) + len(batch.broken))


# --------------------------------------------------------------------------------------- localisation


def localisation(run: Evaluation, options: opts.LocalisationOptions) -> Unreadable:
    """Score a checkpoint, or maps that it left."""
    localise, objects, unreadable = (from_saved_maps if options.from_maps else from_model)(run, options)
    benchmark, alpha = DATA_SETS[options.benchmark], run.context.object_prior
    names = [protocol.name for protocol in options.protocols]
    run.claim("localisation", {"protocol": names, "audio": run.context.audio, "object prior": alpha})
    wanted = len(run.clips) if options.save_overlays == "all" else int(options.save_overlays)
    overlays_left = len(shard(range(wanted), rank(), world_size()))  # this process's share

    def draw(batch: Batch, maps: Tensor, cious: Sequence[float]) -> None:
        nonlocal overlays_left
        for place in range(min(overlays_left, len(cious))):
            boxes = batch.bounding_boxes[place]
            caption = f"cIoU {cious[place]:.2f}"
            _, overlay = draw_clip(batch.frames[place], maps[place], boxes, caption)
            path = options.output / "overlays" / f"{batch.clip_ids[place]}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawing.encode_jpeg(overlay))
            overlays_left -= 1

    result = localising.evaluate_localisation(
        localise,
        run.batches(options.benchmark, content="truth" if options.from_maps else "both"),
        options.protocols,
        objects=objects,
        model_name=run.context.model,
        negatives=benchmark.negatives is not None,
        on_batch=draw,
    )
    result = replace(result, unreadable=(*result.unreadable, *unreadable))
    if not is_main_process():
        return result.unreadable
    if not result.headline["has_object"].any():
        raise ValueError(
            f"{options.benchmark}: none of the {len(result.headline)} scored clips has a box, so that there "
            "is nothing to be localised. Score clips with and without an object (--clip-list)."
        )
    if run.context.classes is not None:
        result.clips["class"] = result.clips["clip_id"].map(run.context.classes)
    # Saved maps come without their frames.
    galleries = [] if options.from_maps else draw_galleries(run, result, options.gallery)
    published = published_lists(result, options.benchmark)
    report = reporting.localisation_report(result, run.context, benchmark, published, run.identity, galleries)
    pages.write_and_show(options.output, report, options.table)
    # After the results: a disk that is full by now costs no more than the maps.
    if options.save_maps is not None:
        localising.save_maps(options.save_maps, result, asdict(run.context))
    return result.unreadable


Source = tuple[Callable[[Batch], Tensor], Callable[[Batch], ObjectMaps] | None, Unreadable]
"""similarity maps of a batch, maps of objects to be mixed in, clips that broke when the maps were made"""


def from_model(run: Evaluation, options: opts.LocalisationOptions) -> Source:
    """Localise with a checkpoint."""
    model, objects = run.model, None
    logger.info("%s, from %s", run.context.model, options.checkpoint)
    if options.audio == "shuffled":
        run.clips = tuple(with_wrong_sounds(run.clips))
    if options.object_prior is not None:
        alpha, network = options.object_prior, load_object_prior(options.object_prior_weights).to(run.device)

        def objects(batch: Batch) -> ObjectMaps:
            features = network(normalise(as_float(batch.frames)))  # (B, 512, h, w), at least 0
            return ObjectMaps(features.mean(dim=1).float(), alpha)

    return lambda batch: model.localise(*model.prepare(batch.frames, batch.waveforms)), objects, ()


def from_saved_maps(run: Evaluation, options: opts.LocalisationOptions) -> Source:
    """Take the maps of --from-maps; of the clips only their boxes or masks are read."""
    path, clip_set = options.from_maps, run.clip_set
    assert path is not None, "the caller has looked"
    header, places, maps, object_maps = localising.read_maps(path)
    context, unreadable = pages.EvaluationContext(**header["context"]), header["unreadable"]
    different = {*places, *(clip_id for clip_id, _ in unreadable)} ^ {*clip_set.clip_ids}
    if context.benchmark != options.benchmark or different:
        raise ValueError(
            f"{path} holds maps of {len(places)} clips of {context.benchmark} ({context.clip_list}); those "
            f"of {options.benchmark} ({clip_set.list_name}) are others, {len(different)} differ. Name the "
            "same --benchmark, --data-root and --clip-list."
        )
    made = {"made_by": context.command, "made_with": context.environment}
    run.context = replace(
        context,
        command=run.command,
        environment=environment_report(run.device),
        note=options.note or context.note,
        saved_maps={"path": str(path), "sha256": file_sha256(path), **made},
    )
    run.clips = tuple(clip for clip in run.clips if clip.clip_id in places)
    frame = FrameConfig(**context.checkpoint.get("frame_config", {}))  # which crops depend on
    run.geometry = FrameGeometry(frame.frame_size, context.frame_geometry)  # type: ignore[arg-type]  # one of its words
    run.audio = AudioConfig()

    def stored(batch: Batch, array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(array[[places[clip_id] for clip_id in batch.clip_ids]]).to(run.device)

    objects, alpha = None, context.object_prior
    if object_maps is not None and alpha is not None:

        def objects(batch: Batch) -> ObjectMaps:
            return ObjectMaps(stored(batch, object_maps), alpha)

    return lambda batch: stored(batch, maps), objects, unreadable


def draw_clip(
    frame: Tensor, heat: Tensor, boxes: NDArray[np.float64] | None, caption: str = ""
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw heat map (M, M), boxes (N, 4) in fractions, and a caption on a frame (3, S, S).

    Returns the frame and its overlay, both uint8 RGB (L, L, 3) of the larger side of S and M.
    """
    side = max(frame.shape[-1], heat.shape[-1])
    picture = np.asarray(cv2.resize(to_picture(frame), (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)
    annotated = drawing.NO_BOXES if boxes is None else boxes
    # Constant maps lie outside [0, 1] under the median rule, see utils/evaluation/protocols.py.
    shown = np.asarray(cv2.resize(heat.clamp(0, 1).cpu().numpy(), (side, side)), np.float32)
    return picture, drawing.overlay_localisation_map(picture, shown, annotated, caption)


def draw_galleries(run: Evaluation, result: localising.LocalisationResult, count: int) -> list[pages.Gallery]:
    """Draw the best, median and worst clips: their maps are kept, pictures and sounds are read again."""
    classes, clips = run.context.classes or {}, {clip.clip_id: clip for clip in run.clips}
    # Of clips that share a sound the first, which has a class: negatives come last.
    owners = {clip.sound: clip.clip_id for clip in reversed(run.clip_set.clips)}
    table = result.headline.reset_index(drop=True)
    galleries = []
    for title, rows in reporting.choose_clips(table[table["has_object"]], count).items():
        cards, samples = [], run.read_again([*rows["clip_id"]])
        for row in rows[rows["clip_id"].isin([*samples])].itertuples():
            sample, own = samples[row.clip_id], classes.get(row.clip_id, "")
            heat = localising.headline_map(result, row.Index)
            pictures = draw_clip(sample.frame, heat, sample.bounding_boxes)
            jpegs = [drawing.encode_jpeg(one) for one in pictures]
            note = f"heard: {own}" if own else ""
            if run.context.audio != "own":
                other = owners[clips[row.clip_id].sound]
                note = f"heard: {classes.get(other, '')} ({other})" + f"; its own: {own}" * bool(own)
            mp3 = run.encode_sound(sample)
            cards.append(pages.Card(row.clip_id, f"cIoU {row.ciou:.2f}", jpegs, mp3, note))
        galleries.append(pages.Gallery(cards, title))
    return galleries


def published_lists(result: localising.LocalisationResult, benchmark: str) -> dict[str, dict[str, Any]]:
    """Say of each rule whether its authors scored these clips."""
    clips = result.headline
    ids = [set(clips["clip_id"][clips["has_object"] == has]) for has in (True, False)]
    return {rule.name: published_list(rule.name, rule.authors, benchmark, *ids) for rule in result.protocols}


def baselines(options: opts.BaselineOptions, command: str) -> None:
    """Score blind predictors and ceilings on a benchmark's boxes."""
    truth = read_ground_truth(options.benchmark, options.annotations, options.clip_list)
    benchmark = DATA_SETS[options.benchmark]
    clips = AudioVisualClips(truth.clips, geometry=FrameGeometry(1), audio=AudioConfig(), content="truth")
    batches = tqdm(ClipLoader(clips, batch_size=32), options.benchmark, unit="batch")
    result = localising.evaluate_localisation(None, batches, options.protocols)
    scores = localising.score_table(result.clips, benchmark.metrics)
    extra, published = reporting.describe_extra_metrics(benchmark), published_lists(result, options.benchmark)
    rules = reporting.plain_protocols(result.protocols, scores, extra, published)
    heading = f"{options.benchmark}, {len(truth.clips)} clips of {truth.list_name}, no model"
    words = [f"{rule['name']}: {rule['published_list']['words']}" for rule in rules]
    tables = reporting.score_tables(scores, extra)
    sys.stdout.write(f"{pages.screen_table(heading, tables, words)}\n{truth.cut}\n")
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


# ------------------------------------------------------------------------------ retrieval, negatives


def retrieval(run: Evaluation, options: opts.RetrievalOptions) -> Unreadable:
    """Score which clips find each other; the main process searches for all."""
    directions = retrieving.parse_directions(options.directions)
    ks = retrieving.parse_ks(options.ks)
    pooling = None if directions == ("audio_to_audio",) else options.image_pooling
    retrieving.check_request(len(run.clips), directions, ks, labelled=options.labels is not None)
    run.claim("retrieval", {"directions": [*directions], "ks": [*ks], "image_pooling": pooling})
    embeddings = embed_all(run, options, pooling)
    retrieving.check_request(len(embeddings.clip_ids), directions, ks, labelled=options.labels is not None)
    if not is_main_process():
        return embeddings.unreadable

    classes = run.context.classes
    labels = None if classes is None else [classes[clip_id] for clip_id in embeddings.clip_ids]
    queries, scores = retrieving.evaluate_retrieval(embeddings, labels, directions, ks, device=run.device)
    clips = {clip.clip_id: clip for clip in run.clips}
    thumbnail = FrameGeometry(THUMBNAIL_SIDE, options.frame_geometry)

    @cache
    def card_of(clip_id: str) -> pages.Card:
        picture = np.asarray(thumbnail.apply_to_frame(read_frame(clips[clip_id].frame_source)))
        sound = load_waveform(clips[clip_id].audio_source, run.audio).numpy()
        mp3 = drawing.encode_mp3(sound, run.audio.sample_rate)
        return pages.Card(clip_id, "", [drawing.encode_jpeg(picture)], mp3)

    report = retrieval_report(
        queries,
        scores,
        run.context,
        run.identity,
        unreadable=embeddings.unreadable,
        num_shown=options.gallery,
        card_of=card_of,
    )
    pages.write_and_show(options.output, report, options.table)
    return embeddings.unreadable


def embed_all(run: Evaluation, options: opts.RetrievalOptions, pooling: str | None) -> retrieving.Embeddings:
    """Read the embeddings of all clips from their file; without one, compute and keep them."""
    path = options.embeddings or options.output / "embeddings.npz"
    identity = {
        "checkpoint": run.context.checkpoint["sha256"],
        "clips": hashlib.sha256("\n".join(run.clip_set.clip_ids).encode()).hexdigest(),
        "data root": str(options.data_root.resolve()),
        "frame geometry": options.frame_geometry,
        "image pooling": pooling,
    }
    stored = retrieving.load_embeddings(path, identity)
    if stored is not None and not stored.unreadable:  # broken files may have been mended
        logger.info("Embeddings of %d clips from %s.", len(stored.clip_ids), path)
        return stored
    batches, count = run.batches("embedding"), len(run.clips)
    embeddings = retrieving.embed_clips(run.model, batches, num_clips=count, image_pooling=pooling)
    if is_main_process():
        retrieving.save_embeddings(path, embeddings, identity)
    return embeddings


def negatives(run: Evaluation, options: opts.NegativeOptions) -> Unreadable:
    """Score what a model shows for sounds that are not in the picture."""
    settings = {"num_seeds": options.seeds, "off_screen": options.off_screen, "threshold": options.threshold}
    run.claim("negative audio", settings)
    scenes = negative_sounds.scenes_of(run.clips, run.context.classes, options.off_screen)
    # Refused here, if at all: encoding all sounds takes long.
    negative_sounds.draw_off_screen(run.clip_set.clip_ids, scenes, 0)

    def read(content: Content, clip_ids: Collection[str] | None) -> Iterator[Batch]:
        return run.batches("frames" if content == "frames" else "sounds", clip_ids, content)

    result = negative_sounds.evaluate_negatives(
        run.model,
        read,
        scenes,
        num_seeds=options.seeds,
        num_samples=run.audio.num_samples,
        device=run.device,
        threshold=options.threshold,
    )
    if is_main_process():
        similarity = "(cosine + 1) / 2" if run.model.half_cosine else "cosine"
        galleries = draw_negatives(result, run, options.gallery)
        report = negatives_report(result, run.context, run.identity, similarity, galleries)
        pages.write_and_show(options.output, report, options.table)
    return result.unreadable


def draw_negatives(result: negative_sounds.NegativeResult, run: Evaluation, num: int) -> list[pages.Gallery]:
    """Draw the best, median and worst clips, a row each: the frame, then its heat with each kind of sound."""
    classes, scale = run.context.classes or {}, (result.threshold, result.maps.max().item())
    galleries = []
    for title, rows in shown_clips(result, num).items():
        samples = run.read_again({*rows["clip_id"], *rows["donor"]})
        whole = rows[rows["clip_id"].isin([*samples]) & rows["donor"].isin([*samples])]
        for number, (place, row) in enumerate(whole.to_dict("index").items()):
            sample, donor = samples[row["clip_id"]], samples[row["donor"]]
            frame, maps = to_picture(sample.frame), [*result.maps[place].numpy()]
            pictures = drawing.draw_row(frame, sample.bounding_boxes, maps, scale, result.threshold)
            names = (sample.clip_id, "", "", "", donor.clip_id)
            sounds = (None, run.encode_sound(sample), None, None, run.encode_sound(donor))
            columns = zip(names, clip_words(row), pictures, sounds, ("query", *[""] * 4), strict=True)
            cards = [
                pages.Card(clip_id, words, [picture], sound, classes.get(clip_id, ""), style)
                for clip_id, words, picture, sound, style in columns
            ]
            galleries.append(pages.Gallery(cards, "" if number else title, row=True))
    return galleries


# -------------------------------------------------------------------------------------- video, image


def video(options: opts.VideoOptions, _: str) -> None:
    """Draw where the sound comes from into a video."""
    source, output = options.input, options.output
    beside = [output.with_name(f"{output.stem}_{name}") for name in ("contact_sheet.png", "peaks.csv")]
    check_files([source, options.checkpoint], [output, *beside], ".mp4")
    # SIGTERM removes what is half-written, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    localiser = load_localiser(options.checkpoint, options.device, frame_geometry=options.frame_geometry)
    with counting(f"{source.name}, localising") as count:
        maps = localise_frames(
            localiser,
            source,
            on_progress=count,
            audio_step=options.audio_step,
            smoothing=options.smoothing,
            batch_size=options.batch_size,
            max_seconds=options.max_seconds,
        )
    with counting(f"{source.name}, drawing") as count:
        result = maps.draw(
            output,
            scale=options.parse_scale(),
            threshold=localiser.cosine(options.threshold),
            box=options.box,
            on_progress=count,
        )
    if result.silent_frames:
        words = "%s: the sound around %d of %d frames is silent; nothing is drawn on these."
        logger.warning(words, source, result.silent_frames, result.frames)
    if result.weak_frames:
        words = "%s: %d of %d frames are %s; nothing is drawn on these."
        logger.warning(words, source, result.weak_frames, result.frames, drawing.WEAK)
    sys.stdout.write(
        f"{result.frames} frames, {result.seconds:.2f} s: {output}\n"
        f"Contact sheet: {result.contact_sheet}\nPeaks: {result.peaks}\n"
    )


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar over frames; yield what it is told by how many are done, of how many."""
    with tqdm(desc=title, unit="frame") as bar:

        def count(done: int, expected: int | None) -> None:
            bar.total = expected if expected is None else max(done, expected)
            bar.update(done - bar.n)

        yield count


def image(options: opts.ImageOptions, _: str) -> None:
    """Draw where a sound comes from into a picture."""
    output = options.output
    peak_file = output.with_name(f"{output.stem}_peak.csv")
    check_files([options.image, options.sound, options.checkpoint], [output, peak_file], ".png")
    localiser = load_localiser(options.checkpoint, options.device, frame_geometry=options.frame_geometry)
    heat = localiser(options.image, options.sound)
    threshold, scale = localiser.cosine(options.threshold), options.parse_scale()
    scale = None if scale == "frame" else scale
    overlay = heat.overlay(scale=scale, threshold=threshold, box=options.box)
    peak = drawing.format_peak(heat.peak, threshold)
    with moved_when_whole(peak_file) as first, moved_when_whole(output) as second:
        first.write_text(f"{','.join(peak)}\n{','.join(peak.values())}\n")
        second.write_bytes(drawing.encode_png(overlay))
    if heat.map is None:
        logger.warning("%s is silent; nothing is drawn.", options.sound)
    words = "Peak: x {x}, y {y}, similarity {similarity}.".format(**peak) if heat.peak else "No peak."
    if drawing.is_weak(heat.map, threshold):
        words += f" It is {drawing.WEAK}."
    sys.stdout.write(f"{words} {output}\n")


def check_files(sources: Sequence[Path], outputs: Sequence[Path], suffix: str) -> None:
    """Refuse at once what could not be read, or written at the end; the result's name ends in `suffix`."""
    output = outputs[0]
    if output.suffix.lower() != suffix:
        raise ValueError(f"--output must end in {suffix}, got {output}. FFmpeg makes other formats from it.")
    for path in outputs:
        if path.is_dir():
            raise ValueError(f"--output {output}: {path} is a folder; name another file.")
        if any(path.exists() and source.exists() and path.samefile(source) for source in sources):
            raise ValueError(f"--output {output}: {path} is what is read; name another file.")
    check_place(output.parent, f"--output {output}")


# ------------------------------------------------------------------------------------ command line

TASKS: dict[type, Callable[..., Any]] = {
    opts.LocalisationOptions: localisation,
    opts.BaselineOptions: baselines,
    opts.RetrievalOptions: retrieval,
    opts.NegativeOptions: negatives,
    opts.VideoOptions: video,
    opts.ImageOptions: image,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 for bad input and clips that broke."""
    given = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> int:
        options = opts.parse_test_options(given)
        if options.dry_run:
            sys.stdout.write(json.dumps(opts.as_plain(options), indent=2) + "\n")
            return 0
        program = os.environ.get("VSSL_CALL", "python")  # scripts/run.sh says how it was called
        words, task = f"{program} test.py {shlex.join(given)}", TASKS[type(options)]
        if not isinstance(options, opts.Scoring):
            task(options, words)
            return 0
        with process_group(pick_device(options.device)) as device:
            if not is_main_process():
                logging.getLogger().setLevel(logging.ERROR)
            unreadable = task(Evaluation(options, words, device), options)
        return 2 if unreadable and not options.allow_missing else 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
