"""Subtracting the batch mean per channel, at hardly more than the cost of a bare convolution.

The backward of a convolution does not need its output, so the mean is taken off that output in place, and nothing
is saved for the backward. With z = y - mean(y) + shift, the gradient that y receives is g - mean(g).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _CentreInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, shift: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
        ctx.dims = [dim for dim in range(y.dim()) if dim != channel_dim]
        mean = y.mean(ctx.dims)
        ctx.view = [-1 if dim == channel_dim else 1 for dim in range(y.dim())]
        y.add_((shift - mean).view(ctx.view))
        ctx.mark_dirty(y)
        ctx.mark_non_differentiable(mean)
        return y, mean

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0]
        total = grad.sum(ctx.dims)
        count = grad.numel() // total.numel()
        return grad - (total / count).view(ctx.view), total, None


def centre_(y: Tensor, shift: Tensor, *, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Subtract the mean of y per channel and add shift (C,), in place; return y and the mean (C,), which is detached.

    y must be the fresh output of an operation whose backward does not need it (a convolution, a matrix product).
    Raises ValueError if y has nothing but the channels.
    """
    if y.dim() < 2:
        raise ValueError(f"a mean over the batch needs a batch: the output has shape {tuple(y.shape)}")
    if y._is_view():  # a convolution's output for one image without a batch, which autograd keeps from in-place changes
        y = y.clone()
    centred, mean = _CentreInPlace.apply(y, shift, channel_dim)  # type: ignore[no-untyped-call]
    return centred, mean
