"""Folding a normalisation into a plain weight and bias, exactly: pure functions of tensors.

MSN and SN  W' = gain / sigma * W                  b' = gain * (b - mean) + shift
BN          W' = gain / sqrt(var + eps) * W        b' = gain / sqrt(var + eps) * (b - mean) + shift

The arithmetic is done in float64 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msn_deploy.core.errors import FoldError


def fold_msn_weights(
    weight: Tensor,
    bias: Tensor,
    *,
    sigma: Tensor,
    mean: Tensor,
    gain: Tensor,
    shift: Tensor,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Fold y = gain * (conv(x, W / sigma) + b - mean) + shift into one plain convolution or matrix product.

    Source: arXiv 1907.04003; SN is mean = 0, gain = 1, shift = 0.

    Args:
        weight: (C_out, ...), or (C_in, C_out / groups, ...) if transposed.
        bias: (C_out,), as are mean, gain and shift.
        sigma: (), above 0; dimensionless.
        mean: Running mean of the layer's output.
        gain: Factor per channel.
        shift: Added last.
        transposed: Whether the weight is that of a transposed convolution.
        groups: Of a transposed convolution.

    Returns:
        New tensors W' = gain / sigma * W and b' = gain * (b - mean) + shift in the dtype of weight.

    Raises:
        FoldError: sigma is not positive, or a value is not finite.
    """
    value = float(sigma)
    if not 0 < value < float("inf"):
        raise FoldError(
            f"sigma is {value}, not a positive finite number.\nLikely cause: a weight that is all zero or NaN."
        )
    factor = gain.double() / sigma.double()
    return _scaled(weight, factor, transposed, groups), _offset(weight, bias, gain, mean, shift)


def fold_bn_weights(
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Tensor,
    var: Tensor,
    eps: float,
    gain: Tensor,
    shift: Tensor,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Fold y = gain * (conv(x, W) + b - mean) / sqrt(var + eps) + shift into one plain convolution or matrix product.

    Shapes as in `fold_msn_weights`; var (C_out,) >= 0.
    Raises FoldError if var + eps is not positive, or a value not finite.
    """
    scale = bn_scale(gain, var, eps)
    return _scaled(weight, scale, transposed, groups), _offset(weight, bias, scale, mean, shift)


def bn_scale(gain: Tensor, var: Tensor, eps: float) -> Tensor:
    """Return gain / sqrt(var + eps), shape (C_out,), in float64. Raises FoldError if it is not finite."""
    scale = gain.double() / torch.sqrt(var.double() + eps)
    if not bool(torch.isfinite(scale).all()):
        raise FoldError(
            "a BatchNorm has a variance that is negative or not finite.\nLikely cause: a diverged training."
        )
    return scale


def scale_channels(weight: Tensor, scale: Tensor, *, transposed: bool, groups: int) -> Tensor:
    """Multiply a weight by scale (C_out,) along its output channels, which a transposed one has in dim 1, per group."""
    if not transposed:
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    rest = [1] * (weight.dim() - 2)
    grouped = weight.view(groups, -1, *weight.shape[1:]) * scale.view(groups, 1, -1, *rest)
    return grouped.view_as(weight)


def _scaled(weight: Tensor, factor: Tensor, transposed: bool, groups: int) -> Tensor:
    return scale_channels(weight.double(), factor.double(), transposed=transposed, groups=groups).to(weight.dtype)


def _offset(weight: Tensor, bias: Tensor, factor: Tensor, mean: Tensor, shift: Tensor) -> Tensor:
    offset = factor.double() * (bias.double() - mean.double()) + shift.double()
    if not bool(torch.isfinite(offset).all()):
        raise FoldError("a gain, mean, bias or shift is not finite.\nLikely cause: a diverged training.")
    return offset.to(weight.dtype)
