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

import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import opts
from datasets.annotations import read_labels
from datasets.audio import load_waveform, read_window
from datasets.benchmarks import ClipSet, build_clips, read_ground_truth
from datasets.clips import Batch, Clip, Content, with_wrong_sounds
from datasets.frames import FrameGeometry, read_frame, read_frame_size
from datasets.transforms import as_float, normalise
from datasets.views import TestViews
from models.localiser import Localiser, load_localiser, localise_video
from models.released import load_object_prior
from scripts.scoring import ScoringOptions, build_loader, describe, known_lists_of, with_classes
from utils.benchmark_metrics import default_protocols, describe_extra_metrics, extra_scores, with_object_only
from utils.distributed import gather_objects, is_main_process, process_group, rank, shard, world_size
from utils.embeddings import Embeddings, embed_clips, embeddings_identity, read_or_embed
from utils.evaluation.localisation import (
    ObjectPrior,
    OnBatch,
    evaluate_baselines,
    localise_batches,
    score_maps,
)
from utils.evaluation.negatives import (
    MEDIAN_RULE,
    compare_with_sounds,
    draw_off_screen,
    encode_sounds,
    scenes_of,
    score_sounds,
)
from utils.evaluation.protocols import LocalisationProtocol, find_protocols
from utils.files import BrokenFileError, check_place, file_sha256, moved_when_whole, write_atomically
from utils.negative_audio_results import NegativeResult, NegativeSetting, write_negative_results
from utils.negative_audio_tables import render_table as render_negative_table
from utils.negative_audio_tables import screen_table
from utils.negative_options import NegativeOptions
from utils.pictures import OverlayWriter, PictureCollector, choose_clips
from utils.report import Gallery
from utils.reports.visualisation import encode_jpeg, encode_mp3, encode_png, format_peak
from utils.results import (
    EvaluationContext,
    check_results_folder,
    name_lists,
    summarise_protocols,
    warnings_of,
    write_results,
)
from utils.retrieval_options import RetrievalOptions
from utils.retrieval_report import Preview
from utils.retrieval_results import retrieve
from utils.saved_maps import MapsRecorder, read_saved_maps
from utils.scores import AREA_SIDE, ClipTruth, LocalisationResult
from utils.tables import headline, render_table, score_table
from utils.training import configure_logging, environment_report, pick_device, run_command, use_full_float32

logger = logging.getLogger("test")

BASELINE_BATCH = 32
"""clips scored at once without a model; does not change the scores"""
HALF_COSINE = ("ez_vsl_or_fnac", "slavc")
"""methods whose authors' similarity is (cosine + 1) / 2; that of all others is the cosine"""
THUMBNAIL_SIDE = 144
"""of the frames in a retrieval's report, pixels"""


def localisation(options: opts.LocalisationOptions, command: str) -> int:
    """Scores a checkpoint on a benchmark; returns 0, or 2 when clips broke on the way."""
    use_full_float32()
    with process_group(pick_device(options.device)) as device:
        if not is_main_process():
            logging.getLogger().setLevel(logging.ERROR)
        return localise_on(device, options, command)


def localise_on(device: torch.device, options: opts.LocalisationOptions, command: str) -> int:
    """Scores in this process its part of the clips; the main one writes the results of all."""
    if options.from_maps is not None:
        return score_saved_maps(options.from_maps, device, options, command)
    given = cast(ScoringOptions, options)  # what it must have is there, without --from-maps
    trained = load_localiser(given.checkpoint, device)
    if options.object_prior is not None:
        network = load_object_prior(options.object_prior_weights).to(device)
        trained = replace(trained, prior=ObjectPrior(network.object_maps, options.object_prior))
    sha256 = file_sha256(given.checkpoint)
    logger.info(
        "%s, %d epochs, from %s (sha256 %s)",
        trained.checkpoint.method,
        trained.checkpoint.epoch,
        given.checkpoint,
        sha256,
    )
    clip_set = build_clips(
        given.benchmark,
        given.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        negatives=options.negatives,
        allow_missing=options.allow_missing,
    )
    if options.audio == "shuffled":
        clip_set = replace(clip_set, clips=tuple(with_wrong_sounds(clip_set.clips)))
    context = describe(given, trained, clip_set, device, sha256, command)
    if options.labels is not None:
        context = with_classes(context, options.labels, clip_set.clip_ids)
    protocols = find_protocols(options.protocol or default_protocols(context.benchmark))
    check_results_folder(options.output, protocols, context)
    overlays = OverlayWriter(options.output / "overlays", options.max_overlays / world_size())
    own = replace(clip_set, clips=shard(clip_set.clips, rank(), world_size()))
    recorder = None if options.save_maps is None else MapsRecorder()
    result = score(given, trained, own, protocols, overlays, recorder, shared=True)
    galleries: list[Gallery] = []
    if is_main_process():
        located = with_object_only(given.benchmark, result)
        galleries = draw_galleries(options, trained, clip_set, located)
    status = report(options, result, context, galleries)
    # After the results: a disk that is full by now costs no more than the maps.
    if recorder is not None and options.save_maps is not None:
        recorder.write(options.save_maps, context, protocols[0].map_size)
    return status


