"""Trains a sound localiser.

    python main.py ssl_tie --train-set vggsound --data-root data/VGGSound --output runs/vggsound
    python main.py ssl_tie ... --resume                 # goes on from last.pth in --output
    python main.py sspl --train-set flickr --data-root data/Flickr --output runs/sspl --no-pcm
    python main.py ssl_tie --help                       # all options; defaults are the paper's
    torchrun --standalone --nproc-per-node 4 main.py ssl_tie ...      # the batch on four GPUs

The published recipes are in scripts/train_*.sh.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import opts
from datasets.audio_mixing import Mixing, MixingBatches
from datasets.benchmarks import ClipSet, build_clips
from datasets.clips import AudioVisualClips, Batch
from datasets.frames import FrameGeometry
from datasets.loaders import ClipLoader, build_test_loader, build_train_loader, hash_seed
from datasets.transforms import to_displayable
from datasets.views import SSLTIEViews, SSPLViews, TestViews
from models import build_model
from models.heads import collapse_warning
from models.released import load_frozen_encoders
from models.sspl import SSPL
from scripts.training_inputs import build_training_clips, build_views
from utils.checkpoint import Checkpoint, parse_checkpoint, read_checkpoint_file
from utils.distributed import (
    barrier,
    is_main_process,
    local_slice,
    process_group,
    rank,
    shard,
    smallest,
    synchronise_batch_norms,
    world_size,
)
from utils.evaluation.localisation import evaluate_localisation
from utils.evaluation.protocols import PROTOCOLS
from utils.evaluation.retrieval import Embeddings, embed_clips
from utils.leaks import find_leak
from utils.mixing_schedule import MixingCurriculum
from utils.optimisation import Stepper, Trainer
from utils.training import (
    Interruption,
    TrainingRun,
    autocast,
    configure_logging,
    environment_report,
    pick_device,
    run_command,
    use_full_float32,
)

logger = logging.getLogger("main")


def train(options: opts.TrainOptions) -> int:
    """Trains from the options, with all processes of torchrun; returns the exit status."""
    use_full_float32(not options.compute.tf32)
    with process_group(pick_device(options.run.device)) as device:
        if not is_main_process():
            logging.getLogger().setLevel(logging.WARNING)
        return train_on(device, options)


def train_on(device: torch.device, options: opts.TrainOptions) -> int:
    """Trains in this process; all processes do the same on their parts of each batch."""
    run = TrainingRun(options.run.output, resume=options.run.resume)
    training_set = build_clips(
        options.data.train_set,
        options.data.data_root,
        clip_list=options.data.clip_list,
        allow_missing=options.data.allow_missing,
    )
    validation_set = build_validation_set(options, training_set)
    batches = MixingBatches(
        len(training_set.clips),
        options.optimisation.batch_size,
        options.run.seed,
        part=local_slice(options.optimisation.batch_size),
    )
    trainer = build_trainer(options, device)
    curriculum = MixingCurriculum(options.mixing, training_set.clip_ids, options.run.seed)
    if options.run.resume:
        restore(options, run, training_set, trainer, curriculum)
    views = build_views(options, device)
    loader = build_train_loader(
        build_training_clips(options, training_set),
        batches,
        num_workers=options.data.workers,
        pin_memory=device.type == "cuda",
    )
    epochs = options.optimisation.epochs
    assert epochs is not None  # recipes are completed when options are parsed
    with run, Interruption() as stop, loader:
        run.start(
            opts.as_plain(options),
            missing=training_set.missing,
            steps_per_epoch=batches.steps_per_epoch,
            log_every=options.run.log_every,
            diagnose=collapse_warning,
        )
        logger.info(
            "Training %s on %d clips of %s (%s), device: %s, processes: %d, output: %s",
            options.method, len(training_set.clips), options.data.train_set,
            training_set.list_name, environment_report(device)["device"], world_size(), run.folder,
        )  # fmt: skip
        if curriculum.options.audio_mixing and not curriculum.options.is_on(epochs - 1):
            first = curriculum.options.mixing_start_epoch
            logger.warning("Mixing begins with epoch %d, after the last of --epochs.", first)
        while run.epoch < epochs:
            batches.start_at(run.epoch, run.step)
            batches.mixing, stopped_by = choose_mixing(
                options, run.epoch, training_set, trainer, curriculum, stop
            )
            best_on = None
            if stopped_by is None:
                stopped_by = train_one_epoch(options, run, loader, views, trainer, stop)
                run.check_weights(trainer.model.state_dict())
            if stopped_by is None:
                result = validate(options, validation_set, trainer.model, device, stop)
                stopped_by = stop.agreed()
            if stopped_by is None:
                is_best = run.finish_epoch(result)
                if validation_set is not None and is_best:
                    rule = options.validation.validation_protocol or options.method
                    best_on = {**validation_set.identity(), "protocol": rule}
            checkpoint = make_checkpoint(options, run, training_set, trainer, curriculum)
            if is_main_process():
                run.save(checkpoint, best_on=best_on)
            if stopped_by is not None:
                barrier()  # torchrun kills the others soon after the first has ended
                logger.warning("Saved %s; go on with --resume.", run.last_path)
                return 128 + stopped_by
    logger.info("Done: %s", run.last_path)
    return 0


def build_trainer(options: opts.TrainOptions, device: torch.device) -> Trainer:
    """The model with its initial weights, ready to train on a device, alone or with others."""
    torch.manual_seed(options.run.seed)
    model = build_model(options.method, options.model).train()
    frozen = options.frozen
    if frozen is not None and isinstance(model, SSPL) and not options.run.resume:  # else last.pth's
        if frozen.random_init:
            logger.warning("The frozen encoders keep random weights (--random-init).")
        else:
            encoders = model.frozen_encoders()
            found = load_frozen_encoders(encoders, vgg16=frozen.vgg16, vggish=frozen.vggish)
            for kind, path in found.items():
                logger.info("Frozen %s: %s", kind, path)
    layout = torch.channels_last if options.compute.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = options.optimisation.build_optimizer(model)
    wrapped = model
    if world_size() > 1:
        synchronise_batch_norms(model)
        ids = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    if options.compute.compile:
        for network in model.networks():
            network.compile()
    stepper = Stepper(optimizer, device, options.compute.precision)
    return Trainer(model, wrapped, stepper)


def choose_mixing(
    options: opts.TrainOptions,
    epoch: int,
    training_set: ClipSet,
    trainer: Trainer,
    curriculum: MixingCurriculum,
    stop: Interruption,
) -> tuple[Mixing | None, int | None]:
    """What an epoch mixes, if anything, and the signal that stopped the search for it, if any."""
    if curriculum.is_due(epoch):
        embeddings = embed_sounds(options, training_set, trainer, stop)
        stopped_by = stop.agreed()
        if stopped_by is not None:
            return None, stopped_by
        curriculum.search(epoch, embeddings, trainer.stepper.device)
    chosen = curriculum.in_epoch(epoch)
    return None if chosen is None else Mixing(*chosen), None


def embed_sounds(
    options: opts.TrainOptions, training_set: ClipSet, trainer: Trainer, stop: Interruption
) -> Embeddings:
    """This process's part of the training sounds, unmasked, for the model as it is."""
    assert options.augmentation is not None
    clips = AudioVisualClips(
        shard(training_set.clips, rank(), world_size()),
        geometry=FrameGeometry(options.frame.frame_size),
        audio=options.audio,
        excerpt_seconds=options.augmentation.audio_excerpt_seconds,
        content="sounds",
    )
    device = trainer.stepper.device
    batches = decoded_in_order(options, clips, "embedding sounds", device, stop)
    views = TestViews(options.audio, device)
    trainer.model.eval()
    with autocast(device, options.compute.precision):
        found = embed_clips(trainer.model, batches, views, num_clips=len(clips), image_pooling=None)
    trainer.model.train()
    return found


