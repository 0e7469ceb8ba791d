"""The paper's 3-layer CNN for MNIST: kernels 5, 3, 4, the last of stride 2, LeakyReLU 0.1, a linear classifier.

The authors' networks without a norm have ReLU in its place: `cnn3_relu` in the registry is `cnn3` with slope 0.
"""

from __future__ import annotations

from torch import nn

from msn_deploy.nets.blocks import Norm, classifier_layer, conv_norm


def cnn3(
    norm: Norm, *, in_channels: int, height_px: int, width_px: int, width: int, classes: int,
    classifier: str = "linear", slope: float = 0.1,
) -> nn.Module:  # fmt: skip
    """Build cnn3; `width` is the channels of the first layer, the others have twice as many.

    classifier: one of core.recipes.CLASSIFIERS. slope: of the activation below zero; 0 is ReLU.
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