def score_saved_maps(
    path: Path, device: torch.device, options: opts.LocalisationOptions, command: str
) -> int:
    """Scores maps of a file as localise_on scores those of a model."""
    saved = read_saved_maps(path)
    context = replace(saved.context, command=command, environment=environment_report(device))
    context = replace(context, note=options.note or context.note)
    clip_ids = saved.clips.clip_ids
    if options.labels is not None:
        context = with_classes(context, options.labels, clip_ids)
    protocols = find_protocols(options.protocol or default_protocols(context.benchmark))
    if {protocol.map_size for protocol in protocols} != {saved.map_size}:
        raise ValueError(f"{path} holds ground truth for maps of {saved.map_size} pixels a side.")
    check_results_folder(options.output, protocols, context)
    own = shard(range(len(clip_ids)), rank(), world_size())
    with tqdm(total=len(own), desc=path.name, unit="clip", disable=not is_main_process()) as bar:
        result = score_maps(
            saved.batches(own, options.batch_size, device),
            protocols,
            lambda batch, maps, scores: bar.update(len(scores)),
            alpha=context.object_prior,
            shared=True,
        )
    return report(options, result, context, galleries=[])


def report(
    options: opts.LocalisationOptions,
    result: LocalisationResult,
    context: EvaluationContext,
    galleries: Sequence[Gallery],
) -> int:
    """Writes and shows results in the main process; returns 0, or 2 when clips broke."""
    status = 2 if result.unreadable and not options.allow_missing else 0
    if not is_main_process():
        return status
    for warning in warnings_of(result, context):
        logger.warning("%s", warning)
    summary = write_results(options.output, result, context, galleries)
    path = f"Report: {options.output / 'report.html'}"
    if options.table is not None:
        sys.stdout.write(render_table(summary, options.table))
        logger.info("%s", path)
    else:
        extra = summary["extra_metrics"]
        table = score_table(summary["protocols"], headline(summary), extra)
        sys.stdout.write(f"{table}\n{path}\n")
    return status


def score(
    options: ScoringOptions,
    trained: Localiser,
    clip_set: ClipSet,
    protocols: Sequence[LocalisationProtocol],
    on_batch: OnBatch,
    recorder: MapsRecorder | None = None,
    *,
    shared: bool = False,
) -> LocalisationResult:
    """Runs the evaluation over a clip set, or over this process's share of it."""
    device = next(trained.model.parameters()).device
    loader = build_loader(options, trained, clip_set, device, protocols[0].map_size)
    name, quiet = options.benchmark, not is_main_process()
    with loader, tqdm(total=len(clip_set.clips), desc=name, unit="clip", disable=quiet) as bar:

        def count(batch, maps, scores) -> None:  # noqa: ANN001 - as OnBatch
            on_batch(batch, maps, scores)
            bar.update(len(scores))

        localised = localise_batches(
            trained.model,  # type: ignore[arg-type]  # all of LOCALISERS offer localise
            (batch.to(device) for batch in loader),
            TestViews(trained.audio, device),
            trained.prior,
        )
        return score_maps(
            localised if recorder is None else recorder.watched(localised),
            protocols,
            count,
            alpha=None if trained.prior is None else trained.prior.alpha,
            shared=shared,
        )


