"""Is one arm faster than another, how sure is it, and how slow can a query be? Pure functions on samples.

Queries within a block are correlated, so they are never treated as independent. For ratios the unit of analysis is the
round, which holds two blocks of every build of every arm, taken around the same moment. Percentiles are bounds that
hold, or none where there are too few queries for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np

from msn_deploy.bench.bootstrap import (
    Floats,
    binomial_cdf,
    build_variance,
    paired_draws,
    rank_sum_p_value,
    satterthwaite,
    single_draws,
    student_quantile,
    widened,
)
from msn_deploy.core.errors import InvalidMeasurement

Verdict = Literal["FASTER", "SLOWER", "SAME", "AMBIGUOUS"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

SAME_WITHIN = 0.02
CONFIDENCE = 0.95
RESAMPLES = 10_000
_ALPHA = 1 - CONFIDENCE
# A run compared with another run: blocks of one run have its drift in common, so long stretches are the unit.
_STRETCHES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Latency of an arm divided by that of the baseline: below 1 is faster. low, high: 95 % interval.

    p_value: two-sided, of the interval; multiplied up by `holm` where several arms are compared. rank_p_value: of the
    cross-check, which looks at the order of the block medians and not at their size.
    """

    ratio: float
    low: float
    high: float
    p_value: float
    rank_p_value: float
    verdict: Verdict


def block_medians(blocks: Sequence[Sequence[int]]) -> Floats:
    """Return the median of each block, shape (blocks,), in the unit of the samples."""
    return np.array([np.median(np.asarray(block)) for block in blocks], dtype=np.float64)


