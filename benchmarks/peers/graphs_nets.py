"""The networks of graphs.py: well-known designs at real widths, each with BatchNorm and with MSN.

Nothing about them is trained, but their gains, shifts and statistics are those of no fresh network either: the gains
and shifts are drawn, and the statistics measured behind them, so that activations neither die nor explode and an
exporter that drops or misplaces a norm is seen to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from resnet18 import ResNet18, conv_bn
from torch import Tensor, nn

from msn_deploy.msn import convert
from msn_deploy.msn.layers import SpectralLayer
from msn_deploy.nets.blocks import Norm
from msn_deploy.nets.dcgan import generator
from msn_deploy.nets.registry import NETS

CLASSES = 10
_IMAGES = 8  # that statistics are measured on
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class InvertedResidual(nn.Module):
    """Widen by 1x1, 3x3 per channel, narrow by 1x1 without an activation."""

    def __init__(self, before: int, after: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = before * expand
        wide = [*conv_bn(before, hidden, 1), nn.ReLU6()] if expand > 1 else []
        deep = [*conv_bn(hidden, hidden, 3, stride=stride, groups=hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*wide, *deep, *conv_bn(hidden, after, 1))
        self.keeps = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.keeps else y


class MobileNetV2(nn.Module):
    """Sandler et al., 2018, arXiv 1801.04381, at width 1; the first two strides are 1, for 32x32 images."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*conv_bn(3, 32, 3), nn.ReLU6()]
        before = 32
        stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
        for expand, after, count, first in (*stages, (6, 320, 1, 1)):
            for at in range(count):
                layers.append(InvertedResidual(before, after, 1 if at else first, expand))
                before = after
        self.features = nn.Sequential(*layers, *conv_bn(before, 1280, 1), nn.ReLU6())
        self.classifier = nn.Linear(1280, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def _twice(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(before, after, 3), nn.ReLU(), *conv_bn(after, after, 3), nn.ReLU())


class UNet(nn.Module):
    """Ronneberger et al., 2015, arXiv 1505.04597, padded, with BatchNorm; sides are multiples of 8 pixels."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = _twice(3, widths[0])
        self.down = nn.ModuleList(_twice(high, low) for high, low in pairs)
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(low, high, 2, 2, bias=False), nn.BatchNorm2d(high), nn.ReLU())
            for high, low in reversed(pairs)
        )
        self.merge = nn.ModuleList(_twice(2 * high, high) for high, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 2, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for layers in self.down:
            kept.append(layers(self.pool(kept[-1])))
        y = kept.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            y = merge(torch.cat([kept.pop(), up(y)], 1))
        masks: Tensor = self.head(y)
        return masks


def inputs(shape: tuple[int, ...], count: int, *, seed: int) -> Tensor:
    """Return random input (count, *shape), float32: of images coarse patches and noise, so that they differ as wholes.

    Of noise alone nothing would be left behind an average over all positions.
    """
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=rng)
    if shape[-1] < 8:
        return x
    patches = torch.randn(count, shape[0], shape[1] // 8, shape[2] // 8, generator=rng)
    return 0.5 * x + nn.functional.interpolate(patches, scale_factor=8)


@torch.no_grad()
def unsettled(model: nn.Module, shape: tuple[int, ...], *, seed: int, negative: float = 0.0) -> nn.Module:
    """Draw gains, shifts and biases, measure the statistics on random input (8, *shape), set evaluation mode.

    negative: share of the BatchNorm gains that get a minus sign.
    """
    rng = torch.Generator().manual_seed(seed)
    norms = []
    for module in model.modules():
        for name in ("bias", "shift"):
            if isinstance(tensor := getattr(module, name, None), Tensor):
                tensor.normal_(0, 0.3, generator=rng)
        if isinstance(module, _BATCH_NORMS):
            module.weight.uniform_(0.6, 1.6, generator=rng)
            module.weight[torch.rand(len(module.weight), generator=rng) < negative] *= -1
        if isinstance(module, SpectralLayer):
            module.settle()
        if hasattr(module, "running_mean"):
            norms.append((module, module.momentum))
            module.momentum = 1.0  # type: ignore[assignment]
    model.train()(inputs(shape, _IMAGES, seed=seed))
    for module, momentum in norms:
        module.momentum = momentum  # type: ignore[assignment]
    return model.eval()


class Case(NamedTuple):
    """One network with one norm.

    plain: makes it, untrained. shape: of its input, without the batch. norm: "bn", "msn" (MSN in the network, or in
    place of the BatchNorms where `converted`), "msn producer". source: FILE.py:FACTORY of the very network that
    `make()` returns.
    """

    net: str
    norm: str
    shape: tuple[int, ...]
    plain: Callable[[], nn.Module]
    source: str
    converted: bool = False

    def make(self, *, seed: int = 0, negative: float = 0.0) -> nn.Module:
        """Build the network, seeded, in evaluation mode; negative: see `unsettled`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = unsettled(self.plain(), self.shape, seed=seed, negative=negative)
        return convert(model, "msn").model if self.converted else model

    @property
    def has_gains(self) -> bool:
        """Whether a gain can be negative: MSN has none."""
        return self.norm == "bn"

    @property
    def name(self) -> str:
        return f"{self.net}, {self.norm}"


def _of_registry(net: str, norm: str, width: int) -> nn.Module:
    build = NETS[net]
    given = Norm(name=norm, init="kaiming")
    return build(given, in_channels=3, height_px=32, width_px=32, width=width, classes=CLASSES)


def _all_cases() -> dict[str, Case]:
    """Return every case by the name of its factory."""
    image = (3, 32, 32)
    cases: dict[str, Case] = {}

    def add(net: str, norm: str, plain: Callable[[], nn.Module], shape: tuple[int, ...], *, converted: bool) -> None:
        factory = "".join(each if each.isalnum() else "_" for each in f"{net}_{norm}".lower())
        source = f"{__file__}:{factory}"
        cases[factory] = Case(net=net, norm=norm, shape=shape, plain=plain, source=source, converted=converted)

    for net, name, width in (("VGG7", "vgg7", 32), ("DenseNet-BC", "densenet_bc", 12)):
        for norm in ("bn", "msn"):
            add(net, norm, partial(_of_registry, name, norm, width), image, converted=False)
    if "densenet_bc_producer" in NETS:
        plain = partial(_of_registry, "densenet_bc_producer", "msn", 12)
        add("DenseNet-BC", "msn producer", plain, image, converted=False)
    latent = 128
    dcgan = partial(generator, latent=latent, channels=3, width=64)
    for net, plain, shape in (
        ("ResNet-18", ResNet18, image),
        ("MobileNetV2", MobileNetV2, image),
        ("U-Net", UNet, (3, 64, 64)),
        ("DCGAN generator", dcgan, (latent, 1, 1)),
    ):
        for norm in ("bn", "msn"):
            add(net, norm, plain, shape, converted=norm == "msn")
    return cases


CASES = _all_cases()


# `export_onnx` calls a function of this file by its name, without arguments.
globals().update({factory: case.make for factory, case in CASES.items()})
