"""Images as files and arrays: as stored, at the size and channels that a network wants, read when looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Frame, TaskName
from msn_deploy.data.decode import Levels, open_picture
from msn_deploy.data.frame import framed, padded
from msn_deploy.data.labels import ObjectLabels

DIGITS: tuple[str, ...] = tuple("0123456789")
_MODE = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """What the reader of a format returns, before anything is brought to a network's size.

    images: uint8 (N, h, w) or (N, h, w, 3) as they are stored, or N files. labels: what `Split.labels` says, but of
    segmentation, depth and image-to-image a function from an image's index to its map as it is stored, (h, w) or
    (h, w, 3). classes: the names that the labels index, or those of values. task: None for images without labels.
    beside: image files that are not of this split, but count where the range of values is measured. sizes: width and
    height that the labels say each upright image has. note, warnings: for the line that says what was read.
    """

    images: NDArray[np.uint8] | Sequence[Path]
    labels: NDArray[Any] | ObjectLabels | Callable[[int], NDArray[Any]]
    classes: tuple[str, ...]
    task: TaskName | None = "classification"
    beside: Sequence[Path] = ()
    sizes: Sequence[tuple[int, int]] = ()
    note: str = ""
    warnings: tuple[str, ...] = ()


def without_labels(images: NDArray[np.uint8] | Sequence[Path], *, note: str = "") -> Raw:
    """Return images that are nothing but that: their labels are (N, 0)."""
    return Raw(images=images, labels=np.zeros((len(images), 0), dtype=np.int64), classes=(), task=None, note=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyImages:
    """Images (N, H, W, C), or maps that are their labels, for whoever goes through many of them a few at a time.

    Indexing only picks some; `np.asarray` reads those that were picked.

    picked: which ones. image_shape: (H, W, C). read: from indices to images of that shape. dtype: of their values.
    """

    picked: NDArray[np.intp]
    image_shape: tuple[int, int, int]
    read: Callable[[NDArray[np.intp]], NDArray[Any]]
    dtype: str = "uint8"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (N, H, W, C)."""
        return (len(self.picked), *self.image_shape)

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, index: slice | NDArray[np.intp]) -> LazyImages:
        return replace(self, picked=self.picked[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        images = self.read(self.picked) if len(self) else np.zeros(self.shape, dtype=self.dtype)
        return images if dtype is None else images.astype(dtype)


def read_image(
    path: Path, *, levels: Levels | None = None, told: tuple[int, int] | None = None, **size: Any
) -> NDArray[np.uint8]:
    """Read one image file as uint8 (height, width, channels), upright, on white where it is transparent.

    levels: as for `Picture.to_bytes`. told: the width and height that its labels are for. size: the fields of Frame, of
    which `height_px`, `width_px` and `channels` are needed. Raises InputError if it is not a readable image, of another
    size than its labels say, or does not fit.
    """
    pixels = open_picture(path).to_bytes(levels)
    if told is not None and told != pixels.shape[1::-1]:
        height, width = pixels.shape[:2]
        turned = ", as it is stored and not as it is seen: its EXIF orientation turns it" * (told == (height, width))
        raise InputError(
            f"{path} has {width}x{height} pixels; its labels are for {told[0]}x{told[1]}{turned}.\n"
            "Give the images that were labelled."
        )
    return fit_image(pixels, name=str(path), **size)


def fit_image(pixels: NDArray[np.uint8], *, name: str, **size: Any) -> NDArray[np.uint8]:
    """Bring one image (h, w) or (h, w, 3) to (height, width, channels), as `read_image`. Raises InputError."""
    frame = Frame(**size)
    try:
        return _fitted(Image.fromarray(pixels), frame)
    except InputError as cause:
        raise InputError(f"{name}: {cause}") from cause
    except (MemoryError, OverflowError, ValueError) as cause:  # one pixel wide and long enough
        height, width = pixels.shape[:2]
        raise InputError(f"{name} of {width}x{height} pixels is too long to be fitted by {frame.fit!r}.") from cause


def fit_images(images: NDArray[np.uint8], **size: Any) -> NDArray[np.uint8]:
    """Bring uint8 images (N, h, w) or (N, h, w, 3) to (N, height, width, channels); size: as for `read_image`."""
    frame = Frame(**size)
    if frame.channels == (1 if images.ndim == 3 else 3):  # nothing for Pillow to do, unless it has to scale
        pixels = images.reshape(*images.shape[:3], frame.channels)
        if frame.keeps(*images.shape[1:3]):
            return pixels
        if frame.fit == "pad":
            return padded(pixels, frame)
    return np.stack([_fitted(Image.fromarray(image), frame) for image in images])


def _fitted(image: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    return framed(image.convert(_MODE[frame.channels]), frame)
