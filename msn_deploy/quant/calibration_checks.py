"""Can these images calibrate a network? Too few, constant, noise, unscaled or all the same cannot, and are refused.

A calibration on such images gives scales that look plausible and an INT8 network that is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Preprocess

MINIMUM_SAMPLES = 16
ENOUGH_SAMPLES = 100
_CHUNK = 32
_NOISE = 0.1  # correlation of neighbours; white noise has 0, MNIST 0.8, photographs 0.9
_RMS_UNSCALED = 10.0  # of 0..1, or of mean 0 and deviation 1, it is at most about 1
_LEAST_DEVIATION = 0.05  # of images of 0..1 that are no plain grey
_SHIFT, _SPREAD = (1.0, 4.0), ((0.5, 2.0), (0.05, 5.0))  # warned about, refused


class Images(Protocol):
    """Preprocessed images (N, C, H, W), read as they are sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What a set of preprocessed images is like.

    constant, noise_like: how many. distinct: how many are not a copy of another. autocorrelation: median over images
    of the correlation of horizontal and vertical neighbours, None if all are constant. mean, std: per channel, of all
    pixels. lowest, highest, rms: of all values.
    """

    images: int
    constant: int
    noise_like: int
    distinct: int
    autocorrelation: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lowest: float
    highest: float
    rms: float


def examine(images: Images) -> ImageFacts:
    """Measure the images in one pass. Raises InputError for none at all and for values that are not finite."""
    if len(images) == 0:
        raise _too_few(0)
    constant = pixels = 0
    neighbours: list[float] = []
    seen: set[bytes] = set()
    lows, highs, sums, squares = [], [], [], []
    for start in range(0, len(images), _CHUNK):
        chunk = np.asarray(images[start : start + _CHUNK], dtype=np.float32)
        finite = np.isfinite(chunk).all(axis=(1, 2, 3))
        if not finite.all():
            raise InputError(f"calibration image {start + int(np.argmin(finite))} (counted from 0) is not finite.")
        low, high = chunk.min(axis=(1, 2, 3)), chunk.max(axis=(1, 2, 3))
        varied = chunk[low < high]
        constant += len(chunk) - len(varied)
        neighbours.extend(_autocorrelation(varied).tolist())
        seen.update(hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in chunk)
        lows.append(low.min())
        highs.append(high.max())
        sums.append(chunk.sum(axis=(0, 2, 3), dtype=np.float64))
        squares.append(np.square(chunk, dtype=np.float64).sum(axis=(0, 2, 3)))
        pixels += chunk.shape[0] * chunk.shape[2] * chunk.shape[3]
    mean, square = np.sum(sums, axis=0) / pixels, np.sum(squares, axis=0) / pixels
    return ImageFacts(
        images=len(images),
        constant=constant,
        noise_like=int(np.sum(np.abs(neighbours) < _NOISE)),
        distinct=len(seen),
        autocorrelation=float(np.median(neighbours)) if neighbours else None,
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist()),
        lowest=float(min(lows)),
        highest=float(max(highs)),
        rms=float(np.sqrt(square.mean())),
    )


def _too_few(count: int) -> InputError:
    return InputError(f"{count} images are too few to calibrate on; at least {MINIMUM_SAMPLES} are needed.")


def _autocorrelation(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return, per image (N, C, H, W), the mean correlation of pixels one apart, across and down."""
    centred = images.astype(np.float64) - images.mean(axis=(2, 3), keepdims=True, dtype=np.float64)
    power = np.square(centred).mean(axis=(1, 2, 3))
    found = [
        (first * second).mean(axis=(1, 2, 3))
        for first, second in (
            (centred[..., 1:], centred[..., :-1]),
            (centred[..., 1:, :], centred[..., :-1, :]),
        )
        if first.size
    ]
    # Channels that are each of one value have no neighbours to compare: a plain colour, not noise.
    mean: NDArray[np.float64] = np.ones_like(power)
    np.divide(np.mean(found, axis=0) if found else power, power, out=mean, where=power > 0)
    return mean


def check_images(facts: ImageFacts, prep: Preprocess | None) -> list[str]:
    """Refuse images that cannot calibrate, and return warnings about those that calibrate badly, with numbers.

    prep: what the model says of its own preprocessing; None if it says nothing. Raises InputError.
    """
    count = facts.images
    if count < MINIMUM_SAMPLES:
        raise _too_few(count)
    if 2 * facts.constant >= count:
        raise InputError(
            f"{facts.constant} of {count} calibration images are constant, one value in every pixel.\n"
            "Check the folder given as `--data`: calibrating needs real images."
        )
    if facts.distinct == 1:
        raise InputError(f"all {count} calibration images are the same image.\nGive real, different ones: `--data`.")
    assert facts.autocorrelation is not None  # not all are constant
    if abs(facts.autocorrelation) < _NOISE:
        raise InputError(
            f"the calibration images are noise: neighbouring pixels correlate by {facts.autocorrelation:.2f} "
            f"(median; at least {_NOISE:g} is needed, MNIST has 0.8).\n"
            "Random numbers give scales that are wrong for real images. Give those: `--data`."
        )
    said = [*_unscaled(facts, prep)]
    if count < ENOUGH_SAMPLES:
        said.append(f"{count} calibration images are few; {ENOUGH_SAMPLES} or more give steadier scales")
    if facts.constant:
        said.append(f"{facts.constant} of {count} calibration images are constant ({facts.constant / count:.1%})")
    if 20 * facts.noise_like >= count:
        said.append(
            f"{facts.noise_like} of {count} calibration images look like noise ({facts.noise_like / count:.1%})"
        )
    if 10 * facts.distinct <= 9 * count:
        said.append(f"only {facts.distinct} of {count} calibration images are different ({facts.distinct / count:.1%})")
    return said


def _unscaled(facts: ImageFacts, prep: Preprocess | None) -> list[str]:
    """Compare with the scale, or the mean 0 and deviation 1, that the model was made for."""
    if prep is None or not any(prep.mean) or min(prep.std) < _LEAST_DEVIATION:  # scaled, not to mean 0, deviation 1
        if facts.rms > _RMS_UNSCALED / (1.0 if prep is None else min(prep.std)):
            raise InputError(
                f"the calibration images run from {facts.lowest:.4g} to {facts.highest:.4g} (RMS {facts.rms:.3g}): "
                "they are not scaled.\nDivide 0..255 by 255, and prepare them as in training."
            )
        return []
    shift = max(facts.mean, key=abs)
    spread = max(facts.std, key=lambda std: abs(np.log(max(std, 1e-9))))
    where = (
        f"mean {round(shift, 2) + 0.0:.2f} and deviation {spread:.2f} after the model's own preprocessing, "
        "where 0 and 1 are usual"
    )
    if abs(shift) > _SHIFT[1] or not _SPREAD[1][0] <= spread <= _SPREAD[1][1]:
        raise InputError(
            f"the calibration images have {where}.\n"
            "They are not scaled as in training (0..255 for 0..1?), or other data than the model is for."
        )
    if abs(shift) > _SHIFT[0] or not _SPREAD[0][0] <= spread <= _SPREAD[0][1]:
        return [f"the calibration images have {where}; are they of the kind that the model is for?"]
    return []


def check_labels(labels: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """Return a warning if the images show a single one of several classes."""
    present = np.unique(labels)
    if len(present) > 1 or len(classes) < 2:
        return []
    return [f"all calibration images are of one class of {len(classes)} ({classes[int(present[0])]})"]
