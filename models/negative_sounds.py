"""Embeddings of sounds that no frame shows, for the contrast to push away.

They are encoded apart from the clips' sounds, with the batch norms' running statistics, which stay
as they are:

1. The clips' sounds are normalised among themselves, as without negative sounds. Silence among them
   would move their mean and variance in every step.
2. Silence is embedded as it will be at test time, where it is alone as well.
3. The embeddings are the same in all processes, so that nothing has to be exchanged.

Gradients reach all weights of the encoder, but do not go through the statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Lets the batch norms of a module normalise by their running statistics, and leaves those.

    Backward needs the statistics that forward saw. They are moved in place by the next training
    forward, and by activations that are computed again; hence the copies.

    Args:
        module: its batch norms track running statistics.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [(norm.training, norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            norm.eval()
            norm.running_mean = norm.running_mean.clone()
            norm.running_var = norm.running_var.clone()
        yield
    finally:
        for norm, (training, mean, variance) in zip(norms, before, strict=True):
            norm.train(training)
            norm.running_mean, norm.running_var = mean, variance


def mean_similarity(logits: Tensor, temperature: float, num_sounds: int, num_negative: int) -> Tensor:
    """Mean similarity of a batch's frames with the negative sounds, without gradient.

    Args:
        logits: (B, 1 + A + K [+ 1]) of trimap_contrastive_logits, the K negative sounds last among
            the sounds.
        temperature: divisor of the logits.
        num_sounds: A, sounds of clips.
        num_negative: K.

    Returns:
        scalar; cosine, over each frame's region that is positive for the sound.
    """
    first = 1 + num_sounds
    return logits.detach()[:, first : first + num_negative].mean() * temperature
