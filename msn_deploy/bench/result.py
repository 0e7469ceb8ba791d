"""What a finished benchmark is: rows, conditions, validity, and the raw samples they come from; as JSON and back.

Raw samples are written one block per line. What is read is not taken on trust.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np

from msn_deploy.bench.bootstrap import Floats
from msn_deploy.bench.layers import LayerProfile, layers_from_json
from msn_deploy.bench.measure import BLOCKS_PER_ROUND, ArmFacts
from msn_deploy.bench.power import Energy, energy_from
from msn_deploy.bench.profile import Profile, profile_from
from msn_deploy.bench.stats import VERDICTS, Ratio, Verdict, block_medians
from msn_deploy.bench.validity import STATES, Validity
from msn_deploy.core.errors import InputError
from msn_deploy.machine.environment import Environment

SCHEMA = "msn-deploy-bench/3"  # 2 has no `layers`


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One row of the comparison.

    median_ms: of all clean queries. median_bound_ms, p90_ms, p95_ms, p99_ms: one-sided 99 % upper bounds, None where
    there are too few queries for one (see stats.upper_bound). ratio: latency over the baseline's, below 1 is faster
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
    energy: Energy | None = None
    layers: LayerProfile | None = None
    facts: ArmFacts
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


_READABLE = ("msn-deploy-bench/2", SCHEMA)  # what is optional in one is not in those before it
_OPTIONAL = ("median_bound_ms", "p90_ms", "p95_ms", "p99_ms")


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


def from_json(text: str, *, source: str = "the benchmark result") -> BenchResult:
    """Parse what `to_json` wrote. Raises InputError that names the source and what is wrong with it."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        schema = value.pop("schema")
        if schema not in _READABLE:
            raise InputError(
                f"{source} has schema {schema!r}; this version reads {SCHEMA!r}.\nMeasure again to compare."
            )
        arms = tuple(_arm_from(arm) for arm in value.pop("arms"))
        profile = profile_from(value.pop("profile"))
        validity = {name: value["validity"][name] for name in ("blocks", "dirty_blocks", "causes")}
        control = None if value["control"] is None else Ratio(**value["control"])
        value |= {"validity": Validity(**validity), "control": control}
        environment = value.pop("environment")
        value["environment"] = Environment.from_json(environment)
        value["states"] = {name: environment[name] for name in STATES if name in environment}
        result = BenchResult(arms=arms, profile=profile, **value)
        if result.baseline not in [arm.name for arm in arms]:
            raise ValueError(f"the baseline {result.baseline!r} is not among the arms")
        if len({arm.blocks for arm in arms}) > 1:
            raise ValueError("the arms have unequal numbers of blocks")
        dirty = sum(cause is not None for arm in arms for cause in arm.block_causes)
        if (result.validity.blocks, result.validity.dirty_blocks) != (sum(arm.blocks for arm in arms), dirty):
            raise ValueError("its validity counts other blocks than its arms hold")
        if not isinstance(result.options, dict):
            raise ValueError("options must be an object")
    except InputError:
        raise
    except KeyError as cause:
        raise InputError(f"{source} is not a benchmark result: {cause} is missing.") from cause
    except (ArithmeticError, ValueError, TypeError, AttributeError) as cause:
        raise InputError(f"{source} is not a benchmark result: {cause}.") from cause
    return result


def _arm_from(value: dict[str, Any]) -> ArmResult:
    name = value["name"]
    low, high = value.pop("ratio_interval")
    arm = ArmResult(
        ratio_interval=(low, high),
        samples_ns=tuple(_block_from(block, name) for block in value.pop("samples_ns")),
        layers=None if (layers := value.pop("layers", None)) is None else layers_from_json(layers),
        block_start_ms=tuple(value.pop("block_start_ms")),
        block_causes=tuple(value.pop("block_causes")),
        facts=ArmFacts.from_json(value.pop("facts")),
        energy=None if (energy := value.pop("energy")) is None else energy_from(energy),
        **value,
    )
    numbers = (arm.median_ms, arm.ratio, low, high, arm.p_value, arm.rank_p_value, *arm.block_start_ms)
    optional = [each for each in (getattr(arm, field) for field in _OPTIONAL) if each is not None]
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (*numbers, *optional)):
        raise ValueError(f"arm {name!r} holds something that is not a number")
    if arm.verdict not in VERDICTS:
        raise ValueError(f"arm {name!r} has the unknown verdict {arm.verdict!r}")
    if not isinstance(name, str):
        raise ValueError(f"arm {name!r} needs a text as its name")
    blocks = len(arm.samples_ns)
    if not (blocks and all(arm.samples_ns)) or arm.builds < 1 or blocks % (BLOCKS_PER_ROUND * arm.builds):
        raise ValueError(f"arm {name!r} needs two blocks per round and build, none of them empty, and has {blocks}")
    counts = (blocks, sum(map(len, arm.samples_ns)), len(arm.block_start_ms), len(arm.block_causes))
    if counts != (arm.blocks, arm.queries, arm.blocks, arm.blocks):
        raise ValueError(f"arm {name!r} promises {arm.queries} queries in {arm.blocks} blocks and holds others")
    if not any(cause is None for cause in arm.block_causes):
        raise ValueError(f"arm {name!r} holds no block that counts")
    return arm


def _block_from(samples: Any, name: str) -> array[int]:
    try:
        block = array("q", samples)
    except (TypeError, OverflowError):
        raise ValueError(f"arm {name!r} holds a sample that is not a whole number of nanoseconds") from None
    if min(block, default=0) < 0 or not isinstance(samples, list):
        raise ValueError(f"arm {name!r} holds a sample that is not a whole number of nanoseconds")
    return block


def _plain_fields(arm: ArmResult) -> dict[str, Any]:
    names = [field.name for field in fields(arm)]
    plain = {name: getattr(arm, name) for name in names if name != "samples_ns"}
    optional = {name: None if (value := plain[name]) is None else asdict(value) for name in ("energy", "layers")}
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
    raise TypeError(f"{type(value).__name__} cannot stand in a benchmark result")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
