"""Inputs, and layers whose state is not neutral, for the tests of the layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_input(rank: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, *(7, 6, 5)[:rank], generator=rng, dtype=torch.float64) * 1.5 + 0.7


def loosen(layer: nn.Module, seed: int = 2) -> None:
    """Give every parameter and the running mean a value that is not neutral."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.mul_(1.7).add_(torch.rand(layer.weight.shape, generator=rng, dtype=torch.float64) * 0.4)
        for name in ("gain", "shift", "bias", "running_mean"):
            tensor = getattr(layer, name, None)
            if tensor is not None:
                tensor.copy_(torch.rand(tensor.shape, generator=rng, dtype=torch.float64) * 1.5 + 0.5)
