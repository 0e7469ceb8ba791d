"""What a finished benchmark is: rows, conditions, validity, and the raw samples they come from; as JSON and back.

Raw samples are written one block per line. What is read is not taken on trust.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np

from msn_deploy.bench.bootstrap import Floats
from msn_deploy.bench.layers import LayerProfile, layers_from_json
from msn_deploy.bench.measure import BLOCKS_PER_ROUND, ArmFacts
from msn_deploy.bench.power import Energy
from msn_deploy.bench.profile import Profile, profile_from
from msn_deploy.bench.rates import Throughput, throughput_from_json
from msn_deploy.bench.stats import Ratio, Verdict, block_medians
from msn_deploy.bench.validity import STATES, Validity
from msn_deploy.core.errors import InputError, shown
from msn_deploy.core.opening import MOST_BYTES
from msn_deploy.core.reader import parse_json, record
from msn_deploy.core.results import Result
from msn_deploy.machine.environment import Environment

SCHEMA = "msn-deploy-bench/4"  # 3 has no `throughput`, 2 no `layers`


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One row of the comparison.

    median_ms: of all clean queries. median_bound_ms, p90_ms, p95_ms, p99_ms: one-sided 99 % upper bounds, None where
    there are too few queries for one (see stats.upper_bound). ratio: latency over the baseline's, below 1 is faster
    (see stats.ratio_to_baseline); ratio_interval: 95 %. p_value is adjusted for the number of arms (Holm); the
    baseline itself has 1, (1, 1), 1 and SAME. queries, blocks, builds: counts, dirty blocks too. energy: per query
    (see power.Energy), if measured. layers: where the time goes, if profiled. Per block, build by build, in time
    order, two per round: block_start_ms, since the first block of the run; block_causes, why a block was dropped, None
    if it counts; samples_ns, raw. Under load, ns_per_query is the time that went by per query in each block, which the
    ratio is of, and throughput says what it comes to; latencies are from the beginning of a query until its answer.
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
    energy: Energy | None = None
    layers: LayerProfile | None = None
    facts: ArmFacts
    block_start_ms: tuple[float, ...]
    block_causes: tuple[str | None, ...]
    samples_ns: tuple[array[int], ...]
    ns_per_query: tuple[float, ...] | None = None
    throughput: Throughput | None = None

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
        """Return what each block came to in ns, (builds, 2 * rounds), NaN where it is dirty.

        That is the median of its queries, and under load the time that went by per query.
        """
        dirty = [cause is not None for cause in self.block_causes]
        found = block_medians(self.samples_ns) if self.ns_per_query is None else np.array(self.ns_per_query)
        return np.where(dirty, np.nan, found).reshape(self.builds, -1)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BenchResult(Result):
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

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON of `to_json` holds."""
        value: dict[str, Any] = parse_json(to_json(self), source="the result", most_bytes=MOST_BYTES["result"])
        return value

    def shown(self) -> Iterator[tuple[str, str]]:
        """Yield a row per model: its median, and how it compares with the baseline."""
        for arm in self.arms:
            low, high = arm.ratio_interval
            ratio = f", {arm.ratio:.3f} of {self.baseline} ({low:.3f} to {high:.3f}), {arm.verdict}"
            yield arm.name, f"{arm.median_ms:.4g} ms{ratio if arm.name != self.baseline else ''}"
        if not self.validity.valid:
            yield "validity", "INVALID"


_READABLE = ("msn-deploy-bench/2", "msn-deploy-bench/3", SCHEMA)  # what is optional in one is not in those before it
_COUNTED = ("blocks", "dirty_blocks", "causes")
_MOST = 1e9  # ms, or times as long


def to_json(result: BenchResult) -> str:
    """Serialise: indented for readers, but the raw samples one block per line.

    Raises TypeError or ValueError if facts or environment hold what is not a JSON value, NaN included.
    """
    head = {name: getattr(result, name) for name in ("schema", "baseline", "options")}
    head["environment"] = {**result.environment.to_json(), **result.states}
    head["profile"] = asdict(result.profile)
    head["validity"] = {"valid": result.validity.valid, **asdict(result.validity)}
    head["control"] = None if result.control is None else asdict(result.control)
    arms = (_with_list(_plain_fields(arm), "samples_ns", map(_compact, arm.samples_ns)) for arm in result.arms)
    return _with_list(head, "arms", arms) + "\n"


