"""A small U-Net for segmentation (Ronneberger et al., 2015, arXiv 1505.04597): an image to logits for each pixel.

Two convolutions at each of four scales, one at the finest, and as many on the way up, where the features of the same
scale are concatenated. Unlike the paper's it keeps the size of the image, has a norm with each convolution, and goes up
by nearest neighbours instead of transposed convolutions, which not every TensorRT runs in INT8. The last layer, 1x1,
has a bias and no norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.nets.blocks import Norm, conv_norm_relu, doubled, require_multiple

# Per scale, from the finest, its channels as a multiple of `width`, and its convolutions: where there are most pixels
# is most of the time.
_SCALES = ((1, 1), (2, 2), (4, 2), (4, 2))


class UNet(nn.Module):
    """(N, C, H, W) to logits (N, classes, H, W); H and W are multiples of 8."""

    def __init__(self, norm: Norm, *, in_channels: int, width: int, classes: int) -> None:
        super().__init__()

        def block(before: int, channels: int, convolutions: int) -> nn.Module:
            layers: list[nn.Module] = []
            for at in range(convolutions):
                layers += conv_norm_relu(norm, channels if at else before, channels)
            return nn.Sequential(*layers)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = in_channels
        for multiple, convolutions in _SCALES:
            self.down.append(block(before, multiple * width, convolutions))
            before = multiple * width
        for multiple, convolutions in reversed(_SCALES[:-1]):
            self.up.append(block(before + multiple * width, multiple * width, convolutions))
            before = multiple * width
        self.last = nn.Conv2d(before, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for at, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if at else x)
            kept.append(x)
        for block, finer in zip(self.up, reversed(kept[:-1]), strict=True):
            x = block(torch.cat([doubled(x), finer], 1))
        logits: Tensor = self.last(x)
        return logits


def unet(norm: Norm, *, in_channels: int, height_px: int, width_px: int, width: int, classes: int) -> nn.Module:
    """Build the U-Net; `width` is the channels at the finest scale, the others have 2, 4 and 4 times as many.

    Raises InputError for sides that three poolings do not divide.
    """
    require_multiple("unet", 2 ** (len(_SCALES) - 1), height_px, width_px)
    return UNet(norm, in_channels=in_channels, width=width, classes=classes)
