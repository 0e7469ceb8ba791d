"""One convolution with its norm, and the classifier: all that the twins of a network differ in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.core.errors import InputError
from msn_deploy.msn import MSNConv2d, SNConv2d, SNLinear, WSConv2d

_MOST_GROUPS, _FEWEST_CHANNELS = 32, 8  # of a GroupNorm (Wu and He, 2018, arXiv 1803.08494, table 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Which norm (one of core.model_info.NORMS) a network's convolutions carry, and how it starts and moves.

    power_iterations: per training step. init: "plain", "kaiming", or "data", which is as kaiming here.
    """

    name: str
    power_iterations: int = 1
    init: str = "plain"

    def spectral(self) -> dict[str, Any]:
        """Return the arguments of a convolution with a spectral norm."""
        init_gain = None if self.init == "plain" else math.sqrt(2)
        return {"power_iterations": self.power_iterations, "init_gain": init_gain}

    def standardised(self) -> dict[str, Any]:
        """Return the arguments of a convolution whose weight is standardised."""
        return {"affine": self.name == "ws", "init_gain": 1.0 if self.init == "plain" else math.sqrt(2)}


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of at most 32 equal groups of at least 8 channels, or of one group."""
    most = max(1, min(_MOST_GROUPS, channels // _FEWEST_CHANNELS))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


def conv_norm(
    norm: Norm, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Return the layers of a convolution with its norm, to be unpacked into a Sequential."""
    shape = (in_channels, out_channels, kernel, stride, padding)
    if norm.name == "bn":
        return [nn.Conv2d(*shape, bias=False), nn.BatchNorm2d(out_channels)]
    if norm.name == "gn":
        return [nn.Conv2d(*shape, bias=False), group_norm(out_channels)]
    if norm.name == "gn-ws":
        return [WSConv2d(*shape, bias=False, **norm.standardised()), group_norm(out_channels)]
    if norm.name == "ws":
        return [WSConv2d(*shape, **norm.standardised())]
    if norm.name == "none":
        return [nn.Conv2d(*shape)]
    if norm.name == "sn":
        return [SNConv2d(*shape, **norm.spectral())]
    if norm.name in ("msn", "msn-affine"):
        return [MSNConv2d(*shape, affine=norm.name == "msn-affine", **norm.spectral())]
    raise ValueError(f"unknown norm {norm.name!r}")


def conv_norm_relu(
    norm: Norm, in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1
) -> list[nn.Module]:
    """Return the layers of a convolution with its norm and ReLU; of an odd kernel, which keeps the size at stride 1."""
    layers = conv_norm(norm, in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)
    return [*layers, nn.ReLU()]


def doubled(x: Tensor) -> Tensor:
    """Return features (N, C, H, W) at twice the size, each pixel as four: no weight, so no norm, and one Resize."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def require_multiple(net: str, of_px: int, height_px: int, width_px: int) -> None:
    """Raise InputError for images whose sides a network cannot halve as often as it does."""
    if height_px % of_px or width_px % of_px:
        raise InputError(f"{net} needs sides that are multiples of {of_px} pixels, got {height_px}x{width_px}.")


def classifier_layer(kind: str, norm: Norm, in_features: int, classes: int) -> nn.Linear:
    """Return the last layer, (N, in_features) to logits (N, classes); kind is "linear" or "sn"."""
    if kind == "linear":
        return nn.Linear(in_features, classes)
    if kind == "sn":
        return SNLinear(in_features, classes, power_iterations=norm.power_iterations)
    raise ValueError(f"unknown classifier {kind!r}")


def classifier_of(model: nn.Module) -> str:
    """Return the name of a network's last linear layer. Raises InputError if there is none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise InputError("the network has no linear layer, so that there is no classifier to train alone or anew.")
    return str(names[-1])