def ratio_to_baseline(arm: Floats, baseline: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Ratio:
    """Compare two arms by their block medians, shape (builds, 2 * rounds) each, in time order, two blocks per round.

    One build may come as (2 * rounds,). NaN marks a block that was dropped; a round in which some build has no block
    left is left out. Per round: geometric mean over the arm's blocks, over that of the baseline. The mirrored order
    makes a steady drift cancel, and whatever slowed both arms in one round divides out. The ratio is the median of
    these over the rounds, so a few disturbed rounds do not move it; it can differ a little from the quotient of the
    two overall medians.

    The interval is a hierarchical bootstrap: builds are drawn anew for each arm, rounds for both arms together.
    Queries enter through the block median and are not drawn anew: that would count their noise twice (A. Davison and
    D. Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Percentiles are widened for few builds and
    rounds by Student's t (T. Hesterberg, What Teachers Should Know about the Bootstrap, 2015), its degrees of freedom
    after Satterthwaite. With one build, what another build of the same network would give is not in the interval.
    Raises InvalidMeasurement if a block median is 0 (the clock is too coarse) or fewer than two rounds are left,
    ValueError if shapes do not fit.
    """
    arm, baseline = np.atleast_2d(arm), np.atleast_2d(baseline)
    if arm.shape[1] != baseline.shape[1] or arm.size == 0 or arm.shape[1] % 2:
        raise ValueError(f"block medians must pair up, two per round: {arm.shape} and {baseline.shape}")
    pairs = [_rounds(each) for each in (arm, baseline)]
    kept = ~np.concatenate([np.isnan(each).all(axis=2) for each in pairs]).any(axis=0)
    if kept.sum() < 2:
        raise _too_few(int(kept.sum()), kept.size)
    pairs = [each[:, kept] for each in pairs]
    of_arm, of_baseline = (np.nanmean(each, axis=2) for each in pairs)
    draws = paired_draws(of_arm, of_baseline, resamples, seed=seed)
    common = np.concatenate([of_arm, of_baseline]).mean(axis=0)
    parts = [build_variance(each, common) for each in (of_arm, of_baseline)]
    rest = max(0.0, float(draws.var()) - sum(variance for variance, _ in parts))
    units = int(kept.sum())
    centre = float(np.median(of_arm.mean(axis=0) - of_baseline.mean(axis=0)))
    freedom = satterthwaite([*parts, (rest, units - 1)])
    return _judged(_concluded(centre, draws, freedom, units, _rank_p_value(*pairs)))


def ratio_between_runs(arm: Floats, base: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Ratio:
    """Compare an arm with one of another run, by block medians as in `ratio_to_baseline`; nothing pairs up here.

    The drift of a run does not cancel, so its rounds are not independent witnesses: each run is cut into ten stretches,
    and their medians are drawn anew. The cross-check is Mann and Whitney's test on them. What differs between runs as
    a whole, such as where memory happened to lie, is not in the interval unless each run has several builds.
    """
    sides = []
    for each in map(np.atleast_2d, (arm, base)):
        pairs = _rounds(each)
        kept = ~np.isnan(pairs).all(axis=2).any(axis=0)
        if kept.sum() < 2:
            raise _too_few(int(kept.sum()), kept.size)
        rounds = np.nanmean(pairs[:, kept], axis=2)
        cut = np.array_split(rounds, min(_STRETCHES, rounds.shape[1]), axis=1)
        sides.append(np.stack([np.median(part, axis=1) for part in cut], axis=1))
    drawn = [single_draws(each, resamples, seed=seed + at) for at, each in enumerate(sides)]
    parts = []
    for each, draws in zip(sides, drawn, strict=True):
        builds = build_variance(each, 0.0)
        parts += [builds, (max(0.0, float(draws.var()) - builds[0]), each.shape[1] - 1)]
    rank_p = rank_sum_p_value(*(each.mean(axis=0).tolist() for each in sides))
    centre = float(np.subtract(*(np.median(each.mean(axis=0)) for each in sides)))
    units = min(each.shape[1] for each in sides)
    return _judged(_concluded(centre, drawn[0] - drawn[1], satterthwaite(parts), units, rank_p))


def mean_interval(blocks: Floats) -> tuple[float, float, float]:
    """Return the mean of what blocks came to, shape (builds, 2 * rounds), NaN for dropped ones, and its 95 % interval.

    Blocks near each other in time are alike, so that the means of ten stretches of the run are the unit (batch means:
    A. Law, Simulation Modeling and Analysis, 2015, section 9.5.3), with Student's t. The interval has no lower end
    above 0 where the stretches differ that much. Raises InvalidMeasurement if fewer than two stretches hold a block.
    """
    rounds = blocks.reshape(len(blocks), -1, 2)
    kept = ~np.isnan(rounds).all(axis=2).any(axis=0)
    if kept.sum() < 2:
        raise _too_few(int(kept.sum()), kept.size)
    means = np.nanmean(rounds[:, kept], axis=(0, 2))
    stretches = np.array([part.mean() for part in np.array_split(means, min(_STRETCHES, len(means)))])
    mean = float(means.mean())
    half = (
        student_quantile((1 + CONFIDENCE) / 2, len(stretches) - 1)
        * float(stretches.std(ddof=1))
        / len(stretches) ** 0.5
    )
    return mean, mean - half, mean + half


def _rounds(medians: Floats) -> Floats:
    """Return logarithms, (builds, rounds, 2)."""
    if np.nanmin(medians, initial=np.inf) <= 0:
        raise InvalidMeasurement(
            "a whole block took 0 ns: the clock is too coarse for this model.\nRaise `--batch-size`."
        )
    return np.asarray(np.log(medians).reshape(len(medians), -1, 2))


def _too_few(left: int, rounds: int) -> InvalidMeasurement:
    return InvalidMeasurement(
        f"{left} of {rounds} rounds are left without a throttled block: nothing can be compared.\n"
        "Cool the machine or lock its clocks, and measure again."
    )


def _concluded(centre: float, draws: Floats, freedom: float, units: int, rank_p_value: float) -> Ratio:
    below, above, p_value = widened(draws, centre=centre, freedom=freedom, units=units, alpha=_ALPHA)
    low, ratio, high = np.exp([below, centre, above]).tolist()
    return Ratio(ratio=ratio, low=low, high=high, p_value=p_value, rank_p_value=rank_p_value, verdict="AMBIGUOUS")


def holm(ratios: Sequence[Ratio]) -> list[Ratio]:
    """Judge several comparisons with one baseline, so that all false alarms together stay below 5 % (S. Holm, 1979).

    Intervals stay as they are, each for itself; p values and verdicts are adjusted.
    """
    order = sorted(range(len(ratios)), key=lambda at: ratios[at].p_value)
    adjusted, largest = list(ratios), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(ratios) - rank) * ratios[at].p_value))
        adjusted[at] = _judged(replace(ratios[at], p_value=largest))
    return adjusted


