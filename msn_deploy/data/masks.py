"""Masks: images whose values are classes, or whose colours a list tells.

A list is `classes.txt` or `labelmap.txt` in the folder of the data or beside the masks: one class per line, in the
order of their numbers, with its colour behind it where masks are coloured: `road`, `road 128 64 128`, or CVAT's
`road:128,64,128::`. A class called void or ignore is left out, as the value 255 is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.data.decode import open_indices
from msn_deploy.data.folders import read_lines
from msn_deploy.data.labels import IGNORED

_LISTS = ("classes.txt", "labelmap.txt")
_COLOURED = re.compile(r"(.+?)[\s:,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})\s*(?::.*)?")
_LEFT_OUT = ("void", "ignore")
_AT_ONCE = 1 << 20  # pixels: what is made on the way takes 40 bytes of each
_LOOKED_AT = 32  # masks, where a list names the classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """How masks are read. classes: their names. colours: the class of each colour, red << 16 | green << 8 | blue."""

    classes: tuple[str, ...]
    told_by: str
    colours: dict[int, int]

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Return the classes in a mask, uint8 (h, w), IGNORED where nothing is said. Raises InputError."""
        values = open_indices(path)
        if values.ndim == 3 and not self.colours and not np.ptp(values, axis=2).any():
            values = values[..., 0]  # a grey mask that was saved in colour
        classes = np.empty(values.shape[:2], dtype=np.uint8)
        step = max(1, _AT_ONCE // values.shape[1])
        for at in range(0, len(values), step):
            classes[at : at + step] = self._classes_of(values[at : at + step].astype(np.int64), path)
        return classes

    def _classes_of(self, values: NDArray[np.int64], path: Path) -> NDArray[np.uint8]:
        if values.ndim == 3:
            values = self._by_colour(values, path)
        beyond = (values >= len(self.classes)) & (values != IGNORED)
        if beyond.any() or values.min(initial=0) < 0:
            found = int(values[beyond][0]) if beyond.any() else int(values.min())
            raise InputError(
                f"{path} holds the value {found}; {self.told_by} has classes 0 to {len(self.classes) - 1}, and "
                f"{IGNORED} is left out."
            )
        return values.astype(np.uint8)

    def _by_colour(self, pixels: NDArray[Any], path: Path) -> NDArray[np.int64]:
        codes, where = np.unique(_codes(pixels), return_inverse=True)
        if unknown := [code for code in codes.tolist() if code not in self.colours]:
            colour = " ".join(str(unknown[0] >> shift & 255) for shift in (16, 8, 0))
            raise InputError(
                f"{path} is coloured, and which class {colour} is, is not said.\n"
                f"Save masks whose values are classes, or write a {_LISTS[0]} with lines such as `road {colour}`."
            )
        return np.asarray([self.colours[code] for code in codes.tolist()])[where.reshape(pixels.shape[:2])]


def masks_of(files: Sequence[Path], places: Sequence[Path]) -> Masks:
    """Return how masks are read: by a list in one of the places, or as numbers, for which all are looked at.

    Raises InputError for a list that is not one, for colours without a list, and for masks of 0 and 255 alone.
    """
    listed = next((place / name for place in places for name in _LISTS if (place / name).is_file()), None)
    if listed is not None:
        step = max(1, len(files) // _LOOKED_AT)
        masks, looked_at = _listed(listed), files[::step]
    else:
        masks, looked_at = Masks(classes=tuple(map(str, range(IGNORED))), told_by="a mask", colours={}), files
    found = np.zeros(IGNORED + 1, dtype=bool)
    for path in looked_at:
        found[np.unique(masks.read(path))] = True
    if found[IGNORED] and not found[1:IGNORED].any():
        raise InputError(
            f"{looked_at[0]} and others hold nothing but 0 and {IGNORED}, and {IGNORED} is left out.\n"
            "Save 1 where the object is."
        )
    if listed is not None:
        return masks
    count = max(2, 1 + int(np.flatnonzero(found[:IGNORED]).max(initial=0)))
    return Masks(classes=tuple(map(str, range(count))), told_by="all of them together", colours={})


def _listed(path: Path) -> Masks:
    names: list[str] = []
    colours: dict[int, int] = {}
    for line in map(str.strip, read_lines(path)):
        if not line or line.startswith("#"):
            continue
        match = _COLOURED.fullmatch(line)
        name = (match.group(1) if match else line.partition(":")[0]).strip()
        left_out = name.lower() in _LEFT_OUT
        if match:
            colour = [int(each) for each in match.group(2, 3, 4)]
            if max(colour) > 255 or int(_codes(np.asarray(colour))) in colours:
                raise InputError(f"{path}: the colour of {name} is beyond 255, or another class's.")
            colours[int(_codes(np.asarray(colour)))] = IGNORED if left_out else len(names)
        if not left_out:
            names.append(name)
    if not 0 < len(names) < IGNORED:
        raise InputError(f"{path} names {len(names)} classes; 1 to {IGNORED - 1} are possible.")
    return Masks(classes=tuple(names), told_by=str(path), colours=colours)


def _codes(colours: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(colours.astype(np.int64) @ [1 << 16, 1 << 8, 1])
