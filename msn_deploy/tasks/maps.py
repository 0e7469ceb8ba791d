"""How does a map that a network gives lie on its input, and on the image that this was made of?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.data.frame import Placement

Size = tuple[int, int]
"""Height and width."""


def channels_first(
    maps: NDArray[Any], layout: str | None, counts: Any, *, model: str, wanted: str
) -> NDArray[Any]:  # fmt: skip
    """Return maps (N, h, w), (N, C, h, w) or (N, h, w, C) as (N, C, h, w), and check that C is one of `counts`.

    layout: "nchw" or "nhwc"; None: the first of the two in which the number of channels is right.
    wanted: what the channels should be, for messages. Raises InputError.
    """
    if maps.ndim == 3 and layout is None:
        maps = maps[:, np.newaxis]
    if maps.ndim == 4:
        for name, axis in (("nchw", 1), ("nhwc", 3)):
            if layout in (None, name) and maps.shape[axis] in counts:
                return np.moveaxis(maps, axis, 1)
    size = "x".join(map(str, maps.shape[1:])) or "no"
    told = f" as layout={layout}" if layout else ""
    raise InputError(f"{model} gives {size} numbers per image{told}; {wanted}.")


def bilinear(maps: NDArray[Any], size: Size) -> NDArray[Any]:
    """Scale maps (..., h, w) to a size, by the centres of pixels and without smoothing, as torch's `interpolate` does.

    That is torch's align_corners=False, which torchvision, MMSegmentation and SegFormer bring logits to an image with.
    """
    if maps.shape[-2:] == size:
        return maps
    at_y, at_x = (_centres(count, have / count) for count, have in zip(size, maps.shape[-2:], strict=True))
    return _sampled(maps, at_y, at_x)


def nearest(maps: NDArray[Any], size: Size) -> NDArray[Any]:
    """Scale maps (..., h, w) to a size: each pixel takes that in which its centre lies."""
    if maps.shape[-2:] == size:
        return maps
    at_y, at_x = (_centres(count, have / count) for count, have in zip(size, maps.shape[-2:], strict=True))
    return _picked(maps, at_y, at_x)


def on_image(
    maps: NDArray[Any], where: Placement, frame: Size, *, smooth: bool, outside: float | None = None
) -> NDArray[Any]:
    """Bring a map (..., h, w) of a whole frame to the image's own size, without the canvas around it.

    frame: height and width of the frame. smooth: bilinear rather than the nearest. outside: of pixels of the image that
    the frame does not show, because it was cropped; None: the value of the pixel that is next.
    """
    high, wide = maps.shape[-2:]
    at_y = _centres(where.height_px, where.scale_y, where.top) * (high / frame[0])
    at_x = _centres(where.width_px, where.scale_x, where.left) * (wide / frame[1])
    made = _sampled(maps, at_y, at_x) if smooth else _picked(maps, at_y, at_x)
    if outside is not None:
        made[..., (at_y < 0) | (at_y > high), :] = outside
        made[..., (at_x < 0) | (at_x > wide)] = outside
    return made


def _centres(count: int, scale: float, offset: float = 0.0) -> NDArray[np.float64]:
    """Return where the centres of `count` pixels lie on an axis that is scaled, from its outer edge."""
    return (np.arange(count, dtype=np.float64) + 0.5) * scale + offset


def _picked(maps: NDArray[Any], at_y: NDArray[np.float64], at_x: NDArray[np.float64]) -> NDArray[Any]:
    y, x = (
        np.clip(np.floor(at), 0, count - 1).astype(np.intp)
        for at, count in zip((at_y, at_x), maps.shape[-2:], strict=True)
    )
    return maps[..., y[:, np.newaxis], x]


def _sampled(maps: NDArray[Any], at_y: NDArray[np.float64], at_x: NDArray[np.float64]) -> NDArray[Any]:
    floats = maps if maps.dtype in (np.float32, np.float64) else maps.astype(np.float32)
    return _along(_along(floats, at_y, -2), at_x, -1)


def _along(maps: NDArray[Any], at: NDArray[np.float64], axis: int) -> NDArray[Any]:
    last = maps.shape[axis] - 1
    at = np.clip(at - 0.5, 0, last)
    before = np.floor(at).astype(np.intp)
    share = (at - before).astype(maps.dtype).reshape(-1, *[1] * (-1 - axis))
    low, high = maps.take(before, axis=axis), maps.take(np.minimum(before + 1, last), axis=axis)
    mixed: NDArray[Any] = low + share * (high - low)
    return mixed
