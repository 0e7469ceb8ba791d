"""The paper's VGG7 for SVHN: 3x3 convolutions in four stages with max pooling, ReLU, a linear classifier.

`vgg7` has seven convolutions. The checkpoints that the paper's authors published have six, one in the third stage:
`vgg7_svhn` in the registry.
"""

from __future__ import annotations

from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.nets.blocks import Norm, classifier_layer, conv_norm

Stages = tuple[tuple[int, tuple[int, ...]], ...]
"""Per stage its channels as a multiple of `width`, and the padding of each of its convolutions."""

SEVEN: Stages = ((1, (1, 1)), (2, (1, 1)), (4, (1, 1)), (8, (0,)))
SIX: Stages = ((1, (1, 1)), (2, (1, 1)), (4, (1,)), (8, (0,)))


def vgg7(
    norm: Norm, *, in_channels: int, height_px: int, width_px: int, width: int, classes: int,
    classifier: str = "linear", stages: Stages = SEVEN,
) -> nn.Module:  # fmt: skip
    """Build VGG7; `width` is the channels of the first stage, the others have 2, 4 and 8 times as many.

    classifier: one of core.recipes.CLASSIFIERS. stages: SEVEN or SIX.
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
