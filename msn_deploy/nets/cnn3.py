"""The paper's 3-layer CNN for MNIST: kernels 5, 3, 4, the last of stride 2, LeakyReLU 0.1, a linear classifier."""

from __future__ import annotations

from torch import nn

from msn_deploy.nets.blocks import Norm, conv_norm


def cnn3(norm: Norm, *, in_channels: int, height_px: int, width_px: int, width: int, classes: int) -> nn.Module:
    """Build cnn3; `width` is the channels of the first layer, the others have twice as many."""
    layers: list[nn.Module] = []
    channels = in_channels
    for out, kernel, stride, padding in ((width, 5, 1, 2), (2 * width, 3, 1, 2), (2 * width, 4, 2, 2)):
        layers += [*conv_norm(norm, channels, out, kernel, stride=stride, padding=padding), nn.LeakyReLU(0.1)]
        height_px, width_px = ((side + 2 * padding - kernel) // stride + 1 for side in (height_px, width_px))
        channels = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height_px * width_px, classes))
