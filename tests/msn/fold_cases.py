"""Networks and inputs that the fold tests share: nothing neutral, float64, seeded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXACT, MATTERS = 1e-12, 1e-2
IN, OUT, EPS = 4, 8, 0.02


def uniform(shape: tuple[int, ...], rng: torch.Generator, low: float = 0.5, high: float = 2.5) -> Tensor:
    """Float64 values none of which is 0 or 1 in effect: in [low, 0.9] or [1.2, high]."""
    values = torch.rand(shape, generator=rng, dtype=torch.float64)
    small, large = low + values * (0.9 - low), 1.2 + values * (high - 1.2)
    return torch.where(torch.rand(shape, generator=rng) < 0.5, small, large)


def loosen(model: nn.Module, seed: int = 3) -> nn.Module:
    """Give every parameter and statistic of a norm a value that is not neutral; float64, evaluation mode."""
    rng = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for module in model.modules():
            for name in ("running_mean", "running_var", "gain", "shift", "bias"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor):
                    tensor.copy_(uniform(tuple(tensor.shape), rng))
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.affine:
                module.weight.copy_(uniform(tuple(module.weight.shape), rng))
    return model.eval()


def model_input(rank: int = 2) -> Tensor:
    return torch.randn((3, IN, *(7, 6, 5)[:rank]), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def apart(model: nn.Module, folded: nn.Module, x: Tensor) -> float:
    before = model(x)
    assert before.abs().max() > MATTERS
    return (folded(x) - before).abs().max().item()


def conv_bn(rank: int, *, groups: int = 1, bias: bool = True, affine: bool = True) -> nn.Module:
    if rank == 0:
        return nn.Sequential(nn.Linear(IN, OUT, bias=bias), nn.BatchNorm1d(OUT, affine=affine, eps=EPS))
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](IN, OUT, 3, padding=1, groups=groups, bias=bias)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](OUT, affine=affine, eps=EPS)
    return nn.Sequential(conv, norm)
