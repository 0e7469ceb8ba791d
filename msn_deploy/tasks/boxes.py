"""Boxes: their formats, how far two overlap, and which of many that overlap is kept."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BoxFormat = Literal["xyxy", "cxcywh", "xywh"]
"""xyxy: two corners. cxcywh: centre and size. xywh: upper left corner and size."""
_BLOCK = 64  # candidates of NMS that are compared at once: few enough to stay in the cache


def as_xyxy(boxes: NDArray[Any], form: BoxFormat) -> NDArray[np.float64]:
    """Return boxes (..., 4) of a format as x1, y1, x2, y2."""
    given = boxes.astype(np.float64)
    if form == "xyxy":
        return given
    start, size = given[..., :2], given[..., 2:]
    if form == "cxcywh":
        start = start - size / 2
    return np.concatenate([start, start + size], axis=-1)


def clipped(boxes: NDArray[np.float64], width: float, height: float) -> NDArray[np.float64]:
    """Return boxes (..., 4), xyxy, cut off at the edges of an image."""
    limits = np.asarray([width, height, width, height], dtype=np.float64)
    return np.clip(boxes, 0, limits)


def iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection over union of each of A boxes (A, 4) with each of B (B, 4), xyxy, as (A, B).

    Two boxes that have no area together overlap by 0.
    """
    (left, top, right, bottom), (x1, y1, x2, y2) = one.T[..., np.newaxis], np.ascontiguousarray(other.T)
    both: NDArray[np.float64] = np.maximum(np.minimum(right, x2) - np.maximum(left, x1), 0)
    both *= np.maximum(np.minimum(bottom, y2) - np.maximum(top, y1), 0)
    either = _area(one)[:, np.newaxis] + _area(other)
    either -= both
    both /= np.maximum(either, np.finfo(np.float64).tiny)
    return both


def nms(
    boxes: NDArray[np.float64],
    scores: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    *,
    overlap: float,
    most: int,
) -> NDArray[np.intp]:
    """Return which of M boxes are kept, the best first: those that no better one of their class overlaps by more.

    Greedy, as in torchvision and ONNX: a box goes if its IoU with a kept one of the same class is above `overlap`; of
    equal scores the first comes first. It ends as soon as `most` are kept, so that its time is for what is kept.

    boxes: (M, 4), xyxy. scores, labels: (M,).
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.empty(0, dtype=np.intp)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        block = block[~_covered(boxes, labels, block, kept, overlap).any(axis=1)]
        covers = np.triu(_covered(boxes, labels, block, block, overlap), 1)  # [i, j]: i is the better of the two
        stays = np.ones(len(block), dtype=bool)
        for at in np.flatnonzero(covers.any(axis=1)):
            if stays[at]:
                stays &= ~covers[at]
        kept = np.concatenate([kept, block[stays]])
        if len(kept) >= most:
            break
    return kept[:most]


def _covered(
    boxes: NDArray[np.float64],
    labels: NDArray[np.integer[Any]],
    some: NDArray[np.intp],
    others: NDArray[np.intp],
    overlap: float,
) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = labels[some][:, np.newaxis] == labels[others]
    return same & (iou(boxes[some], boxes[others]) > overlap)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the areas of boxes (..., 4), xyxy; one whose corners are the wrong way round has none."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    area: NDArray[np.float64] = sides[..., 0] * sides[..., 1]
    return area
