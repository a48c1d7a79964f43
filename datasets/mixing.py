"""The audio-mixing curriculum of SSL-TIE: some training sounds are mixed with their nearest other sound.

More clips and more of the other sound with every epoch. With n = 1 in the first epoch with mixing

    probability = min(1, 0.1 + 0.01 n)        strength = min(0.5, 0.01 n)
    waveform = (1 - strength) own + strength other

Nearest is by cosine of the audio embeddings, with the weights at the beginning of an epoch, the encoder in
evaluation mode, and sounds without SpecAugment, which masks the mixture. The frame stays the clip's own.

Deliberate differences from the authors' program, which does not start as it was released:

1. The strength is capped: theirs grows to 0.99 in epoch 100, where next to nothing of the own sound is left.
2. A clip is never its own nearest sound; theirs all but always is, where it is among the candidates.
3. Embeddings are of whole sounds, without their frames; theirs decode both and mask the sounds.
4. The 4,000 candidates are drawn once an epoch, or all taken of a smaller set; theirs for each 256 clips.
5. A sound without any feature, whose embedding is 0, is neither mixed nor mixed in.
6. Any data set can be mixed, each sound at the method's rate; theirs mixes VGGSound and ignores the rate.
7. Who is mixed follows from seed, epoch and step, so that --resume changes nothing; and goes on to the end.
8. Sounds are repeated to fill the window and then mixed; theirs cuts both to the shorter one, mixes, and
   repeats the mixture. The training cuts of 3 s are all of one length.

Theirs searches after an epoch, for the next one: the first with mixing is the second, as by default here.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.clips import AudioVisualClips, Batch, Mixture
from utils.distributed import gather_objects, rank, shard, world_size
from utils.options import Options, option

logger = logging.getLogger(__name__)

NOBODY = -1  # in the place of a partner: the clip is not mixed


@dataclass(frozen=True, kw_only=True)
class AudioMixingOptions(Options):
    """Mixing training sounds with their nearest ones, more with every epoch; off by default."""

    audio_mixing: bool = False  # mix some clips' sounds with their nearest other training sound
    mixing_start_epoch: int = option(2, at_least=1)  # first epoch with mixing, counted from 1


class Mixing(NamedTuple):
    """What is mixed in an epoch."""

    partners: Tensor  # int64 (N,) position of each clip's partner, or NOBODY
    probability: float  # of a clip to be mixed
    strength: float  # share of the other sound

    def __call__(self, positions: Sequence[int], seed: int) -> list[int | Mixture]:
        """Turn the positions of a batch into requests for clips, some of them for mixtures."""
        draws = torch.rand(len(positions), generator=torch.Generator().manual_seed(seed)).tolist()
        requests: list[int | Mixture] = list(positions)
        for place, (position, draw) in enumerate(zip(positions, draws, strict=True)):
            partner = int(self.partners[position])
            if draw < self.probability and partner != NOBODY:
                requests[place] = Mixture(position, partner, self.strength)
        return requests


class MixingCurriculum:
    """Where a run stands in the curriculum: each clip's nearest sound, and the epoch it was found in.

    This is part of a checkpoint: in the middle of an epoch, the weights that they were found with are gone.
    """

    def __init__(self, options: AudioMixingOptions, sounds: AudioVisualClips, seed: int) -> None:
        """Take the N training clips, of which only sounds are read, and the seed of the run."""
        self.options, self.sounds, self.seed = options, sounds, seed
        self.epoch: int | None = None  # counted from 0, whose first weights gave the partners
        self.partners = torch.empty(0, dtype=torch.int64)  # (N,) position of each nearest sound, or NOBODY

    def needs_search(self, epoch: int) -> bool:
        """Tell whether an epoch, counted from 0, needs a search, with the weights at its beginning."""
        return epoch + 1 >= self.options.mixing_start_epoch and self.epoch != epoch

    def search(
        self,
        epoch: int,
        model: Any,  # noqa: ANN401 - a Method with `embed_audio`
        decode: Callable[[AudioVisualClips, str], Iterable[Batch]],
        stopped: Callable[[], int | None],
    ) -> None:
        """Find the nearest sounds for the epoch that is about to begin; all processes must call it.

        `decode` gives the batches of a data set, on the model's device, with words for the progress bar.
        After a signal, of which `stopped` tells, nothing is found.
        """
        own = replace(self.sounds, clips=shard(self.sounds.clips, rank(), world_size()), content="sounds")
        clip_ids: list[str] = []
        broken: list[str] = []
        rows: list[Tensor] = []
        for batch in decode(own, "embedding sounds"):
            broken += [clip.clip_id for clip in batch.broken]
            if batch.clip_ids:
                clip_ids += batch.clip_ids
                with torch.autocast(batch.waveforms.device.type, enabled=False):
                    sounds = model.prepare(batch.frames, batch.waveforms)[1]
                rows.append(model.embed_audio(sounds).float().cpu())
        if stopped() is not None:
            return
        clip_ids, broken = gather_objects(clip_ids), gather_objects(broken)
        if broken:
            words = "%d training sounds cannot be read and are not mixed in, first: %s"
            logger.warning(words, len(broken), broken[0])
        embeddings = torch.cat(gather_objects(rows)) if clip_ids else torch.empty(0, 1)  # (M, D)
        heard = embeddings.norm(dim=1) > 0  # (M,)
        place_of = {clip.clip_id: place for place, clip in enumerate(self.sounds.clips)}
        places = torch.tensor([place_of[clip_id] for clip_id in clip_ids], dtype=torch.int64)[heard]
        self.partners = torch.full((len(place_of),), NOBODY)
        if len(places) > 1:
            self.partners[places] = places[nearest_others(embeddings[heard], (self.seed, epoch))]
        self.epoch = epoch

    def mixing_for_epoch(self, epoch: int) -> Mixing | None:
        """Return what an epoch, counted from 0, mixes; None before --mixing-start-epoch."""
        n = epoch + 2 - self.options.mixing_start_epoch
        if n < 1:
            return None
        probability, strength = min(1.0, 0.1 + 0.01 * n), min(0.5, 0.01 * n)
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


def nearest_others(embeddings: Tensor, seed: Sequence[int], *, num_candidates: int = 4000) -> Tensor:
    """Return the place (N,) of each row's nearest other by cosine, of embeddings (N, D), N at least 2.

    It is one of the candidates, rows that `seed` draws. All processes must call it: each searches for its
    part of the rows, all get the whole result.
    """
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415 - takes a second, and few runs mix

    rows = torch.nn.functional.normalize(embeddings.double(), dim=1).numpy()
    candidates = np.sort(np.random.default_rng(list(seed)).permutation(len(rows))[:num_candidates])
    own = np.array(shard(range(len(rows)), rank(), world_size()), dtype=np.int64)
    best = np.empty(0, np.int64)
    if len(own):
        # Of unit rows, the nearest are those of the largest cosine.
        search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(rows[candidates])
        first, second = candidates[search.kneighbors(rows[own], return_distance=False)].T
        best = np.where(first == own, second, first)
    return torch.from_numpy(np.concatenate(gather_objects([best])))
