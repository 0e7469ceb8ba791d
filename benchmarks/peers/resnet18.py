"""ResNet-18, and an export of it by torch's exporter alone: what export_time.py holds `msn-deploy export` against.

    python benchmarks/peers/resnet18.py 32|224 FILE.onnx

He et al., 2015, arXiv 1512.03385. This file imports torch alone, as a user's own would.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = 10


def conv_bn(before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution without bias and the norm of its outputs."""
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*conv_bn(before, width, 3, stride=stride), nn.ReLU(), *conv_bn(width, width, 3))
        widens = stride > 1 or before != width
        self.shortcut = nn.Sequential(*conv_bn(before, width, 1, stride=stride) if widens else [])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """large: its own first layer, for 224x224 images, else 3x3 for 32x32 ones."""

    def __init__(self, width: int = 64, *, large: bool = False) -> None:
        super().__init__()
        kernel, stride = (7, 2) if large else (3, 1)
        stem = [*conv_bn(3, width, kernel, stride=stride), nn.ReLU()]
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1)) if large else nn.Sequential(*stem)
        stages: list[nn.Module] = []
        before = width
        for at in range(4):
            after = width << at
            stages += [BasicBlock(before, after, 2 if at else 1), BasicBlock(after, after, 1)]
            before = after
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def resnet18_32() -> nn.Module:
    """Return ResNet-18 with its first layer for 32x32 images, untrained."""
    return ResNet18().eval()


def resnet18_224() -> nn.Module:
    """Return ResNet-18 with its first layer for 224x224 images, untrained."""
    return ResNet18(large=True).eval()


def export(model: nn.Module, out: Path, side_px: int) -> None:
    """Export by torch's exporter alone."""
    torch.onnx.export(model, (torch.zeros(1, 3, side_px, side_px),), out, dynamo=True, external_data=False)


if __name__ == "__main__":
    export(resnet18_32() if sys.argv[1] == "32" else resnet18_224(), Path(sys.argv[2]), int(sys.argv[1]))
