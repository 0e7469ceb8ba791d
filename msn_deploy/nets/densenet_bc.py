"""The paper's DenseNet-BC for CIFAR10 (Huang et al., 2017, arXiv 1608.06993): three blocks of bottleneck layers.

A layer reads the concatenation of all features before it through norm, ReLU and convolution. With MSN the mean of a
feature does not depend on who reads it, so it is taken off once, where the feature is made; what is left before each
ReLU is the shift of the layer that reads. That is exactly MSN in every dense layer ("consumer" form): centring the
concatenation again would change nothing, and the gradients of all readers are centred together by linearity. It
needs an average pooling that covers its input evenly, which keeps the mean.

In the "producer" form a feature gets its norm and its ReLU where it is made, once, and is stored as its readers want
it: nothing is left to compute between a concatenation and the convolution that reads it. It is another network.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.msn import MSNConv2d, SNConv2d, WSConv2d
from msn_deploy.nets.blocks import Norm, classifier_layer, conv_norm, group_norm, require_multiple


class DenseParts(Protocol):
    """What the twins of a dense network differ in."""

    def bottleneck(self, in_channels: int, out_channels: int) -> nn.Module:
        """Return a 1x1 convolution with its norm, before the ReLU."""

    def feature(self, in_channels: int, out_channels: int, kernel: int) -> nn.Module:
        """Return a convolution of odd kernel that keeps the size and whose output is read through `before`."""

    def before(self, channels: int) -> nn.Module:
        """Return the norm before the ReLU of a concatenation, which it may overwrite."""

    def classifier(self, features: int, classes: int) -> nn.Module:
        """Return the last layer, (N, features) to logits (N, classes)."""


class Shift(nn.Module):
    """gain * x + shift per channel, x (N, C, H, W), in place where there is no gain: x must be fresh."""

    def __init__(self, channels: int, *, affine: bool = False) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.gain = nn.Parameter(torch.ones(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        shift = self.shift.view(-1, 1, 1).to(x.dtype)
        return x.add_(shift) if self.gain is None else torch.addcmul(shift, x, self.gain.view(-1, 1, 1).to(x.dtype))


class _Parts:
    """The parts for one of our norms."""

    def __init__(self, norm: Norm, classifier: str, *, producer: bool) -> None:
        self.norm = norm
        self.kind = classifier
        self.producer = producer
        self.is_msn = norm.name in ("msn", "msn-affine")

    def bottleneck(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Sequential(*conv_norm(self.norm, in_channels, out_channels, 1))

    def feature(self, in_channels: int, out_channels: int, kernel: int) -> nn.Module:
        if self.producer:
            return nn.Sequential(*conv_norm(self.norm, in_channels, out_channels, kernel, padding=kernel // 2))
        shape = (in_channels, out_channels, kernel, 1, kernel // 2)
        if self.is_msn:
            return MSNConv2d(*shape, bias=False, **self.norm.spectral())
        if self.norm.name == "sn":
            return SNConv2d(*shape, **self.norm.spectral())
        if self.norm.name in ("ws", "gn-ws"):
            return WSConv2d(*shape, bias=self.norm.name == "ws", **self.norm.standardised())
        return nn.Conv2d(*shape, bias=self.norm.name == "none")

    def before(self, channels: int) -> nn.Module:
        if self.norm.name == "bn":
            return nn.BatchNorm2d(channels)
        if self.norm.name in ("gn", "gn-ws"):
            return group_norm(channels)
        return Shift(channels, affine=self.norm.name == "msn-affine") if self.is_msn else nn.Identity()

    def classifier(self, features: int, classes: int) -> nn.Module:
        return classifier_layer(self.kind, self.norm, features, classes)


def _before(parts: DenseParts, channels: int, producer: bool) -> nn.Module:
    """Return what stands between a concatenation, which it may overwrite, and the convolution that reads it."""
    return nn.Identity() if producer else nn.Sequential(parts.before(channels), nn.ReLU(inplace=True))


def _behind(producer: bool) -> nn.Module:
    """Return what stands behind a convolution that makes features."""
    return nn.ReLU(inplace=True) if producer else nn.Identity()


class _Layer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution: from a concatenation to `growth` features."""

    def __init__(self, parts: DenseParts, producer: bool, channels: int, growth: int) -> None:
        super().__init__()
        self.before, self.behind = _before(parts, channels, producer), _behind(producer)
        self.bottleneck = parts.bottleneck(channels, 4 * growth)
        self.feature = parts.feature(4 * growth, growth, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.before(torch.cat(features, 1))
        y: Tensor = self.behind(self.feature(F.relu(self.bottleneck(x), inplace=True)))
        return y


class _Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution, average pooling by 2."""

    def __init__(self, parts: DenseParts, producer: bool, channels: int, out_channels: int) -> None:
        super().__init__()
        self.before, self.behind = _before(parts, channels, producer), _behind(producer)
        self.feature = parts.feature(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.behind(F.avg_pool2d(self.feature(self.before(x)), 2))
        return y


class DenseNetBC(nn.Module):
    """DenseNet-BC for small images: (N, C, H, W) to logits (N, classes); H and W are multiples of 4.

    layers: in each of the three blocks. growth: features a layer adds. compression: share of channels that a
    transition keeps. producer: the form. Source: arXiv 1608.06993; 100 layers, growth 12 are layers=16, growth=12.
    """

    def __init__(
        self,
        parts: DenseParts,
        *,
        in_channels: int,
        layers: int,
        growth: int,
        compression: float,
        classes: int,
        producer: bool = False,
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = parts.feature(in_channels, channels, 3)
        self.behind_stem = _behind(producer)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for block in range(3):
            if block:
                kept = int(channels * compression)
                self.transitions.append(_Transition(parts, producer, channels, kept))
                channels = kept
            inputs = [channels + at * growth for at in range(layers)]
            self.blocks.append(nn.ModuleList(_Layer(parts, producer, each, growth) for each in inputs))
            channels += layers * growth
        self.last = _before(parts, channels, producer)
        self.classifier = parts.classifier(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.behind_stem(self.stem(x))
        for at, block in enumerate(self.blocks):
            if at:
                x = self.transitions[at - 1](x)
            features = [x]
            for layer in block:  # type: ignore[attr-defined]
                features.append(layer(features))
            x = torch.cat(features, 1)
        logits: Tensor = self.classifier(self.last(x).mean((2, 3)))
        return logits


def densenet_bc(
    norm: Norm,
    *,
    in_channels: int,
    height_px: int,
    width_px: int,
    width: int,
    classes: int,
    classifier: str = "linear",
    layers: int = 16,
    compression: float = 0.5,
    producer: bool = False,
) -> nn.Module:
    """Build DenseNet-BC; `width` is the growth rate, `producer` the form.

    Raises InputError for sides that two poolings do not divide.
    """
    require_multiple("densenet_bc", 4, height_px, width_px)
    return DenseNetBC(
        _Parts(norm, classifier, producer=producer),
        in_channels=in_channels,
        layers=layers,
        growth=width,
        compression=compression,
        classes=classes,
        producer=producer,
    )
