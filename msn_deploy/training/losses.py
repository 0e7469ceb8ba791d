"""The loss of each task, from a network's outputs and the labels of a batch to one number.

Detection: each cell in the middle of a box learns its class, by the sigmoid focal loss (Lin et al., 2017, arXiv
1708.02002, equation 5), and its sides, by 1 - GIoU (Rezatofighi et al., 2019, arXiv 1902.09630), as in FCOS (Tian et
al., 2019, arXiv 1904.01355); both are divided by how many cells learn a box.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from msn_deploy.core.recipes import Recipe
from msn_deploy.data.sources import IGNORED
from msn_deploy.training.labels import CROWD, NOTHING, Boxes, Labels

Loss = Callable[[Tensor, Labels], Tensor]

_ALPHA, _GAMMA = 0.25, 2.0  # of the focal loss: the best of the paper's table 1b
_MIDDLE = 0.25  # of a box's side, to each side of its centre: where cells learn it; at least half a cell


def loss_of(recipe: Recipe) -> Loss:
    """Return the loss that a recipe's task learns by: of outputs in float32, and labels of `training.labels`."""
    smoothing = recipe.train.label_smoothing
    if recipe.task == "detection":
        return partial(detection_loss, height_px=recipe.input_shape[2])
    if recipe.task == "segmentation":
        return partial(segmentation_loss, label_smoothing=smoothing)
    if recipe.task == "multi-label":
        return lambda logits, labels: F.binary_cross_entropy_with_logits(logits, _tensor(labels).to(logits.dtype))
    if recipe.task == "regression":
        return lambda values, labels: F.smooth_l1_loss(values, _tensor(labels).to(values.dtype))
    return lambda logits, labels: F.cross_entropy(logits, _tensor(labels), label_smoothing=smoothing)


def _tensor(labels: Labels) -> Tensor:
    assert isinstance(labels, Tensor)
    return labels


def segmentation_loss(logits: Tensor, masks: Labels, *, label_smoothing: float = 0.0) -> Tensor:
    """Return mean cross entropy and mean Dice loss over the pixels that are not IGNORED; logits (n, classes, H, W).

    masks: uint8 (n, H, W, 1). The Dice loss of a class, over the whole batch, is 1 - 2 sum(p t) / (sum p + sum t), 1
    added above and below (Milletari et al., 2016, arXiv 1606.04797, without squares). It counts small classes as much
    as the background, which is most of what cross entropy sees.
    """
    wanted = _tensor(masks)[..., 0].long()
    total = F.cross_entropy(logits, wanted, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum")
    seen = wanted != IGNORED
    shares = logits.softmax(1) * seen[:, None]
    right = F.one_hot(wanted.clamp_max(logits.shape[1] - 1), logits.shape[1]).permute(0, 3, 1, 2) * seen[:, None]
    both = (shares * right).sum((0, 2, 3))
    dice = (2 * both + 1) / (shares.sum((0, 2, 3)) + right.sum((0, 2, 3)) + 1)
    return total / seen.sum().clamp_min(1) + (1 - dice).mean()


class Assigned(NamedTuple):
    """What each of K cells learns. classes: int64 (n, K), a class, NOTHING or CROWD. sides: (n, K, 4), in pixels."""

    classes: Tensor
    sides: Tensor


def assign(objects: Boxes, height: int, width: int, stride: float) -> Assigned:
    """Return for each cell of maps (height, width), row by row, which object it learns.

    A cell learns the smallest box in whose middle its centre lies: within a quarter of the side from the box's centre,
    or half a cell where that is more, so that no box of a cell or more is left out. sides: from the cell's centre to
    left, top, right and bottom of the box. CROWD: in a crowd and in the middle of no box.
    """
    boxes, labels = objects
    if not boxes.shape[1]:
        shape = (len(boxes), height * width)
        return Assigned(labels.new_full(shape, NOTHING), boxes.new_zeros(*shape, 4))
    y, x = torch.meshgrid(
        *((torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5) * stride for side in (height, width)),
        indexing="ij",
    )
    centre = torch.stack([x.flatten(), y.flatten()], 1)[:, None, :]  # (K, 1, 2)
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]  # (n, 1, M, 2)
    sides = torch.cat([centre - low, high - centre], -1)  # (n, K, M, 4)
    inside = sides.amin(-1) > 0
    reach = (_MIDDLE * (high - low)).clamp_min(stride / 2)
    middle = ((centre - (low + high) / 2).abs() <= reach).all(-1) & inside
    is_object = labels[:, None, :] >= 0
    area = (high - low).prod(-1).expand_as(inside)
    smallest = torch.where(middle & is_object, area, torch.inf).min(-1)
    classes = labels.gather(1, smallest.indices)
    in_crowd = (inside & (labels[:, None, :] == CROWD)).any(-1)
    free = torch.where(in_crowd, CROWD, NOTHING)
    found = smallest.values.isfinite()
    chosen = smallest.indices[..., None, None].expand(-1, -1, 1, 4)
    return Assigned(torch.where(found, classes, free), sides.gather(2, chosen)[:, :, 0])


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -alpha_t (1 - p_t)^gamma log p_t for each logit; targets, 0 or 1, of the same shape."""
    log_p = F.logsigmoid(torch.where(targets == 1, logits, -logits))
    alpha = torch.where(targets == 1, _ALPHA, 1 - _ALPHA)
    return -alpha * (1 - log_p.exp()) ** _GAMMA * log_p


def giou_of_sides(one: Tensor, other: Tensor) -> Tensor:
    """Return the GIoU, -1 to 1, of boxes around the same points, (..., 4): left, top, right, bottom, not negative.

    Both hold the point, so that they overlap along each axis as far as the nearer sides; their hull has the farther.
    """
    near, far = torch.minimum(one, other), torch.maximum(one, other)
    shared, hull = _product(near), _product(far)
    union = _product(one) + _product(other) - shared
    tiny = torch.finfo(union.dtype).tiny
    return shared / union.clamp_min(tiny) - (hull - union) / hull.clamp_min(tiny)


def _product(sides: Tensor) -> Tensor:
    left, top, right, bottom = sides.unbind(-1)
    return (left + right) * (top + bottom)


def detection_loss(outputs: Tensor, objects: Labels, *, height_px: int) -> Tensor:
    """Return focal loss and 1 - GIoU of outputs (n, classes + 4, H, W), as `nets.detector` gives them.

    objects: in pixels of a frame of height_px, so that a cell is height_px / H pixels wide.
    """
    assert isinstance(objects, Boxes)
    stride = height_px / outputs.shape[2]
    wanted = assign(objects, outputs.shape[2], outputs.shape[3], stride)
    cells = outputs.flatten(2).transpose(1, 2)  # (n, K, classes + 4)
    logits, sides = cells[..., :-4], cells[..., -4:]
    found = wanted.classes >= 0
    targets = F.one_hot(wanted.classes.clamp_min(0), logits.shape[-1]) * found[..., None]
    focal = (focal_loss(logits, targets) * (wanted.classes != CROWD)[..., None]).sum()
    apart = (1 - giou_of_sides(sides[found], (wanted.sides / stride)[found])).sum()
    return (focal + apart) / found.sum().clamp_min(1)
