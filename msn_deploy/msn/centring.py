"""Subtracting the batch mean per channel, at hardly more than the cost of a bare convolution.

The backward of a convolution does not need its output, so the mean is taken off that output in place, and nothing
is saved for the backward. Written with a sum rather than a mean, so that autograd scales the small (C,) tensor and
hands the big one a gradient with stride 0: with z = y - mean(y) + shift, y receives g - mean(g) in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def centre_(y: Tensor, shift: Tensor | None, *, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Subtract the mean of y per channel and add shift (C,), in place; return y and the mean (C,), detached.

    y must be a fresh output that the backward of the operation behind it does not need: of a convolution, a matrix
    product, a concatenation. Raises
    ValueError if y has nothing but the channels.
    """
    if y.dim() < 2:
        raise ValueError(f"a mean over the batch needs a batch: the output has shape {tuple(y.shape)}")
    dims = [dim for dim in range(y.dim()) if dim != channel_dim]
    count = y.numel() // y.shape[channel_dim]
    wide = torch.float32 if y.dtype in (torch.float16, torch.bfloat16) else y.dtype
    total = y.sum(dims, dtype=wide)
    mean = total / count
    offset = -mean if shift is None else shift - mean
    view = [-1 if dim == channel_dim else 1 for dim in range(y.dim())]
    return y.add_(offset.view(view).to(y.dtype)), mean.detach()


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

    def _start_centring(self, zeros: Tensor, *, shift: bool, momentum: float | None, track_running_stats: bool) -> None:
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie between 0 and 1, or be None, got {momentum}")
        self.momentum = momentum
        self.shift = nn.Parameter(zeros.clone()) if shift else None
        self.register_buffer("running_mean", zeros if track_running_stats else None)
        batches = torch.zeros((), dtype=torch.long, device=zeros.device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", batches)

    def _centre_(self, y: Tensor, *, channel_dim: int, gain: Tensor | None = None) -> Tensor:
        """Centre y in place and move the running mean; with a gain, y is gain times what the running mean is of."""
        y, mean = centre_(y, self.shift, channel_dim=channel_dim)
        if self.training and self.running_mean is not None and not in_backward():
            self._track(mean, gain)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, gain: Tensor | None) -> None:
        assert self.running_mean is not None
        assert self.num_batches_tracked is not None
        if gain is not None:
            # A channel whose gain is zero tells nothing of its mean, and keeps the last one.
            mean = torch.where(gain == 0, self.running_mean, mean / gain)
        self.num_batches_tracked.add_(1)
        average = self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()
        momentum = average if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
