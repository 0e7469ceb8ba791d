"""From the numbers of one image to boxes, scores and classes: one function for each way that heads give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.tasks.boxes import BoxFormat, as_xyxy
from msn_deploy.tasks.task import Ending

Units = Literal["pixels", "share"]
Background = Literal["none", "first", "last"]
PerBox = Literal["best", "all"]
NO_FRAME = (1.0, 1.0)
"""The frame's size where it is not known: positions in it are shares of it, as far as the head does not give pixels."""
Parts = Mapping[str, NDArray[Any]]
"""The outputs for one image, by what they are: `output`, or `boxes`, `scores` and `classes`."""
_MOST = 30_000  # candidates of one image, the best of them, so that a threshold of 0 does not fill the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the numbers of a head are read.

    model, head: what messages call them. classes: how many there are, 0 where that is not known. score: what a
    candidate has to be above. form, units: of boxes; share: of the frame's width and height. background: whether one
    class means that nothing is there. ending: what the scores are already. per_box: whether a box stands for its best
    class alone, or for each class that is likely enough. stride: pixels per cell; 0 takes the frame's size. frame: its
    width and height in pixels.
    """

    model: str
    head: str
    classes: int
    score: float
    form: BoxFormat = "xyxy"
    units: Units = "pixels"
    background: Background = "none"
    ending: Ending = "unknown"
    per_box: PerBox = "all"
    stride: float = 0.0
    frame: tuple[float, float] = NO_FRAME


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a network sees in one image, before NMS, in any order.

    boxes: float64 (M, 4), xyxy in pixels of the frame. scores: float64 (M,), from 0 to 1. labels: int64 (M,).
    likeliest: bool (M,), whether a box that stands for several classes is most likely of this one.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    likeliest: NDArray[np.bool_]


Decode = Callable[[Parts, Way], Candidates]
"""From the outputs for one image, and how they are read, to candidates. Raises InputError for arrays of another
shape."""


def yolov5(parts: Parts, way: Way) -> Candidates:
    """Read (boxes, 5 + classes): a box, the probability of an object, and that of each class if there is one."""
    rows = _of_rank(parts["output"], 2, way)
    _check_classes(rows.shape[1] - 5, way)
    rows = rows[rows[:, 4] > np.float64(way.score)].astype(np.float64)  # a product is not above its factors
    return _likely(rows[:, :4], rows[:, 4:5] * rows[:, 5:], way)


def yolov8(parts: Parts, way: Way) -> Candidates:
    """Read (4 + classes, boxes), or its transpose: a box and the probability of each class."""
    rows = _of_rank(parts["output"], 2, way)
    if not has_boxes_in_rows(way, rows.shape):
        rows = rows.T
    _check_classes(rows.shape[1] - 4, way)
    return _likely(rows[:, :4], rows[:, 4:], way)


def fcos(parts: Parts, way: Way) -> Candidates:
    """Read a map (classes + 4, H, W): logits, then how far a box reaches from the cell's centre.

    The distances, to the left, top, right and bottom, are in cells.
    """
    maps = _of_rank(parts["output"], 3, way)
    count = len(maps) - 4
    _check_classes(count, way)
    high, wide = maps.shape[1:]
    reach = maps[count:].reshape(4, -1).T.astype(np.float64)
    boxes = (cell_centres(high, wide) + reach * [-1, -1, 1, 1]) * np.tile(cell_size(way, high, wide), 2)
    return _likely(boxes, _sigmoid(maps[:count].reshape(count, -1).T.astype(np.float64)), way)


def has_boxes_in_rows(way: Way, shape: Sequence[int]) -> bool:
    """Whether the array of a yolov8 head, of that shape without the batch, is (boxes, 4 + classes)."""
    wanted = 4 + way.classes
    return shape[0] != (wanted if wanted in shape else min(shape))


def cell_centres(high: int, wide: int) -> NDArray[np.float64]:
    """Return the centre of each cell of a map, (high * wide, 4), as a box without size, in cells."""
    y, x = (each.reshape(-1) + 0.5 for each in np.indices((high, wide)))
    return np.stack([x, y, x, y], axis=1)


def cell_size(way: Way, high: int, wide: int) -> tuple[float, float]:
    """Return width and height of a map's cells, in pixels. Raises InputError where the frame does not tell."""
    steps = way.frame[0] / wide, way.frame[1] / high
    if way.stride:
        return way.stride, way.stride
    if way.frame != NO_FRAME and (steps[0] != steps[1] or steps[0] % 1):
        raise InputError(
            f"{way.model} gives {wide}x{high} cells for a frame of {way.frame[0]:g}x{way.frame[1]:g} pixels, which "
            "does not tell how large they are.\nSay it: msn-deploy export ... --read stride=PIXELS"
        )
    return steps


def pair(parts: Parts, way: Way) -> Candidates:
    """Read boxes (B, 4) and scores (B, classes), among which a class may mean the background."""
    boxes, numbers = (_of_rank(parts[role], 2, way) for role in ("boxes", "scores"))
    if boxes.shape != (len(numbers), 4):
        raise _misfit(way, f"boxes {_size(boxes)} and scores {_size(numbers)}")
    _check_classes(numbers.shape[1] - (way.background != "none"), way)
    scores = _probabilities(numbers.astype(np.float64), way)
    if way.background != "none":
        scores = scores[:, 1:] if way.background == "first" else scores[:, :-1]
    return _likely(boxes, scores, way)


