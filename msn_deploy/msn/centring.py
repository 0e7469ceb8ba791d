"""Subtracting the batch mean per channel in place, exactly, without keeping anything for the backward.

The backward of a convolution does not need its output, so the mean is taken off that output in place, and
nothing is saved for the backward. Written with a sum rather than a mean, so that autograd scales the small (C,) tensor
and hands the big one a gradient with stride 0: with z = y - mean(y) + shift, y receives g - mean(g) in one pass.

The mean could also go through the bias: a convolution is linear, so that the mean of its output is W times the window
mean of its input. That passes over the output twice less and costs small operations instead: tried, and not kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from msn_deploy.msn.spectral import HALF


def centre_(y: Tensor, shift: Tensor | None, *, channel_dim: int, over_ranks: bool = False) -> tuple[Tensor, Tensor]:
    """Subtract the mean of y per channel and add shift (C,), in place; return y and the mean (C,), detached.

    y must be a fresh output that the backward of the operation behind it does not need: of a convolution, a matrix
    product, a concatenation. over_ranks: the mean is that over all processes of torch.distributed's default group.
    Raises ValueError if y has nothing but the channels.
    """
    if y.dim() < 2:
        raise ValueError(f"a mean over the batch needs a batch: the output has shape {tuple(y.shape)}")
    channels = y.shape[channel_dim]
    total = _sum_per_channel(y, channel_dim)
    count: float | Tensor = y.numel() // channels
    if over_ranks and dist.is_available() and dist.is_initialized():
        total, count = _over_ranks(total, y.numel() // channels)
    mean = total / count
    offset = -mean if shift is None else shift - mean
    view = (channels, *[1] * (y.dim() - 1 - channel_dim))
    return y.add_(offset.view(view).to(y.dtype)), mean.detach()


def _sum_per_channel(y: Tensor, channel_dim: int) -> Tensor:
    dims = [dim for dim in range(y.dim()) if dim != channel_dim]
    return y.sum(dims, dtype=torch.float32 if y.dtype in HALF else None)


def _over_ranks(total: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Add up sums (C,) and counts of all ranks; the gradients are added up over the ranks as well."""
    summed: Tensor = _AllReduce.apply(torch.cat([total, total.new_full((1,), count)]))  # type: ignore[no-untyped-call]
    return summed[:-1], summed[-1].detach()


class _AllReduce(torch.autograd.Function):
    """The sum over all ranks, and of its gradient: torch's own, in torch.distributed.nn, is deprecated."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        reduced: Tensor = _AllReduce.apply(grad)  # type: ignore[no-untyped-call]
        return reduced


def in_backward() -> bool:
    """Tell whether autograd is running a backward: gradient checkpointing calls forward again there.

    That second call must see the u and v of the first, and must not count in the running mean again.
    """
    if torch.compiler.is_compiling():  # which traces through no such question, and replays no forward of ours
        return False
    return bool(torch._C._current_graph_task_id() != -1)  # no public name for it


class Centring(nn.Module):
    """State of a layer that takes the mean off: shift, running mean, and how it is tracked."""

    shift: nn.Parameter | None
    running_mean: Tensor | None
    num_batches_tracked: Tensor | None

    def _start_centring(
        self, zeros: Tensor, *, shift: bool, momentum: float | None, track_running_stats: bool, sync_mean: bool
    ) -> None:
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie between 0 and 1, or be None, got {momentum}")
        self.momentum = momentum
        self.sync_mean = sync_mean
        self.shift = nn.Parameter(zeros.clone()) if shift else None
        self.register_buffer("running_mean", zeros if track_running_stats else None)
        batches = torch.zeros((), dtype=torch.long, device=zeros.device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", batches)

    def _centre_(self, y: Tensor, *, channel_dim: int, gain: Tensor | None = None) -> Tensor:
        """Centre y in place and move the running mean; with a gain, y is gain times what the running mean is of."""
        over_ranks = self.sync_mean and self.training
        y, mean = centre_(y, self.shift, channel_dim=channel_dim, over_ranks=over_ranks)
        self._track(mean, gain)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, gain: Tensor | None) -> None:
        """Move the running mean, in training, towards the mean of a batch, (C,), which is gain times what it is of."""
        running = self.running_mean
        if not self.training or running is None or in_backward():
            return
        assert self.num_batches_tracked is not None
        if gain is not None:
            # A channel whose gain is zero tells nothing of its mean, and keeps the last one.
            mean = torch.where(gain == 0, running, mean / gain)
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            running.lerp_(mean.to(running.dtype), self.num_batches_tracked.to(running.dtype).reciprocal())
        else:
            running.lerp_(mean.to(running.dtype), self.momentum)
