"""Labels as tensors, picked with the images of a batch and moved as those are by augmentation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from msn_deploy.core.model_info import Preprocess
from msn_deploy.data import Split
from msn_deploy.data.frame import placement
from msn_deploy.data.labels import ObjectLabels
from msn_deploy.data.sources import IGNORED

NOTHING, CROWD = -1, -2
"""In `Boxes.labels`: no box, and a box in which nothing is right or wrong."""
_PAD = 8  # a crop moves by at most this part of the side, 4 pixels of 32
_VISIBLE = 0.25  # of a box: with less of it left in the frame nobody could say what it is


class Boxes(NamedTuple):
    """The objects of n images, at most M in each.

    boxes: float32 (n, M, 4), x1, y1, x2, y2 in pixels of the frame. labels: int64 (n, M), a class, NOTHING or CROWD.
    """

    boxes: Tensor
    labels: Tensor


Labels = Tensor | Boxes
"""A number or several per image (n, ...), a mask (n, H, W, 1), or boxes."""


class Moves(NamedTuple):
    """How each of n images is moved: int64 (n,). far: the pixels that a crop moves by at most, down and right.

    An image is padded by `far` on all sides, flipped left and right where flip is 1, and cut out again `down` and
    `right` pixels from the corner.
    """

    down: Tensor
    right: Tensor
    flip: Tensor
    far: tuple[int, int]


def far_of(augment: str, height: int, width: int) -> tuple[int, int]:
    """Return how many pixels a crop moves images by at most, down and right."""
    return (height // _PAD, width // _PAD) if "crop" in augment else (0, 0)


def labels_of(split: Split, prep: Preprocess) -> Labels:
    """Return the labels of all images of a split."""
    if isinstance(split.labels, ObjectLabels):
        return _boxes_of(split.labels, prep)
    return torch.from_numpy(np.array(split.labels))


def _boxes_of(labels: ObjectLabels, prep: Preprocess) -> Boxes:
    most = max((len(each.labels) for each in labels.images), default=0)
    boxes = np.zeros((len(labels), most, 4), dtype=np.float32)
    classes = np.full((len(labels), most), NOTHING, dtype=np.int64)
    for at, each in enumerate(labels.images):
        count = len(each.labels)
        boxes[at, :count] = placement(each.width_px, each.height_px, prep).to_frame(each.boxes)
        classes[at, :count] = np.where(each.crowd, CROWD, each.labels)
    sides = _sides(torch.from_numpy(boxes), prep.height_px, prep.width_px)
    return _cut(Boxes(torch.from_numpy(boxes), torch.from_numpy(classes)), sides)


def to_device(labels: Labels, device: torch.device) -> Labels:
    """Return labels on a device."""
    return Boxes(*(each.to(device) for each in labels)) if isinstance(labels, Boxes) else labels.to(device)


def picked(labels: Labels, chosen: Tensor, moves: Moves | None, size: tuple[int, int]) -> Labels:
    """Return the labels of chosen images, moved as those are in their frame of `size` (height, width)."""
    if isinstance(labels, Boxes):
        boxes = Boxes(labels.boxes[chosen], labels.labels[chosen])
        return boxes if moves is None else _moved_boxes(boxes, moves, size)
    own = labels[chosen]
    is_mask = own.dim() == 4
    return moved(own, moves, fill=IGNORED) if is_mask and moves is not None else own


def moved(images: Tensor, moves: Moves, *, fill: int = 0) -> Tensor:
    """Return images (n, H, W, C) moved, on a border of `fill`."""
    down, right, flip, (far_down, far_right) = moves
    _, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device).expand(len(flip), -1)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns) + right[:, None]
    if far_down or far_right:
        images = F.pad(images, (0, 0, far_right, far_right, far_down, far_down), value=fill)
    each = torch.arange(len(images), device=images.device)
    return images[each[:, None, None], rows[:, :, None], columns[:, None, :]]


def _moved_boxes(boxes: Boxes, moves: Moves, size: tuple[int, int]) -> Boxes:
    """Return boxes moved as `moved` does it, cut to the frame, without those of which hardly anything is left."""
    height, width = size
    shift = torch.stack([moves.far[1] - moves.right, moves.far[0] - moves.down], 1)
    shifted = boxes.boxes + shift.repeat(1, 2)[:, None, :]
    mirrored = torch.stack([width - shifted[..., 2], shifted[..., 1], width - shifted[..., 0], shifted[..., 3]], -1)
    placed = torch.where(moves.flip[:, None, None] == 1, mirrored, shifted)
    return _cut(Boxes(placed, boxes.labels), _sides(placed, height, width))


def _sides(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return boxes (..., 4) cut to a frame."""
    most = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp_min(0), most)


def _cut(whole: Boxes, cut: Tensor) -> Boxes:
    """Return the cut boxes, those that are hardly visible taken off."""
    seen = _area(cut) >= _VISIBLE * _area(whole.boxes)
    return Boxes(cut, torch.where(seen & (_area(cut) > 0), whole.labels, NOTHING))


def _area(boxes: Tensor) -> Tensor:
    wide, high = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return wide * high
