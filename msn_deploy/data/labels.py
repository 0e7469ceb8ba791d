"""What the labels of images are, where a number for each will not do: the objects in an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = 255
"""In maps of classes: neither right nor wrong, such as beside the image on its canvas."""

BACKGROUND = "background"
"""The first class of such a map, where there are objects in front of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """The objects in one image, M of them.

    boxes: float64 (M, 4), x1, y1, x2, y2 in pixels of the upright image, from its outer edge. labels: int64 (M,), the
    index of each one's class. crowd: bool (M,), a group that is neither found nor missed, as in COCO. areas: float64
    (M,), of the objects in square pixels, by which COCO sorts them into small, medium and large. width_px, height_px:
    of the image.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class ObjectLabels:
    """The objects of N images: the labels of a split for detection."""

    images: tuple[Objects, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | NDArray[np.intp]) -> ObjectLabels:
        """Return those of some images."""
        if isinstance(index, slice):
            return ObjectLabels(self.images[index])
        return ObjectLabels(tuple(self.images[at] for at in index))

    def tobytes(self) -> bytes:
        """Return all numbers, for a digest."""
        parts: list[bytes] = []
        for each in self.images:
            parts.append(np.asarray([each.width_px, each.height_px, len(each.labels)], dtype=np.int64).tobytes())
            parts += [array.tobytes() for array in (each.boxes, each.labels, each.crowd, each.areas)]
        return b"".join(parts)
