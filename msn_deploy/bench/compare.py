"""From raw samples to a result: medians, tails, ratios to the baseline, verdicts; to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np

from msn_deploy.bench.measure import BLOCKS_PER_ROUND, Samples
from msn_deploy.bench.stats import VERDICTS, Ratio, Verdict, block_medians, percentile, ratio_to_baseline
from msn_deploy.core.errors import InputError

SCHEMA = "msn-deploy-bench/1"
INPUTS = ("real samples", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Under which conditions a latency holds; numbers of unlike profiles must not be compared.

    provider: "cpu", "cuda" or "tensorrt". batch: samples per query. threads: of the runtime, None if it chose. input:
    one of INPUTS. h2d, d2h: whether copies to and from the device are inside the timed call; "n/a" without a device.
    Raises InputError for values that cannot be used.
    """

    provider: str
    batch: int = 1
    threads: int | None = None
    input: str = "real samples"
    h2d: str = "n/a"
    d2h: str = "n/a"

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise InputError(f"batch and threads must be at least 1, not {self.batch} and {self.threads}.")
        if self.input not in INPUTS:
            raise InputError(f"a benchmark's input is one of {', '.join(INPUTS)}; not {self.input!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One row of the comparison. Percentiles are None where there are too few queries for them.

    ratio: latency over the baseline's, below 1 is faster (see stats.ratio_to_baseline); ratio_interval: 95 %. The
    baseline itself has 1, (1, 1) and SAME. queries, blocks: counts. block_start_ms: since the first block of the run.
    samples_ns: raw, per block in time order, two blocks per round.
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
    facts: Mapping[str, Any]
    block_start_ms: tuple[float, ...]
    samples_ns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """A finished comparison. baseline: the name of one of the arms. options: of measuring."""

    baseline: str
    profile: Profile
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    arms: tuple[ArmResult, ...]
    schema: str = SCHEMA


def compare(
    samples: Samples, *, baseline: str, environment: Mapping[str, Any], profile: Profile, seed: int = 0
) -> BenchResult:
    """Compare every arm with the baseline.

    Raises InputError if no arm has the baseline's name, InvalidMeasurement if the clock was too coarse for an arm.
    """
    medians = {arm.name: block_medians(arm.blocks) for arm in samples.arms}
    if baseline not in medians:
        raise InputError(f"the baseline {baseline!r} is not among the measured models: {', '.join(medians)}.")
    results = []
    for arm in samples.arms:
        queries = list(chain.from_iterable(arm.blocks))
        against = ratio_to_baseline(medians[arm.name], medians[baseline], seed=seed)
        results.append(
            ArmResult(
                name=arm.name,
                median_ms=float(np.median(queries)) / 1e6,
                p90_ms=_ms(percentile(queries, 90)),
                p99_ms=_ms(percentile(queries, 99)),
                ratio=against.ratio,
                ratio_interval=(against.low, against.high),
                verdict=against.verdict,
                queries=len(queries),
                blocks=len(arm.blocks),
                facts=dict(arm.facts),
                block_start_ms=tuple(start / 1e6 for start in arm.block_starts_ns),
                samples_ns=arm.blocks,
            )
        )
    return BenchResult(
        baseline=baseline,
        profile=profile,
        options=asdict(samples.options),
        environment=dict(environment),
        arms=tuple(results),
    )


def ratio_between(arm: ArmResult, other: ArmResult, *, seed: int = 0) -> Ratio:
    """Compare two arms of one result by their raw samples: latency of `arm` over that of `other`."""
    return ratio_to_baseline(block_medians(arm.samples_ns), block_medians(other.samples_ns), seed=seed)


def to_json(result: BenchResult) -> str:
    """Serialise: indented for readers, but the raw samples one block per line.

    Raises TypeError or ValueError if facts or environment hold what is not a JSON value, NaN included.
    """
    head = {name: getattr(result, name) for name in ("schema", "baseline", "options", "environment")}
    head["profile"] = asdict(result.profile)
    arms = (_with_list(_plain_fields(arm), "samples_ns", map(_compact, arm.samples_ns)) for arm in result.arms)
    return _with_list(head, "arms", arms) + "\n"


def from_json(text: str, *, source: str = "the benchmark result") -> BenchResult:
    """Parse what `to_json` wrote. Raises InputError that names the source and what is wrong with it."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if value["schema"] != SCHEMA:
            raise InputError(f"{source} has schema {value['schema']!r}; this version reads {SCHEMA!r}.")
        arms = tuple(_arm_from(arm) for arm in value.pop("arms"))
        profile = Profile(**value.pop("profile"))
        result = BenchResult(arms=arms, profile=profile, **value)
        if result.baseline not in [arm.name for arm in arms]:
            raise ValueError(f"the baseline {result.baseline!r} is not among the arms")
        if len({arm.blocks for arm in arms}) > 1:
            raise ValueError("the arms have unequal numbers of blocks")
        if not (isinstance(result.options, dict) and isinstance(result.environment, dict)):
            raise ValueError("options and environment must be objects")
    except InputError:
        raise
    except KeyError as cause:
        raise InputError(f"{source} is not a benchmark result: {cause} is missing.") from cause
    except (ValueError, TypeError, AttributeError) as cause:
        raise InputError(f"{source} is not a benchmark result: {cause}.") from cause
    return result


def _arm_from(value: dict[str, Any]) -> ArmResult:
    name = value["name"]
    low, high = value.pop("ratio_interval")
    blocks = tuple(tuple(block) for block in value.pop("samples_ns"))
    arm = ArmResult(
        ratio_interval=(low, high), samples_ns=blocks, block_start_ms=tuple(value.pop("block_start_ms")), **value
    )
    numbers = (arm.median_ms, arm.ratio, low, high, *arm.block_start_ms)
    optional = [number for number in (arm.p90_ms, arm.p99_ms) if number is not None]
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (*numbers, *optional)):
        raise ValueError(f"arm {name!r} holds something that is not a number")
    if not all(type(sample) is int and sample >= 0 for block in blocks for sample in block):
        raise ValueError(f"arm {name!r} holds a sample that is not a whole number of nanoseconds")
    if arm.verdict not in VERDICTS:
        raise ValueError(f"arm {name!r} has the unknown verdict {arm.verdict!r}")
    if not (isinstance(name, str) and isinstance(arm.facts, dict)):
        raise ValueError(f"arm {name!r} needs a text as its name and an object as its facts")
    counts = (len(blocks), sum(map(len, blocks)), len(arm.block_start_ms))
    if not (blocks and all(blocks)) or len(blocks) % BLOCKS_PER_ROUND:
        raise ValueError(f"arm {name!r} needs two blocks per round, none of them empty, and has {len(blocks)}")
    if counts != (arm.blocks, arm.queries, arm.blocks):
        raise ValueError(f"arm {name!r} promises {arm.queries} queries in {arm.blocks} blocks and holds others")
    return arm


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6


def _plain_fields(arm: ArmResult) -> dict[str, Any]:
    names = [field.name for field in fields(arm)]
    return {name: getattr(arm, name) for name in names if name != "samples_ns"}


def _compact(block: Sequence[int]) -> str:
    return json.dumps(block, separators=(",", ":"))


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
