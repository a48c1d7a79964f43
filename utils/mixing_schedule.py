"""The audio-mixing curriculum of SSL-TIE: how often, how strongly and with what sounds are mixed.

From an epoch on, some clips are heard together with the sound that is nearest to theirs; more clips
and more of that sound with every epoch. With n = 1 in the first such epoch, n = 2 in the next …

    probability = min(limit, 0.1 + 0.01 n)        strength = min(limit, 0.01 n)

Nearest is by cosine of the audio embeddings, with the weights at the beginning of an epoch, the
encoder in evaluation mode, and sounds without SpecAugment.

Deliberate differences from the authors' program, which does not start as it was released:

1. Both schedules are capped. Theirs lets the probability pass 1 and the strength reach 1 in epoch
   100, where nothing of a clip's own sound is left; the limit of the strength is 0.5 here.
2. A clip is never its own nearest sound. Theirs leaves it among the candidates, where it all but
   always wins; then nothing is mixed. With 4,000 drawn from 144k clips that befalls 2.8 % of them.
3. Embeddings are of sounds as they are. Theirs are of masked ones, as in a training step.
4. The candidates are drawn once for all clips, and may be all clips. Theirs are drawn anew for each
   256 clips, and cannot be drawn from fewer than 4,000.
5. The search is exact, with equal scores ordered by place in the clip list; a sound without any
   feature, whose embedding is 0, is neither mixed nor mixed in.
6. Embeddings are made from the sounds alone. Theirs decode every clip twice, with its frame.
7. Any data set can be mixed. Theirs mixes VGGSound only, though its scripts ask for Flickr too.
8. Neighbours can be kept for several epochs.
9. Mixing goes on to the end. Theirs has an option for its last epoch, which nothing reads.

What is mixed, and how, is in datasets/audio_mixing.py. From which epoch on the authors mix, and how
their strength begins, is not known to us: it is taken to grow as the probability does.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils.distributed import gather_objects, is_main_process, rank, shard, world_size
from utils.evaluation.retrieval import Embeddings, merge_embeddings, nearest

logger = logging.getLogger(__name__)

NOBODY = -1
"""In the place of a neighbour: the clip is not mixed."""
SEEDS_PER_RUN = 1_000_003
"""More than there are epochs, so that no two seeds of candidates are the same."""


@dataclass(frozen=True, kw_only=True)
class AudioMixingOptions:
    """Mixing training sounds with their nearest ones, more with every epoch; off by default."""

    audio_mixing: bool = False
    """mix some clips' sounds with their nearest other training sound"""
    mixing_start_epoch: int = 1
    """first epoch with mixing, counted from 1"""
    mixing_probability: float = 0.1
    """share of the clips that are mixed, before it grows"""
    mixing_probability_growth: float = 0.01
    """what is added to the share in every epoch with mixing, the first one included"""
    mixing_probability_limit: float = 1.0
    """largest share"""
    mixing_strength: float = 0.0
    """share of the other sound in the mixture, before it grows"""
    mixing_strength_growth: float = 0.01
    """what is added to the strength in every epoch with mixing, the first one included"""
    mixing_strength_limit: float = 0.5
    """largest strength; above 0.5 the other sound outweighs the own"""
    mixing_candidates: int = 4000
    """clips drawn at random, among which each clip's nearest sound is looked for; 0: all"""
    mixing_refresh: int = 1
    """epochs after which embeddings and neighbours are computed anew"""

    def __post_init__(self) -> None:
        """Refuses values without meaning, and settings of a thing that is switched off."""
        if self.mixing_start_epoch < 1 or self.mixing_refresh < 1:
            raise ValueError(
                "--mixing-start-epoch and --mixing-refresh must be at least 1, got "
                f"{self.mixing_start_epoch} and {self.mixing_refresh}"
            )
        if self.mixing_candidates != 0 and self.mixing_candidates < 2:
            raise ValueError(
                "--mixing-candidates must be 0 (all clips) or at least 2, one of which may be the "
                f"clip itself; got {self.mixing_candidates}"
            )
        for name in ("mixing_probability", "mixing_strength"):
            start, growth, limit = (getattr(self, name + end) for end in ("", "_growth", "_limit"))
            flag = "--" + name.replace("_", "-")
            if not 0 <= start <= limit <= 1:
                raise ValueError(
                    f"{flag} and {flag}-limit must be from 0 to 1, the limit not below the start, "
                    f"got {start} and {limit}"
                )
            if not 0 <= growth <= 1:
                raise ValueError(f"{flag}-growth must be from 0 to 1, got {growth}")
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if changed and not self.audio_mixing:
            raise ValueError(f"--{changed[0].replace('_', '-')} needs --audio-mixing.")

    def is_on(self, epoch: int) -> bool:
        """Whether sounds are mixed in an epoch, counted from 0."""
        return self.audio_mixing and epoch + 1 >= self.mixing_start_epoch

    def probability_in(self, epoch: int) -> float:
        """Share of the clips that are mixed in an epoch with mixing, counted from 0."""
        grown = self.mixing_probability + self.mixing_probability_growth * self._count(epoch)
        return min(self.mixing_probability_limit, grown)

    def strength_in(self, epoch: int) -> float:
        """Share of the other sound in the mixture in an epoch with mixing, counted from 0."""
        grown = self.mixing_strength + self.mixing_strength_growth * self._count(epoch)
        return min(self.mixing_strength_limit, grown)

    def refreshed_in(self, epoch: int) -> int:
        """The epoch, counted from 0, whose first weights the neighbours of an epoch come from."""
        count = self._count(epoch) - 1
        return epoch - count % self.mixing_refresh

    def _count(self, epoch: int) -> int:
        """Epochs with mixing up to this one, and with it."""
        return epoch + 1 - self.mixing_start_epoch + 1


