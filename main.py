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
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import opts
from datasets.benchmarks import ClipSet, build_clips, find_test_set
from datasets.clips import AudioVisualClips, Batch
from datasets.frames import FrameGeometry, to_displayable
from datasets.lists import find_leak
from datasets.loaders import ClipLoader, SeededBatches, hash_seed
from models import METHODS
from models.method import Method, TrainingOutput
from utils.checkpoint import Checkpoint, parse_checkpoint, read_checkpoint_file
from utils.distributed import (
    is_main_process,
    largest,
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
from utils.options import run_command
from utils.training import (
    Interruption,
    Precision,
    TrainingRun,
    autocast,
    choose_precision,
    environment_report,
    pick_device,
    use_full_float32,
)

logger = logging.getLogger("main")

NUM_PICTURES = 4  # overlays in TensorBoard after each epoch

Decode = Callable[[AudioVisualClips, str], Iterator[Batch]]
"""decodes clips behind a progress bar with a title, see `decode_all`"""


def train(options: opts.TrainOptions) -> int:
    """Train with all processes of torchrun; return the exit status."""
    with process_group(pick_device(options.run.device)) as device:
        settle_precision(options, device)
        if not is_main_process():
            logging.getLogger().setLevel(logging.WARNING)
        return train_on(device, options)


def settle_precision(options: opts.TrainOptions, device: torch.device) -> None:
    """Put what `--precision auto` stands for on the device into the options, and have PyTorch compute so."""
    precision = choose_precision(options.compute.precision, device)
    options.compute = replace(options.compute, precision=precision)
    use_full_float32(precision != "tf32")
    torch.backends.cudnn.benchmark = True  # the pictures of a run have one size


def train_on(device: torch.device, options: opts.TrainOptions) -> int:
    """Train in this process; all processes do the same on their parts of each batch."""
    run = TrainingRun(options.run.output, resume=options.run.resume)

    # Data: batches are a function of seed, epoch and step, whatever the number of processes and workers.
    training_set = build_clips(
        options.data.train_set,
        options.data.data_root,
        clip_list=options.data.clip_list,
        allow_missing=options.data.allow_missing,
    )
    validation_set = build_validation_set(options, training_set)
    rule = options.validation.validation_protocol or METHODS[options.method].rule
    batch_size, epochs = options.optimisation.batch_size, options.optimisation.epochs
    own = local_slice(batch_size)  # which clips of each batch are this process's
    batches = SeededBatches(len(training_set.clips), batch_size, options.run.seed, part=own)

    # Model: `model` has the weights; `wrapped` is what a step calls, the model or its data-parallel wrapper.
    model, wrapped = build_model(options, device)
    optimizer = model.build_optimizer(options.optimisation)
    scaler = torch.amp.GradScaler(device.type, enabled=options.compute.precision == "fp16")
    clips, pinned = model.training_clips(training_set.clips), device.type == "cuda"
    loader = ClipLoader(clips, batch_sampler=batches, workers=options.data.workers, pin_memory=pinned)
    curriculum = model.curriculum(options, clips)
    state = {"optimizer": optimizer, "scaler": scaler, "mixing": curriculum}
    sets = (training_set, validation_set)
    if options.run.resume:
        restore(options, run, sets, model, state)

    with run, Interruption() as stop, loader:
        decode = partial(decode_all, options, device, stop)
        run.start(
            opts.as_plain(options),
            missing=training_set.missing,
            steps_per_epoch=batches.steps_per_epoch,
            diagnose=model.diagnose,
            optimizer=optimizer,
        )
        logger.info(
            "Training %s on %d clips of %s (%s), device: %s, processes: %d, output: %s",
            options.method, len(training_set.clips), options.data.train_set,
            training_set.list_name, environment_report(device)["device"], world_size(), run.folder,
        )  # fmt: skip
        while run.epoch < epochs:
            run.begin_epoch()
            batches.start_at(run.epoch, run.step)
            stopped_by, best_on = None, None
            if curriculum is not None:
                if curriculum.needs_search(run.epoch):  # with the weights as they are now
                    with evaluating(model), autocast(device, options.compute.precision):
                        curriculum.search(run.epoch, model, decode, stop.agreed)
                    stopped_by = stop.agreed()
                batches.mixing = curriculum.mixing_for_epoch(run.epoch)
            if stopped_by is None:
                stopped_by = train_one_epoch(
                    options, run, loader, own.start, model, wrapped, optimizer, scaler, stop
                )
                run.check_weights(model.state_dict())
            result = None
            if stopped_by is None and validation_set is not None:
                result = validate(options, validation_set, rule, model, decode)
                stopped_by = stop.agreed()
            if stopped_by is None and run.finish_epoch(result) and validation_set is not None:
                best_on = {**validation_set.identity(), "protocol": rule}
            checkpoint = make_checkpoint(options, run, sets, model, state)
            if is_main_process():
                run.save(checkpoint, best_on=best_on)
            if stopped_by is not None:
                largest(0)  # waits: torchrun kills the others soon after the first has ended
                logger.warning("Saved %s; go on with --resume.", run.last_path)
                return 128 + stopped_by
    if is_main_process():
        logger.info("Done: %s", run.last_path)
        logger.info("Score it: %s", scoring_command(options, run.last_path, rule))
    return 0


def train_one_epoch(
    options: opts.TrainOptions,
    run: TrainingRun,
    loader: ClipLoader,
    first: int,
    model: Method,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    stop: Interruption,
) -> int | None:
    """Make the steps of an epoch from run.step on; return the signal that stopped it early, if any."""
    batch_size = options.optimisation.batch_size
    device = next(model.parameters()).device
    bar = tqdm(
        desc=f"epoch {run.epoch + 1}/{options.optimisation.epochs}",
        initial=run.step * batch_size,
        total=run.steps_per_epoch * batch_size,
        unit="clip",
        disable=not is_main_process(),
    )
    with bar:
        for decoded in loader:
            run.note_broken(decoded.broken)  # they are left out; all processes cut their batches to one size
            batch = decoded.part(slice(smallest(len(decoded))))
            if len(batch) < 2:
                logger.warning("Skipped a batch of which %d clips could be read.", len(batch))
                run.step += 1
            else:
                seed = hash_seed(options.run.seed, run.epoch, run.step)
                model.before_step(run.epoch, run.step)
                views = model.augment(batch.to(device), seed, first=first, global_size=batch_size)
                output = take_step(views, wrapped, optimizer, scaler, options.compute.precision)
                run.note_step(output.loss, output.terms, batch.clip_ids)
                if run.step == run.steps_per_epoch:
                    frames = to_displayable(views["frames"][:NUM_PICTURES])
                    maps = output.similarity_map[:NUM_PICTURES].float().cpu().numpy()
                    run.add_pictures(frames, maps, batch.clip_ids[:NUM_PICTURES])
                if run.num_summed:
                    bar.set_postfix(loss=f"{run.sums['loss'] / run.num_summed:.3f}", refresh=False)
            bar.update(batch_size)
            stopped_by = stop.agreed()
            if stopped_by is not None:
                return stopped_by
    return None


def take_step(
    views: dict[str, Any],
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: Precision,
) -> TrainingOutput:
    """Make one step on the training views of a batch."""
    with autocast(next(wrapped.parameters()).device, precision):
        output: TrainingOutput = wrapped(**views)
    scaler.scale(output.loss).backward()
    scaler.step(optimizer)  # left out where fp16 has overflown
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return output


def build_model(options: opts.TrainOptions, device: torch.device) -> tuple[Method, nn.Module]:
    """Build the model with its initial weights on a device, and what is called to train it."""
    torch.manual_seed(options.run.seed)
    model = METHODS[options.method].model.from_options(options).train()
    if not options.run.resume:  # else the weights are those of last.pth
        model.load_start(options)
    # Convolutions are faster with the channels innermost, but for float32 on a GPU.
    innermost = device.type == "cpu" or options.compute.precision in ("bf16", "fp16")
    layout = torch.channels_last if innermost else torch.contiguous_format
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    wrapped: nn.Module = model
    if world_size() > 1:
        synchronise_batch_norms(model)
        device_ids = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
    if options.compute.compile:
        for network in model.networks():
            network.compile(dynamic=False)  # sizes are those of the batch, always
    return model, wrapped


@contextmanager
def evaluating(model: Method) -> Iterator[None]:
    """Put the model into eval mode, without gradients, and back."""
    model.eval()
    with torch.inference_mode():
        yield
    model.train()


def validate(
    options: opts.TrainOptions, validation_set: ClipSet, rule: str, model: Method, decode: Decode
) -> dict[str, float]:
    """Score the model on the validation benchmark; on a part of it when stopped."""
    clips = AudioVisualClips(
        shard(validation_set.clips, rank(), world_size()),
        geometry=FrameGeometry(options.frame.frame_size),
        audio=options.audio,
    )
    use_full_float32()
    with evaluating(model):
        result = evaluate_localisation(
            lambda batch: model.localise(*model.prepare(batch.frames, batch.waveforms)),
            decode(clips, "validation"),
            [PROTOCOLS[rule]],
        )
    use_full_float32(options.compute.precision != "tf32")
    for clip_id, reason in result.unreadable:
        logger.warning("Validation clip %s is not scored: %s", clip_id, reason)
    return {"clips": len(result.headline), **result.scores()}


def decode_all(
    options: opts.TrainOptions, device: torch.device, stop: Interruption, clips: AudioVisualClips, words: str
) -> Iterator[Batch]:
    """Decode clips in order, as many at once as a training step has; end early when stopped."""
    own = local_slice(options.optimisation.batch_size)
    size, workers = own.stop - own.start, options.data.workers
    with ClipLoader(clips, batch_size=size, workers=workers, pin_memory=device.type == "cuda") as loader:
        for batch in tqdm(loader, words, unit="batch", leave=False, disable=not is_main_process()):
            yield batch.to(device)
            if stop.signal_number is not None and batch.clip_ids:  # a validation needs one that can be read
                return


def scoring_command(options: opts.TrainOptions, checkpoint: Path, rule: str) -> str:
    """Return the command that scores on the validation's benchmark, or else on the data set's own."""
    chosen, data = options.validation, options.data
    words = ["--benchmark", str(chosen.validation_benchmark), "--data-root", str(chosen.validation_root)]
    if chosen.validation_list is not None:
        words += ["--clip-list", chosen.validation_list]
    if chosen.validation_benchmark is None:
        benchmark, root = find_test_set(data.train_set, data.data_root)
        words = ["--benchmark", benchmark, "--data-root", str(root or f"FOLDER_OF_{benchmark.upper()}")]
    if rule != "ssl_tie":
        words += ["--protocol", f"{rule},ssl_tie"]
    words += ["--output", str(checkpoint.parent / "results" / words[1])]
    script = os.path.relpath(Path(__file__).with_name("scripts") / "run.sh")
    return shlex.join(["bash", script, "test.py", "localisation", "--checkpoint", str(checkpoint), *words])


def build_validation_set(options: opts.TrainOptions, training_set: ClipSet) -> ClipSet | None:
    """List the validation clips, checked against the training clips; None where none are named."""
    chosen = options.validation
    if chosen.validation_benchmark is None:
        return None
    validation_set = build_clips(
        chosen.validation_benchmark,
        chosen.validation_root,
        clip_list=chosen.validation_list,
        allow_missing=options.data.allow_missing,
    )
    leak = find_leak(training_set.known_ids, validation_set.source_ids, purpose="validation")
    if not leak["checked"]:
        logger.warning("Unknown whether validation clips are trained on: ids are missing or named otherwise.")
    elif leak["num_clips"]:
        logger.warning("%s", leak["message"])
    return validation_set


ClipSets = tuple[ClipSet, ClipSet | None]  # of training, and of validation if there is one


def make_checkpoint(
    options: opts.TrainOptions, run: TrainingRun, sets: ClipSets, model: Method, state: dict[str, Any]
) -> Checkpoint:
    """Collect all that rebuilds the model and goes on with the run; all processes must call it.

    `state` has the optimizer, the scaler, and the curriculum or None, by name.
    """
    training_set, validation_set = sets
    plain = opts.as_plain(options)
    states = {name: part.state_dict() for name, part in state.items() if part is not None}
    return Checkpoint(
        method=options.method,
        method_config=plain["model"],
        audio_config=plain["audio"],
        frame_config=plain["frame"],
        state_dict=model.state_dict(),
        training_clips=training_set.known_ids,
        training_list=training_set.list_record(),
        epoch=run.epoch,
        step=run.step,
        options=plain,
        optimizer=states.pop("optimizer"),
        progress=run.progress() | states | {"validation_clips": validation_set and validation_set.known_ids},
    )


def restore(
    options: opts.TrainOptions, run: TrainingRun, sets: ClipSets, model: Method, state: dict[str, Any]
) -> None:
    """Put model, run and state (see `make_checkpoint`) where last.pth left them; refuse another run's."""
    training_set, validation_set = sets
    checkpoint = parse_checkpoint(read_checkpoint_file(run.last_path), run.last_path)
    differences = opts.differences_that_matter(checkpoint.options, opts.as_plain(options))
    same = checkpoint.training_clips == training_set.known_ids
    if training_set.known_ids is None:  # of rows only their number is known
        same = same and checkpoint.training_list.get("sha256") == training_set.list_sha256
    if not same:
        differences.append("the training clips")
    validated = checkpoint.progress.get("validation_clips")  # of which the best epoch so far is the best
    if validated and validation_set and validated != validation_set.known_ids:
        differences.append("the validation clips")
    if differences:
        raise ValueError(
            f"{run.last_path} was trained with other settings: {'; '.join(differences)}. "
            "Resume with the same ones, or start anew in another --output."
        )
    model.load_state_dict(checkpoint.state_dict)
    states = {"optimizer": checkpoint.optimizer, **checkpoint.progress}
    for name, part in state.items():
        if part is not None:
            part.load_state_dict(states[name])
    for weight, values in state["optimizer"].state.items():  # fused Adam takes the weights' layout for theirs
        for name, value in values.items():
            if value.shape == weight.shape:
                values[name] = torch.empty_like(weight).copy_(value)
    run.restore(checkpoint)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 2 for bad input, 128 + signal when stopped."""

    def command() -> int:
        options = opts.parse_train_options(arguments)
        if options.run.dry_run:
            sys.stdout.write(json.dumps(opts.as_plain(options), indent=2) + "\n")
            return 0
        return train(options)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
