"""What stands in every network of the sweep: a stem, and the operation behind it."""

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

SHAPES = {1: (2, 3, 16), 2: (2, 3, 8, 8), 3: (2, 3, 4, 6, 6)}
CHANNELS = 8
_CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Case:
    """One network."""

    name: str
    kind: str
    """"module", "function", "tensor" (functions of torch) or "idiom"."""
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Of its input, float32."""

    def net(self) -> nn.Module:
        """Return the network in evaluation mode, the same each time."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        net = self.build()
        shake(net)
        return net.eval()


@dataclass(frozen=True)
class M:
    """A module's recipe."""

    make: Callable[[], nn.Module]
    call: Callable[..., Any] = lambda module, y: module(y)
    dims: int | None = None
    """Of the picture before it: 1, 2 or 3; None: what the name says, or 2."""


def tokens(module: nn.Module, y: torch.Tensor) -> Any:
    """Call a module on (batch, positions, channels)."""
    return module(y.flatten(2).transpose(1, 2))


class Stem(nn.Module):
    """Conv-BN-ReLU: (2, 3, sizes) to (2, 8, sizes)."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.conv = _CONVS[dims](3, CHANNELS, 3, padding=1, bias=False)
        self.norm = _NORMS[dims](CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)))


class Behind(nn.Module):
    """What stands behind a stem."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.stem = Stem(dims)

    def forward(self, x: torch.Tensor) -> Any:
        return self.behind(self.stem(x))

    def behind(self, y: torch.Tensor) -> Any:
        raise NotImplementedError


class ModuleBehind(Behind):
    """A module behind a stem."""

    def __init__(self, recipe: M, dims: int) -> None:
        super().__init__(dims)
        self.operation, self.call = recipe.make(), recipe.call

    def behind(self, y: torch.Tensor) -> Any:
        return self.call(self.operation, y)


class FunctionBehind(Behind):
    """A function behind a stem.

    Its arguments: `y`, behind the stem, is never negative; `z`, behind one more convolution, has both signs and no two
    equal values. Its defaults are the shapes of parameters of the network.
    """

    def __init__(self, function: Callable[..., Any], dims: int) -> None:
        super().__init__(dims)
        self.function = function
        self.takes = [name for name in inspect.signature(function).parameters if name in ("y", "z")]
        self.signed = _CONVS[dims](CHANNELS, CHANNELS, 1) if "z" in self.takes else None
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape) / 2) for shape in function.__defaults__ or ())

    def behind(self, y: torch.Tensor) -> Any:
        given = {"y": y, "z": y if self.signed is None else self.signed(y)}
        return self.function(*(given[name] for name in self.takes), *self.weights)


@torch.no_grad()
def shake(net: nn.Module) -> None:
    """Give norms statistics and gains as of a trained network, one gain in five below zero, and biases."""
    for module in net.modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, torch.Tensor) and isinstance(variance, torch.Tensor):
            mean.normal_(0, 0.3)
            variance.uniform_(0.3, 1.5)
        if mean is not None or "Norm" in type(module).__name__:
            for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5)):
                value = getattr(module, name, None)
                if isinstance(value, torch.Tensor):
                    value.uniform_(low, high)
            gain = getattr(module, "weight", None)
            if isinstance(gain, torch.Tensor) and gain.dim() == 1:
                gain[3::5] *= -1


def named(
    names: str, home: Any, recipe: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> dict[str, Callable[..., Any]]:
    """Return the same recipe for each of the functions."""
    return {name: recipe(getattr(home, name)) for name in names.split()}


def dims_of(name: str) -> int:
    """Return 1, 2 or 3: what the name of a module or function ends in, or 2."""
    found = re.search(r"([123])d", name)
    return int(found[1]) if found else 2
