"""What every reader of a format returns: images as they are stored, before they are fitted to a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Images uint8 (N, h, w) or (N, h, w, 3), labels int64 (N,), and the class names that the labels index."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


DIGITS = tuple("0123456789")
