"""What do the samples say, and how sure is it? Pure functions on arrays.

Queries within a block are correlated, so they are never treated as independent: the unit of analysis is the round,
which holds two blocks of every arm taken around the same moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from msn_deploy.core.errors import InvalidMeasurement

Floats = npt.NDArray[np.float64]
Verdict = Literal["FASTER", "SLOWER", "SAME", "AMBIGUOUS"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

# Smallest n with F(1; n, 1 - p) <= 0.01, F the binomial distribution function: below it MLPerf's early stopping rule
# (confidence 0.99, one query over the bound) gives no estimate (mlcommons/inference_policies, inference_rules.adoc).
MINIMUM_QUERIES = {90: 64, 95: 130, 99: 662}

SAME_WITHIN = 0.02
CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK_VALUES = 4_000_000  # keeps the resampled array of a long run below 32 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Latency of an arm divided by that of the baseline: below 1 is faster. low, high: 95 % interval."""

    ratio: float
    low: float
    high: float
    verdict: Verdict


def percentile(samples: Sequence[int] | Floats, percent: int) -> float | None:
    """Return the nearest-rank percentile (90, 95 or 99), an observed value, in the unit of the samples.

    None if there are fewer samples than MINIMUM_QUERIES: the tail of a few queries is an anecdote.
    """
    if len(samples) < MINIMUM_QUERIES[percent]:
        return None
    return float(np.percentile(np.asarray(samples), percent, method="inverted_cdf"))


def block_medians(blocks: Sequence[Sequence[int]]) -> Floats:
    """Return the median of each block, shape (blocks,), in the unit of the samples."""
    return np.array([np.median(np.asarray(block)) for block in blocks], dtype=np.float64)


def ratio_to_baseline(arm: Floats, baseline: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Ratio:
    """Compare two arms by their block medians, shape (2 * rounds,) each, in time order, two blocks per round.

    Per round: geometric mean of the arm's two block medians over that of the baseline. The mirrored order makes a
    steady drift cancel, and whatever slowed both arms in one round divides out. The ratio is the median of these over
    the rounds, so a few disturbed rounds do not move it; it can differ a little from the quotient of the two overall
    medians. The interval is a percentile bootstrap that resamples rounds, both arms together, widened for
    few rounds (expanded percentiles: T. Hesterberg, What Teachers Should Know about the Bootstrap, 2015):
    plain percentiles of 10 to 20 rounds cover 92 to 94 % instead of 95 %, and the verdicts inherit that.
    Raises InvalidMeasurement if a block median is 0 (the clock is too coarse), ValueError if shapes do not fit.
    """
    if arm.shape != baseline.shape or arm.size == 0 or arm.size % 2:
        raise ValueError(f"block medians must pair up, two per round: {arm.shape} and {baseline.shape}")
    if min(arm.min(), baseline.min()) <= 0:
        raise InvalidMeasurement("a whole block took 0 ns: the clock is too coarse for this model.\nRaise `--batch`.")
    logs = (np.log(arm) - np.log(baseline)).reshape(-1, 2).mean(axis=1)
    centres = _resampled_medians(logs, resamples, seed=seed)
    tail = 100 * _expanded_tail(len(logs))
    low, ratio, high = np.exp([np.percentile(centres, tail), np.median(logs), np.percentile(centres, 100 - tail)])
    return Ratio(ratio=float(ratio), low=float(low), high=float(high), verdict=verdict_of(ratio, low, high))


def verdict_of(ratio: float, low: float, high: float) -> Verdict:
    """Judge a ratio with its interval; each triple has exactly one verdict, decided in this order.

    SAME: the whole interval lies within 1 +- 0.02; a difference, even a certain one, is too small to matter.
    FASTER: the whole interval lies below 1, and the ratio itself below 0.98. SLOWER: above 1, and above 1.02.
    AMBIGUOUS: all else. Either the noise hides which is faster, or one is surely faster but whether by more than
    2 % is not settled; measuring longer narrows the interval and ends it.
    The ratio has to clear 2 % on its own because a lucky narrow interval beside 1 is the usual false alarm.
    """
    if low >= 1 - SAME_WITHIN and high <= 1 + SAME_WITHIN:
        return "SAME"
    if high < 1 and ratio < 1 - SAME_WITHIN:
        return "FASTER"
    if low > 1 and ratio > 1 + SAME_WITHIN:
        return "SLOWER"
    return "AMBIGUOUS"


def _expanded_tail(rounds: int) -> float:
    """Return the share to cut off each side: 0.025 for many rounds, less for few."""
    if rounds < 2:
        return 0.0
    normal, freedom = NormalDist(), rounds - 1
    z = normal.inv_cdf((1 + CONFIDENCE) / 2)
    # Student's t quantile by its expansion in 1/freedom (Abramowitz and Stegun 26.7.5); 0.2 % off at 9.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return normal.cdf(-t * (rounds / freedom) ** 0.5)


def _resampled_medians(values: Floats, resamples: int, *, seed: int) -> Floats:
    """Return the medians of `resamples` draws with replacement, shape (resamples,)."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // len(values))
    parts = []
    for start in range(0, resamples, step):
        picks = generator.integers(len(values), size=(min(step, resamples - start), len(values)))
        parts.append(np.median(values[picks], axis=1))
    return np.concatenate(parts)