def decoded_in_order(
    options: opts.TrainOptions,
    clips: AudioVisualClips,
    purpose: str,
    device: torch.device,
    stop: Interruption,
) -> Iterator[Batch]:
    """Clips, as many at once as a training step has; ends early when stopped."""
    own = local_slice(options.optimisation.batch_size)
    loader = build_test_loader(
        clips,
        batch_size=own.stop - own.start,
        num_workers=options.data.workers,
        pin_memory=device.type == "cuda",
    )
    hidden = not is_main_process()
    with loader:
        for batch in tqdm(loader, purpose, unit="batch", leave=False, disable=hidden):
            yield batch.to(device)
            if stop.signal_number is not None:
                return


def train_one_epoch(
    options: opts.TrainOptions,
    run: TrainingRun,
    loader: ClipLoader,
    views: SSLTIEViews | SSPLViews,
    trainer: Trainer,
    stop: Interruption,
) -> int | None:
    """The steps of one epoch from run.step on; returns the signal that stopped it early, if any."""
    batch_size = options.optimisation.batch_size
    bar = tqdm(
        desc=f"epoch {run.epoch + 1}/{options.optimisation.epochs}",
        initial=run.step * batch_size,
        total=run.steps_per_epoch * batch_size,
        unit="clip",
        disable=not is_main_process(),
    )
    with bar:
        for whole in loader:
            run.note_broken(whole.broken)
            batch = whole.part(slice(smallest(len(whole)))) if world_size() > 1 else whole
            if len(batch) < 2:
                logger.warning("Skipped a batch of which %d clips could be read.", len(batch))
                run.step += 1
            else:
                step = trainer.step_on(
                    batch,
                    views,
                    seed=hash_seed(options.run.seed, run.epoch, run.step),
                    global_size=batch_size,
                )
                run.note_step(step.loss, step.terms, batch.clip_ids)
                if run.step == run.steps_per_epoch:
                    shown = slice(options.run.pictures)
                    frames = to_displayable(step.inputs[views.shown][shown])
                    run.add_pictures(frames, step.similarity_map[shown].float().cpu().numpy())
            bar.update(batch_size)
            stopped_by = stop.agreed()
            if stopped_by is not None:
                return stopped_by
    return None