def verdict_of(ratio: float, low: float, high: float, *, confirmed: bool = True) -> Verdict:
    """Judge a ratio with its 95 % interval; each triple has exactly one verdict, decided in this order.

    SAME: the whole interval lies within 1 +- 0.02 (two one-sided tests of equivalence, 2.5 % each); a difference,
    even a certain one, is too small to matter.
    FASTER: the whole interval is below 1, the ratio itself below 0.98, and the other tests agree (confirmed).
    SLOWER: above 1, above 1.02, and so on.
    AMBIGUOUS: all else. Either the noise hides which is faster, or one is surely faster but whether by more than
    2 % is not settled; measuring longer narrows the interval and ends it.
    The ratio has to clear 2 % on its own because a lucky narrow interval beside 1 is the usual false alarm.
    """
    if low >= 1 - SAME_WITHIN and high <= 1 + SAME_WITHIN:
        return "SAME"
    if confirmed and high < 1 and ratio < 1 - SAME_WITHIN:
        return "FASTER"
    if confirmed and low > 1 and ratio > 1 + SAME_WITHIN:
        return "SLOWER"
    return "AMBIGUOUS"


def _judged(found: Ratio) -> Ratio:
    confirmed = max(found.p_value, found.rank_p_value) < _ALPHA
    return replace(found, verdict=verdict_of(found.ratio, found.low, found.high, confirmed=confirmed))


def _rank_p_value(arm: Floats, baseline: Floats) -> float:
    """Return the two-sided p of a Mann-Whitney test within each round, summed (P. van Elteren, 1960).

    arm, baseline: (builds, rounds, 2), NaN for dropped blocks. Only blocks of one round are ranked against each
    other, so a drift that both arms share cannot hide a difference, nor make one.
    """
    first, second = (each.transpose(1, 0, 2).reshape(each.shape[1], -1) for each in (arm, baseline))
    above = (first[:, :, None] > second[:, None, :]) + 0.5 * (first[:, :, None] == second[:, None, :])
    n, m = (np.sum(~np.isnan(each), axis=1) for each in (first, second))
    weight = 1 / (n + m + 1)
    excess = float(np.sum(weight * (above.sum(axis=(1, 2)) - n * m / 2)))
    spread = float(np.sum(weight**2 * n * m * (n + m + 1) / 12)) ** 0.5
    return 2 * NormalDist().cdf(-abs(excess) / spread)


# One-sided: the true percentile lies above the bound in 1 of 100 runs.
BOUND_CONFIDENCE = 0.99
# Smallest n with F(1; n, 1 - p) <= 0.01, F the binomial distribution function: below it MLPerf's early stopping rule
# (confidence 0.99, one query over the bound) gives no estimate (mlcommons/inference_policies, inference_rules.adoc).
MINIMUM_QUERIES = {50: 11, 90: 64, 95: 130, 99: 662}


def upper_bound(blocks: Sequence[Sequence[int]], percent: int) -> float | None:
    """Return a 99 % upper bound of a percentile (50, 90, 95 or 99), an observed value, in the unit of the samples.

    MLPerf's early stopping: of n queries the t - 1 slowest are discarded and the slowest of the rest is the bound, t
    the largest number with F(t; n, 1 - p) <= 0.01. That holds for independent queries. Slow ones come in spells, so n
    is not the number of queries but that of independent ones which would say as much: divided by the design effect,
    which is how much more the share of slow queries varies from block to block than chance alone would make it.
    None if that is below MINIMUM_QUERIES.
    """
    samples = np.concatenate([np.asarray(block) for block in blocks])
    total = len(samples)
    if total < MINIMUM_QUERIES[percent]:
        return None
    edge = np.percentile(samples, percent, method="inverted_cdf")
    sizes = np.array([len(block) for block in blocks])
    slow = np.add.reduceat(samples > edge, np.concatenate([[0], np.cumsum(sizes)[:-1]]), dtype=np.int64)
    independent = int(total / _design_effect(slow, sizes))
    if independent < MINIMUM_QUERIES[percent]:
        return None
    discarded = (_early_stop(independent, percent) - 1) * total // independent
    rank = total - 1 - discarded
    return float(np.partition(samples, rank)[rank])


def _design_effect(slow: Any, sizes: Any) -> float:
    """Return the variance of the share of slow queries, blocks as clusters, over that of independent queries."""
    total, blocks = int(sizes.sum()), len(sizes)
    share = float(slow.sum()) / total
    if blocks < 2 or share == 0:
        return 1.0
    clustered = blocks / (blocks - 1) * float(np.sum((slow - share * sizes) ** 2)) / total**2
    return max(1.0, float(clustered / (share * (1 - share) / total)))


def _early_stop(queries: int, percent: int) -> int:
    """Return the largest t with F(t; queries, 1 - percent / 100) <= 1 - BOUND_CONFIDENCE; at least 1 is needed."""
    over = 1 - percent / 100
    low, high = 1, int(queries * over) + 1  # F at the mean is about one half
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_cdf(middle, queries, over) <= 1 - BOUND_CONFIDENCE else (low, middle)
    return low
