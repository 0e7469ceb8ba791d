"""From uint8 images to the float32 batch that a network takes, by the numbers that travel with the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess


class PreparedImages:
    """Images (N, H, W, C), perhaps lazy ones, that become a network's input (N, C, H, W) as they are sliced."""

    def __init__(self, images: Any, prep: Preprocess) -> None:
        self._images, self._prep = images, prep

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: slice) -> NDArray[np.float32]:
        return to_input(np.asarray(self._images[index]), self._prep)


def to_input(images: NDArray[np.uint8], prep: Preprocess) -> NDArray[np.float32]:
    """Turn uint8 images (N, H, W, C) into float32 (N, C, H, W): (x / 255 - mean) / std per channel."""
    wanted = (prep.height_px, prep.width_px, prep.channels)
    if images.shape[1:] != wanted:
        raise InputError(f"images of shape {images.shape[1:]} do not fit preprocessing to {wanted} (H, W, C).")
    scale = np.float32(1) / (np.float32(255) * np.asarray(prep.std, dtype=np.float32))
    offset = -np.asarray(prep.mean, dtype=np.float32) / np.asarray(prep.std, dtype=np.float32)
    return np.ascontiguousarray((images * scale + offset).transpose(0, 3, 1, 2), dtype=np.float32)


def measured_preprocess(images: NDArray[np.uint8], *, fit: str = "resize") -> Preprocess:
    """Return what gives these images (N, H, W, C), fitted by `fit`, mean 0 and deviation 1 per channel."""
    _, height, width, channels = images.shape
    flat = images.reshape(-1, channels)
    mean = flat.mean(axis=0, dtype=np.float64) / 255
    std = np.maximum(flat.std(axis=0, dtype=np.float64) / 255, 1e-3)
    return Preprocess(
        height_px=height,
        width_px=width,
        channels=channels,
        fit=fit,
        mean=tuple(round(float(value), 6) for value in mean),
        std=tuple(round(float(value), 6) for value in std),
    )
