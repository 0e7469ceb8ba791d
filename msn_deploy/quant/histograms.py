"""How are the magnitudes of the activations distributed on real images? Two passes, and nothing kept of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.quant.calibration_checks import Images
from msn_deploy.quant.scales import BINS
from msn_deploy.quant.single_image import SingleImage

LEAST = 1e-30  # a scale below it is no normal float32
_CHUNK = 32  # images that are decoded and prepared together


@dataclass(frozen=True, slots=True, kw_only=True)
class Histograms:
    """Magnitudes of each tensor, kept apart by groups of images.

    counts: per tensor int64 (S, G, BINS), |x| in equal bins over [0, largest |x| of all images]. maxima: per tensor
    float32 (S, G). Each of S orders of the images deals all of them to its G groups.
    """

    counts: Mapping[str, NDArray[np.int64]]
    maxima: Mapping[str, NDArray[np.float32]]

    def first(self, groups: int | None, order: int = 0) -> dict[str, tuple[NDArray[np.int64], float, float]]:
        """Return counts, upper edge and true maximum per tensor, of the first groups of an order (None: all)."""
        return {
            name: (
                counts[order, :groups].sum(axis=0),
                float(self.maxima[name][order].max()),
                float(self.maxima[name][order, :groups].max()),
            )
            for name, counts in self.counts.items()
        }


def collect(
    model: ModelProto,
    images: Images,
    tensors: Sequence[str],
    *,
    groups: NDArray[np.intp] | None = None,
    progress: Progress = silent,
) -> Histograms:
    """Run the model on every image and count the magnitudes of the tensors.

    groups: (S, N), the group of each image in each of S orders; None: one group. The first pass finds the maxima, the
    second counts integers in bins that are fixed by them: neither depends on the order of the images, on the batch
    that the model was exported with, or on how the images are split. A tensor that stays below LEAST is not counted.
    Raises InputError for a value that is not finite.
    """
    network = SingleImage(model, tensors)
    groups = np.zeros((1, len(images)), dtype=np.intp) if groups is None else groups
    shape = (len(groups), int(groups.max(initial=0)) + 1)
    orders = np.arange(len(groups))
    maxima = {name: np.zeros(shape, dtype=np.float32) for name in tensors}
    counts = {name: np.zeros((*shape, BINS), dtype=np.int64) for name in tensors}
    total = 2 * len(images)

    for at, image in _each(images):
        where = orders, groups[:, at]
        for name, value in network.run(image).items():
            largest = np.abs(value).max(initial=0)
            if not np.isfinite(largest):
                raise InputError(
                    f"{name} is {largest} on calibration image {at} (counted from 0).\n"
                    "Check that image, and the model in FP32: `msn-deploy eval`."
                )
            maxima[name][where] = np.maximum(maxima[name][where], largest)
        progress(at + 1, total, "calibrating: ranges")
    edges = {name: float(largest.max()) for name, largest in maxima.items() if largest.max() >= LEAST}
    for at, image in _each(images):
        where = orders, groups[:, at]
        for name, value in network.run(image).items():
            if name in edges:
                counts[name][where] += count(value, edges[name])
        progress(len(images) + at + 1, total, "calibrating: histograms")
    return Histograms(counts=counts, maxima=maxima)


def count(values: NDArray[np.float32], edge: float) -> NDArray[np.int64]:
    """Return how many |values| lie in each of BINS equal bins over [0, edge]."""
    at = np.abs(values.reshape(-1))
    at *= np.float32(BINS / edge)
    return np.bincount(np.minimum(at.astype(np.intp), BINS - 1), minlength=BINS)


def _each(images: Images) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield every image (1, C, H, W) with its place, reading a chunk at a time."""
    for start in range(0, len(images), _CHUNK):
        chunk = np.ascontiguousarray(images[start : start + _CHUNK], dtype=np.float32)
        for offset in range(len(chunk)):
            yield start + offset, chunk[offset : offset + 1]
