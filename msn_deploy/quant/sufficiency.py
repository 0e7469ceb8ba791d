"""Are there enough calibration images? How far ranges from fewer of them are from those of all, from one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msn_deploy.quant.histograms import LEAST, Histograms
from msn_deploy.quant.scales import BINS, range_of

FIRST = 16  # images of the first point; each further one has twice as many
SHUFFLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far ranges from some images are from those of all, as factor minus 1 (0.05: 5 % up or down).

    median, worst: over tensors, each the median over SHUFFLES random draws. worst_low, worst_high: the least and the
    largest `worst` of those draws.
    """

    images: int
    median: float
    worst: float
    worst_low: float
    worst_high: float


def shuffled_groups(count: int, *, seed: int = 0) -> NDArray[np.intp]:
    """Deal `count` images SHUFFLES times into groups of 16, 16, 32, 64, ...; pass it to `collect`.

    Its groups then add up to random subsets of 16, 32, 64, ... images. Returns (SHUFFLES, count).
    """
    rng = np.random.RandomState(seed)  # the legacy generator: its numbers are frozen
    ranks = np.stack([rng.permutation(count) for _ in range(SHUFFLES)])
    return np.ceil(np.log2(np.maximum((ranks + 1) / FIRST, 1))).astype(np.intp)


def drift_curve(
    found: Histograms, ranges: Mapping[str, float], *, images: int, method: str, percentile: float
) -> list[Drift]:
    """Return the drift at 16, 32, 64, ... images, fewer than all.

    found: collected with `shuffled_groups(images)`. ranges: those of all images by the same method.
    """
    points = []
    for groups in range(1, int(shuffled_groups(images).max()) + 1):
        drifts = np.array([_drifts(found, ranges, groups, order, method, percentile) for order in range(SHUFFLES)])
        worst = drifts.max(axis=1)
        points.append(
            Drift(
                images=FIRST * 2 ** (groups - 1),
                median=float(np.median(np.median(drifts, axis=1))),
                worst=float(np.median(worst)),
                worst_low=float(worst.min()),
                worst_high=float(worst.max()),
            )
        )
    return points


def _drifts(
    found: Histograms, ranges: Mapping[str, float], groups: int, order: int, method: str, percentile: float
) -> list[float]:
    drifts = []
    for name, (counts, edge, largest) in found.first(groups, order).items():
        if not ranges[name]:  # zero on all images
            continue
        # A tensor that is zero on these few images has no range there; that of one bin stands for it.
        some = edge / BINS if largest < LEAST else range_of(counts, edge, largest, method=method, percentile=percentile)
        drifts.append(max(some / ranges[name], ranges[name] / some) - 1)
    return drifts
