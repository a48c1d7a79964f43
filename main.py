"""Trains a sound localiser.

    python main.py ssl_tie --train-set vggsound --data-root data/VGGSound --output runs/vggsound
    python main.py ssl_tie ... --resume                 # goes on from last.pth in --output
    python main.py ssl_tie --help                       # all options; defaults are the paper's

The published recipes are in scripts/train_*.sh.
"""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import closing

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import opts
from datasets.clip_sets import ClipSet, build_clips
from datasets.clips import AudioVisualClips, Batch
from datasets.frames import FrameGeometry
from datasets.loaders import SeededBatches, build_test_loader, build_train_loader, hash_seed
from datasets.transforms import to_displayable
from datasets.views import SSLTIEViews, TestViews
from models import build_model
from utils.checkpoint import Checkpoint, parse_checkpoint, read_checkpoint_file
from utils.evaluation import LocalisationResult, evaluate_localisation
from utils.interruption import Interruption
from utils.leaks import find_leak
from utils.protocols import PROTOCOLS
from utils.reporting import configure_logging, run_command
from utils.reproducibility import (
    environment_report,
    pick_device,
    seed_everything,
    use_full_float32,
)
from utils.training_run import TrainingRun

logger = logging.getLogger("main")


def train(options: opts.TrainOptions) -> int:
    """Trains from the options; returns the process's exit status."""
    device = pick_device(options.run.device)
    use_full_float32()
    run = TrainingRun(options.run.output, resume=options.run.resume)
    training_set = build_clips(
        options.data.train_set,
        options.data.data_root,
        clip_list=options.data.clip_list,
        allow_missing=options.data.allow_missing,
    )
    validation_set = build_validation_set(options, training_set)
    clips = AudioVisualClips(
        training_set.clips,
        geometry=FrameGeometry(options.frame.frame_size),
        audio=options.audio,
        excerpt_seconds=options.data.audio_excerpt_seconds,
        random_crop=options.augmentation.crop,
    )
    batches = SeededBatches(len(clips), options.optimisation.batch_size, options.run.seed)
    loader = build_train_loader(
        clips, batches, num_workers=options.data.workers, pin_memory=device.type == "cuda"
    )
    seed_everything(options.run.seed)
    model = build_model(options.method, options.model).to(device).train()
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=options.optimisation.learning_rate,
        weight_decay=options.optimisation.weight_decay,
        fused=True,
    )
    if options.run.resume:
        restore(options, run, training_set, model, optimizer)
    views = SSLTIEViews(options.audio, options.augmentation, options.geometric, device)
    run.start(
        opts.as_plain(options),
        missing=training_set.missing,
        steps_per_epoch=batches.steps_per_epoch,
        log_every=options.run.log_every,
    )
    logger.info("Training %s on %d clips of %s (%s), device: %s, output: %s", options.method,
                len(clips), options.data.train_set, training_set.list_name,
                environment_report(device)["device"], run.folder)  # fmt: skip
    with closing(run), Interruption() as stop:
        while run.epoch < options.optimisation.epochs:
            batches.start_at(run.epoch, run.step)
            train_one_epoch(options, run, loader, views, model, optimizer, stop)
            best_on = None
            if stop.signal_number is None:
                result = validate(options, validation_set, model, device)
                is_best = run.finish_epoch(result)
                if validation_set is not None and is_best:
                    best_on = {
                        "benchmark": validation_set.dataset,
                        "list_name": validation_set.list_name,
                        "list_sha256": validation_set.list_sha256,
                        "protocol": options.validation.validation_protocol,
                        "clips": validation_set.clip_ids,
                    }
            run.save(make_checkpoint(options, run, training_set, model, optimizer), best_on=best_on)
            if stop.signal_number is not None:
                logger.warning("Saved %s; go on with --resume.", run.last_path)
                return 128 + stop.signal_number
    logger.info("Done: %s", run.last_path)
    return 0


