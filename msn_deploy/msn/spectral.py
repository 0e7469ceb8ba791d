"""The largest singular value of a weight, tracked by power iteration, and the weight divided by it.

A weight counts as the matrix (C_out, C_in / groups * kernel); a transposed convolution has its C_out in dim 1, as for
torch's own spectral_norm. sigma = u @ W @ v, where u and v are buffers that one power iteration per training step
moves towards the first singular pair (Miyato et al., 2018, arXiv 1802.05957, algorithm 1). In evaluation u and v are
frozen, so sigma is a constant of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WARM_UP_ITERATIONS = 15  # at birth, as torch's own spectral_norm does, so that the first sigma is not far off
_EPS = 1e-12
HALF = (torch.float16, torch.bfloat16)
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def as_matrix(weight: Tensor, *, transposed: bool = False) -> Tensor:
    """View a weight (C_out, ...) as (C_out, rest), one of a transposed convolution as (C_out / groups, rest)."""
    return weight.transpose(0, 1).flatten(1) if transposed else weight.flatten(1)


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor of at least single precision: sums and norms in half precision would be off by percents."""
    return tensor.float() if tensor.dtype in HALF else tensor


@torch.no_grad()
def power_iterate(matrix: Tensor, u: Tensor, v: Tensor, *, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Move u (rows,) and v (columns,) in place towards the first singular pair of a matrix (rows, columns).

    v may have any shape with that many elements. steps: at least 1. Return copies of both (v as a vector), which later
    calls leave alone, and sigma (), in at least single precision.
    """
    matrix = widened(matrix)
    with full_precision(matrix):
        right = torch.mv(matrix.t(), widened(u))
        if steps > 1:
            right = _iterated(matrix, right, steps - 1)
        right.div_(torch.linalg.vector_norm(right).clamp_min_(_EPS))
        left = torch.mv(matrix, right)
        sigma = torch.linalg.vector_norm(left)  # = u @ W @ v, for u is W @ v over its length
        left.div_(sigma.clamp_min(_EPS))
    u.copy_(left)
    v.copy_(right.view(v.shape))
    return left, right, sigma


def _iterated(matrix: Tensor, v: Tensor, steps: int) -> Tensor:
    """Return (W^T W)^steps v in some length: by squaring where that is cheaper, which makes 100 steps of 7 products."""
    rows, columns = matrix.shape
    if 16 * steps < min(rows, columns):  # a product of matrices does some 16 times the arithmetic in the same time
        for _ in range(steps):
            v = _unit(torch.mv(matrix.t(), torch.mv(matrix, _unit(v))))
        return v
    if rows < columns:  # (W^T W)^n v = W^T (W W^T)^(n - 1) W v
        return torch.mv(matrix.t(), _power(torch.mm(matrix, matrix.t()), torch.mv(matrix, v), steps - 1))
    return _power(torch.mm(matrix.t(), matrix), v, steps)


def _power(square: Tensor, vector: Tensor, exponent: int) -> Tensor:
    """Return square^exponent @ vector in unit length, by the binary digits of the exponent."""
    while exponent:
        if exponent & 1:
            vector = torch.mv(square, _unit(vector))
        exponent >>= 1
        if exponent:
            square = _unit(square)
            square = torch.mm(square, square)
    return _unit(vector)


def _unit(tensor: Tensor) -> Tensor:
    unit: Tensor = tensor / torch.linalg.vector_norm(tensor).clamp_min(_EPS)
    return unit


def sigma_of(matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return sigma = u @ W @ v, shape (), differentiable in the matrix; u and v count as constants."""
    with full_precision(matrix):
        return torch.dot(widened(u), torch.mv(widened(matrix), widened(v)))


@torch.no_grad()
def largest_singular_value(matrix: Tensor) -> float:
    """Return what sigma should be, in float64, by the eigenvalues of the smaller Gram matrix."""
    matrix = matrix.detach().double().cpu()
    gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())


