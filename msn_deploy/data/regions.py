"""Regions of an image as annotations write them, polygons and run lengths, and the map of classes that they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require
from msn_deploy.data.labels import IGNORED

_MOST_RUNS = 1 << 22
FAR = 10
"""How many sides of the image a corner may be outside of it."""


def polygons_mask(polygons: Sequence[Any], height: int, width: int, *, name: str) -> NDArray[np.bool_]:
    """Return which pixels (height, width) are in any of the polygons [x1, y1, x2, y2, ...], by COCO's own rule.

    Raises InputError that begins with `name` for anything else, and for corners far outside of the image;
    MissingDependency without pycocotools.
    """
    corners, mask = [], np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        points = numbers_of(polygon, name=name)
        if len(points) < 6 or len(points) % 2:
            raise InputError(
                f"{name}: a polygon of {len(points)} numbers; x and y of three corners or more are needed."
            )
        if np.abs(points).max() > FAR * max(height, width):
            raise InputError(f"{name}: a corner at {np.abs(points).max():g}, in an image of {width}x{height} pixels.")
        corners.append(points.tolist())
    if corners:
        masks = require("pycocotools.mask", step="masks of polygons")
        for each in masks.frPyObjects(corners, height, width):
            mask |= runs_mask(each["counts"].decode(), height, width, name=name)
    return mask


def runs_mask(counts: Any, height: int, width: int, *, name: str) -> NDArray[np.bool_]:
    """Return which pixels (height, width) run lengths cover: a list, or COCO's packed text.

    They count pixels outside, inside, outside, ..., down the columns. Raises InputError for others.
    """
    runs = numbers_of(_unpacked(counts, name) if isinstance(counts, str) else counts, name=name)
    if (runs < 0).any() or (runs % 1).any() or runs.sum() != height * width:
        raise InputError(
            f"{name}: run lengths add up to {runs.sum():g}, an image of {width}x{height} has {height * width} pixels."
        )
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64))
    return inside.reshape(width, height).T


def _unpacked(text: str, name: str) -> list[int]:
    """Unpack COCO's text: 5 bits per character, the sixth says that more follow; from the fourth on, differences."""
    if len(text) > _MOST_RUNS:
        raise InputError(f"{name}: run lengths of {len(text)} characters.")
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise InputError(f"{name}: {character!r} in run lengths.")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs


def numbers_of(values: Any, *, name: str) -> NDArray[np.float64]:
    """Return a list of finite numbers as an array. Raises InputError for anything else."""
    plain = isinstance(values, list | tuple) and len(values) <= _MOST_RUNS
    if plain and all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
        with suppress(OverflowError):  # a number of hundreds of digits
            numbers = np.asarray(values, dtype=np.float64)
            if np.isfinite(numbers).all():
                return numbers
    raise InputError(f"{name}: {str(values)[:60]} is not a list of numbers.")


def painted(regions: Iterable[tuple[int, NDArray[np.bool_]]], height: int, width: int) -> NDArray[np.uint8]:
    """Return the map (height, width) of values and where they are; 0 elsewhere. Each region is as large as the map.

    Where two values are, it is IGNORED: nobody said which is in front.
    """
    values = np.zeros((height, width), dtype=np.uint8)
    for value, where in regions:
        values[where] = np.where((values[where] == 0) | (values[where] == value), value, IGNORED)
    return values
