"""The audio-mixing curriculum of SSL-TIE: some training sounds are mixed with their nearest other sound.

From an epoch on, more clips and more of the other sound with every epoch. With n = 1 in the first such epoch
…

    probability = min(1, 0.1 + 0.01 n)        strength = min(0.5, 0.01 n)
    waveform = (1 - strength) own + strength other

Nearest is by cosine of the audio embeddings, with the weights at the beginning of an epoch, the encoder in
evaluation mode, and sounds without SpecAugment. Waveforms are mixed, at one rate, each cut and repeated as in
plain training; SpecAugment masks the mixture. The frame, and with it what is to be found, stays the clip's
own.

Deliberate differences from the authors' program, which does not start as it was released:

1. Both schedules are capped. Theirs lets the probability pass 1 and the strength reach 1 in epoch 100, where
   nothing of a clip's own sound is left.
2. A clip is never its own nearest sound. Theirs leaves it among the candidates, where it all but always wins;
   then nothing is mixed. With 4,000 drawn from 144k clips that befalls 2.8 % of them.
3. Embeddings are of sounds as they are. Theirs are of masked ones, as in a training step.
4. The 4,000 candidates are drawn once for all clips of an epoch; of a smaller set, all are candidates. Theirs
   are drawn anew for each 256 clips, and cannot be drawn from fewer.
5. A sound without any feature, whose embedding is 0, is neither mixed nor mixed in.
6. Embeddings are made from the sounds alone. Theirs decode every clip twice, with its frame.
7. Any data set can be mixed. Theirs mixes VGGSound only, though its scripts ask for Flickr too.
8. The other sound is resampled to the method's rate like every sound; theirs ignores its rate.
9. Whether a clip is mixed follows from seed, epoch and step, so that --resume changes nothing.
10. Mixing goes on to the end. Theirs has an option for its last epoch, which nothing reads.

From which epoch on the authors mix, and how their strength begins, is not known to us: it is taken to grow as
the probability does.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.clips import AudioVisualClips, Batch, Clip, Mixture
from datasets.frames import FrameGeometry
from utils.distributed import gather_objects, rank, shard, world_size
from utils.options import Options, option

logger = logging.getLogger(__name__)

NOBODY = -1
"""In the place of a neighbour: the clip is not mixed"""
NUM_CANDIDATES = 4000


@dataclass(frozen=True, kw_only=True)
class AudioMixingOptions(Options):
    """Mixing training sounds with their nearest ones, more with every epoch; off by default."""

    audio_mixing: bool = False
    """mix some clips' sounds with their nearest other training sound"""
    mixing_start_epoch: int = option(1, at_least=1)
    """first epoch with mixing, counted from 1"""


class Mixing(NamedTuple):
    """What is mixed in an epoch."""

    partners: Tensor
    """int64 (N,) for each clip the position of the other; below 0: the clip is not mixed"""
    probability: float
    """of a clip to be mixed"""
    strength: float
    """share of the other sound"""

    def __call__(self, positions: Sequence[int], seed: int) -> list[int | Mixture]:
        """Turn the positions of a batch into requests for clips, some of them for mixtures."""
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(len(positions), generator=generator).tolist()
        partners = self.partners[list(positions)].tolist()
        return [
            Mixture(position, partner, self.strength)
            if draw < self.probability and partner >= 0
            else position
            for position, draw, partner in zip(positions, draws, partners, strict=True)
        ]


