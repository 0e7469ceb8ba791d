"""How many samples per second does a model take with several queries in flight, and what does that gain?

Rates are those of blocks (see bench.load), and what is compared with one query at a time was measured in turn with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any

import numpy as np

from msn_deploy.bench.bootstrap import Floats
from msn_deploy.bench.measure import ArmSamples, Samples
from msn_deploy.bench.rates import Alone, Rate, Throughput
from msn_deploy.bench.result import ArmResult, BenchResult
from msn_deploy.bench.stats import mean_interval, ratio_to_baseline
from msn_deploy.bench.validity import block_causes
from msn_deploy.machine.usage import Usage

ALONE = " alone"
"""What the name of an arm ends in that has one query at a time, beside that of the same model under load."""


def with_throughput(
    result: BenchResult, taken: Samples, *, batch: int, pinned_mhz: Mapping[str, float] | None = None
) -> BenchResult:
    """Return the result with the throughput of every arm.

    Args:
        result: What `compare` made of the arms under load.
        taken: All samples, those of the arms with one query at a time too, whose names end in ALONE.
        batch: Samples per query.
        pinned_mhz: As for `compare`.

    Raises:
        InvalidMeasurement: Throttling left too little of a model with one query at a time.
    """
    causes = block_causes(taken.readings, pinned_mhz=pinned_mhz)
    builds = {arm.name: [each for each in taken.arms if each.name == arm.name] for arm in taken.arms}
    arms = []
    for arm in result.arms:
        alone = builds.get(arm.name + ALONE)
        throughput = Throughput(
            in_flight=builds[arm.name][0].facts.in_flight or 1,
            rate=_rate(arm.medians_by_build(), batch),
            alone=None if alone is None else _alone(arm, alone, causes, batch),
            usage=_usage([each.usage for build in builds[arm.name] for each in build.loaded if each.usage is not None]),
        )
        arms.append(replace(arm, throughput=throughput))
    return replace(result, arms=tuple(arms))


def under_load(taken: Samples) -> Samples:
    """Return the samples without those of one query at a time."""
    return replace(taken, arms=tuple(arm for arm in taken.arms if not arm.name.endswith(ALONE)))


def _rate(ns_per_query: Floats, batch: int) -> Rate:
    """Turn what the blocks came to, (builds, 2 * rounds) ns, NaN where dirty, into samples per second."""
    mean, low, high = mean_interval(ns_per_query)
    return Rate(per_s=1e9 * batch / mean, interval=(1e9 * batch / high, 1e9 * batch / low if low > 0 else float("inf")))


def _alone(arm: ArmResult, builds: Sequence[ArmSamples], causes: Sequence[str | None], batch: int) -> Alone:
    means = np.array([[np.mean(block) for block in build.blocks] for build in builds])
    clean = [[not (causes and causes[slot]) for slot in build.slots] for build in builds]
    means[~np.array(clean)] = np.nan
    ratio = ratio_to_baseline(arm.medians_by_build(), means)
    kept = chain.from_iterable(
        block
        for build, counts in zip(builds, clean, strict=True)
        for block, ok in zip(build.blocks, counts, strict=True)
        if ok
    )
    return Alone(
        rate=_rate(means, batch),
        median_ms=float(np.median(np.fromiter(kept, dtype=np.int64))) / 1e6,
        threads=builds[0].facts.threads,
        gain=1 / ratio.ratio,
        gain_interval=(1 / ratio.high, 1 / ratio.low),
    )


def _usage(blocks: Sequence[Usage]) -> Usage | None:
    if not blocks:
        return None
    found: dict[str, Any] = {}
    for each in fields(Usage):
        known = [value for block in blocks if (value := getattr(block, each.name)) is not None]
        # Shares are those of the whole time; of memory, what has to be there at any time counts.
        found[each.name] = (max(known) if each.name.endswith("_mib") else float(np.mean(known))) if known else None
    return Usage(**found)
