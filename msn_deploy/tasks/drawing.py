"""Draw answers on images: captions, in colours that are told apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_SMALLEST_PX = 11


def captioned(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Return a copy of an image (H, W, 3) with a line of white text on black in its upper left corner."""
    picture = Image.fromarray(image)
    write(ImageDraw.Draw(picture), (0, 0), text, colour=(0, 0, 0), size_px=text_size_px(image))
    return np.asarray(picture)


def text_size_px(image: NDArray[np.uint8]) -> int:
    """Return how large text on an image (H, W, 3) is."""
    height, width = image.shape[:2]
    return max(_SMALLEST_PX, int(min(height, width)) // 24)


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, *, colour: tuple[int, int, int], size_px: int
) -> None:
    """Write text, with its upper left corner at (x, y), on a ground of that colour, in the one of black and white."""
    font = ImageFont.load_default(size=size_px)
    ground = draw.textbbox(at, text, font=font)
    draw.rectangle((at[0], at[1], ground[2] + 1, ground[3] + 1), fill=colour)
    red, green, blue = colour
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140  # the luminance of Rec. 601
    draw.text(at, text, font=font, fill=(255, 255, 255) if is_dark else (0, 0, 0))
