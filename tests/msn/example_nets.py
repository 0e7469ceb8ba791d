"""Small networks of well-known designs, (N, 3, 32, 32) to (N, 10) or (N, 2, 32, 32), for tests of whole networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fold_cases import IN, loosen
from torch import Tensor, nn


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(make: type[nn.Module], seed: int = 0) -> nn.Module:
    """Build a network with gains, biases and statistics that are not neutral, the latter measured on `images`.

    Measured, because activations that saturate or die would hide what is wrong before them.
    """
    torch.manual_seed(seed)
    model = loosen(make(), seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images(seed=seed + 2))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


class BasicBlock(nn.Module):
    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet18(nn.Module):
    """He et al., 2015 (arXiv 1512.03385), with the first layer for 32x32 images."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, inside = [], width
        for stage in range(4):
            for block in range(2):
                blocks.append(BasicBlock(inside, width << stage, 2 if stage and not block else 1))
                inside = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inside, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def _conv_bn_relu6(inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    def __init__(self, inside: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inside * expand
        widen = _conv_bn_relu6(inside, hidden, 1) if expand > 1 else []
        depthwise = _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden)
        self.conv = nn.Sequential(*widen, *depthwise, nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al., 2018 (arXiv 1801.04381), cut short."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv_bn_relu6(3, 8, 3, 2)]
        inside = 8
        for expand, out, count, stride in ((1, 4, 1, 1), (6, 6, 2, 2), (6, 8, 2, 2)):
            for at in range(count):
                layers.append(InvertedResidual(inside, out, stride if at == 0 else 1, expand))
                inside = out
        self.features = nn.Sequential(*layers, *_conv_bn_relu6(inside, 32, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNetBC(nn.Module):
    """Huang et al., 2016 (arXiv 1608.06993): the norm stands before the convolution, behind a concatenation."""

    def __init__(self, growth: int = 4, layers: int = 2) -> None:
        super().__init__()
        channels = 2 * growth
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for block in range(2):
            for _ in range(layers):
                parts.append(DenseLayer(channels, growth))
                channels += growth
            if block == 0:
                half = channels // 2
                parts += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, half, 1, bias=False)]
                parts.append(nn.AvgPool2d(2))
                channels = half
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def _double(inside: int, out: int) -> nn.Sequential:
    first = [nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class UNet(nn.Module):
    """Ronneberger et al., 2015 (arXiv 1505.04597), with biases, and a norm behind every way up, one of it grouped."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down1, self.down2 = _double(3, width), _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.up2 = nn.Sequential(nn.ConvTranspose2d(4 * width, 2 * width, 2, 2, groups=2), nn.BatchNorm2d(2 * width))
        self.merge2 = _double(4 * width, 2 * width)
        self.up1 = nn.Sequential(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), nn.BatchNorm2d(width))
        self.merge1 = _double(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        y = self.up2(self.bottom(self.pool(second)))
        y = self.up1(self.merge2(torch.cat([second, y], 1)))
        return self.head(self.merge1(torch.cat([first, y], 1)))


class Recurrent(nn.Module):
    """One convolution and its norm, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2)
        self.norm = nn.BatchNorm2d(6)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for _ in range(2):
            x = torch.relu(self.bn(self.again(x)))
        return self.fc(x.mean((2, 3)))


class ChosenFlow(nn.Module):
    """A convolution, a norm, a second convolution, and a forward that a test chooses."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(IN, IN, 3, padding=1)
        self.bn = nn.BatchNorm2d(IN)
        self.relu = nn.ReLU()
        self.other = nn.Conv2d(IN, IN, 3, padding=1)
        self.chosen = [forward]

    def forward(self, x: Tensor) -> Tensor:
        return self.chosen[0](self, x)
