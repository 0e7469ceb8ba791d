"""What a finished benchmark is: rows, conditions, validity, and the raw samples they come from."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from msn_deploy.bench.bootstrap import Floats
from msn_deploy.bench.layers import LayerProfile
from msn_deploy.bench.profile import Profile
from msn_deploy.bench.stats import Ratio, Verdict, block_medians
from msn_deploy.bench.validity import Validity
from msn_deploy.machine.environment import Environment

SCHEMA = "msn-deploy-bench/3"  # 2 has no `layers`


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One row of the comparison.

    median_ms: of all clean queries. median_bound_ms, p90_ms, p95_ms, p99_ms: one-sided 99 % upper bounds, None where
    there are too few queries for one (see tails.upper_bound). ratio: latency over the baseline's, below 1 is faster
    (see stats.ratio_to_baseline); ratio_interval: 95 %. p_value is adjusted for the number of arms (Holm); the
    baseline itself has 1, (1, 1), 1 and SAME. queries, blocks, builds: counts, dirty blocks too. energy: per query
    (see power.Energy), if measured. layers: where the time goes, if profiled. Per block, build by build, in time
    order, two per round: block_start_ms, since the first block of the run; block_causes, why a block was dropped, None
    if it counts; samples_ns, raw.
    """

    name: str
    median_ms: float
    p90_ms: float | None
    p99_ms: float | None
    ratio: float
    ratio_interval: tuple[float, float]
    verdict: Verdict
    queries: int
    blocks: int
    builds: int = 1
    median_bound_ms: float | None
    p95_ms: float | None
    p_value: float
    rank_p_value: float
    energy: Mapping[str, Any] | None = None
    layers: LayerProfile | None = None
    facts: Mapping[str, Any]
    block_start_ms: tuple[float, ...]
    block_causes: tuple[str | None, ...]
    samples_ns: tuple[array[int], ...]

    @property
    def against_baseline(self) -> Ratio:
        """The comparison with the baseline."""
        low, high = self.ratio_interval
        return Ratio(
            ratio=self.ratio,
            low=low,
            high=high,
            p_value=self.p_value,
            rank_p_value=self.rank_p_value,
            verdict=self.verdict,
        )

    def medians_by_build(self) -> Floats:
        """Return block medians in ns, (builds, 2 * rounds), NaN where the block is dirty."""
        dirty = [cause is not None for cause in self.block_causes]
        return np.where(dirty, np.nan, block_medians(self.samples_ns)).reshape(self.builds, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """A finished comparison. baseline: the name of one of the arms. options: of measuring.

    states: what a probe read "before", "during" and "after" (see validity.states). control: the baseline compared with
    itself, halves of its blocks as two arms; None where its rounds are too few.
    """

    baseline: str
    profile: Profile
    options: Mapping[str, Any]
    environment: Environment
    states: Mapping[str, Any] = field(default_factory=dict)
    validity: Validity
    control: Ratio | None = None
    arms: tuple[ArmResult, ...] = field(default=())
    schema: str = SCHEMA
