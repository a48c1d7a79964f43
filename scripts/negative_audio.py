"""Scores a localiser with sounds that are not in the picture: the task `test.py negatives`.

    python test.py negatives --checkpoint ckpts/vggsound144k.pth.tar --benchmark vgg_ss \
        --data-root data/VGGSound_test --labels metadata/lvs_vgg_ss_boxes.json --output results/n

Every clip is decoded twice, once for the sounds of all and once for the frames.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.audio import (
    AudioConfig,
    LogMelSpectrogram,
    LogSpectrogram,
    MiddleSpectrogramConfig,
    SegmentConfig,
    SpectrogramConfig,
)
from datasets.clip_sets import ClipSet, build_clips
from datasets.clips import Batch, Clip, Content
from datasets.transforms import as_float, normalise
from datasets.views import TestViews
from models.localiser import Localiser, load_localiser
from scripts.scoring import build_loader, describe, with_classes
from utils.checkpoint import file_sha256
from utils.distributed import gather_objects, is_main_process, process_group, rank, shard, world_size
from utils.negative_audio import (
    ClipSounds,
    OffScreen,
    Scene,
    SoundBank,
    compare_with_sounds,
    draw_off_screen,
    encode_sounds,
    scenes_of,
)
from utils.negative_audio_results import (
    NegativeResult,
    NegativeSetting,
    read_threshold,
    write_negative_results,
)
from utils.negative_audio_scores import MEDIAN_RULE, Scoring, find_extremes, score_maps, universal_threshold
from utils.negative_audio_tables import render_table, screen_table
from utils.negative_options import NegativeOptions
from utils.reproducibility import pick_device, use_full_float32

logger = logging.getLogger("test")

AudioInput = AudioConfig | SegmentConfig | SpectrogramConfig

HALF_COSINE = ("ez_vsl_or_fnac", "slavc")
"""whose authors' similarity is (cosine + 1) / 2; that of all others, SSPL too, is the cosine"""
COMPRESSED_AS_PUBLISHED = ("lvs", "ssl_align")
"""whose silence and noise pass the whole front end in the authors' program"""


def run(options: NegativeOptions, command: str) -> int:
    """Scores a checkpoint; returns 0, or 2 when clips broke on the way."""
    use_full_float32()
    with process_group(pick_device(options.device)) as device:
        if not is_main_process():
            logging.getLogger().setLevel(logging.ERROR)
        return score_on(device, options, command)


def score_on(device: torch.device, options: NegativeOptions, command: str) -> int:
    """Scores in this process its part of the clips; the main one writes the results of all."""
    trained = load_localiser(options.checkpoint, device)
    clip_set = build_clips(
        options.benchmark,
        options.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        allow_missing=options.allow_missing,
    )
    setting = describe_setting(options, trained, clip_set, device, command)
    setting.check(options.output)
    scenes = scenes_of_clips(clip_set.clips, setting.context.classes, options.off_screen)
    # Refused here, if at all: encoding all sounds takes long.
    draw_off_screen([clip.clip_id for clip in clip_set.clips], scenes, 0)
    task = _Task(options, trained, setting, device)
    own_part = replace(clip_set, clips=shard(clip_set.clips, rank(), world_size()))
    own, off_screen = task.encode_sounds(own_part)
    donors = [draw_off_screen(own.clip_ids, scenes, seed) for seed in range(options.seeds)]
    result = task.score(own_part, own, off_screen, np.stack(donors))
    status = 2 if result.unreadable and not options.allow_missing else 0
    if not is_main_process():
        return status
    summary = write_negative_results(options.output, setting, result)
    for warning in summary["warnings"]:
        logger.warning("%s", warning)
    report = f"Report: {options.output / 'report.html'}"
    if options.table is not None:
        sys.stdout.write(render_table(summary, options.table))
        logger.info("%s", report)
    else:
        sys.stdout.write(f"{screen_table(summary)}\n{report}\n")
    return status


def scenes_of_clips(
    clips: Sequence[Clip], classes: Mapping[str, str] | None, off_screen: OffScreen
) -> dict[str, Scene]:
    """Which sounds are right for which frames, see `scenes_of`.

    Clips of a pair or with one picture (VPO) are one scene; so are, where any other clip's sound is
    off-screen, clips with one sound, such as the frames of a video.

    Args:
        clips: all that are there.
        classes: of the clips, by id; None: not known.
        off_screen: whether the classes decide or the files.

    Raises:
        ValueError: classes are needed but not known.
    """
    return scenes_of(
        [clip.clip_id for clip in clips],
        [clip.pair_key for clip in clips],
        classes,
        off_screen,
        pictures=[clip.scene for clip in clips],
        sound_files=[clip.sound for clip in clips],
    )


