"""From uint8 images to the batch that a network takes, by the numbers that travel with the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Layout, Preprocess


class PreparedImages:
    """Images (N, H, W, C), perhaps lazy ones, that become a network's input as they are sliced."""

    def __init__(self, images: Any, prep: Preprocess, dtype: str = "float32") -> None:
        self._images, self._prep, self._dtype = images, prep, dtype

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: slice) -> NDArray[Any]:
        return to_input(np.asarray(self._images[index]), self._prep, self._dtype)


def to_input(images: NDArray[np.uint8], prep: Preprocess, dtype: str = "float32") -> NDArray[Any]:
    """Turn uint8 images (N, H, W, C), read as `prep.image_size` says, into a network's input (N, *prep.shape).

    That is (x / 255 - mean) / std per channel, in the order and layout of `prep`.
    dtype: of the input; "uint8" gives the bytes themselves. Raises InputError for images of another shape, and for
    bytes where `prep` wants other numbers.
    """
    wanted = (prep.height_px, prep.width_px, prep.image_size["channels"])
    if images.shape[1:] != wanted:
        raise InputError(f"images of shape {images.shape[1:]} do not fit preprocessing to {wanted} (H, W, C).")
    return to_numbers(images[..., ::-1] if prep.colour == "bgr" else images, prep, dtype)


def to_numbers(pixels: NDArray[np.uint8], prep: Preprocess, dtype: str = "float32") -> NDArray[Any]:
    """Turn pixels (N, H, W, C), in the order of the network's channels, into its input; else as `to_input`."""
    made: NDArray[Any]
    if dtype == "uint8":
        if not prep.is_bytes:
            raise InputError(
                f"an input of bytes takes 0 to 255; mean {prep.mean} and std {prep.std} of 0 to 1 make other numbers."
            )
        made = np.broadcast_to(pixels, (*pixels.shape[:3], prep.channels))
    else:
        scale = np.float32(1) / (np.float32(255) * np.asarray(prep.std, dtype=np.float32))
        offset = -np.asarray(prep.mean, dtype=np.float32) / np.asarray(prep.std, dtype=np.float32)
        made = pixels * scale + offset  # a luminance becomes as many channels as there are numbers
    return np.ascontiguousarray(made if prep.layout == "NHWC" else made.transpose(0, 3, 1, 2), dtype=dtype)


def layout_of(shape: Sequence[int | None]) -> Layout | None:
    """Return the layout of an input that takes images of 1 or 3 channels; None for any other."""
    if len(shape) != 4:
        return None
    return "NCHW" if shape[1] in (1, 3) else "NHWC" if shape[3] in (1, 3) else None


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
