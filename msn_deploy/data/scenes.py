"""`digits-scenes`: pictures with several real digits each, made here, with labels for every task.

The handwritten digits of `digits`, 8x8 pixels each, are scaled to 16 to 48 pixels and put on a textured ground of
96x96: one large digit and up to four smaller ones, the larger the nearer to the camera. At 96x96 a network of 20,000
parameters learns from them within minutes on one core; at 48x48 the smallest digits still have the 8 pixels that
they were recorded with. 1,000 scenes are for training, 250 for the test, which shows digits of the test split alone.

Whole numbers and numpy's legacy generator alone make them, so that they are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.model_info import TaskName
from msn_deploy.data.idx import read_idx_folder
from msn_deploy.data.images import DIGITS, Raw, without_labels
from msn_deploy.data.labels import BACKGROUND, ObjectLabels, Objects

COUNTS = {"train": 1000, "test": 250}
SIDE_PX = 96
VALUES = ("count", "sum")
"""What regression is for: how many digits there are, and what they add up to."""

_SEEDS = {"train": 0, "test": 1_000_000}  # of the first scene
_LARGEST, _SMALLER = (32, 48), (16, 27)  # heights of digits, both included: one is clearly the largest
_MOST_SMALLER = 4
_INK = 96  # of 255: what of a digit is seen as one
_OVERLAP = 8  # at most this part of the smaller one of two digits is covered
_CROWDED = 16  # one scene of so many has a crowd: small digits of one class in a heap
_CROWD_PX, _CROWD_DIGITS = 12, 6
_NEAREST_MM = 96_000  # divided by the height in pixels: how far a digit is away
_GROUND_MM = (12_000, 7_000)  # how far the ground is away, at the top and at the bottom
_BLIND_PX = 4  # at the left, where a stereo camera measures nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scenes:
    """All scenes of a split, N of them. pixels: uint8 (N, 96, 96, 3). classes: uint8 (N, 96, 96), 0 for the ground.
    depth_mm: uint16 (N, 96, 96), 0 where it is not measured. digits: the values that each shows, the largest first.
    """

    pixels: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16]
    objects: tuple[Objects, ...]
    digits: tuple[tuple[int, ...], ...]


def read_scenes(digits: Path, split: str, task: TaskName | None) -> Raw:
    """Make the "train" or "test" split of `digits-scenes` of the bundled digits, with labels for a task."""
    scenes = _scenes(digits, split)
    if task is None:
        return without_labels(scenes.pixels)
    images, classes = scenes.pixels, _CLASSES.get(task, DIGITS)
    if task == "image-to-image":
        images = np.stack([_spoiled(each, at) for at, each in enumerate(images)])
    return Raw(images=images, labels=_LABELS[task](scenes), classes=classes, task=task)


_CLASSES: dict[TaskName, tuple[str, ...]] = {
    "segmentation": (BACKGROUND, *DIGITS),
    "regression": VALUES,
    "depth": (),
    "image-to-image": (),
}
_LABELS: dict[TaskName, Callable[[_Scenes], Any]] = {
    "detection": lambda scenes: ObjectLabels(scenes.objects),
    "segmentation": lambda scenes: lambda at: scenes.classes[at],
    "classification": lambda scenes: np.asarray([each[0] for each in scenes.digits]),
    "embedding": lambda scenes: np.asarray([each[0] for each in scenes.digits]),
    "multi-label": lambda scenes: np.asarray([[at in each for at in range(10)] for each in scenes.digits]),
    "regression": lambda scenes: np.asarray([[len(each), sum(each)] for each in scenes.digits], dtype=np.float64),
    "depth": lambda scenes: lambda at: _metres(scenes.depth_mm[at]),
    "image-to-image": lambda scenes: lambda at: scenes.pixels[at],
}


@cache
def _scenes(digits: Path, split: str) -> _Scenes:
    raw = read_idx_folder(digits, split)
    assert raw is not None
    assert isinstance(raw.images, np.ndarray)
    assert isinstance(raw.labels, np.ndarray)
    by_class = [raw.images[raw.labels == label] for label in range(10)]
    made = [_Scene(np.random.RandomState(_SEEDS[split] + at), by_class) for at in range(COUNTS[split])]
    return _Scenes(
        pixels=np.stack([each.pixels for each in made]),
        classes=np.stack([each.classes for each in made]),
        depth_mm=np.stack([each.depth_mm for each in made]),
        objects=tuple(each.objects() for each in made),
        digits=tuple(tuple(each.digits) for each in made),
    )


class _Scene:
    """One scene as it is painted: the ground, a crowd, then digits from the farthest to the nearest."""

    def __init__(self, random: np.random.RandomState, by_class: list[NDArray[np.uint8]]) -> None:
        self._numbers, self._by_class = _numbers(random), by_class
        self.pixels, self._owner = self._ground(random), np.zeros((SIDE_PX, SIDE_PX), dtype=np.uint8)
        self.classes = np.zeros_like(self._owner)
        far, near = _GROUND_MM
        rows = far - (far - near) * np.arange(SIDE_PX)[:, np.newaxis] // (SIDE_PX - 1)
        self.depth_mm = np.broadcast_to(rows, (SIDE_PX, SIDE_PX)).astype(np.uint16)
        self._shown: list[tuple[int, bool]] = []  # class, whether it is a crowd
        heights = [self._between(*_LARGEST)]
        heights += sorted((self._between(*_SMALLER) for _ in range(self._between(0, _MOST_SMALLER))), reverse=True)
        crowded = self._between(1, _CROWDED) == 1
        placed = self._places(heights[:2] if crowded else heights)
        self.digits = [self._between(0, 9) for _ in placed]
        crowd = self._crowd(placed) if crowded else []
        for digit, (height, width, top, left) in reversed(list(zip(self.digits, placed, strict=True))):
            self._paint(self._written(digit, height, width), top, left, digit, height)
        self.digits += crowd
        self.depth_mm[:, :_BLIND_PX] = 0

    def _between(self, low: int, high: int) -> int:
        """Return a number from low to high, both included."""
        return low + next(self._numbers) % (high - low + 1)

    def _ground(self, random: np.random.RandomState) -> NDArray[np.uint8]:
        """Return dark patches of a colour of its own with grain: 20 to 117 of 255."""
        colour = [self._between(40, 75) for _ in range(3)]
        patches = _scaled(_bytes(random, 6, 6, 3), SIDE_PX, SIDE_PX) * 40 // 255
        grain = _bytes(random, SIDE_PX, SIDE_PX, 1) // 80
        return (np.asarray(colour) - 20 + patches + grain).astype(np.uint8)

    def _written(self, digit: int, height: int, width: int) -> NDArray[np.int32]:
        """Return how much ink each pixel of a digit has, 0 to 255 (h, w), cut to what is seen of it."""
        kept = self._by_class[digit]
        ink = _scaled(kept[self._between(0, len(kept) - 1)], height, width)
        rows, columns = np.nonzero(ink >= _INK)
        return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]

    def _places(self, heights: list[int]) -> list[tuple[int, int, int, int]]:
        """Return height, width, top and left for digits that hardly cover each other; one without place is left out."""
        placed: list[tuple[int, int, int, int]] = []
        for height in heights:
            width = height * self._between(75, 100) // 100
            for _ in range(20):
                top, left = self._between(0, SIDE_PX - height), self._between(0, SIDE_PX - width)
                if all(_overlap((height, width, top, left), other) <= height * width // _OVERLAP for other in placed):
                    placed.append((height, width, top, left))
                    break
        return placed

    def _crowd(self, placed: list[tuple[int, int, int, int]]) -> list[int]:
        """Paint a heap of small digits of one class where there is room; return what they are."""
        side = 2 * _CROWD_PX + 4
        for _ in range(20):
            top, left = self._between(0, SIDE_PX - side), self._between(0, SIDE_PX - side)
            if not any(_overlap((side, side, top, left), other) for other in placed):
                break
        else:
            return []
        digit = self._between(0, 9)
        for at in range(_CROWD_DIGITS):
            ink = self._written(digit, _CROWD_PX, _CROWD_PX)
            down, right = self._between(0, side - _CROWD_PX), self._between(0, side - _CROWD_PX)
            self._paint(ink, top + down, left + right, digit, _CROWD_PX, crowd=True, new=at == 0)
        self.depth_mm[self._owner == len(self._shown)] = 0  # too fine to be measured
        return [digit] * _CROWD_DIGITS

    def _paint(
        self, ink: NDArray[np.int32], top: int, left: int, digit: int, height: int, *, crowd: bool = False,
        new: bool = True,
    ) -> None:  # fmt: skip
        if new:
            self._shown.append((digit, crowd))
        colour = [self._between(170, 255) for _ in range(3)]
        here = (slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1]))
        share = ink[..., np.newaxis]
        self.pixels[here] = (self.pixels[here] * (255 - share) + np.asarray(colour) * share + 127) // 255
        seen = ink >= _INK
        self._owner[here][seen] = len(self._shown)
        self.classes[here][seen] = 1 + digit
        self.depth_mm[here][seen] = _NEAREST_MM // height

    def objects(self) -> Objects:
        """Return what is seen of each digit, and of a crowd as a whole."""
        boxes, areas = [], []
        for at in range(len(self._shown)):
            rows, columns = np.nonzero(self._owner == at + 1)
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            areas.append(len(rows))
        return Objects(
            boxes=np.asarray(boxes, dtype=np.float64),
            labels=np.asarray([digit for digit, _ in self._shown], dtype=np.int64),
            crowd=np.asarray([crowd for _, crowd in self._shown]),
            areas=np.asarray(areas, dtype=np.float64),
            width_px=SIDE_PX,
            height_px=SIDE_PX,
        )


def _numbers(random: np.random.RandomState) -> Iterator[int]:
    """Yield numbers of 32 bits."""
    while True:
        yield from np.frombuffer(random.bytes(1024), dtype="<u4").tolist()


def _bytes(random: np.random.RandomState, *shape: int) -> NDArray[np.uint8]:
    return np.frombuffer(random.bytes(math.prod(shape)), dtype=np.uint8).reshape(shape)


def _scaled(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.int32]:
    """Scale (h, w) or (h, w, C) up, bilinear, in whole numbers: positions are in steps of 1/256 of a pixel."""
    values, others = image.astype(np.int32), (1,) * (image.ndim - 2)
    (row, down), (column, right) = _steps(image.shape[0], height), _steps(image.shape[1], width)
    down, right = down.reshape(-1, 1, *others), right.reshape(-1, *others)
    values = values[row] * (256 - down) + values[row + 1] * down
    values = values[:, column] * (256 - right) + values[:, column + 1] * right
    return (values + (1 << 15)) >> 16


@cache
def _steps(size: int, wanted: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the pixel before each new one, and how far beyond it that is, of 256."""
    at = ((2 * np.arange(wanted, dtype=np.int32) + 1) * size * 128 // wanted - 128).clip(0, (size - 1) * 256 - 1)
    return at >> 8, at & 255


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> int:
    """Return how many pixels two rectangles (height, width, top, left) share."""
    sides = [
        min(one[2 + axis] + one[axis], other[2 + axis] + other[axis]) - max(one[2 + axis], other[2 + axis])
        for axis in range(2)
    ]
    return max(0, sides[0]) * max(0, sides[1])


def _spoiled(clean: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return a picture blurred over 3x3 pixels, with noise of a deviation of about 24 on it."""
    wide, size = np.pad(clean.astype(np.int16), ((1, 1), (1, 1), (0, 0)), mode="edge"), clean.shape[0]
    blurred = np.full(clean.shape, 4, dtype=np.int16)
    for down in range(3):
        for right in range(3):
            blurred += wide[down : down + size, right : right + size]
    noise = _bytes(np.random.RandomState(seed), 4, *clean.shape).sum(axis=0, dtype=np.int32) - 510
    spoiled: NDArray[np.int32] = blurred // 9 + (noise * 41 >> 8)
    return spoiled.clip(0, 255).astype(np.uint8)


def _metres(depth_mm: NDArray[np.uint16]) -> NDArray[np.float32]:
    return np.where(depth_mm == 0, np.float32(np.nan), depth_mm.astype(np.float32) / np.float32(1000))
