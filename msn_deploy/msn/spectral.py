"""The largest singular value of a weight, tracked by power iteration.

The weight of a convolution counts as the matrix (C_out, C_in / groups * kernel). sigma = u @ W @ v, where u and v are
buffers that one power iteration per training step moves towards the first singular pair (Miyato et al., 2018,
arXiv 1802.05957, algorithm 1). In evaluation u and v are frozen, so sigma is a constant of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WARM_UP_ITERATIONS = 15  # at birth, as torch's own spectral_norm does, so that the first sigma is not far off
_EPS = 1e-12


def as_matrix(weight: Tensor) -> Tensor:
    """View a weight (C_out, ...) as (C_out, rest)."""
    return weight.reshape(weight.shape[0], -1)


@torch.no_grad()
def power_iterate(weight: Tensor, u: Tensor, v: Tensor, *, steps: int) -> None:
    """Move u (C_out,) and v (rest,) in place towards the first singular pair of the weight."""
    matrix = as_matrix(weight)
    for _ in range(steps):
        v.copy_(F.normalize(matrix.mT @ u, dim=0, eps=_EPS))
        u.copy_(F.normalize(matrix @ v, dim=0, eps=_EPS))


def sigma_of(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return sigma = u @ W @ v, shape (), differentiable in the weight; u and v count as constants."""
    return torch.dot(u, as_matrix(weight) @ v)


def born_pair(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a first estimate of the singular pair of a freshly initialised weight."""
    rows, columns = as_matrix(weight).shape
    u = F.normalize(torch.randn(rows, dtype=weight.dtype, device=weight.device), dim=0, eps=_EPS)
    v = F.normalize(torch.randn(columns, dtype=weight.dtype, device=weight.device), dim=0, eps=_EPS)
    power_iterate(weight, u, v, steps=WARM_UP_ITERATIONS)
    return u, v