class MixingCurriculum:
    """Where a run stands in the curriculum: each clip's nearest sound, and the epoch it was found in.

    This is part of a checkpoint: in the middle of an epoch, the weights that they were found with are gone.
    """

    def __init__(
        self,
        options: AudioMixingOptions,
        clips: Sequence[Clip],
        audio: Any,  # noqa: ANN401 - of any method
        seed: int,
        *,
        excerpt_seconds: float | None = None,
    ) -> None:
        """Nothing has been found.

        Args:
            options: from which epoch on sounds are mixed.
            clips: the N training clips.
            audio: configuration of what the method hears.
            seed: of the run.
            excerpt_seconds: use only the first seconds of each sound; None: the window.
        """
        self.options = options
        self.clips = clips
        self.audio = audio
        self.seed = seed
        self.excerpt_seconds = excerpt_seconds
        self.epoch: int | None = None
        """counted from 0, whose first weights gave the partners"""
        self.partners = torch.empty(0, dtype=torch.int64)
        """(N,) position of each clip's nearest sound, or NOBODY"""

    def needs_search(self, epoch: int) -> bool:
        """Tell whether an epoch, counted from 0, needs a search, with the weights at its beginning."""
        return epoch + 1 >= self.options.mixing_start_epoch and self.epoch != epoch

    def search(
        self,
        epoch: int,
        model: Any,  # noqa: ANN401 - a Method
        decode: Callable[[AudioVisualClips, str], Iterable[Batch]],
        stopped: Callable[[], int | None],
    ) -> None:
        """Find the nearest sounds; all processes must call it.

        Args:
            epoch: that is about to begin, counted from 0.
            model: has `prepare` and `embed_audio`.
            decode: gives the batches of a data set, on the model's device, with words for the progress bar.
            stopped: tells whether a signal has come meanwhile; then nothing is found.
        """
        sounds = AudioVisualClips(
            shard(self.clips, rank(), world_size()),
            geometry=FrameGeometry(1),
            audio=self.audio,
            excerpt_seconds=self.excerpt_seconds,
            content="sounds",
        )
        clip_ids: list[str] = []
        broken: list[str] = []
        rows: list[Tensor] = []
        for batch in decode(sounds, "embedding sounds"):
            broken += [clip.clip_id for clip in batch.broken]
            if batch.clip_ids:
                clip_ids += batch.clip_ids
                rows.append(model.embed_audio(model.prepare(batch.frames, batch.waveforms)[1]).float().cpu())
        if stopped() is not None:
            return
        clip_ids, broken = gather_objects(clip_ids), gather_objects(broken)
        embeddings = torch.cat(gather_objects(rows)) if clip_ids else torch.empty(0, 1)  # (M, D)
        if broken:
            logger.warning(
                "%d training sounds cannot be read and are not mixed in, first: %s", len(broken), broken[0]
            )
        place_of = {clip.clip_id: place for place, clip in enumerate(self.clips)}
        places = torch.tensor([place_of[clip_id] for clip_id in clip_ids], dtype=torch.int64)
        self.partners = torch.full((len(self.clips),), NOBODY)
        heard = embeddings.norm(dim=1) > 0
        places = places[heard]
        if len(places) > 1:
            self.partners[places] = places[nearest_others(embeddings[heard], (self.seed, epoch))]
        self.epoch = epoch

    def mixing_for_epoch(self, epoch: int) -> Mixing | None:
        """Return what an epoch, counted from 0, mixes; None before --mixing-start-epoch."""
        count = epoch + 2 - self.options.mixing_start_epoch  # epochs with mixing up to this one, and with it
        if count < 1:
            return None
        probability, strength = min(1.0, 0.1 + 0.01 * count), min(0.5, 0.01 * count)
        logger.info(
            "Epoch %d: %.0f %% of the clips are mixed, with %.0f %% of their nearest sound.",
            epoch + 1, 100 * probability, 100 * strength,
        )  # fmt: skip
        return Mixing(self.partners, probability, strength)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"found_in": self.epoch, "places": self.partners.to(torch.int32)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epoch, self.partners = state["found_in"], state["places"].to(torch.int64)


def nearest_others(
    embeddings: Tensor, seed: Sequence[int], *, num_candidates: int = NUM_CANDIDATES
) -> Tensor:
    """Find the nearest other row of each row by cosine; all processes must call it.

    Each process searches for its part of the rows; all get the whole result.

    Args:
        embeddings: (N, D), N at least 2.
        seed: of the draw of candidates, the same in all processes.
        num_candidates: rows drawn, among which is searched; all, where there are fewer.

    Returns:
        int64 (N,).
    """
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415 - takes a second, and few runs mix

    rows = torch.nn.functional.normalize(embeddings.double(), dim=1).numpy()
    rng = np.random.default_rng(list(seed))
    candidates = np.sort(rng.permutation(len(rows))[:num_candidates])
    own = np.array(shard(range(len(rows)), rank(), world_size()), dtype=np.int64)
    best = np.empty(0, np.int64)
    if len(own):
        # Of unit rows, the nearest are those of the largest cosine.
        search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(rows[candidates])
        first, second = candidates[search.kneighbors(rows[own], return_distance=False)].T
        best = np.where(first == own, second, first)
    return torch.from_numpy(np.concatenate(gather_objects([best])))
