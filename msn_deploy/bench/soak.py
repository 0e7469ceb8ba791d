"""What rate can a machine keep up? Its rate, heat and clocks under load over minutes, and when it slows down."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

import numpy as np

from msn_deploy.bench.load import Clock, Load
from msn_deploy.bench.rates import Rate, Soak, SoakPoint
from msn_deploy.bench.stats import mean_interval
from msn_deploy.bench.validity import block_causes
from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.machine.state import Reading, Sensor

LEAST_S = 60.0
_WINDOWS = 300  # of a soak, if each is at least
_LEAST_WINDOW_S = 1.0
_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_SLOWER = 0.95  # of the rate at first
_SMOOTHED = 5  # windows


def parse_duration(text: str) -> float:
    """Turn "30m", "90s" or "1h" into seconds. Raises InputError, also for less than LEAST_S."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh])", text)
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if seconds < LEAST_S:
        raise InputError(f"`--soak {text}`: a soak lasts at least {LEAST_S:g} s.\nGive it as 90s, 30m or 1h.")
    return seconds


def soak(
    load: Load,
    *,
    seconds: float,
    batch: int,
    probe: Callable[[], Reading],
    power_mode: str | None = None,
    sensor: Sensor | None = None,
    progress: Progress = silent,
    clock: Clock = time.perf_counter_ns,
) -> Soak:
    """Keep queries in flight for that long, and look at the machine after every window.

    Args:
        load: What keeps them in flight.
        seconds: How long.
        batch: Samples per query.
        probe: Reads the state of the machine.
        power_mode: Of nvpmodel, to be noted.
        sensor: Of the power, if there is one.
        progress: Called after every window, in seconds.
        clock: Monotonic, ns.

    Raises:
        InvalidMeasurement: The queries take so long that fewer than two windows hold one.
    """
    window_ns = 1e9 * max(_LEAST_WINDOW_S, seconds / _WINDOWS)
    rates, ends_s, readings, watts = [], [], [probe()], []
    with load.running() as next_answer:
        for _ in range(load.in_flight):  # the first on each lane pay for the start
            next_answer()
        begin = last = clock()
        while last - begin < 1e9 * seconds:
            answers, now = 0, last
            while now - last < window_ns:
                next_answer()
                answers += 1
                now = clock()
            rates.append(1e9 * batch * answers / (now - last))
            last = now
            ends_s.append((now - begin) / 1e9)
            readings.append(probe())
            watts.append(None if sensor is None else sensor.watts())
            progress(ends_s[-1], seconds, "soak")
    causes = block_causes(readings, pinned_mhz=_clocks_at_first(readings))
    points = [
        SoakPoint(
            at_s=at,
            per_s=rate,
            hottest_c=max(reading.temperatures_c.values(), default=None),
            clocks_mhz=reading.clocks_mhz,
            watts=power,
            cause=cause,
        )
        for at, rate, reading, power, cause in zip(ends_s, rates, readings[1:], watts, causes, strict=True)
    ]
    return _judged(points, power_mode)


def _clocks_at_first(readings: Sequence[Reading]) -> dict[str, float]:
    """Return the clocks of the first tenth: most of a soak can be throttled, so that its median would hide it."""
    first = readings[1 : 2 + len(readings) // 10]
    names = {name for each in first for name in each.clocks_mhz}
    return {
        name: float(np.median([each.clocks_mhz[name] for each in first if name in each.clocks_mhz])) for name in names
    }


def _judged(points: Sequence[SoakPoint], power_mode: str | None) -> Soak:
    rates = np.array([each.per_s for each in points])
    at_first = float(np.median(rates[: max(1, len(rates) // 10)]))
    last = rates[-2 * max(2, len(rates) // 6) :]
    mean, low, high = mean_interval(last[len(last) % 2 :][np.newaxis])
    throttled = next((each for each in points if each.cause is not None), None)
    windows = [np.median(rates[max(0, at - _SMOOTHED // 2) : at + 1 + _SMOOTHED // 2]) for at in range(len(rates))]
    slower = np.array(windows) < _SLOWER * at_first
    begins = len(slower) - int(np.argmin(slower[::-1])) if not slower.all() else 0
    return Soak(
        seconds=points[-1].at_s,
        power_mode=power_mode,
        at_first=at_first,
        sustained=Rate(per_s=mean, interval=(low, high)),
        throttled_after_s=None if throttled is None else throttled.at_s,
        throttled_by=None if throttled is None else throttled.cause,
        slower_after_s=points[begins].at_s if begins < len(points) else None,
        points=tuple(points),
    )
