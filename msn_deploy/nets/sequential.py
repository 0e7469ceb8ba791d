"""The paper's networks that are one chain of layers: the 3-layer CNN for MNIST and VGG7 for SVHN.

`cnn3` has kernels 5, 3, 4, the last of stride 2, LeakyReLU 0.1 and a linear classifier. The authors' networks without a
norm have ReLU in its place: `cnn3_relu` in the registry is `cnn3` with slope 0.

`vgg7` has seven 3x3 convolutions in four stages with max pooling, ReLU and a linear classifier. The checkpoints that
the paper's authors published have six, one in the third stage: `vgg7_svhn` in the registry.
"""

from __future__ import annotations

from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.nets.blocks import Norm, classifier_layer, conv_norm

Stages = tuple[tuple[int, tuple[int, ...]], ...]
"""Per stage its channels as a multiple of `width`, and the padding of each of its convolutions."""

SEVEN: Stages = ((1, (1, 1)), (2, (1, 1)), (4, (1, 1)), (8, (0,)))
SIX: Stages = ((1, (1, 1)), (2, (1, 1)), (4, (1,)), (8, (0,)))


def cnn3(
    norm: Norm, *, in_channels: int, height_px: int, width_px: int, width: int, classes: int,
    classifier: str = "linear", slope: float = 0.1,
) -> nn.Module:  # fmt: skip
    """Build cnn3; `width` is the channels of the first layer, the others have twice as many.

    classifier: "linear" or "sn". slope: of the activation below zero; 0 is ReLU.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for out, kernel, stride, padding in ((width, 5, 1, 2), (2 * width, 3, 1, 2), (2 * width, 4, 2, 2)):
        layers += conv_norm(norm, channels, out, kernel, stride=stride, padding=padding)
        layers.append(nn.LeakyReLU(slope) if slope else nn.ReLU())
        height_px, width_px = ((side + 2 * padding - kernel) // stride + 1 for side in (height_px, width_px))
        channels = out
    last = classifier_layer(classifier, norm, channels * height_px * width_px, classes)
    return nn.Sequential(*layers, nn.Flatten(), last)


def vgg7(
    norm: Norm, *, in_channels: int, height_px: int, width_px: int, width: int, classes: int,
    classifier: str = "linear", stages: Stages = SEVEN,
) -> nn.Module:  # fmt: skip
    """Build VGG7; `width` is the channels of the first stage, the others have 2, 4 and 8 times as many.

    classifier: "linear" or "sn". stages: SEVEN or SIX.
    """
    if height_px < 32 or width_px < 32:
        raise InputError(f"vgg7 needs images of at least 32x32 pixels, got {height_px}x{width_px}.")
    layers: list[nn.Module] = []
    channels = in_channels
    for multiple, paddings in stages:
        for padding in paddings:
            layers += [*conv_norm(norm, channels, multiple * width, 3, padding=padding), nn.ReLU()]
            channels = multiple * width
        layers.append(nn.MaxPool2d(2))
    features = channels * ((height_px // 8 - 2) // 2) * ((width_px // 8 - 2) // 2)
    return nn.Sequential(*layers, nn.Flatten(), classifier_layer(classifier, norm, features, classes))
