"""The one door for image files: which are read, how large they may be, and what their pixels are.

    picture = open_picture(Path("x.png"))    # upright, as deep as it is stored
    picture.to_bytes(levels)                 # uint8 (H, W) or (H, W, 3), what is transparent on white

Of several pages or frames the first counts. Colour profiles are not applied, as in OpenCV and torchvision.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageMode

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import open_input

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".pgm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
DEEP_SUFFIXES = (*FORMATS["PNG"], *FORMATS["TIFF"], *FORMATS["PPM"])
"""Of the formats that can have more than 8 bits per channel."""
MOST_PIXELS = 178_956_970
"""Above it Pillow itself reports a decompression bomb; in RGB half a gigabyte."""
GROUND = 255
"""What shows through where an image is transparent: white, as in browsers, viewers and on paper."""

Levels = tuple[float, float]
"""What is black and what is white in a file of more than 8 bits."""

_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339  # of EXIF; of TIFF
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits that sensors and files have
_UPPER_OF_12 = 16  # bytes below it are the upper ones of values of at most 12 bits
_SILENCING = RLock()  # warnings are silenced for the whole process: threads would put back what others had set
_AT_ONCE = 1 << 20  # pixels of which bytes are made together: what is made on the way is wider


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an image file says before its pixels are decoded.

    kind: "RGB", "16-bit grey", ... deep: more than 8 bits per channel reach `Picture.pixels`. several: pages or frames.
    """

    width_px: int
    height_px: int
    kind: str
    deep: bool
    colour: bool
    alpha: bool
    several: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A decoded image, upright.

    pixels: uint8 (H, W) or (H, W, 3) from 0 for black to 255; of deeper files (H, W) as stored: uint16, uint32, int32
    or float32. alpha: uint8 (H, W), None where all is opaque. levels: of deeper files, where the format states them.
    """

    pixels: NDArray[Any]
    alpha: NDArray[np.uint8] | None
    levels: Levels | None

    @property
    def deep(self) -> bool:
        """Whether it takes levels to make bytes of the pixels."""
        return self.pixels.dtype != np.uint8

    def to_bytes(self, levels: Levels | None = None) -> NDArray[np.uint8]:
        """Return the image as uint8 (H, W) or (H, W, 3), over white where it is transparent.

        levels: black and white of deeper files that do not state them; None takes `levels_of` this image alone.
        """
        if self.alpha is None and not self.deep:
            return self.pixels
        if self.deep:
            levels = self.levels or levels or levels_of([self])
        made = np.empty(self.pixels.shape, dtype=np.uint8)
        step = max(1, _AT_ONCE // self.pixels.shape[1])
        for at in range(0, len(made), step):
            made[at : at + step] = self._bytes_of(slice(at, at + step), levels)
        return made

    def _bytes_of(self, rows: slice, levels: Levels | None) -> NDArray[np.uint8]:
        pixels = self.pixels[rows]
        if self.deep and levels is not None:
            low, high = levels
            scaled = (pixels.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
            pixels = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        if self.alpha is None:
            return pixels
        alpha = self.alpha[rows].reshape(len(pixels), -1, *(1,) * (pixels.ndim - 2)).astype(np.uint32)
        return ((pixels * alpha + GROUND * (255 - alpha) + 127) // 255).astype(np.uint8)


def levels_of(pictures: Iterable[Picture]) -> Levels:
    """Return what is black and white in files of more than 8 bits, from the values that they hold.

    Whole numbers from 0 are of the fewest bits (8, 10, 12, 14, 16, 24, 32) that hold the largest; fractions from 0 to 1
    are from 0 to 1; anything else is from the lowest value to the highest.
    """
    extremes = [(float(p.pixels.min()), float(p.pixels.max()), p.pixels.dtype.kind) for p in pictures if p.pixels.size]
    low, high = min(each[0] for each in extremes), max(each[1] for each in extremes)
    if low >= 0 and all(kind in "iu" for _, _, kind in extremes):
        return 0.0, next(float(2**bits - 1) for bits in _DEPTHS if high < 2**bits)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def look_at(path: Path) -> Header:
    """Read what a file says of its image, and none of its pixels. Raises InputError."""
    with _opened(path) as image:
        turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5  # Pillow turns TIFF by itself
        width, height = image.size[::-1] if turned else image.size
        alpha = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        colour = ImageMode.getmode(image.mode).basemode == "RGB" or image.mode in ("CMYK", "YCbCr", "LAB")
        return Header(
            width_px=width,
            height_px=height,
            kind=_kind(image),
            deep=image.mode[0] in "IF",
            colour=colour,
            alpha=alpha,
            several=_has_more(image),
        )


def open_picture(path: Path, *, finite: bool = True, content: bytes | None = None) -> Picture:
    """Decode an image file of FORMATS, its first page or frame.

    finite: False keeps values that are not, which a depth may have. content: the bytes of an image that has no file of
    its own. Raises InputError that names the file: it is missing, not of these formats, damaged, too large, of more
    than MOST_PIXELS, or of 16 bits per colour channel that are nearly all dark (Pillow reads the upper 8 of them).
    """
    with _opened(path, content) as image:
        halved = not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        tags = dict(getattr(image, "tag_v2", {}))
        image.load()
        pixels, alpha, levels = _deep(image, tags) if image.mode[0] in "IF" else (*_shallow(image), None)
        turn = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)  # of TIFF, `load` has turned it
    if finite and pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        bad = int(pixels.size - np.isfinite(pixels).sum())
        raise InputError(f"{path}: {bad} of {pixels.size} values are not finite.\nReplace them and save it again.")
    if halved and pixels.max() < _UPPER_OF_12:
        raise InputError(
            f"{path} has 16 bits per channel, and no value above {256 * _UPPER_OF_12 - 1}: it would be nearly black.\n"
            "Of such colour files the upper 8 bits are read. Save it with 8 bits, or as grey without alpha."
        )
    return Picture(pixels=_upright(pixels, turn), alpha=None if alpha is None else _upright(alpha, turn), levels=levels)


def open_indices(path: Path) -> NDArray[Any]:
    """Decode an image whose values are numbers: whole ones (h, w), a palette's as they are, or colours (h, w, 3).

    Raises InputError as `open_picture`, and for what can't hold numbers: JPEG, fractions, and what is transparent.
    """
    with _opened(path) as image:
        if image.format == "JPEG":
            raise InputError(f"{path} is a JPEG, which changes values a little.\nSave masks as PNG.")
        image.load()
        turn = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
        if image.mode in ("LA", "PA", "RGBA") and image.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{path} is transparent in parts; a mask has a value for each pixel.")
        if image.mode[0] == "F":
            raise InputError(f"{path} holds fractions; a mask holds whole numbers.")
        bands = {"LA": "L", "PA": "P"}.get(image.mode, image.mode if image.mode[0] in "1LPI" else "RGB")
        values = np.asarray(
            image.getchannel(0) if bands in "LP" else image if bands == image.mode else image.convert(bands)
        )
    return _upright(values.astype(values.dtype.newbyteorder("=")), turn)


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image whose declared size is within the bounds; whatever goes wrong with it is an InputError."""
    opened: AbstractContextManager[IO[bytes]]
    opened = open_input(path, "image") if content is None else io.BytesIO(content)
    with opened as stream, _SILENCING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata that it leaves out and of sizes that are checked here
        try:
            with Image.open(stream, formats=list(FORMATS)) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise InputError(
                        f"{path} has {width}x{height} pixels; up to {MOST_PIXELS / 1e6:.0f} million are read."
                    )
                yield image
        except InputError:
            raise
        except MemoryError as cause:
            raise InputError(f"{path} does not fit into the memory of this machine.") from cause
        except Image.DecompressionBombError as cause:
            raise InputError(
                f"{path} has more than {MOST_PIXELS / 1e6:.0f} million pixels; up to that is read."
            ) from cause
        except Exception as cause:  # of many decoders, each with exceptions of its own for damaged bytes
            raise InputError(
                f"{path} is not a readable image ({type(cause).__name__}).\nRead are {', '.join(FORMATS)}."
            ) from cause