def validate(
    options: opts.TrainOptions,
    validation_set: ClipSet | None,
    model: nn.Module,
    device: torch.device,
    stop: Interruption,
) -> dict[str, float] | None:
    """Scores the model on the validation benchmark, where one is named; on a part when stopped."""
    if validation_set is None:
        return None
    clips = AudioVisualClips(
        shard(validation_set.clips, rank(), world_size()),
        geometry=FrameGeometry(options.frame.frame_size),
        audio=options.audio,
    )
    model.eval()
    views, localiser = TestViews(options.audio, device), cast(Any, model)
    result = evaluate_localisation(
        lambda batch: localiser.localise(*views(batch)),
        decoded_in_order(options, clips, "validation", device, stop),
        [PROTOCOLS[options.validation.validation_protocol or options.method]],
        shared=True,
    )
    model.train()
    for clip_id, reason in result.unreadable:
        logger.warning("Validation clip %s is not scored: %s", clip_id, reason)
    return {"clips": len(result.headline), **result.scores()}


def build_validation_set(options: opts.TrainOptions, training_set: ClipSet) -> ClipSet | None:
    """The validation clips, checked against the training clips; None where none are named."""
    chosen = options.validation
    if chosen.validation_benchmark is None or chosen.validation_root is None:
        return None
    validation_set = build_clips(
        chosen.validation_benchmark,
        chosen.validation_root,
        clip_list=chosen.validation_list,
        allow_missing=options.data.allow_missing,
    )
    leak = find_leak(training_set.clip_ids, validation_set.clip_ids, purpose="validation")
    if leak.num_clips:
        logger.warning("%s", leak.message)
    return validation_set


def make_checkpoint(
    options: opts.TrainOptions,
    run: TrainingRun,
    training_set: ClipSet,
    trainer: Trainer,
    curriculum: MixingCurriculum,
) -> Checkpoint:
    """All that rebuilds the model and goes on with the run; all processes must call it."""
    plain, state = opts.as_plain(options), trainer.stepper.state_dict()
    mixing = {"mixing": curriculum.state_dict()} if curriculum.options.audio_mixing else {}
    return Checkpoint(
        method=options.method,
        method_config=plain["model"],
        audio_config=plain["audio"],
        frame_config=plain["frame"],
        state_dict=trainer.model.state_dict(),
        training_clips=training_set.known_ids,
        training_list=training_set.list_record(),
        epoch=run.epoch,
        step=run.step,
        options=plain,
        optimizer=state["optimizer"],
        progress=run.progress() | {"scaler": state["scaler"]} | mixing,
    )


def restore(
    options: opts.TrainOptions,
    run: TrainingRun,
    training_set: ClipSet,
    trainer: Trainer,
    curriculum: MixingCurriculum,
) -> None:
    """Puts model, optimizer, run and the sounds to be mixed where last.pth left them.

    Raises:
        ValueError: the run was started with other options or other clips.
    """
    checkpoint = parse_checkpoint(read_checkpoint_file(run.last_path), run.last_path)
    differences = opts.differences_that_matter(checkpoint.options, opts.as_plain(options))
    if checkpoint.training_clips != training_set.known_ids:
        differences.append("the training clips")
    if differences:
        raise ValueError(
            f"{run.last_path} was trained with other settings: {'; '.join(differences)}. "
            "Resume with the same ones, or start anew in another --output."
        )
    assert checkpoint.optimizer is not None
    trainer.model.load_state_dict(checkpoint.state_dict)
    trainer.stepper.load_state_dict(
        {"optimizer": checkpoint.optimizer, "scaler": checkpoint.progress["scaler"]}
    )
    if "mixing" in checkpoint.progress:  # only of runs that mix
        curriculum.load_state_dict(checkpoint.progress["mixing"])
    run.restore(checkpoint)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 for bad input, 128 + signal when stopped."""

    def command() -> int:
        options = opts.parse_train_options(arguments)
        if options.run.dry_run:
            sys.stdout.write(json.dumps(opts.as_plain(options), indent=2) + "\n")
            return 0
        return train(options)

    configure_logging()
    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
