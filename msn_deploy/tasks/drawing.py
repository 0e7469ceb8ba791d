"""Draw answers on images: captions, boxes and masks, in colours that are told apart."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
_SMALLEST_PX = 11
_SMALLEST_SIDE_PX = 160  # of an image on which there is anything to read
_GOLDEN = 0.618033988749895  # turns by this share of the circle come near each other as late as can be
_RAMP: tuple[Colour, ...] = ((20, 11, 82), (44, 78, 140), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_TINT = 0.55  # of a mask's colour in what it covers


def colour_of(index: int) -> Colour:
    """Return the colour of a class, far from those of the classes before it."""
    hue, value = _GOLDEN * index % 1, (1.0, 0.75)[index // 8 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return (round(255 * red), round(255 * green), round(255 * blue))


def enlarged(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Return an image (H, W, ...) with each pixel repeated until there is room for text, and how often it is."""
    factor = max(1, -(-_SMALLEST_SIDE_PX // min(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1), factor


def tinted(image: NDArray[np.uint8], where: NDArray[np.bool_], colour: Colour) -> NDArray[np.uint8]:
    """Return a copy of an image (H, W, 3) with a colour over the pixels (H, W) that are asked for."""
    made = image.copy()
    made[where] = np.rint((1 - _TINT) * image[where] + _TINT * np.asarray(colour)).astype(np.uint8)
    return made


def with_legend(image: NDArray[np.uint8], entries: Sequence[tuple[str, Colour]]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) with a list of names below it, each on its colour; as it is where there are none."""
    size_px = text_size_px(image)
    line_px = size_px + size_px // 2
    strip = np.full((line_px * len(entries), image.shape[1], 3), 255, dtype=np.uint8)
    picture = Image.fromarray(np.concatenate([image, strip]))
    for at, (text, colour) in enumerate(entries):
        write(ImageDraw.Draw(picture), (1, len(image) + at * line_px + 1), text, colour=colour, size_px=size_px)
    return np.asarray(picture)


def boxed(
    image: NDArray[np.uint8], boxes: NDArray[np.float64], captions: Sequence[str], colours: Sequence[Colour]
) -> NDArray[np.uint8]:
    """Return an image (H, W, 3), enlarged, with boxes (M, 4), xyxy in its pixels, the last on top.

    captions: above each box, or inside of it where there is no room.
    """
    image, factor = enlarged(image)
    picture = Image.fromarray(image)
    draw, size_px = ImageDraw.Draw(picture), text_size_px(image)
    width = max(1, size_px // 6)
    corners = (boxes * factor).tolist()
    for (x1, y1, x2, y2), colour in zip(corners, colours, strict=True):
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
    for (x1, y1, _, _), caption, colour in zip(corners, captions, colours, strict=True):
        above = y1 - size_px - width
        room = picture.width - draw.textlength(caption, font=ImageFont.load_default(size=size_px)) - 1
        at = max(0, min(x1, room)), above if above >= 0 else y1
        write(draw, at, caption, colour=colour, size_px=size_px)
    return np.asarray(picture)


def captioned(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Return a copy of an image (H, W, 3) with a line of white text on black in its upper left corner."""
    picture = Image.fromarray(image)
    write(ImageDraw.Draw(picture), (0, 0), text, colour=(0, 0, 0), size_px=text_size_px(image))
    return np.asarray(picture)


def text_size_px(image: NDArray[np.uint8]) -> int:
    """Return how large text on an image (H, W, 3) is."""
    height, width = image.shape[:2]
    return max(_SMALLEST_PX, int(min(height, width)) // 24)


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, *, colour: Colour, size_px: int) -> None:
    """Write text, with its upper left corner at (x, y), on a ground of that colour, in the one of black and white."""
    font = ImageFont.load_default(size=size_px)
    ground = draw.textbbox(at, text, font=font)
    draw.rectangle((at[0], at[1], ground[2] + 1, ground[3] + 1), fill=colour)
    red, green, blue = colour
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140  # the luminance of Rec. 601
    draw.text(at, text, font=font, fill=(255, 255, 255) if is_dark else (0, 0, 0))


def ramp(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return numbers (H, W) from 0 to 1 as colours (H, W, 3), from dark blue over green to yellow, ever lighter."""
    stops = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(shares, stops, [colour[at] for colour in _RAMP]) for at in range(3)]
    colours: NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours
