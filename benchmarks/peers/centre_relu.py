"""Centring fused with the ReLU behind it, as Triton kernels: an arm of train_step.py on a GPU, no part of the package.

    TRITON_INTERPRET=1 python benchmarks/peers/centre_relu.py

checks it on a CPU against plain operations. One pass over the output adds the offset and clamps it, where two
operations take two; the backward reads gradient and output twice and writes once, where three operations read four
times and write twice. It goes into the package if it wins on a GPU: that has not been measured.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.msn import MSNConv2d

_BLOCK = 1024
_ROWS, _COLUMNS = 64, 32


@triton.jit
def _channel(at: Any, length: Any, channels: Any, last: tl.constexpr) -> Any:
    return at % channels if last else (at // length) % channels


@triton.jit
def _forward(
    y: Any, offset: Any, count: Any, length: Any, channels: Any, last: tl.constexpr, block: tl.constexpr
) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    value = tl.load(y + at, mask=inside) + tl.load(offset + _channel(at, length, channels, last), mask=inside)
    tl.store(y + at, tl.maximum(value, 0.0), mask=inside)


@triton.jit
def _sums(grad: Any, out: Any, total: Any, length: Any, channels: Any, block: tl.constexpr) -> None:
    """Of one image and channel, which lie one behind the other."""
    row = tl.program_id(0)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < length
    kept = tl.load(out + row * length + column, mask=inside, other=0.0) > 0
    value = tl.load(grad + row * length + column, mask=inside, other=0.0)
    tl.atomic_add(total + row % channels, tl.sum(tl.where(kept, value, 0.0).to(tl.float32)))


@triton.jit
def _sums_last(
    grad: Any, out: Any, total: Any, count: Any, channels: Any, rows: tl.constexpr, columns: tl.constexpr
) -> None:
    """Of a tile of a matrix of positions by channels."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    at = row[:, None] * channels + column[None, :]
    inside = (row[:, None] < count) & (column[None, :] < channels)
    kept = tl.load(out + at, mask=inside, other=0.0) > 0
    value = tl.load(grad + at, mask=inside, other=0.0)
    tl.atomic_add(total + column, tl.sum(tl.where(kept, value, 0.0).to(tl.float32), axis=0), mask=column < channels)


@triton.jit
def _backward(
    grad: Any, out: Any, mean: Any, made: Any, count: Any, length: Any, channels: Any,
    last: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    kept = tl.load(out + at, mask=inside, other=0.0) > 0
    value = tl.where(kept, tl.load(grad + at, mask=inside, other=0.0), 0.0)
    tl.store(made + at, value - tl.load(mean + _channel(at, length, channels, last), mask=inside), mask=inside)


class _CentreReLU(torch.autograd.Function):
    """relu(y - mean(y) + shift) for a fresh y (N, C, H, W), in place; returns the mean (C,), too."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        images, channels, height, width = y.shape
        ctx.last = not y.is_contiguous()
        mean = y.sum((0, 2, 3), dtype=torch.float32) / (images * height * width)
        grid = (triton.cdiv(y.numel(), _BLOCK),)
        _forward[grid](y, shift - mean, y.numel(), height * width, channels, last=ctx.last, block=_BLOCK)
        ctx.mark_dirty(y)
        ctx.mark_non_differentiable(mean)
        ctx.save_for_backward(y)
        return y, mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        (out,) = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last if ctx.last else torch.contiguous_format)
        images, channels, height, width = out.shape
        length = height * width
        total = torch.zeros(channels, device=out.device)
        if ctx.last:
            grid = (triton.cdiv(images * length, _ROWS), triton.cdiv(channels, _COLUMNS))
            _sums_last[grid](grad, out, total, images * length, channels, rows=_ROWS, columns=_COLUMNS)
        else:
            _sums[(images * channels, triton.cdiv(length, _BLOCK))](grad, out, total, length, channels, block=_BLOCK)
        made = torch.empty_like(grad)
        grid = (triton.cdiv(out.numel(), _BLOCK),)
        mean = total / (images * length)
        _backward[grid](grad, out, mean, made, out.numel(), length, channels, last=ctx.last, block=_BLOCK)
        return made, total


class MSNConvReLU2d(MSNConv2d):
    """relu(MSNConv2d(x)) in training, for an input that is a batch."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        y = self._apply_weight(input, self._normalised_weight(), None, output_size)
        y, mean = _CentreReLU.apply(y, self.shift)  # type: ignore[no-untyped-call]
        self._track(mean, None)
        return y


def fused(model: nn.Module) -> nn.Module:
    """Make each MSNConv2d that an nn.Sequential reads by a ReLU one with its ReLU, in place; return the model."""
    for module in [each for each in model.modules() if isinstance(each, nn.Sequential)]:
        layers = list(module.named_children())
        for (_, one), (name, other) in itertools.pairwise(layers):
            convolution = one[0] if isinstance(one, nn.Sequential) and len(one) else one
            if type(other) is nn.ReLU and type(convolution) is MSNConv2d:
                convolution.__class__ = MSNConvReLU2d
                setattr(module, name, nn.Identity())
    return model


def check() -> float:
    """Return how far outputs and gradients are from those of plain operations, relative to the largest value."""
    worst = 0.0
    for sizes in ((3, 5, 4, 4), (2, 40, 9, 7), (65, 2, 1, 1)):
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.manual_seed(len(layout.__repr__()) + sizes[0])
            device = "cuda" if torch.cuda.is_available() else "cpu"
            x = torch.randn(sizes, device=device).to(memory_format=layout) + 0.5
            shift, upstream = torch.randn(sizes[1], device=device), torch.randn(sizes, device=device)
            found, wanted = [], []
            for results, function in ((found, _by_triton), (wanted, _by_torch)):
                leaves = (x.clone().requires_grad_(), shift.clone().requires_grad_())
                y = function(*leaves)
                results += [y.detach(), *torch.autograd.grad(y, leaves, upstream)]
            for one, other in zip(found, wanted, strict=True):
                worst = max(worst, float((one - other).abs().max() / other.abs().max()))
    return worst


def _by_triton(x: Tensor, shift: Tensor) -> Tensor:
    y: Tensor = _CentreReLU.apply(x * 1.0, shift)[0]  # type: ignore[no-untyped-call]
    return y


def _by_torch(x: Tensor, shift: Tensor) -> Tensor:
    return F.relu(x - x.mean((0, 2, 3), keepdim=True) + shift.view(-1, 1, 1))


if __name__ == "__main__":
    apart = check()
    print(f"outputs and gradients differ by {apart:.1e} of the largest value")
    raise SystemExit(apart > 1e-5)
