"""How does an image get to the size of a network? Scaled, on a canvas, letterboxed, or cropped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Frame
from msn_deploy.data.decode import MOST_PIXELS

_Value = TypeVar("_Value", bound=np.generic)
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an image is in a network's frame: a point (x, y) of the image is at (x * scale_x + left, ...) there.

    width_px, height_px: of the image. Positions count from the outer edge of the first pixel, so that the centre of
    that pixel is at 0.5. left and top are negative where the image is cropped.
    """

    width_px: int
    height_px: int
    scale_x: float
    scale_y: float
    left: float
    top: float

    def to_frame(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Take points (..., 2) or boxes (..., 4: x1, y1, x2, y2) of the image to the frame."""
        pairs = points.shape[-1] // 2
        moved: NDArray[np.float64] = points * np.tile([self.scale_x, self.scale_y], pairs)
        moved += np.tile([self.left, self.top], pairs)
        return moved

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Take points or boxes of the frame to the image; they may lie outside of it."""
        pairs = points.shape[-1] // 2
        moved: NDArray[np.float64] = points - np.tile([self.left, self.top], pairs)
        moved /= np.tile([self.scale_x, self.scale_y], pairs)
        return moved


def placement(width: int, height: int, frame: Frame) -> Placement:
    """Return where an image of that size is in a frame that it was brought to by `framed`."""
    wide, high = scaled_size(width, height, frame)
    if frame.fit == "crop":  # the centre as torchvision finds it, by Python's round
        left, top = -round((wide - frame.width_px) / 2), -round((high - frame.height_px) / 2)
    elif frame.align == "corner":
        left = top = 0
    else:
        left, top = (frame.width_px - wide) // 2, (frame.height_px - high) // 2
    scales = wide / width, high / height
    return Placement(width_px=width, height_px=height, scale_x=scales[0], scale_y=scales[1], left=left, top=top)


def framed(image: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    """Bring an image of mode L or RGB to a frame, as uint8 (height, width, channels).

    Raises InputError for an image that is larger than the canvas on which it is to be put unscaled.
    """
    return _framed(image, frame, frame.channels, frame.fill)


def fit_mask(values: NDArray[_Value], frame: Frame, *, outside: float) -> NDArray[_Value]:
    """Bring a map of an image, uint8 or float32 (h, w), to where `framed` brings the image, as (height, width, 1).

    Each value is one of the map, of the nearest pixel; beside the image it is `outside`.
    """
    return _framed(Image.fromarray(values), replace(frame, interpolation="nearest"), 1, outside)


def _framed(image: Image.Image, frame: Frame, channels: int, fill: float) -> NDArray[Any]:
    at, size = placement(*image.size, frame), scaled_size(*image.size, frame)
    if size[0] * size[1] > MOST_PIXELS:  # a crop of an image that is one pixel wide, say
        raise InputError(
            f"an image of {image.width}x{image.height} pixels would be scaled to {size[0]}x{size[1]}: it is too long."
        )
    if image.size != size:
        image = image.resize(size, _RESAMPLING[frame.interpolation])
    pixels = np.asarray(image).reshape(image.height, image.width, channels)
    if frame.fit == "crop":
        top, left = -int(at.top), -int(at.left)
        return pixels[top : top + frame.height_px, left : left + frame.width_px]
    return pixels if pixels.shape[:2] == _sides(frame) else padded(pixels[np.newaxis], frame, fill)[0]


def scaled_size(width: int, height: int, frame: Frame) -> tuple[int, int]:
    """Return the width and height that an image is scaled to, before it is put on a canvas or cropped.

    A letterbox rounds as ultralytics' does, a crop by `short_px` cuts off fractions as torchvision's Resize does.
    """
    wide, high = frame.width_px / width, frame.height_px / height
    if frame.fit == "letterbox":
        scale = min(wide, high)
        return max(1, round(width * scale)), max(1, round(height * scale))
    if frame.fit == "crop" and frame.short_px:
        short = min(width, height)
        return frame.short_px * width // short, frame.short_px * height // short
    if frame.fit == "crop":
        scale = max(wide, high)
        return max(frame.width_px, round(width * scale)), max(frame.height_px, round(height * scale))
    return (width, height) if frame.fit == "pad" else (frame.width_px, frame.height_px)


def padded(pixels: NDArray[_Value], frame: Frame, fill: float | None = None) -> NDArray[_Value]:
    """Put images (N, h, w, C) unscaled on canvases of the frame. Raises InputError for images that are larger.

    fill: what is around them; None: what the frame says.
    """
    count, height, width, channels = pixels.shape
    if height > frame.height_px or width > frame.width_px:
        raise InputError(
            f"an image of {width}x{height} pixels can't be padded to {frame.width_px}x{frame.height_px}.\n"
            'Scale it: `fit = "resize"` in the recipe.'
        )
    canvas = np.full((count, *_sides(frame), channels), frame.fill if fill is None else fill, dtype=pixels.dtype)
    at = placement(width, height, replace(frame, fit="pad"))
    top, left = int(at.top), int(at.left)
    canvas[:, top : top + height, left : left + width] = pixels
    return canvas


def _sides(frame: Frame) -> tuple[int, int]:
    return (frame.height_px, frame.width_px)
