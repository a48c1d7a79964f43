"""Training clips whose sounds are mixed with those of other clips.

What is mixed is waveforms, at one sample rate, before the spectrogram is made: a clip's sound and
the other's are each cut and repeated as in plain training, then

    waveform = (1 - strength) own + strength other

and SpecAugment masks the mixture's spectrogram. The frame, and with it what is to be found, stays
the clip's own. Neither sound is made louder or softer first. Differences from the authors' program:

1. The other sound is resampled to the method's rate like every sound; theirs ignores its rate.
2. Whether a clip is mixed is a function of the clip's own seed in this epoch, so that neither the
   batch around it nor a stop and --resume change it.
3. A sound that cannot be decoded leaves its clip out of the batch, and is named.

Which sounds, how often and how strongly: utils/mixing_schedule.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from datasets.audio import load_waveform, tile
from datasets.clip_draws import uniform_draws
from datasets.clips import AudioVisualClips, BrokenClip, ClipRequest, Sample
from datasets.loaders import SeededBatches
from utils.files import BrokenFileError


class MixedRequest(NamedTuple):
    """A request for a clip that is heard together with another's sound."""

    position: int
    """of the clip in the data set"""
    crop_seed: int
    """below 2**62"""
    other: int
    """position of the clip whose sound is mixed in"""
    strength: float
    """share of that sound"""


@dataclass(frozen=True)
class Mixing:
    """What is mixed in an epoch."""

    others: Tensor
    """int64 (N,) for each clip the position of the other; below 0: the clip is not mixed"""
    probability: float
    """of a clip to be mixed"""
    strength: float
    """share of the other sound"""

    def applied_to(self, requests: Sequence[ClipRequest]) -> list[ClipRequest | MixedRequest]:
        """The requests of a batch, some of them for mixtures."""
        draws = uniform_draws([request.crop_seed for request in requests], "mixing", 1)[:, 0]
        others = self.others[[request.position for request in requests]].tolist()
        return [
            MixedRequest(*request, other, self.strength)
            if draw < self.probability and other >= 0
            else request
            for request, draw, other in zip(requests, draws, others, strict=True)
        ]


class MixingBatches(SeededBatches):
    """Shuffled batches, some clips of which are to be mixed while `mixing` is set."""

    mixing: Mixing | None = None
    """set it before iterating"""

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        """Yields the requests of each batch; those for mixtures are MixedRequests."""
        for requests in super().__iter__():
            if self.mixing is None:
                yield requests
            else:
                yield self.mixing.applied_to(requests)  # type: ignore[misc]  # see above


class MixingClips(AudioVisualClips):
    """Decodes clips, and mixes the sounds of those that are asked for so."""

    def __getitem__(self, request: ClipRequest | MixedRequest) -> Sample | BrokenClip:
        """Decodes one clip; a mixture is as long as the window."""
        sample = super().__getitem__(ClipRequest(request.position, request.crop_seed))
        if isinstance(request, ClipRequest) or isinstance(sample, BrokenClip):
            return sample
        try:
            other = load_waveform(
                self.clips[request.other].audio_source, self.audio, excerpt_seconds=self.excerpt_seconds
            )
        except BrokenFileError as error:
            return BrokenClip(sample.clip_id, f"the sound to be mixed in: {error}")
        own = tile(sample.waveform[None], [len(sample.waveform)], self.audio.num_samples)[0]
        mixture = (1 - request.strength) * own + request.strength * other
        return replace(sample, waveform=mixture)