def from_json(text: bytes | str, *, source: str = "the benchmark result") -> BenchResult:
    """Parse what `to_json` wrote. Raises InputError that names the source and what is wrong with it."""
    said = f"{source} is not a benchmark result"
    value = parse_json(text, source=f"{said}: it", most_bytes=MOST_BYTES["result"], finite=True)
    if not isinstance(value, dict) or "schema" not in value:
        raise InputError(f"{said}: 'schema' is missing.")
    schema = value.pop("schema")
    if schema not in _READABLE:
        raise InputError(
            f"{source} has schema {shown(schema)}; this version reads {SCHEMA!r}.\nMeasure again to compare."
        )
    try:
        arms = tuple(_arm_from(arm) for arm in value.pop("arms"))
        environment, control, validity = (value.pop(name) for name in ("environment", "control", "validity"))
        result = record(
            BenchResult,
            value,
            source="the result",
            arms=arms,
            profile=profile_from(value.pop("profile")),
            validity=record(Validity, {name: validity[name] for name in _COUNTED}, source="validity"),
            control=None if control is None else record(Ratio, control, source="control"),
            environment=Environment.from_json(environment),
            states={name: environment[name] for name in STATES if name in environment},
        )
        _check(result)
    except KeyError as cause:
        raise InputError(f"{said}: {cause} is missing.") from cause
    except (InputError, ValueError, TypeError, AttributeError) as cause:
        raise InputError(f"{said}: {str(cause).rstrip('.')}.") from cause
    return result


def _check(result: BenchResult) -> None:
    """Raise ValueError for parts that do not fit each other."""
    if result.baseline not in [arm.name for arm in result.arms]:
        raise ValueError(f"the baseline {shown(result.baseline)} is not among the arms")
    if len({arm.blocks for arm in result.arms}) > 1:
        raise ValueError("the arms have unequal numbers of blocks")
    dirty = sum(cause is not None for arm in result.arms for cause in arm.block_causes)
    blocks = sum(arm.blocks for arm in result.arms)
    if (result.validity.blocks, result.validity.dirty_blocks) != (blocks, dirty):
        raise ValueError("its validity counts other blocks than its arms hold")


def _arm_from(value: dict[str, Any]) -> ArmResult:
    name = shown(value["name"], 40)
    layers, energy, throughput = value.pop("layers", None), value.pop("energy"), value.pop("throughput", None)
    arm = record(
        ArmResult,
        value,
        source=f"arm {name}",
        samples_ns=tuple(_block_from(block, name) for block in value.pop("samples_ns")),
        layers=None if layers is None else layers_from_json(layers),
        throughput=None if throughput is None else throughput_from_json(throughput),
        facts=ArmFacts.from_json(value.pop("facts")),
        energy=None if energy is None else record(Energy, energy, source=f"arm {name}, energy"),
    )
    times = (arm.median_ms, arm.ratio, *arm.ratio_interval, arm.median_bound_ms, arm.p90_ms, arm.p95_ms, arm.p99_ms)
    if not all(each is None or 1 / _MOST < each < _MOST for each in times):
        raise ValueError(f"arm {name} holds a time or a ratio that is not between {1 / _MOST:g} and {_MOST:g}")
    blocks = len(arm.samples_ns)
    if not (blocks and all(arm.samples_ns)) or arm.builds < 1 or blocks % (BLOCKS_PER_ROUND * arm.builds):
        raise ValueError(f"arm {name} needs two blocks per round and build, none of them empty, and has {blocks}")
    counts = (blocks, sum(map(len, arm.samples_ns)), len(arm.block_start_ms), len(arm.block_causes))
    if counts != (arm.blocks, arm.queries, arm.blocks, arm.blocks):
        raise ValueError(f"arm {name} promises {arm.queries} queries in {arm.blocks} blocks and holds others")
    if arm.ns_per_query is not None and not (
        len(arm.ns_per_query) == blocks and all(0 < each < 1e6 * _MOST for each in arm.ns_per_query)
    ):
        raise ValueError(f"arm {name} holds a time per query that is not one, or not one for each block")
    if not any(cause is None for cause in arm.block_causes):
        raise ValueError(f"arm {name} holds no block that counts")
    return arm


def _block_from(samples: Any, name: str) -> array[int]:
    try:
        block = array("q", samples)
    except (TypeError, OverflowError):
        raise ValueError(f"arm {name} holds a sample that is not a whole number of nanoseconds") from None
    if not isinstance(samples, list) or not 0 <= min(block, default=0) <= max(block, default=0) < 1e6 * _MOST:
        raise ValueError(f"arm {name} holds a sample that is not a whole number of nanoseconds")
    return block


def _plain_fields(arm: ArmResult) -> dict[str, Any]:
    names = [field.name for field in fields(arm)]
    plain = {name: getattr(arm, name) for name in names if name != "samples_ns"}
    optional = {name: None if (value := plain[name]) is None else asdict(value) for name in ("energy", "layers")}
    for name in ("ns_per_query", "throughput"):  # of arms under load alone
        value = plain.pop(name)
        if value is not None:
            optional[name] = value if name == "ns_per_query" else asdict(value)
    return plain | optional | {"facts": arm.facts.to_json()}


def _compact(block: Sequence[int]) -> str:
    return json.dumps(list(block), separators=(",", ":"))


def _with_list(head: dict[str, Any], key: str, items: Any) -> str:
    """Write an object whose last key holds a list of texts that are JSON already."""
    text = json.dumps(head, indent=2, allow_nan=False, default=_plain)
    listed = ",\n".join(indent(item, "    ") for item in items)
    return f'{text.removesuffix("}").rstrip()},\n  "{key}": [\n{listed}\n  ]\n}}'


def _plain(value: Any) -> Any:
    """Turn what facts may hold beside JSON values into them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be in a benchmark result")