def _has_more(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _kind(image: Image.Image) -> str:
    if image.mode == "F":
        return "float grey"
    if image.mode[0] == "I":
        bits = 16 if image.mode != "I" or image.format != "TIFF" else dict(image.tag_v2).get(_BITS, (32,))[0]  # type: ignore[attr-defined]
        return f"{bits}-bit grey"
    return {"1": "black and white", "L": "grey", "LA": "grey with alpha", "P": "palette"}.get(image.mode, image.mode)


def _shallow(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return the pixels and the alpha of an image of at most 8 bits per channel."""
    key = image.info.get("transparency")
    if image.mode in ("P", "PA") or image.mode in ("La", "RGBa"):  # a palette's alpha, or colours multiplied by it
        plain = image.mode == "P" and key is None
        image = image.convert("LA" if image.mode == "La" else "RGB" if plain else "RGBA")
        key = None
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.asarray(image, dtype=np.uint8)
    if image.mode in ("LA", "RGBA"):
        alpha = pixels[..., -1]
        return pixels[..., 0] if image.mode == "LA" else pixels[..., :3], None if alpha.min() == 255 else alpha
    return pixels, _keyed(pixels, key)


def _keyed(pixels: NDArray[Any], key: Any) -> NDArray[np.uint8] | None:
    """Return the alpha of an image in which one value is declared transparent."""
    if key is None:
        return None
    clear = pixels == np.asarray(key)
    return np.where(clear.all(axis=2) if pixels.ndim == 3 else clear, 0, 255).astype(np.uint8)


def _deep(image: Image.Image, tags: dict[int, Any]) -> tuple[NDArray[Any], NDArray[np.uint8] | None, Levels | None]:
    """Return the values of an image of more than 8 bits, its alpha, and its levels where the format has fixed them."""
    values = np.asarray(image)
    values = values.astype(values.dtype.newbyteorder("="))
    alpha = _keyed(values, image.info.get("transparency"))
    if image.format == "PPM" and image.mode == "I":  # Pillow has scaled the declared maximum to 16 bits
        return values, alpha, (0.0, 65535.0)
    bits, levels = tags.get(_BITS, (0,))[0], None
    if image.mode == "I" and bits == 32 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)
    white = 2**bits - 1
    if bits == 12:
        levels = (0.0, float(white))
    if tags.get(_PHOTOMETRIC) == 0 and values.dtype.kind == "u":  # white is zero, which Pillow minds of 8 bits alone
        values, levels = (white - values).astype(values.dtype), (0.0, float(white))
    return values, alpha, levels


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror (H, W, ...) as EXIF's orientation, 1 to 8, says that it has to be for display."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
