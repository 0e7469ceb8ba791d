"""Are the images that a sidecar names as a parent still what they were?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError
from msn_deploy.data.sources import is_local, load_split

_LARGEST_PX = 1024  # a side that no network here has: a forged sidecar must not fill the memory


def is_as_recorded(parent: Parent) -> bool | None:
    """Load the images of a data parent again, as they were loaded then, and compare; None if that can't be done here.

    Nothing is downloaded. False also where the source is there and can't be read any more.
    """
    if not is_local(parent.file) or not _is_plausible(parent.read):
        return None
    read = dict(parent.read)
    counts = read.pop("first", ())
    try:
        split = load_split(parent.file, **read)
    except InputError:
        return False
    for drawn in counts:
        count, seed = drawn if isinstance(drawn, list | tuple) else (drawn, None)
        split = split.first(count, seed=seed)
    return split.sha256() == parent.sha256


def _is_plausible(read: Mapping[str, Any]) -> bool:
    sides = (read.get("height_px"), read.get("width_px"))
    counts = read.get("first", ())
    return (
        set(read) - {"first"} == {"split", "height_px", "width_px", "channels", "fit"}
        and read["split"] in ("train", "test")
        and read["channels"] in (1, 3)
        and read["fit"] in ("resize", "pad")
        and all(isinstance(side, int) and 0 < side <= _LARGEST_PX for side in sides)
        and isinstance(counts, list | tuple)
        and all(map(_is_draw, counts))
    )


def _is_draw(drawn: Any) -> bool:
    """Whether this is a count, or a count and a seed."""
    count, seed = drawn if isinstance(drawn, list | tuple) and len(drawn) == 2 else (drawn, 0)
    return isinstance(count, int) and count > 0 and isinstance(seed, int) and 0 <= seed < 2**32
