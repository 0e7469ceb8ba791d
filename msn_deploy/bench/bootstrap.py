"""Ratios of medians drawn anew, and the distribution functions that the statistics need. Pure functions on logarithms.

Own distribution functions: with scipy the container of a device would not stay small. Tests compare them with scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

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


_TINY = 1e-300
_CONVERGED = 1e-15


def binomial_cdf(count: int, trials: int, chance: float) -> float:
    """Return the probability of at most `count` successes, 0 <= count <= trials, 0 < chance < 1 (DLMF 8.17.5)."""
    if count == trials:
        return 1.0
    return incomplete_beta(trials - count, count + 1, 1 - chance)


def student_cdf(value: float, freedom: float) -> float:
    """Return the probability that Student's t with that many degrees of freedom, whole or not, is below `value`."""
    square = value * value
    if square < freedom:  # else what lies outside is the smaller part, and keeps its digits
        inside = incomplete_beta(0.5, freedom / 2, square / (freedom + square))
        return 0.5 + math.copysign(inside / 2, value)
    outside = incomplete_beta(freedom / 2, 0.5, freedom / (freedom + square))
    return outside / 2 if value < 0 else 1 - outside / 2


def student_quantile(chance: float, freedom: float) -> float:
    """Return the value below which Student's t lies with probability `chance`, 0 < chance < 1."""
    if chance < 0.5:
        return -student_quantile(1 - chance, freedom)
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < chance:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:  # until no float lies between
        low, high = (middle, high) if student_cdf(middle, freedom) < chance else (low, middle)
    return high


def rank_sum_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the test of Mann and Whitney, exact; a tie counts for neither side.

    first, second: two independent samples, not empty. The number of orders with each value of U is a coefficient of a
    Gaussian binomial (H. Mann and D. Whitney, On a Test of Whether one of Two Random Variables is Stochastically Larger
    than the Other, 1947).
    """
    n, m = len(first), len(second)
    above = sum((a > b) + 0.5 * (a == b) for a in first for b in second)
    extreme = math.ceil(min(above, n * m - above))
    orders = [1] + [0] * extreme
    for each in range(1, n + 1):
        for at in range(extreme, m + each - 1, -1):  # times 1 - q^(m + each)
            orders[at] -= orders[at - m - each]
        for at in range(each, extreme + 1):  # over 1 - q^each
            orders[at] += orders[at - each]
    return min(1.0, 2 * sum(orders) / math.comb(n + m, n))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b); a, b > 0, 0 <= x <= 1.

    The continued fraction of DLMF 8.17.22, evaluated after W. Lentz (Applied Optics 15, 1976), which converges in about
    the square root of max(a, b) steps on the side of the mean where it is used.
    """
    if x in (0, 1):
        return float(x)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    upper, lower = 1.0, 1 / _apart(1 - (a + b) * x / (a + 1))
    fraction, step, change = lower, 0, 0.0
    while abs(change - 1) > _CONVERGED:
        step += 1
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        change = 1.0
        for term in (even, odd):
            lower = 1 / _apart(1 + term * lower)
            upper = _apart(1 + term / upper)
            change *= upper * lower
        fraction *= change
    return front * fraction


def _apart(value: float) -> float:
    """Keep a denominator away from zero."""
    return value if abs(value) > _TINY else _TINY
