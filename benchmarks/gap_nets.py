"""Variants of the networks that were tried in order to bring MSN closer to BatchNorm; none is in the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.msn import MSNConv2d
from msn_deploy.nets.registry import NETS


class TranslatedReLU(nn.Module):
    """relu(x) - shift, with the shift of the MSN layer before it: a shift then moves the kink, not the output."""

    def __init__(self, before: MSNConv2d) -> None:
        super().__init__()
        self.before = [before]  # not a submodule: it is one already

    def forward(self, x: Tensor) -> Tensor:
        shift = self.before[0].shift
        assert shift is not None
        return F.relu(x) - shift.view(-1, 1, 1)


class ScaledLinear(nn.Linear):
    """A linear layer with one trainable gain on its input, shared by all features, that starts at 10."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.input_gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x * self.input_gain, self.weight, self.bias)


def _translated(model: nn.Sequential) -> nn.Module:
    layers = list(model)
    for at, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU) and isinstance(layers[at - 1], MSNConv2d):
            layers[at] = TranslatedReLU(layers[at - 1])
    return nn.Sequential(*layers)


def _with_classifier_gain(model: nn.Sequential) -> nn.Module:
    last = model[-1]
    return nn.Sequential(*model[:-1], ScaledLinear(last.in_features, last.out_features))


def _with_momentum(momentum: float) -> Callable[[nn.Sequential], nn.Module]:
    def change(model: nn.Sequential) -> nn.Module:
        for layer in model:
            if isinstance(layer, MSNConv2d):
                layer.momentum = momentum
        return model

    return change


def register() -> None:
    """Make the variants known as networks: NET_translated_relu, NET_classifier_gain, NET_momentum_002."""
    changes = {
        "translated_relu": _translated,
        "classifier_gain": _with_classifier_gain,
        "momentum_002": _with_momentum(0.02),
    }
    for net in ("cnn3", "vgg7"):
        for name, change in changes.items():

            def build(*args: Any, _net: str = net, _change: Any = change, **options: Any) -> nn.Module:
                return _change(NETS[_net](*args, **options))

            NETS[f"{net}_{name}"] = build