def rows(parts: Parts, way: Way) -> Candidates:
    """Read (M, 6): a box, its score and its class, after NMS or without need of it."""
    table = _of_rank(parts["output"], 2, way)
    if table.shape[1] != 6:
        raise _misfit(way, _size(table))
    return _listed(table[:, :4], table[:, 4], table[:, 5], way)


def rows_with_image(parts: Parts, way: Way) -> Candidates:
    """Read (M, 7): the index of the image, a box, its class and its score."""
    table = _of_rank(parts["output"], 2, way)
    if table.shape[1] != 7:
        raise _misfit(way, _size(table))
    return _listed(table[:, 1:5], table[:, 6], table[:, 5], way)


def lists(parts: Parts, way: Way) -> Candidates:
    """Read boxes (M, 4), scores (M,) and classes (M,)."""
    boxes, scores, labels = (parts[role] for role in ("boxes", "scores", "classes"))
    if boxes.shape[1:] != (4,) or not scores.shape == labels.shape == boxes.shape[:1]:
        raise _misfit(way, f"boxes {_size(boxes)}, scores {_size(scores)} and classes {_size(labels)}")
    return _listed(boxes, scores, labels, way)


def _likely(boxes: NDArray[Any], scores: NDArray[Any], way: Way) -> Candidates:
    """Return the pairs of box (B, 4) and class whose score (B, classes) is high enough."""
    best_label = scores.argmax(axis=1)
    if way.per_box == "best":
        at = np.flatnonzero(scores[np.arange(len(scores)), best_label] > np.float64(way.score))
        labels = best_label[at]
    else:
        above = scores > np.float64(way.score)
        labels, at = np.divmod(np.flatnonzero(above.T), len(scores))
    chosen = scores[at, labels].astype(np.float64)
    if len(chosen) > _MOST:
        best = np.sort(np.argpartition(-chosen, _MOST)[:_MOST])
        at, labels, chosen = at[best], labels[best], chosen[best]
    return Candidates(_in_pixels(boxes[at], way), chosen, labels.astype(np.int64), labels == best_label[at])


def _listed(boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], way: Way) -> Candidates:
    """Return the boxes (M, 4) whose score (M,) is high enough."""
    kept = scores > np.float64(way.score)
    found = np.rint(labels[kept]).astype(np.int64) - (way.background == "first")
    if found.size and (found.min() < 0 or (way.classes and found.max() >= way.classes)):
        known = f"{way.classes} classes" if way.classes else "classes from 0 on"
        wrong = found.min() if found.min() < 0 else found.max()
        raise InputError(
            f"{way.model} finds class {wrong + (way.background == 'first')}; there are {known}, and background is "
            f"{way.background}.\nCheck `--read head`, `--read background` and the classes."
        )
    return Candidates(_in_pixels(boxes[kept], way), scores[kept].astype(np.float64), found, np.ones(len(found), bool))


def _in_pixels(boxes: NDArray[Any], way: Way) -> NDArray[np.float64]:
    found = as_xyxy(boxes, way.form)
    return found * np.tile(way.frame, 2) if way.units == "share" else found


def _probabilities(numbers: NDArray[np.float64], way: Way) -> NDArray[np.float64]:
    """Return scores (B, classes) from 0 to 1: a class for the background makes logits those of a softmax."""
    ending = way.ending
    if ending == "unknown":  # of an engine whose graph is not here
        is_share = numbers.min(initial=0) >= 0 and numbers.max(initial=0) <= 1
        ending = "sigmoid" if is_share else "logits"
    if ending == "log-softmax":
        return np.exp(numbers)
    if ending in ("softmax", "sigmoid"):
        return numbers
    if way.background == "none":
        return _sigmoid(numbers)
    powers: NDArray[np.float64] = np.exp(numbers - numbers.max(axis=1, keepdims=True, initial=-np.inf))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def _sigmoid(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * numbers))
    return shares


def _check_classes(count: int, way: Way) -> None:
    if count < 1 or (way.classes and count != way.classes):
        wanted = f"there are names of {way.classes}" if way.classes else "a detector has one at least"
        raise InputError(
            f"{way.model}, read as {way.head}, gives scores of {count} classes; {wanted}.\n"
            "Check `--read head` and `--classes`, or give data with the classes that it was trained on."
        )


def _of_rank(array: NDArray[Any], rank: int, way: Way) -> NDArray[Any]:
    if array.ndim != rank:
        raise _misfit(way, _size(array))
    return array


def _misfit(way: Way, found: str) -> InputError:
    return InputError(
        f"{way.model} gives {found} for an image, which the head {way.head} does not.\n"
        "Say which it has: msn-deploy export ... --read head=NAME (docs/guides/tasks.md)."
    )


def _size(array: NDArray[Any]) -> str:
    return "x".join(map(str, array.shape)) or "one number"
