"""Rounding to INT8 in training: what Q/DQ nodes compute, with gradients for what is rounded and for the step size.

LSQ (Esser et al., 2020, arXiv 1902.08153): a value within the range passes its gradient on, one beyond it does not;
the step size learns from how far each value was rounded (equation 3), times 1 / sqrt(N * 127) (section 2.2).

The steps of activations have four significant bits, those of weights are powers of two, and biases are multiples of the
product of the steps that they are added to. The products and sums of a layer are then exact in float32: as integers
they have four bits more than the sums of the levels themselves, two more where a mean adds up many of them, and float32
holds 24. So every runtime makes the same numbers of the same file. Else a value in the middle between two levels,
summed up in another order, becomes another level in one runtime than in the next; and ONNX Runtime (1.32) rounds biases
to those multiples itself. How far outputs are apart then: benchmarks/results/qat-steps.json.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 127
"""Of INT8; weights have it on both sides."""
_BITS = 4  # significant ones of an activation's step size: it is off by 1/16 at most
_BITS_AVERAGED = 2  # where the layer that reads it is averaged over many positions: it is off by 1/5 at most
_WEIGHT_BITS = 1
_FINE = 12  # bits behind the first of the largest number of a constant that sums and bounds read
_LEAST = 1e-30  # of a step size, which is positive


def rounded_step(scale: Tensor, bits: int) -> Tensor:
    """Return the nearest number with that many significant bits, for each."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)


def on_grid(bias: Tensor, unit: Tensor) -> Tensor:
    """Return the nearest multiples of the unit; gradients pass."""
    with torch.no_grad():
        moved = torch.round(bias / unit) * unit - bias
    return bias + moved


class _Rounding(torch.autograd.Function):
    """x to the nearest of `scale` times low..high."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, share: float) -> Tensor:
        level = x / scale
        ctx.save_for_backward(level, scale)
        ctx.low, ctx.share = low, share
        return level.round().clamp_(low, LARGEST).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        level, scale = ctx.saved_tensors
        kept = level.round().clamp_(ctx.low, LARGEST)
        inside = (level >= ctx.low) & (level <= LARGEST)
        of_step = torch.where(inside, kept - level, kept).mul_(gradient)
        return gradient * inside, of_step.sum_to_size(scale.shape) * ctx.share, None, None


def fine_unit(size: Tensor) -> Tensor:
    """Return what a constant of that size is a multiple of: far finer than INT8, and as coarse as sums stay exact."""
    _, exponent = torch.frexp(size)
    return torch.ldexp(torch.ones_like(size), exponent - 1 - _FINE)


class Step(nn.Module):
    """A step size, or one for each channel, learned as its logarithm: it stays positive, and moves in proportion."""

    def __init__(self, scale: Tensor, bits: int) -> None:
        super().__init__()
        self._bits = bits
        self.log = nn.Parameter(scale.clamp_min(_LEAST).log())

    def forward(self) -> Tensor:
        """Return the step, with gradients of the exact one."""
        exact = self.log.exp()
        with torch.no_grad():
            moved = rounded_step(exact, self._bits) - exact
        return exact + moved


class Activation(nn.Module):
    """Tensors with one scale, as their Q/DQ pairs give them on. averaged: so is what a layer makes of them."""

    def __init__(self, scale: Tensor, *, averaged: bool = False) -> None:
        super().__init__()
        bits = _BITS_AVERAGED if averaged else _BITS
        self.step = Step(rounded_step(scale, bits), bits)

    def forward(self, x: Tensor) -> Tensor:
        """Round a batch (N, ...)."""
        features = max(1, x[:1].numel())
        made: Tensor = _Rounding.apply(x, self.step(), -LARGEST - 1, 1 / math.sqrt(features * LARGEST))  # type: ignore[no-untyped-call]
        return made


class Learned(nn.Module):
    """A constant of a graph that learns, in units of its own size.

    An optimizer that moves all parameters by about the same (Adam) moves then each by the same share of what it is.
    """

    def __init__(self, value: Tensor, size: Tensor | None = None) -> None:
        super().__init__()
        size = value.abs().max() if size is None else size
        size = torch.where(size > 0, size, torch.ones_like(size))
        self.size: Tensor
        self.register_buffer("size", size)
        self.value = nn.Parameter(value / size)

    def forward(self) -> Tensor:
        """Return the constant."""
        return self.value * self.size


class Weight(nn.Module):
    """A weight that is stored as INT8. scale: broadcasts to it."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        dims = [at for at in range(weight.dim()) if scale.dim() == 0 or scale.shape[at] == 1]
        largest = weight.abs().amax(dims, keepdim=scale.dim() > 0)
        self.exact = Learned(weight, largest)
        step = rounded_step(scale, _WEIGHT_BITS)
        # Rounded up where the largest weight would not fit: to the next of as many bits.
        up = rounded_step(step * (1 + 2.0 ** (1 - _WEIGHT_BITS)), _WEIGHT_BITS)
        self.step = Step(torch.where(step < scale, up, step), _WEIGHT_BITS)

    def stored(self) -> Tensor:
        """Return what INT8 keeps of it, in steps."""
        level: Tensor = self.exact() / self.step()
        return level.round().clamp(-LARGEST, LARGEST).to(torch.int8)

    def forward(self) -> Tensor:
        """Return the weight as it is after INT8."""
        weight, step = self.exact(), self.step()
        share = 1 / math.sqrt(weight.numel() / step.numel() * LARGEST)
        made: Tensor = _Rounding.apply(weight, step, -LARGEST, share)  # type: ignore[no-untyped-call]
        return made