def draw_galleries(
    options: opts.LocalisationOptions, trained: Localiser, clip_set: ClipSet, result: LocalisationResult
) -> list[Gallery]:
    """Best, median and worst clips; decoded once more, as they are known only at the end."""
    chosen = choose_clips(result.model.clips, options.gallery)
    wanted = {clip_id for clip_ids in chosen.values() for clip_id in clip_ids}
    if not wanted:
        return []
    few = replace(clip_set, clips=tuple(c for c in clip_set.clips if c.clip_id in wanted))
    collector = PictureCollector(trained.audio.sample_rate)
    headline_only = [result.by_protocol[0].protocol]
    given = cast(ScoringOptions, replace(options, workers=0))
    score(given, trained, few, headline_only, collector)
    return collector.galleries(chosen)


def retrieval(options: RetrievalOptions, command: str) -> int:
    """Scores which clips find each other; returns 0, or 2 when clips broke on the way."""
    use_full_float32()
    with process_group(pick_device(options.device)) as device:
        if not is_main_process():
            logging.getLogger().setLevel(logging.ERROR)
        return retrieve_on(device, options, command)


def retrieve_on(device: torch.device, options: RetrievalOptions, command: str) -> int:
    """Embeds in this process its part of the clips; the main one searches and writes for all."""
    trained, sha256 = load_localiser(options.checkpoint, device), file_sha256(options.checkpoint)
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
        with build_loader(options, trained, own, device) as loader:
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
            return Preview(encode_jpeg(np.asarray(picture)), encode_mp3(sound, trained.audio.sample_rate))

        pictures = (options.gallery, preview_of)
        retrieve(options.output, setting, embeddings, device, pictures, options.table)
    return 2 if embeddings.unreadable and not options.allow_missing else 0


def negatives(options: NegativeOptions, command: str) -> int:
    """Scores what a model shows for sounds that are not in the picture; returns 0, or 2 when clips broke."""
    use_full_float32()
    with process_group(pick_device(options.device)) as device:
        if not is_main_process():
            logging.getLogger().setLevel(logging.ERROR)
        return negatives_on(device, options, command)


def negatives_on(device: torch.device, options: NegativeOptions, command: str) -> int:
    """Scores in this process its part of the clips; the main one writes the results of all.

    Every clip is decoded twice, once for the sounds of all and once for the frames.
    """
    trained, sha256 = load_localiser(options.checkpoint, device), file_sha256(options.checkpoint)
    clip_set = build_clips(
        options.benchmark,
        options.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        allow_missing=options.allow_missing,
    )
    context = describe(options, trained, clip_set, device, sha256, command)
    if options.labels is not None:
        context = with_classes(context, options.labels, clip_set.clip_ids)
    half_cosine = trained.checkpoint.method in HALF_COSINE
    similarity = "(cosine + 1) / 2" if half_cosine else "cosine"
    setting = NegativeSetting(context, similarity, options.seeds, options.off_screen, options.threshold)
    setting.check(options.output)
    scenes = scenes_of(
        clip_set.clip_ids,
        [clip.pair_key for clip in clip_set.clips],
        context.classes,
        options.off_screen,
        pictures=[clip.scene for clip in clip_set.clips],
        sound_files=[str(clip.sound) for clip in clip_set.clips],
    )
    # Refused here, if at all: encoding all sounds takes long.
    draw_off_screen(clip_set.clip_ids, scenes, 0)
    model: Any = trained.model
    views, front_end = TestViews(trained.audio, device), trained.audio.build_front_end().to(device)

    def decoded(clips: Sequence[Clip], title: str, content: Content) -> Iterator[Batch]:
        part = replace(clip_set, clips=tuple(clips))
        loader = build_loader(options, trained, part, device, MEDIAN_RULE.map_size, content)
        hidden = not is_main_process()
        with loader, tqdm(total=len(clips), desc=title, unit="clip", disable=hidden) as bar:
            for batch in loader:
                yield batch.to(device)
                bar.update(len(batch))

    own = shard(clip_set.clips, rank(), world_size())
    # Frames too: a clip whose frame is broken is not to lend its sound.
    sounds = encode_sounds(model, decoded(own, "sounds", "both"), lambda batch: views(batch)[1])
    donors = np.stack([draw_off_screen(sounds.clip_ids, scenes, seed) for seed in range(options.seeds)])
    place_of = {clip_id: place for place, clip_id in enumerate(sounds.clip_ids)}
    maps = compare_with_sounds(
        model,
        decoded([clip for clip in own if clip.clip_id in place_of], "frames", "frames"),
        lambda batch: normalise(as_float(batch.frames)),
        front_end,
        sounds,
        donors,
        trained.audio.num_samples,
    )
    clip_ids = tuple(gather_objects(maps.clip_ids))
    if not clip_ids:
        raise ValueError("No clip could be scored: every frame broke between two readings.")
    scores, threshold = score_sounds(maps, device, half_cosine=half_cosine, threshold=options.threshold)
    unreadable = (*sounds.unreadable, *gather_objects(maps.unreadable))
    num_bytes = sum(gather_objects([maps.num_bytes]))
    status = 2 if unreadable and not options.allow_missing else 0
    if not is_main_process():
        return status
    donor_ids = np.array(sounds.clip_ids)[donors[:, [place_of[clip_id] for clip_id in clip_ids]]]
    result = NegativeResult(clip_ids, scores, threshold, donor_ids, num_bytes, unreadable)
    summary = write_negative_results(options.output, setting, result)
    for warning in summary["warnings"]:
        logger.warning("%s", warning)
    path = f"Report: {options.output / 'report.html'}"
    if options.table is not None:
        sys.stdout.write(render_negative_table(summary, options.table))
        logger.info("%s", path)
    else:
        sys.stdout.write(f"{screen_table(summary)}\n{path}\n")
    return status


