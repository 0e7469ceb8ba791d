"""The few distribution functions that the statistics need.

Own code, because with scipy the container of a device would not stay small; tests hold it against scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
