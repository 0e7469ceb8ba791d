"""From raw samples to a result: medians, tails, ratios to the baseline, verdicts; and how the arms stand meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np

from msn_deploy.bench.bootstrap import Floats
from msn_deploy.bench.measure import BLOCKS_PER_ROUND, ArmSamples, Samples
from msn_deploy.bench.power import Energy
from msn_deploy.bench.profile import Profile
from msn_deploy.bench.result import ArmResult, BenchResult
from msn_deploy.bench.stats import Ratio, block_medians, holm, ratio_to_baseline, upper_bound
from msn_deploy.bench.validity import block_causes, judge, states
from msn_deploy.core.errors import InputError, InvalidMeasurement
from msn_deploy.machine.environment import Environment

_CONTROL_ROUNDS = 8  # below it, halves are compared by fewer than four rounds, which says nothing


def compare(
    samples: Samples,
    *,
    baseline: str,
    environment: Environment,
    profile: Profile,
    energies: Mapping[str, Energy] | None = None,
    pinned_mhz: Mapping[str, float] | None = None,
    seed: int = 0,
) -> BenchResult:
    """Compare every arm with the baseline. The result may be invalid: ask its `validity` before believing it.

    energies: by name of the arm. pinned_mhz: clocks that are locked, which must not fall.
    Raises InputError if no arm has the baseline's name, InvalidMeasurement if the clock was too coarse for an arm or
    throttling left too little to compare.
    """
    names = list(dict.fromkeys(arm.name for arm in samples.arms))
    if baseline not in names:
        raise InputError(f"the baseline {baseline!r} is not among the measured models: {', '.join(names)}.")
    causes = block_causes(samples.readings, pinned_mhz=pinned_mhz)
    slots = [slot for arm in samples.arms for slot in arm.slots]  # a run can hold arms that are not compared
    validity = judge([causes[slot] if causes else None for slot in slots])
    builds = {name: [arm for arm in samples.arms if arm.name == name] for name in names}
    medians = medians_of(samples, causes)
    others = [name for name in names if name != baseline]
    ratios = [ratio_to_baseline(medians[name], medians[baseline], seed=seed) for name in others]
    found = dict(zip(others, holm(ratios), strict=True))
    found[baseline] = ratio_to_baseline(medians[baseline], medians[baseline], seed=seed)
    results = [_arm_result(builds[name], causes, found[name], energy=(energies or {}).get(name)) for name in names]
    return BenchResult(
        baseline=baseline,
        profile=profile,
        options=asdict(samples.options),
        environment=environment,
        states=states(samples.readings),
        validity=validity,
        control=_control(medians[baseline], seed=seed),
        arms=tuple(results),
    )


def ratio_between(arm: ArmResult, other: ArmResult, *, seed: int = 0) -> Ratio:
    """Compare two arms of one result by their raw samples: latency of `arm` over that of `other`."""
    return ratio_to_baseline(arm.medians_by_build(), other.medians_by_build(), seed=seed)


def medians_of(samples: Samples, causes: Sequence[str | None]) -> dict[str, Floats]:
    """Return what the blocks of each name came to, ns per query, (builds, blocks); NaN for one with a cause."""
    builds: dict[str, list[Floats]] = {}
    for arm in samples.arms:
        builds.setdefault(arm.name, []).append(_clean_medians(arm, causes))
    return {name: np.stack(each) for name, each in builds.items()}


def _arm_result(
    builds: Sequence[ArmSamples], causes: Sequence[str | None], ratio: Ratio, *, energy: Energy | None
) -> ArmResult:
    blocks = tuple(chain.from_iterable(build.blocks for build in builds))
    reasons = tuple(causes[slot] if causes else None for build in builds for slot in build.slots)
    clean = [block for block, reason in zip(blocks, reasons, strict=True) if reason is None]
    bounds = {percent: _ms(upper_bound(clean, percent)) for percent in (50, 90, 95, 99)}
    return ArmResult(
        name=builds[0].name,
        median_ms=float(np.median(np.concatenate(clean))) / 1e6,
        median_bound_ms=bounds[50],
        p90_ms=bounds[90],
        p95_ms=bounds[95],
        p99_ms=bounds[99],
        ratio=ratio.ratio,
        ratio_interval=(ratio.low, ratio.high),
        verdict=ratio.verdict,
        p_value=ratio.p_value,
        rank_p_value=ratio.rank_p_value,
        queries=sum(map(len, blocks)),
        blocks=len(blocks),
        builds=len(builds),
        energy=energy,
        facts=builds[0].facts,
        block_start_ms=tuple(start / 1e6 for build in builds for start in build.block_starts_ns),
        block_causes=reasons,
        samples_ns=blocks,
        ns_per_query=tuple(each.ns_per_query for build in builds for each in build.loaded) or None,
    )


def _clean_medians(arm: ArmSamples, causes: Sequence[str | None]) -> Floats:
    """Return what each block came to, ns per query: the median, or under load the time that went by."""
    medians = np.array([each.ns_per_query for each in arm.loaded]) if arm.loaded else block_medians(arm.blocks)
    if causes:
        medians[[causes[slot] is not None for slot in arm.slots]] = np.nan
    return medians


def _control(medians: Floats, *, seed: int) -> Ratio | None:
    """Compare the baseline with itself: two rounds give one, first and last block against the two between.

    That is the mirrored order of two arms, so FASTER or SLOWER is a false alarm: it shows what the machine does to
    this method.
    """
    builds, rounds = len(medians), medians.shape[1] // BLOCKS_PER_ROUND
    if rounds < _CONTROL_ROUNDS:
        return None
    fours = medians[:, : 4 * (rounds // 2)].reshape(builds, -1, 4)
    outer, inner = (fours[:, :, at].reshape(builds, -1) for at in ([0, 3], [1, 2]))
    try:
        return ratio_to_baseline(outer, inner, seed=seed)
    except InvalidMeasurement:  # so many blocks were dropped that nothing is left of it
        return None


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One arm until now, all its builds. median_ms: of its clean blocks' medians; ratio: of medians, to the first arm.

    None where no clean block is there yet. blocks: measured, dirty ones too.
    """

    name: str
    median_ms: float | None
    ratio: float | None
    blocks: int
    dirty: int


def standings(samples: Samples) -> list[Standing]:
    """Return the arms in their order; the first is the one that others are compared with.

    readings of `samples`: one before every block and, if the run is over, one after.
    """
    causes = block_causes(samples.readings) if samples.readings else []
    medians: dict[str, list[float]] = {arm.name: [] for arm in samples.arms}
    blocks, dirty = dict.fromkeys(medians, 0), dict.fromkeys(medians, 0)
    for arm in samples.arms:
        lost = [bool(slot < len(causes) and causes[slot]) for slot in arm.slots]
        medians[arm.name] += _clean_medians(arm, [])[~np.array(lost, dtype=bool)].tolist()
        blocks[arm.name] += len(lost)
        dirty[arm.name] += sum(lost)
    middle = {name: float(np.median(values)) / 1e6 if values else None for name, values in medians.items()}
    first = next(iter(middle.values()))
    return [
        Standing(
            name=name,
            median_ms=ms,
            ratio=ms / first if ms and first else None,
            blocks=blocks[name],
            dirty=dirty[name],
        )
        for name, ms in middle.items()
    ]
