"""A small detector without anchors, as FCOS (Tian et al., 2019, arXiv 1904.01355) on one scale: a box for each cell.

Three convolutions of stride 2 see the image in cells of 8 pixels; those are doubled and put beside the features of 4
pixels, from which two more convolutions make what the head reads. Each cell of 4x4 pixels gives a logit per class, and
how far the four sides of its box are from the cell's centre, in cells. There is no centre-ness: a cell learns a box
only in the middle of it.

ReLU keeps the distances from being negative. FCOS has exp, whose range 8 bits hold badly; that of ReLU is the range of
the boxes, and TensorRT fuses it into the convolution. It starts alive, from a bias of two cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.nets.blocks import Norm, conv_norm_relu, doubled, require_multiple

_PRIOR = 0.01  # of a class in a cell, at the start: focal loss, Lin et al., 2017, arXiv 1708.02002, section 4.1
_START_CELLS = 2.0  # of each distance


class Detector(nn.Module):
    """(N, C, H, W) to (N, classes + 4, H / 4, W / 4): logits, then left, top, right, bottom from the cell's centre."""

    def __init__(self, norm: Norm, *, in_channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            *conv_norm_relu(norm, in_channels, width, stride=2),
            *conv_norm_relu(norm, width, 2 * width, stride=2),
            *conv_norm_relu(norm, 2 * width, 2 * width),
        )
        self.coarse = nn.Sequential(
            *conv_norm_relu(norm, 2 * width, 4 * width, stride=2),
            *conv_norm_relu(norm, 4 * width, 4 * width),
            *conv_norm_relu(norm, 4 * width, 4 * width),
        )
        self.both = nn.Sequential(
            *conv_norm_relu(norm, 6 * width, 3 * width), *conv_norm_relu(norm, 3 * width, 3 * width)
        )
        self.classes = nn.Conv2d(3 * width, classes, 3, padding=1)
        self.distances = nn.Conv2d(3 * width, 4, 3, padding=1)
        for layer, bias in ((self.classes, -math.log((1 - _PRIOR) / _PRIOR)), (self.distances, _START_CELLS)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]  # both have one

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        both = self.both(torch.cat([doubled(self.coarse(fine)), fine], 1))
        return torch.cat([self.classes(both), F.relu(self.distances(both))], 1)


def detector(norm: Norm, *, in_channels: int, height_px: int, width_px: int, width: int, classes: int) -> nn.Module:
    """Build the detector; `width` is the channels of the first convolution, the others have 2 to 4 times as many.

    Raises InputError for sides that three convolutions of stride 2 do not divide.
    """
    require_multiple("detector", 8, height_px, width_px)
    return Detector(norm, in_channels=in_channels, width=width, classes=classes)
