"""What a model does under load, as records: rates with intervals, what one query at a time does, what is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import record
from msn_deploy.engine.layer_times import Stages
from msn_deploy.machine.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Samples per second, such as images, with the 95 % interval."""

    per_s: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """The same model with one query at a time, in the same run. median_ms: of its latency."""

    rate: Rate
    median_ms: float
    threads: int | None
    """Of the runtime."""
    gain: float
    """How many times as many samples per second there are under load."""
    gain_interval: tuple[float, float]
    """95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakPoint:
    """A window of the soak. at_s: when it ended. per_s: samples per second in it. hottest_c: of all zones.

    clocks_mhz: at its end, by name. watts: of the module. cause: what slowed the machine down. None: not known.
    """

    at_s: float
    per_s: float
    hottest_c: float | None
    clocks_mhz: Mapping[str, float]
    watts: float | None
    cause: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """What a machine did under load. power_mode: of nvpmodel, None if it has none."""

    seconds: float
    power_mode: str | None
    at_first: float
    """Samples per second: the median over the first tenth."""
    sustained: Rate
    """Over the last third."""
    throttled_after_s: float | None
    """When the machine first told that something slows it down; None: it never did."""
    throttled_by: str | None
    slower_after_s: float | None
    """From when on the rate stayed more than 5 % below that at first; None: it did not."""
    points: tuple[SoakPoint, ...]

    @property
    def hottest_c(self) -> float | None:
        """The highest temperature of any zone."""
        return max((each.hottest_c for each in self.points if each.hottest_c is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What a model does under load. Latencies under load are those of its arm."""

    in_flight: int
    rate: Rate
    alone: Alone | None = None
    """None where one query is in flight anyway."""
    usage: Usage | None = None
    """The mean of its blocks, and the most of any for memory."""
    stages: Stages | None = None
    """Of an engine."""
    soak: Soak | None = None
    """If there was one."""


def throughput_from_json(value: Mapping[str, Any]) -> Throughput:
    """Read a throughput's JSON values. Raises InputError for anything else."""
    found = record(Throughput, value, source="a throughput")
    rates = [found.rate, *([] if found.alone is None else [found.alone.rate])]
    amounts = [each for rate in rates for each in (rate.per_s, *rate.interval)]
    amounts += [] if found.alone is None else [found.alone.gain, *found.alone.gain_interval, found.alone.median_ms]
    if found.in_flight < 1 or not all(math.isfinite(each) and each > 0 for each in amounts):
        raise InputError("a throughput holds something that is not a rate above 0.")
    return found