def describe_setting(
    options: NegativeOptions, trained: Localiser, clip_set: ClipSet, device: torch.device, command: str
) -> NegativeSetting:
    """What stands beside the scores, and by which rule they are made."""
    sha256, method = file_sha256(options.checkpoint), trained.checkpoint.method
    context = describe(options, trained, clip_set, device, sha256, command)
    if options.labels is not None:
        context = with_classes(context, options.labels, clip_set.clip_ids)
    scoring = Scoring(method in HALF_COSINE, options.published_thresholds(method))
    held_out = None
    if options.threshold_from is not None:
        source, ids = options.threshold_from, clip_set.clip_ids
        held_out = read_threshold(source, sha256, scoring.similarity, ids)
    return NegativeSetting(
        context=context,
        scoring=scoring,
        num_seeds=options.seeds,
        off_screen=options.off_screen,
        given_threshold=options.threshold,
        threshold_from=held_out,
        peer=options.published_peer(method),
    )


def negative_front_end(
    audio: AudioInput, peer: str | None, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """What turns waveforms (B, L) of silence and noise into the audio encoder's input.

    Args:
        audio: what the method hears.
        peer: whose program is repeated with its errors, which leaves spectrograms of silence and
            noise uncompressed for most; None: the method's own front end.
        device: of the waveforms.
    """
    if peer is not None and isinstance(audio, SpectrogramConfig):
        audio = replace(audio, cut=False)  # the authors cut no noise
    front_end = audio.build_front_end().to(device)
    if peer is None or peer in COMPRESSED_AS_PUBLISHED:
        return front_end
    assert isinstance(front_end, LogMelSpectrogram | LogSpectrogram), peer
    return lambda waveforms: front_end.power(waveforms).float()[:, None]


class _Task:
    """The parts of one evaluation that run the model."""

    def __init__(
        self, options: NegativeOptions, trained: Localiser, setting: NegativeSetting, device: torch.device
    ) -> None:
        self.options, self.trained = options, trained
        self.setting, self.device = setting, device

    def encode_sounds(self, clip_set: ClipSet) -> tuple[ClipSounds, ClipSounds]:
        """Sounds of all clips as frames' own, and as others' off-screen sounds."""
        audio = self.trained.audio
        if self.setting.peer is None or not isinstance(audio, MiddleSpectrogramConfig):
            sounds = self._encode(clip_set, audio, "sounds")
            return sounds, sounds
        # The authors take off-screen sounds from the beginning of the file, FNAC's own ones too.
        first = self._encode(clip_set, replace(audio, centred=False), "off-screen sounds")
        if self.setting.peer == "fnac":
            return first, first
        return self._encode(clip_set, audio, "sounds"), first

    def _encode(self, clip_set: ClipSet, audio: AudioInput, title: str) -> ClipSounds:
        trained = replace(self.trained, audio=audio)
        views = TestViews(audio, self.device)
        return encode_sounds(
            trained.model,  # type: ignore[arg-type]  # all of LOCALISERS offer it
            # Frames too: a clip whose frame is broken is not to lend its sound.
            self._batches(trained, clip_set, title, "both"),
            lambda batch: views(batch)[1],
        )

    def score(
        self, clip_set: ClipSet, own: ClipSounds, off_screen: ClipSounds, donors: np.ndarray
    ) -> NegativeResult:
        """Compares all frames with all sounds, finds the threshold, scores by it."""
        audio, scoring = self.trained.audio, self.setting.scoring
        front_end = negative_front_end(audio, self.setting.peer, self.device)
        sounds = SoundBank(own, off_screen, donors, front_end, audio.num_samples)
        heard = tuple(clip for clip in clip_set.clips if clip.clip_id in sounds.places)
        maps = compare_with_sounds(
            self.trained.model,  # type: ignore[arg-type]  # all of LOCALISERS offer it
            self._batches(self.trained, replace(clip_set, clips=heard), "frames", "frames"),
            lambda batch: normalise(as_float(batch.frames)),
            sounds,
        )
        clip_ids = tuple(gather_objects(maps.clip_ids))
        if not clip_ids:
            raise ValueError("No clip could be scored: every frame broke between two readings.")
        extremes = find_extremes(maps, scoring, self.device)
        threshold = self._threshold(extremes)
        scores = score_maps(maps, scoring, threshold, self.device)
        num_bytes = sum(gather_objects([maps.num_bytes]))
        unreadable = (*own.unreadable, *gather_objects(maps.unreadable))
        heard_with = [sounds.places[clip_id] for clip_id in clip_ids]
        donor_ids = np.array(own.clip_ids)[donors[:, heard_with]]
        return NegativeResult(clip_ids, extremes, scores, threshold, donor_ids, num_bytes, unreadable)

    def _threshold(self, extremes: dict[str, np.ndarray]) -> float:
        setting = self.setting
        if setting.scoring.published is not None:
            found = setting.scoring.published.third_quartile
        elif setting.given_threshold is not None:
            found = setting.given_threshold
        elif setting.threshold_from is not None:
            found = setting.threshold_from["value"]
        else:
            return universal_threshold({kind: of[..., -1] for kind, of in extremes.items()})
        return float(np.float32(found))

    def _batches(
        self, trained: Localiser, clip_set: ClipSet, title: str, content: Content
    ) -> Iterator[Batch]:
        loader = build_loader(self.options, trained, clip_set, self.device, MEDIAN_RULE.map_size, content)
        hidden = not is_main_process()
        with loader, tqdm(total=len(clip_set.clips), desc=title, unit="clip", disable=hidden) as bar:
            for batch in loader:
                yield batch.to(self.device)
                bar.update(len(batch))
