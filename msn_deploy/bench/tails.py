"""How slow can a query be? Percentiles as bounds that hold, or none where there are too few queries for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from msn_deploy.bench.distributions import binomial_cdf

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
