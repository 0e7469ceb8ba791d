"""Ratios of medians drawn anew, and how much few builds and rounds can be trusted. Pure functions on logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from msn_deploy.bench.distributions import student_cdf, student_quantile

Floats = npt.NDArray[np.float64]

_CHUNK_VALUES = 4_000_000  # keeps the resampled array of a long run below 32 MB


def paired_draws(arm: Floats, baseline: Floats, resamples: int, *, seed: int) -> Floats:
    """Return `resamples` ratios; builds are drawn anew per arm, rounds for both together; (builds, rounds) each."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // arm.shape[1])
    parts = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        logs = _redrawn_builds(arm, count, generator) - _redrawn_builds(baseline, count, generator)
        parts.append(_redrawn_medians(logs, count, generator))
    return np.concatenate(parts)


def single_draws(arm: Floats, resamples: int, *, seed: int) -> Floats:
    """Return `resamples` medians of one arm from builds and rounds drawn anew; arm: (builds, rounds)."""
    return paired_draws(arm, np.zeros((1, arm.shape[1])), resamples, seed=seed)


def build_variance(values: Floats, common: Floats | float) -> tuple[float, int]:
    """Return the variance of the mean over builds and its degrees of freedom; (0, 0) for one build.

    values: (builds, rounds). common: what all builds share, to be taken off first.
    """
    builds = len(values)
    if builds == 1:
        return 0.0, 0
    return float(np.median(values - common, axis=1).var(ddof=1)) / builds, builds - 1


def satterthwaite(parts: Sequence[tuple[float, int]]) -> float:
    """Return the degrees of freedom of a sum of variances, each with its own; the last one serves if all are 0."""
    weighed = sum(variance**2 / freedom for variance, freedom in parts if freedom)
    return sum(variance for variance, _ in parts) ** 2 / weighed if weighed > 0 else float(parts[-1][1])


def widened(draws: Floats, *, centre: float, freedom: float, units: int, alpha: float) -> tuple[float, float, float]:
    """Return the ends of an interval around an estimate, and the two-sided p of the estimate being 0 in truth.

    Percentiles of few draws are too narrow; they are stretched by Student's t over the normal quantile and by the
    missing degree of freedom of `units` (T. Hesterberg, What Teachers Should Know about the Bootstrap, 2015).
    draws: (resamples,) of the estimate `centre`.
    """
    few = (units / (units - 1)) ** 0.5
    below, above = few * (np.percentile(draws, [50 * alpha, 100 - 50 * alpha]) - centre)
    z, t = NormalDist().inv_cdf(1 - alpha / 2), student_quantile(1 - alpha / 2, freedom)
    # The error that counts is the one on the side of 0, so that p < alpha exactly where the interval excludes 0.
    error = (-below if centre > 0 else above) / z
    p_value = 2 * student_cdf(-abs(centre) / error, freedom) if error > 0 else float(centre == 0)
    return centre + below * t / z, centre + above * t / z, p_value


def _redrawn_builds(values: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Return means over builds drawn anew, (count, rounds), or (1, rounds) where there is one build to draw.

    Drawn means of n builds spread too little by (n - 1) / n in variance; the deviation is scaled up by that.
    """
    builds = len(values)
    if builds == 1:
        return values
    shares = generator.multinomial(builds, [1 / builds] * builds, size=count) / builds
    return np.asarray((1 / builds + (builds / (builds - 1)) ** 0.5 * (shares - 1 / builds)) @ values)


def _redrawn_medians(logs: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Return the medians of rounds drawn anew, (count,); logs: (count or 1, rounds).

    The median of n values drawn from a sorted list needs only its middle draws, and these are order statistics of n
    uniform numbers: two Beta variates in place of n draws and a sort.
    """
    rounds = logs.shape[1]
    logs = np.broadcast_to(np.sort(logs, axis=1), (count, rounds))
    middle = (rounds + 1) // 2
    lower = generator.beta(middle, rounds - middle + 1, size=count)
    upper = lower if rounds % 2 else lower + (1 - lower) * generator.beta(1, rounds - middle, size=count)
    picks = np.minimum(rounds * np.stack([lower, upper], axis=1), rounds - 1).astype(np.intp)
    return np.asarray(np.take_along_axis(logs, picks, axis=1).mean(axis=1))
