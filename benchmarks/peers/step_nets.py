"""The networks of train_step.py, each built from an arm's parts: `parts.conv(...)` is a convolution with its norm.

VGG7 and DenseNet-BC are the paper's. ResNet-18 (He et al., 2015, arXiv 1512.03385) and MobileNetV2 (Sandler et al.,
2018, arXiv 1801.04381) have the layers of their ImageNet forms, and a U-Net (Ronneberger et al., 2015, arXiv
1505.04597) has 16 channels in its first level and four levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.nets.densenet_bc import DenseNetBC

CLASSES = 10
Parts = Any  # of train_step_arms


def vgg7(parts: Parts, width: int = 32) -> nn.Module:
    """Build the network of nets.sequential.vgg7 with 3 input channels."""
    layers: list[nn.Module] = []
    channels = 3
    for multiple, paddings in ((1, (1, 1)), (2, (1, 1)), (4, (1, 1)), (8, (0,))):
        for padding in paddings:
            layers += [parts.conv(channels, multiple * width, 3, padding=padding), nn.ReLU(inplace=True)]
            channels = multiple * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, CLASSES))


def densenet(parts: Parts) -> nn.Module:
    """Build DenseNet-BC-100-12 with compression 0.5."""
    return DenseNetBC(parts, in_channels=3, layers=16, growth=12, compression=0.5, classes=CLASSES)


class _Residual(nn.Module):
    """Layers beside a shortcut; `last` comes behind the sum."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.layers, self.shortcut, self.last = layers, shortcut, last

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.layers(x) + self.shortcut(x))
        return y


def resnet18(parts: Parts) -> nn.Module:
    """Build ResNet-18: images (N, 3, H, W) to logits (N, 10)."""
    layers: list[nn.Module] = [
        parts.conv(3, 64, 7, stride=2, padding=3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    before = 64
    for at in range(4):
        width = 64 << at
        for block in range(2):
            stride = 2 if at and not block else 1
            body = nn.Sequential(
                parts.conv(before, width, 3, stride=stride, padding=1),
                nn.ReLU(inplace=True),
                parts.conv(width, width, 3, padding=1),
            )
            moves = stride > 1 or before != width
            shortcut = parts.conv(before, width, 1, stride=stride) if moves else nn.Identity()
            layers.append(_Residual(body, shortcut, nn.ReLU(inplace=True)))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2's blocks: expansion, output channels, how often, stride of the first."""


def mobilenet_v2(parts: Parts) -> nn.Module:
    """Build MobileNetV2: images (N, 3, H, W) to logits (N, 10)."""

    def activated(before: int, after: int, kernel: int, **options: int) -> list[nn.Module]:
        return [parts.conv(before, after, kernel, padding=kernel // 2, **options), nn.ReLU6(inplace=True)]

    layers = activated(3, 32, 3, stride=2)
    before = 32
    for expansion, after, count, first in _INVERTED:
        for block in range(count):
            stride, wide = first if not block else 1, expansion * before
            body = nn.Sequential(
                *(activated(before, wide, 1) if expansion > 1 else []),
                *activated(wide, wide, 3, stride=stride, groups=wide),
                parts.conv(wide, after, 1),
            )
            keeps = stride == 1 and before == after
            layers.append(_Residual(body, nn.Identity(), nn.Identity()) if keeps else body)
            before = after
    layers += activated(before, 1280, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES))


class _UNet(nn.Module):
    """Two convolutions per level, max pooling on the way down, nearest upsampling and a concatenation on the way up."""

    def __init__(self, parts: Parts, width: int, levels: int) -> None:
        super().__init__()

        def level(before: int, after: int) -> nn.Module:
            return nn.Sequential(
                parts.conv(before, after, 3, padding=1),
                nn.ReLU(inplace=True),
                parts.conv(after, after, 3, padding=1),
                nn.ReLU(inplace=True),
            )

        sizes = [width << at for at in range(levels)]
        self.down = nn.ModuleList(level(before, after) for before, after in zip((3, *sizes), sizes, strict=False))
        pairs = zip(sizes[:0:-1], sizes[-2::-1], strict=True)
        self.up = nn.ModuleList(level(below + beside, beside) for below, beside in pairs)
        self.last = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        beside: list[Tensor] = []
        for at, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if at else x)
            beside.append(x)
        for level, other in zip(self.up, beside[-2::-1], strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), other], 1))
        logits: Tensor = self.last(x)
        return logits


def unet(parts: Parts) -> nn.Module:
    """Build a U-Net: images (N, 3, H, W), H and W multiples of 8, to logits (N, 10, H, W)."""
    return _UNet(parts, width=16, levels=4)


NETS: dict[str, Callable[[Parts], nn.Module]] = {
    "vgg7": vgg7,
    "resnet18": resnet18,
    "densenet_bc": densenet,
    "mobilenet_v2": mobilenet_v2,
    "unet": unet,
}
SIDE_PX = {"vgg7": 32, "resnet18": 64, "densenet_bc": 32, "mobilenet_v2": 64, "unet": 64}
