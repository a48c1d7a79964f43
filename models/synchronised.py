"""Batch norms whose statistics are those of the batches of all processes together.

N processes with B clips each then normalise as one process with N * B clips does. torch's own
SyncBatchNorm refuses CPU tensors; this one is the same on both, so that a test without a GPU says
something about training with several.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from models.encoders import RepeatedBatchNorm2d
from models.gather import num_processes


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm over the global batch in training, and plain otherwise.

    Forward and backward each take one collective; all processes must call the layer in the same
    order. Local batches may differ in size, but none may be empty.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalises (B, C, ...) to the same shape and precision."""
        if not self.training or num_processes() == 1:
            return super().forward(features)
        self._check_input_dim(features)
        statistics = _global_statistics(features)
        if self.track_running_stats:
            self._move_running_statistics(statistics)
        return _Normalise.apply(features, self.weight, self.bias, statistics, self.eps)

    @torch.no_grad()
    def _move_running_statistics(self, statistics: "_Statistics") -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # As in torch, no momentum stands for the mean of all batches so far.
        share = 1.0 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        mean, variance, num_values = statistics
        unbiased_variance = variance * num_values / (num_values - 1)
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var), share)


class SynchronisedBatchNorm1d(nn.BatchNorm1d, SynchronisedBatchNorm):
    """Of (B, C) or (B, C, L)."""


class SynchronisedBatchNorm2d(nn.BatchNorm2d, SynchronisedBatchNorm):
    """Of (B, C, h, w)."""


class SynchronisedRepeatedBatchNorm2d(RepeatedBatchNorm2d, SynchronisedBatchNorm):
    """Of (B, C, h, w), its running statistics moved as by several passes."""


COUNTERPARTS: dict[type[nn.Module], type[SynchronisedBatchNorm]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    RepeatedBatchNorm2d: SynchronisedRepeatedBatchNorm2d,
}
"""Plain batch norm -> the same one, synchronised."""


def synchronise_batch_norms(module: nn.Module) -> None:
    """Synchronises every batch norm in a module.

    The layers stay the same objects and only change their class: names, parameters, buffers and
    what refers to them, such as an optimiser, are untouched.

    Args:
        module: changed in place; its batch norms may be synchronised already.

    Raises:
        ValueError: it has a batch norm of a kind that cannot be synchronised.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, _BatchNorm) or isinstance(layer, SynchronisedBatchNorm):
            continue
        counterpart = COUNTERPARTS.get(type(layer))
        if counterpart is None:
            raise ValueError(
                f"{name or 'The module'} is a {type(layer).__name__}, which has no synchronised "
                f"counterpart; known are {', '.join(kind.__name__ for kind in COUNTERPARTS)}. Add "
                "it to COUNTERPARTS in models/synchronised.py."
            )
        layer.__class__ = counterpart


def _all_but_channels(features: Tensor) -> list[int]:
    return [0, *range(2, features.ndim)]


class _Statistics(NamedTuple):
    """Of a batch, for each channel."""

    mean: Tensor
    """(C,)"""
    variance: Tensor
    """(C,), biased"""
    num_values: Tensor
    """scalar, values in a channel"""


@torch.no_grad()
def _global_statistics(features: Tensor) -> _Statistics:
    """Statistics over all processes, at least float32.

    Variances are joined with those of the local means, as sums of squares would cancel where the
    mean is large.
    """
    precise = features.to(torch.promote_types(features.dtype, torch.float32))
    local_variance, local_mean = torch.var_mean(precise, dim=_all_but_channels(features), correction=0)
    local_count = local_mean.new_full((1,), features.numel() // features.shape[1])
    # float64 also holds the counts exactly.
    packed = torch.cat([local_mean.double(), local_variance.double(), local_count.double()])
    parts = [torch.empty_like(packed) for _ in range(num_processes())]
    dist.all_gather(parts, packed)
    channels = features.shape[1]
    means, variances, counts = torch.stack(parts).split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    variance = (counts * (variances + (means - mean).square())).sum(dim=0) / count
    return _Statistics(*(value.to(precise.dtype) for value in (mean, variance, count)))


class _Normalise(torch.autograd.Function):
    """Normalises by statistics of the global batch, which depend on the features of all.

    With x' = (x - mean) / std, output y = w x' + b and sums over the global batch of N values,

        dL/dx = w / std (dL/dy - sum(dL/dy) / N - x' sum(x' dL/dy) / N).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context has no type
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: _Statistics,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(features, weight, *statistics)
        ctx.eps = eps
        return F.batch_norm(
            features, statistics.mean, statistics.variance, weight, bias, training=False, eps=eps
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        features, weight, mean, variance, num_values = ctx.saved_tensors
        per_channel = (1, -1) + (1,) * (features.ndim - 2)
        dims = _all_but_channels(features)
        inverse_std = (variance + ctx.eps).rsqrt()
        precise = gradient.to(mean.dtype)
        centred = features.to(mean.dtype) - mean.view(per_channel)
        sums = torch.stack([precise.sum(dims), (precise * centred).sum(dims) * inverse_std])
        weight_gradient = bias_gradient = None
        if weight is not None:
            # Of the local batch alone: the data-parallel wrapper averages them as all others.
            bias_gradient, weight_gradient = sums.to(weight.dtype, copy=True)
        dist.all_reduce(sums)
        mean_gradient, mean_product = sums / num_values
        slope = -mean_product * inverse_std
        scale = inverse_std if weight is None else inverse_std * weight
        centred.mul_(slope.view(per_channel)).add_(precise)
        centred.sub_(mean_gradient.view(per_channel)).mul_(scale.view(per_channel))
        return centred.to(features.dtype), weight_gradient, bias_gradient, None, None