def baselines(options: opts.BaselineOptions, command: str) -> int:
    """Scores blind predictors and ceilings on a benchmark's boxes; returns 0."""
    truth = read_ground_truth(options.benchmark, options.annotations, options.clip_list)
    protocols = find_protocols(options.protocol or default_protocols(options.benchmark))
    truths: list[ClipTruth] = []
    maps = truth.maps(map_size=protocols[0].map_size, batch_size=BASELINE_BATCH)
    with tqdm(total=len(truth.boxes), desc=options.benchmark, unit="clip") as bar:

        def counted() -> Iterator[tuple[list[str], NDArray[np.float32]]]:
            for clip_ids, of_clips in maps:
                yield clip_ids, of_clips
                for clip_id, one in zip(clip_ids, of_clips, strict=True):
                    area = AREA_SIDE**2 * float(one.mean(dtype=np.float64))
                    boxes, key = truth.boxes[clip_id], truth.pair_keys[clip_id]
                    truths.append(ClipTruth(area, len(boxes), key))
                bar.update(len(clip_ids))

        scores = evaluate_baselines(counted(), protocols)
    result = LocalisationResult(scores, (), truths=tuple(truths))
    by_protocol = summarise_protocols(scores, extra=extra_scores(options.benchmark, result))
    name_lists(by_protocol, result, options.benchmark, known_lists_of(options.benchmark))
    extra = describe_extra_metrics(options.benchmark)
    heading = f"{options.benchmark}, {len(truth.boxes)} clips of {truth.list_name}, no model"
    sys.stdout.write(f"{score_table(by_protocol, heading, extra)}\n{truth.cut}\n")
    if options.output is not None:
        content = {
            "benchmark": options.benchmark,
            "annotations": str(options.annotations),
            "clip_list": {"name": truth.list_name, "sha256": truth.list_sha256},
            "cut": truth.cut,
            "num_clips": len(truth.boxes),
            "protocols": by_protocol,
            "extra_metrics": extra,
            "command": command,
        }
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(options.output, text.encode())
    return 0


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
        expected = "a whole sound that libsndfile reads (WAV, MP3, FLAC, Ogg …), of at most --max-seconds"
        raise ValueError(f"--sound: {error}. Expected {expected}; FFmpeg makes one of any other.") from error
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


def _run_task(options: opts.TestOptions, words: str) -> int:
    """Hands the options to the task that they belong to; returns its exit status."""
    match options:
        case opts.BaselineOptions():
            return baselines(options, words)
        case RetrievalOptions():
            return retrieval(options, words)
        case NegativeOptions():
            return negatives(options, words)
        case opts.VideoOptions():
            return video(options)
        case opts.ImageOptions():
            return image(options)
        case opts.LocalisationOptions():
            return localisation(options, words)


if __name__ == "__main__":
    sys.exit(main())
