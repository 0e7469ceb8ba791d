"""The paper's VGG7 for SVHN: seven 3x3 convolutions in four stages with max pooling, ReLU, a linear classifier."""

from __future__ import annotations

from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.nets.blocks import Norm, conv_norm


def vgg7(norm: Norm, *, in_channels: int, height_px: int, width_px: int, width: int, classes: int) -> nn.Module:
    """Build VGG7; `width` is the channels of the first stage, the others have 2, 4 and 8 times as many."""
    if height_px < 32 or width_px < 32:
        raise InputError(f"vgg7 needs images of at least 32x32 pixels, got {height_px}x{width_px}.")
    layers: list[nn.Module] = []
    channels = in_channels
    for multiple, paddings in ((1, (1, 1)), (2, (1, 1)), (4, (1, 1)), (8, (0,))):
        for padding in paddings:
            layers += [*conv_norm(norm, channels, multiple * width, 3, padding=padding), nn.ReLU()]
            channels = multiple * width
        layers.append(nn.MaxPool2d(2))
    features = channels * ((height_px // 8 - 2) // 2) * ((width_px // 8 - 2) // 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))
