"""What a set of images is like before a network sees it, in one line; and what of it a network will not see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.data.decode import DEEP_SUFFIXES, Header, Levels, Picture, levels_of, look_at, open_picture

_T = TypeVar("_T")
_LOOKED_AT = 256  # files, spread evenly, whose headers are read
_DECODED = 16  # of them, to see whether there is colour in them
_COLOURED = 8  # how far the channels of a pixel are apart, of 255; a grey JPEG has less
_FEW = 0.25  # share of the range from black to white


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a set of images is like: such as "50x40 RGB", and what to warn of."""

    stored: str
    warnings: tuple[str, ...] = ()


def measured_levels(files: Sequence[Path]) -> Levels | None:
    """Return what is black and white in files of more than 8 bits that do not say so themselves; None without such.

    Up to 256 of the files are looked at, spread evenly.
    """
    pictures = _deep_ones(_some([path for path in files if path.suffix.lower() in DEEP_SUFFIXES], _LOOKED_AT))
    first = next(pictures, None)
    return None if first is None else levels_of(chain([first], pictures))


def survey_files(files: Sequence[Path], *, channels: int, levels: Levels | None) -> Survey:
    """Look at up to 256 image files, spread evenly, for a network of 1 or 3 channels. Damaged files are left out."""
    headers = {path: header for path in _some(files, _LOOKED_AT) if (header := _header(path)) is not None}
    if not headers:
        return Survey(stored="unreadable")
    sizes = sorted({(each.width_px * each.height_px, each.width_px, each.height_px) for each in headers.values()})
    stored = " to ".join(f"{width}x{height}" for _, width, height in dict.fromkeys((sizes[0], sizes[-1])))
    kinds = Counter(each.kind for each in headers.values())
    stored += " " + ", ".join(kind for kind, _ in kinds.most_common())
    warnings = []
    if any(each.deep for each in headers.values()) and levels is not None:
        stored += f" (black {levels[0]:g}, white {levels[1]:g})"
        warnings += _narrow(_deep_ones([path for path, each in headers.items() if each.deep]), levels)
    for count, text in (
        (sum(each.alpha for each in headers.values()), "can be transparent: what is behind them is white"),
        (sum(each.several for each in headers.values()), "hold several pages or frames: the first is taken"),
    ):
        if count:
            stored += f"; {count} {text}"
    coloured = _some([path for path, each in headers.items() if each.colour], _DECODED) if channels == 1 else []
    warnings += _lost_colour(picture.pixels for path in coloured if (picture := _picture(path)) is not None)
    return Survey(stored=stored, warnings=tuple(warnings))


def survey_arrays(images: NDArray[np.uint8], *, channels: int) -> Survey:
    """Look at images (N, h, w) or (N, h, w, 3)."""
    height, width = images.shape[1:3]
    colour = images.ndim == 4
    looked_at = _some(range(len(images)), _DECODED) if colour and channels == 1 else []
    warnings = _lost_colour(images[at] for at in looked_at)
    return Survey(stored=f"{width}x{height} {'RGB' if colour else 'grey'}", warnings=tuple(warnings))


def _lost_colour(images: Iterable[NDArray[Any]]) -> list[str]:
    seen = [each.ndim == 3 and int(np.ptp(each, axis=2).max()) > _COLOURED for each in images]
    if not any(seen):
        return []
    return [f"colour is thrown away: {sum(seen)} of {len(seen)} images looked at have some, the network takes grey"]


def _narrow(pictures: Iterable[Picture], levels: Levels) -> list[str]:
    extremes = [(float(each.pixels.min()), float(each.pixels.max())) for each in pictures]
    if not extremes:
        return []
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    share = (min(high, levels[1]) - max(low, levels[0])) / (levels[1] - levels[0])
    if share >= _FEW:
        return []
    grey = max(0, round(255 * share)) + 1
    return [
        f"most of the range is thrown away: values go from {low:g} to {high:g} where black is {levels[0]:g} and white "
        f"{levels[1]:g}, which leaves {grey} of 256 grey levels"
    ]


def _deep_ones(files: Iterable[Path]) -> Iterator[Picture]:
    """Decode those that need levels from elsewhere, one at a time."""
    for path in files:
        header = _header(path)
        picture = _picture(path) if header is not None and header.deep else None
        if picture is not None and picture.levels is None:
            yield picture


def _header(path: Path) -> Header | None:
    try:
        return look_at(path)
    except InputError:  # said when the image itself is wanted
        return None


def _picture(path: Path) -> Picture | None:
    try:
        return open_picture(path)
    except InputError:
        return None


def _some(files: Sequence[_T], count: int) -> list[_T]:
    if len(files) <= count:
        return list(files)
    return [files[at] for at in np.linspace(0, len(files) - 1, count).astype(int).tolist()]