def over_sigma(weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """Return W / sigma for a weight (C_out, ...) with its singular pair u, v and their sigma, detached.

    Differentiable in the weight through sigma, too: with G the gradient of W / sigma, that of W is
    (G - <G, W / sigma> u v^T) / sigma.
    """
    if traced():  # a compiler fuses them itself
        return (widened(weight) / sigma_of(weight.flatten(1), u, v)).to(weight.dtype)
    quotient: Tensor = _OverSigma.apply(weight, u, v, sigma)  # type: ignore[no-untyped-call]
    return quotient


def conv_over_sigma(
    x: Tensor,
    weight: Tensor,
    pair: tuple[Tensor, Tensor, Tensor],
    scale: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return conv(x, W / sigma) as conv(x, W) / sigma, which is cheaper where the weight is larger than the output.

    weight (C_out, C_in / groups, ...). pair: u, v and sigma of `by_rows(weight)`, detached. scale (): a factor, None
    for 1. Derivatives are as with `over_sigma`.
    """
    arguments = (list(stride), list(padding), list(dilation), False, [0] * len(stride), groups)
    quotient: Tensor = _ConvOverSigma.apply(x, weight, *pair, scale, *arguments)  # type: ignore[no-untyped-call]
    return quotient


def traced() -> bool:
    """Tell whether the operations are being recorded by a compiler or torch.func, which want plain ones."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()  # no public name for it


class _OverSigma(torch.autograd.Function):
    """Autograd would take a dozen small operations for this backward: with 99 convolutions they are felt."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        ctx.save_for_backward(weight, u, v, sigma)
        return (widened(weight) / sigma).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, u, v, sigma = ctx.saved_tensors
        with full_precision(weight):
            wide = widened(grad)
            if torch.is_grad_enabled():  # a second derivative sees sigma as the function of the weight that it is
                sigma = sigma_of(weight.flatten(1), u, v)
            along = torch.dot(wide.flatten(), widened(weight).flatten()) / sigma
            matrix = torch.addr(wide.flatten(1), u * along, v, alpha=-1) / sigma
        return matrix.view(grad.shape).to(grad.dtype), None, None, None


class _ConvOverSigma(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, *others: Any) -> Tensor:
        ctx.save_for_backward(x, weight, u, v, sigma, others[0])
        ctx.arguments = others[1:]
        stride, padding, dilation, _, _, groups = ctx.arguments
        convolve: Any = _CONV[weight.dim() - 2]  # which autocast knows, while it does not know torch.convolution
        y: Tensor = convolve(x, weight, None, stride, padding, dilation, groups)
        return y.mul_(_factor(sigma, others[0]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, u, v, sigma, scale = ctx.saved_tensors
        rows, twice = by_rows(weight), torch.is_grad_enabled()
        with full_precision(weight):
            if twice:  # a second derivative sees sigma as the function of the weight that it is
                sigma = sigma_of(rows.flatten(1), u, v)
            grad = grad * _factor(sigma, scale)
            given = (grad, x.to(grad.dtype), weight.to(grad.dtype), None, *ctx.arguments)
            needed = [*ctx.needs_input_grad[:2], False]
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(*given, needed)
            if of_weight is not None:
                # As the weight lies: its gradient lies as the activations do, which may be otherwise.
                matrix = widened(of_weight if rows is weight else of_weight.movedim(1, -1)).flatten(1)
                left = u * (torch.dot(matrix.flatten(), widened(rows).flatten()) / sigma)
                matrix = torch.addr(matrix, left, v, alpha=-1) if twice else matrix.addr_(left, v, alpha=-1)
                of_weight = matrix.view(rows.shape).to(weight.dtype)
                of_weight = of_weight if rows is weight else of_weight.movedim(-1, 1)
        return None if of_x is None else of_x.to(x.dtype), of_weight, *[None] * (len(ctx.needs_input_grad) - 2)


def _factor(sigma: Tensor, scale: Tensor | None) -> Tensor:
    return sigma.reciprocal() if scale is None else scale / sigma


def by_rows(weight: Tensor) -> Tensor:
    """Return a weight (C_out, C_in, ...) so that its matrix is a view, also where C_in comes last in memory."""
    in_rows = weight.dim() > 3 and not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()
    return weight.movedim(1, -1) if in_rows else weight


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast from rounding what is computed in this context; costs nothing where autocast is off."""
    kind = like.device.type
    casting = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if casting else nullcontext()


@torch.no_grad()
def born_pair(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a first estimate of the singular pair of a freshly initialised weight, seeded by torch's generator."""
    rows, columns = matrix.shape
    if matrix.is_meta:  # a product without numbers takes as long as a large one with them
        return matrix.new_empty(rows), matrix.new_empty(columns)
    u = F.normalize(torch.randn(rows, dtype=matrix.dtype, device=matrix.device), dim=0, eps=_EPS)
    v = F.normalize(torch.randn(columns, dtype=matrix.dtype, device=matrix.device), dim=0, eps=_EPS)
    power_iterate(matrix, u, v, steps=WARM_UP_ITERATIONS)
    return u, v