class MixingCurriculum:
    """Where a run stands in the curriculum: each clip's nearest sound, and when it was found.

    This is part of a checkpoint: in the middle of an epoch, or where neighbours are kept for
    several, the weights that they were found with are gone.
    """

    def __init__(self, options: AudioMixingOptions | None, clip_ids: Sequence[str], seed: int) -> None:
        """Nothing has been found.

        Args:
            options: the schedule; None: nothing is mixed.
            clip_ids: of the N training clips.
            seed: of the run.
        """
        self.options = options or AudioMixingOptions()
        self.clip_ids = clip_ids
        self.seed = seed
        self.found_in: int | None = None
        """the epoch, counted from 0, whose first weights gave the neighbours"""
        self.places = torch.empty(0, dtype=torch.int64)
        """(N,) of each clip's nearest among the clips, or NOBODY"""

    def is_due(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, needs a search, with the weights at its beginning."""
        chosen = self.options
        return chosen.is_on(epoch) and self.found_in != chosen.refreshed_in(epoch)

    def search(self, epoch: int, embeddings: Embeddings, device: torch.device) -> None:
        """Finds the nearest sounds; all processes must call it.

        Args:
            epoch: that is about to begin, counted from 0.
            embeddings: of this process's part of the clips, those that could be read.
            device: to search on.
        """
        merged = merge_embeddings(gather_objects([embeddings]))
        if merged.unreadable:
            logger.warning(
                "%d training sounds cannot be read and are not mixed in, first: %s",
                len(merged.unreadable), merged.unreadable[0][1],
            )  # fmt: skip
        hidden = not is_main_process()
        with tqdm(desc="nearest sounds", unit="clip", leave=False, disable=hidden) as bar:
            self.places = places_of_nearest(
                merged,
                self.clip_ids,
                num_candidates=self.options.mixing_candidates,
                seed=(self.seed * SEEDS_PER_RUN + epoch) % 2**62,
                device=device,
                on_queries=bar.update,
            )
        self.found_in = epoch

    def in_epoch(self, epoch: int) -> tuple[Tensor, float, float] | None:
        """What an epoch, counted from 0, mixes.

        Returns:
            each clip's nearest (N,), the share of the clips that are mixed and the share of the
            other sound in the mixture; None where nothing is mixed.
        """
        if not self.options.is_on(epoch):
            return None
        share, strength = self.options.probability_in(epoch), self.options.strength_in(epoch)
        logger.info(
            "Epoch %d: %.0f %% of the clips are mixed, with %.0f %% of their nearest sound.",
            epoch + 1, 100 * share, 100 * strength,
        )  # fmt: skip
        return self.places, share, strength

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"found_in": self.found_in, "places": self.places.to(torch.int32)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.found_in, self.places = state["found_in"], state["places"].to(torch.int64)


def places_of_nearest(
    embeddings: Embeddings,
    clip_ids: Sequence[str],
    *,
    num_candidates: int,
    seed: int,
    device: torch.device | None = None,
    on_queries: Callable[[int], object] | None = None,
) -> Tensor:
    """The nearest other sound of each clip, by cosine; all processes must call it.

    Each process searches for its part of the clips; all get the whole result.

    Args:
        embeddings: of the clips that could be read, from all processes.
        clip_ids: of all N clips.
        num_candidates: clips drawn among which is searched, at least 2; 0: all.
        seed: of that draw, the same in all processes.
        device: to compute on; None: the CPU.
        on_queries: called with the number of clips done since the last call.

    Returns:
        int64 (N,) places in `clip_ids`; NOBODY for clips that were not embedded, whose embedding is
        0, or that have no other candidate.
    """
    place_of = {clip_id: place for place, clip_id in enumerate(clip_ids)}
    places = torch.tensor([place_of[clip_id] for clip_id in embeddings.clip_ids])
    found = torch.full((len(clip_ids),), NOBODY)
    heard = torch.linalg.vector_norm(embeddings.audio, dim=1) > 0
    audio, places = embeddings.audio[heard], places[heard]
    if len(places) < 2:
        return found
    candidates = torch.arange(len(places))
    if 0 < num_candidates < len(places):
        generator = torch.Generator().manual_seed(seed)
        candidates = torch.randperm(len(places), generator=generator)[:num_candidates]
    # In the clip list's order, by which equal scores are told apart.
    candidates = candidates[places[candidates].argsort()]
    own = torch.tensor(shard(range(len(places)), rank(), world_size()), dtype=torch.int64)
    best = torch.empty(0, dtype=torch.int64)
    if len(own):
        neighbours = nearest(
            audio[own],
            audio[candidates],
            2,
            device=device,
            on_block=None if on_queries is None else lambda places, scores: on_queries(len(scores)),
        )
        first, second = candidates[torch.from_numpy(neighbours.indices)].T
        best = torch.where(first == own, second, first)
    found[places] = places[torch.cat(gather_objects([best]))]
    return found