def train_one_epoch(
    options: opts.TrainOptions,
    run: TrainingRun,
    loader: DataLoader[Batch],
    views: SSLTIEViews,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stop: Interruption,
) -> None:
    """The steps of one epoch from run.step on; returns early when a stop is asked for."""
    device = next(model.parameters()).device
    half = options.optimisation.precision == "bf16"
    batch_size = options.optimisation.batch_size
    bar = tqdm(
        desc=f"epoch {run.epoch + 1}/{options.optimisation.epochs}",
        initial=run.step * batch_size,
        total=run.steps_per_epoch * batch_size,
        unit="clip",
    )
    with bar:
        for batch in loader:
            run.note_broken(batch.broken)
            if len(batch) < 2:
                logger.warning("Skipped a batch of which %d clips could be read.", len(batch))
                run.step += 1
            else:
                inputs = views(batch.to(device), hash_seed(options.run.seed, run.epoch, run.step))
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    output = model(**inputs)
                optimizer.zero_grad(set_to_none=True)
                output.loss.backward()
                optimizer.step()
                run.note_step(output.loss, output.terms)
                if run.step == run.steps_per_epoch:
                    shown = slice(options.run.pictures)
                    run.add_pictures(
                        to_displayable(inputs["frames"][shown]),
                        output.similarity_map[shown].float().cpu().numpy(),
                    )
            bar.update(batch_size)
            if stop.signal_number is not None:
                return


def validate(
    options: opts.TrainOptions,
    validation_set: ClipSet | None,
    model: nn.Module,
    device: torch.device,
) -> LocalisationResult | None:
    """Scores the model on the validation benchmark, where one is named."""
    if validation_set is None:
        return None
    clips = AudioVisualClips(
        validation_set.clips, geometry=FrameGeometry(options.frame.frame_size), audio=options.audio
    )
    loader = build_test_loader(
        clips,
        batch_size=options.optimisation.batch_size,
        num_workers=options.data.workers,
        pin_memory=device.type == "cuda",
    )
    model.eval()
    result = evaluate_localisation(
        model,  # type: ignore[arg-type]  # every method of METHODS offers localise
        (batch.to(device) for batch in tqdm(loader, "validation", unit="batch", leave=False)),
        TestViews(options.audio, device),
        PROTOCOLS[options.validation.validation_protocol],
    )
    model.train()
    return result


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
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Checkpoint:
    """All that rebuilds the model and goes on with the run."""
    plain = opts.as_plain(options)
    return Checkpoint(
        method=options.method,
        method_config=plain["model"],
        audio_config=plain["audio"],
        frame_config=plain["frame"],
        state_dict=model.state_dict(),
        training_clips=training_set.clip_ids,
        training_list={
            "name": training_set.list_name,
            "sha256": training_set.list_sha256,
            "num_listed": training_set.num_listed,
            "num_missing": len(training_set.missing),
        },
        epoch=run.epoch,
        step=run.step,
        options=plain,
        optimizer=optimizer.state_dict(),
        progress=run.progress(),
    )


def restore(
    options: opts.TrainOptions,
    run: TrainingRun,
    training_set: ClipSet,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Puts model, optimizer and run where last.pth left them.

    Raises:
        ValueError: the run was started with other options or other clips.
    """
    checkpoint = parse_checkpoint(read_checkpoint_file(run.last_path), run.last_path)
    differences = opts.differences_that_matter(checkpoint.options, opts.as_plain(options))
    if checkpoint.training_clips != training_set.clip_ids:
        differences.append("the training clips")
    if differences:
        raise ValueError(
            f"{run.last_path} was trained with other settings: {'; '.join(differences)}. "
            "Resume with the same ones, or start anew in another --output."
        )
    assert checkpoint.optimizer is not None
    model.load_state_dict(checkpoint.state_dict)
    optimizer.load_state_dict(checkpoint.optimizer)
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
