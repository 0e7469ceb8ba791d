"""How much energy does one query take? From the module's own power sensor, through sysfs, without root rights.

MLPerf accepts external analysers only: numbers of the module's own sensor are indicative. They are taken in windows of
their own after the latencies, so that reading the sensor disturbs no latency: an idle window, then one of each arm,
with as many queries in flight as it was measured with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from msn_deploy.bench.bootstrap import Floats, student_quantile
from msn_deploy.bench.measure import Arm, Clock
from msn_deploy.bench.stats import CONFIDENCE
from msn_deploy.core.errors import InvalidMeasurement
from msn_deploy.core.progress import Progress, silent
from msn_deploy.machine.state import Sensor

MIN_UPDATES = 30
WINDOWS = 6
# The sensor averages: what it says within two updates of a change still holds the time before the change.
_STALE_UPDATES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of one query above idle, mJ, with its 95 % interval over windows; idle_w, busy_w: mean power.

    rail: where it was read. sensor_period_ms: of one update; updates: how many of them went into busy_w.
    """

    mj: float
    interval_mj: tuple[float, float]
    idle_w: float
    busy_w: float
    rail: str
    sensor_period_ms: float
    updates: int
    source: str = "on-module sensor, indicative"


def measure_energy(
    arms: Sequence[Arm],
    sensor: Sensor,
    *,
    seconds: float,
    progress: Progress = silent,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> Mapping[str, Energy]:
    """Return the energy of one query by name of the arm; seconds: busy time per arm.

    Raises InvalidMeasurement before measuring if that is shorter than MIN_UPDATES of the sensor.
    """
    window_s = seconds / WINDOWS
    usable = math.floor(window_s / sensor.period_s) - _STALE_UPDATES
    if usable * WINDOWS < MIN_UPDATES:
        needed = WINDOWS * sensor.period_s * (math.ceil(MIN_UPDATES / WINDOWS) + _STALE_UPDATES + 1)
        raise InvalidMeasurement(
            f"{seconds:g} s are {max(0, usable) * WINDOWS} settled updates of the power sensor (one per "
            f"{1e3 * sensor.period_s:g} ms); an energy needs {MIN_UPDATES}.\n"
            f"Raise the time: `--seconds {math.ceil(10 * needed) / 10:g}`."
        )
    taken: dict[str, list[tuple[float, float, float, int]]] = {arm.name: [] for arm in arms}
    for window in range(WINDOWS):
        progress(window, WINDOWS, "energy")
        idle_w, _, _ = _window(lambda: sleep(sensor.period_s / 4), sensor, window_s, clock)
        # Every other window in reverse: what warms up over the windows meets all arms alike.
        for arm in arms if window % 2 == 0 else reversed(arms):
            with nullcontext(arm.run) if arm.load is None else arm.load.running() as run:
                busy_w, query_s, updates = _window(run, sensor, window_s, clock)
            taken[arm.name].append((idle_w, busy_w, query_s, updates))
    progress(WINDOWS, WINDOWS, "energy")
    return {name: _energy(windows, sensor) for name, windows in taken.items()}


def _window(run: Callable[[], object], sensor: Sensor, seconds: float, clock: Clock) -> tuple[float, float, int]:
    """Run for so long; return mean watts once the sensor has settled, seconds per run, and how many readings."""
    begin = clock()
    end, period = begin + seconds * 1e9, sensor.period_s * 1e9
    due, runs, watts = begin + (_STALE_UPDATES + 1) * period, 0, []
    while (now := clock()) < end:
        if now >= due:
            watts.append(sensor.watts())
            # One reading per update: more would repeat it and pretend to know more.
            due += period * (1 + (now - due) // period)
        run()
        runs += 1
    if not watts:
        raise InvalidMeasurement(
            f"a window of {seconds:.3g} s ended before the power sensor had settled: one query takes "
            f"{(clock() - begin) / 1e9 / max(1, runs):.3g} s.\nRaise `--seconds`."
        )
    return float(np.mean(watts)), (clock() - begin) / 1e9 / max(1, runs), len(watts)


def _energy(windows: Sequence[tuple[float, float, float, int]], sensor: Sensor) -> Energy:
    idle_w, busy_w, query_s, updates = (np.array(column) for column in zip(*windows, strict=True))
    if updates.sum() < MIN_UPDATES:
        raise InvalidMeasurement(
            f"{updates.sum()} updates of the power sensor were seen, an energy needs {MIN_UPDATES}: a query takes "
            f"{1e3 * query_s.mean():.3g} ms, longer than an update.\nRaise `--seconds`."
        )
    mj: Floats = 1e3 * (busy_w - idle_w) * query_s
    t = student_quantile((1 + CONFIDENCE) / 2, len(mj) - 1)
    half = t * float(mj.std(ddof=1)) / len(mj) ** 0.5
    return Energy(
        mj=float(mj.mean()),
        interval_mj=(float(mj.mean()) - half, float(mj.mean()) + half),
        idle_w=float(idle_w.mean()),
        busy_w=float(busy_w.mean()),
        rail=sensor.rail,
        sensor_period_ms=1e3 * sensor.period_s,
        updates=int(updates.sum()),
    )
