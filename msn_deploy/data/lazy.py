"""Images that are read when they are looked at, for whoever goes through many of them a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyImages:
    """Images uint8 (N, H, W, C) of which indexing only picks some; `np.asarray` reads those that were picked.

    picked: which ones. image_shape: (H, W, C). read: from indices to images of that shape.
    """

    picked: NDArray[np.intp]
    image_shape: tuple[int, int, int]
    read: Callable[[NDArray[np.intp]], NDArray[np.uint8]]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (N, H, W, C)."""
        return (len(self.picked), *self.image_shape)

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, index: slice | NDArray[np.intp]) -> LazyImages:
        return LazyImages(picked=self.picked[index], image_shape=self.image_shape, read=self.read)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        images = self.read(self.picked) if len(self) else np.zeros(self.shape, dtype=np.uint8)
        return images if dtype is None else images.astype(dtype)
