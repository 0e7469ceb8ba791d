"""The largest singular value of a weight, tracked by power iteration.

A weight counts as the matrix (C_out, C_in / groups * kernel); a transposed convolution has its C_out in dim 1, as for
torch's own spectral_norm. sigma = u @ W @ v, where u and v are buffers that one power iteration per training step
moves towards the first singular pair (Miyato et al., 2018, arXiv 1802.05957, algorithm 1). In evaluation u and v are
frozen, so sigma is a constant of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WARM_UP_ITERATIONS = 15  # at birth, as torch's own spectral_norm does, so that the first sigma is not far off
_EPS = 1e-12


def as_matrix(weight: Tensor, *, transposed: bool = False) -> Tensor:
    """View a weight (C_out, ...) as (C_out, rest), one of a transposed convolution as (C_out / groups, rest)."""
    return weight.transpose(0, 1).flatten(1) if transposed else weight.flatten(1)


@torch.no_grad()
def power_iterate(matrix: Tensor, u: Tensor, v: Tensor, *, steps: int) -> None:
    """Move u (rows,) and v (columns,) in place towards the first singular pair of a matrix (rows, columns)."""
    with torch.autocast(matrix.device.type, enabled=False):
        for _ in range(steps):
            v.copy_(F.normalize(matrix.mT @ u, dim=0, eps=_EPS))
            u.copy_(F.normalize(matrix @ v, dim=0, eps=_EPS))


def sigma_of(matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return sigma = u @ W @ v, shape (), differentiable in the matrix; u and v count as constants."""
    with torch.autocast(matrix.device.type, enabled=False):  # a norm in bfloat16 would be off by up to a percent
        return torch.dot(u, matrix @ v)


@torch.no_grad()
def born_pair(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a first estimate of the singular pair of a freshly initialised weight, seeded by torch's generator."""
    rows, columns = matrix.shape
    u = F.normalize(torch.randn(rows, dtype=matrix.dtype, device=matrix.device), dim=0, eps=_EPS)
    v = F.normalize(torch.randn(columns, dtype=matrix.dtype, device=matrix.device), dim=0, eps=_EPS)
    power_iterate(matrix, u, v, steps=WARM_UP_ITERATIONS)
    return u, v
