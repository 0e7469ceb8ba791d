"""In what state was the machine around every block, and which blocks must therefore not count?

A block is dirty only for a recorded cause: a throttle counter that rose, a clock that fell, a zone at its passive trip
point, a cooling device at work. A slow block without a cause stays: it may be what the model is like.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from msn_deploy.machine import jetson
from msn_deploy.machine.sysfs import folders, number, text

STATES = ("before", "during", "after")  # of a run, as `states` calls them
DIRTY_ALLOWED = 0.10  # of all blocks; above it the run is invalid
# A clock below this share of its usual value is a throttled one (NVBench discards below 0.75 of the default clock).
CLOCK_SHARE = 0.75
_OFFLINE_C = -256  # what NVIDIA's zones read while their unit is switched off


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The machine at one moment. What it does not tell is absent.

    throttled: counters of throttle and over-current events, which only rise. clocks_mhz: "cpu" (the fastest core),
    "gpu", "emc". cooling: state of each passive cooling device, 0 at rest. trips: zones at or above their passive
    trip point. load: processes that want to run, mean of the last minute.
    """

    throttled: Mapping[str, int]
    clocks_mhz: Mapping[str, float]
    temperatures_c: Mapping[str, float]
    cooling: Mapping[str, int]
    trips: tuple[str, ...] = ()
    load: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """How many blocks of how many were dropped, and for what; `causes` counts blocks per cause."""

    blocks: int
    dirty_blocks: int
    causes: Mapping[str, int]

    @property
    def valid(self) -> bool:
        """Whether the run may be reported."""
        return self.dirty_blocks <= DIRTY_ALLOWED * self.blocks

    @property
    def message(self) -> str:
        """What is wrong with an invalid run, in two lines."""
        worst = max(self.causes, key=lambda cause: self.causes[cause], default="")
        return (
            f"invalid: {self.dirty_blocks} of {self.blocks} blocks ({self.dirty_blocks / self.blocks:.0%}) ran on a "
            f"throttled machine, {DIRTY_ALLOWED:.0%} may; mostly: {worst}.\n"
            "Cool the machine, or lock its clocks below the highest (`sudo jetson_clocks` on a Jetson); measure again."
        )


class Probe:
    """Reads the state of the machine below `root`; the files are looked up once, so that a reading is quick."""

    def __init__(self, root: Path = Path("/")) -> None:
        gpu, emc = jetson.gpu_folder(root), jetson.emc_file(root)
        self._load = root / "proc/loadavg"
        usable = _usable_cores() if root == Path("/") else None
        cores = [
            each
            for each in folders(root, "sys/devices/system/cpu/cpu[0-9]*")
            if usable is None or int(each.name.removeprefix("cpu")) in usable
        ]
        self._cores = [each / "cpufreq/scaling_cur_freq" for each in cores]
        self._devices = {"gpu": None if gpu is None else gpu / "cur_freq", "emc": emc}
        self._counters = {
            f"{core.name} {name.removesuffix('_count')}": core / "thermal_throttle" / name
            for core in cores
            for name in ("core_throttle_count", "package_throttle_count")
        } | {path.name: path for path in folders(root, "sys/class/hwmon/hwmon*/oc*_event_cnt")}
        # A fan is a cooling device too, but it slows nothing down.
        named = [(text(each / "type"), each) for each in folders(root, "sys/class/thermal/cooling_device*")]
        self._cooling = {
            f"{name} {each.name}": each / "cur_state" for name, each in named if name and "fan" not in name
        }
        # PMIC-Die on NVIDIA's boards is a constant, not a sensor.
        zones = [(text(each / "type"), each) for each in folders(root, "sys/class/thermal/thermal_zone*")]
        self._zones = {
            name: (each / "temp", _passive_trip(each)) for name, each in zones if name and "PMIC" not in name
        }

    def __call__(self) -> Reading:
        """Read everything once."""
        khz = [value for path in self._cores if (value := number(path)) is not None]
        clocks = {"cpu": max(khz) / 1e3} if khz else {}
        for name, path in self._devices.items():
            if path is not None and (hertz := number(path)) is not None:
                clocks[name] = hertz / 1e6
        temperatures, trips = {}, []
        for name, (path, trip_c) in self._zones.items():
            celsius = (number(path) or _OFFLINE_C * 1000) / 1e3
            if celsius > _OFFLINE_C:
                temperatures[name] = celsius
                trips += [name] if trip_c is not None and celsius >= trip_c else []
        return Reading(
            throttled=_numbers(self._counters),
            clocks_mhz=clocks,
            temperatures_c=temperatures,
            cooling=_numbers(self._cooling),
            trips=tuple(trips),
            load=_load(self._load),
        )


def block_causes(readings: Sequence[Reading], *, pinned_mhz: Mapping[str, float] | None = None) -> list[str | None]:
    """Return for each block why it is dirty, or None; readings: one before every block and one after the last.

    pinned_mhz: clocks that are locked; others are held against their own median over the run.
    """
    usual = {
        name: float(np.median([each.clocks_mhz[name] for each in readings if name in each.clocks_mhz]))
        for name in sorted({name for each in readings for name in each.clocks_mhz})
    } | dict(pinned_mhz or {})
    return [_cause(before, after, readings[0], usual) for before, after in pairwise(readings)]


def _cause(before: Reading, after: Reading, first: Reading, usual: Mapping[str, float]) -> str | None:
    for name, count in after.throttled.items():
        if count > before.throttled.get(name, count):
            return f"{name}: throttle events counted"
    for name, mhz in usual.items():
        if min(each.clocks_mhz.get(name, mhz) for each in (before, after)) < CLOCK_SHARE * mhz:
            return f"{name} clock below {CLOCK_SHARE:.0%} of {mhz:.0f} MHz"
    for each in (before, after):
        if each.trips:
            return f"{each.trips[0]} at its passive trip point"
        for name, state in each.cooling.items():
            if state > max(0, first.cooling.get(name, 0)):
                return f"{name.rpartition(' ')[0]} is cooling by slowing down"
    return None


def judge(causes: Sequence[str | None]) -> Validity:
    """Count the dirty blocks of a run."""
    found = Counter(cause for cause in causes if cause is not None)
    return Validity(blocks=len(causes), dirty_blocks=sum(found.values()), causes=dict(found.most_common()))


def states(readings: Sequence[Reading]) -> dict[str, Any]:
    """Return the machine before, during ([lowest, highest] of each value) and after, as JSON values."""
    if not readings:
        return {}
    flat = [_flat(each) for each in readings]
    inside = flat[1:-1] or flat
    names = dict.fromkeys(name for each in inside for name in each)
    during = {}
    for name in names:
        values = [each[name] for each in inside if name in each]
        during[name] = [min(values), max(values)]
    return dict(zip(STATES, (flat[0], during, flat[-1]), strict=True))


def _flat(reading: Reading) -> dict[str, float]:
    found: dict[str, float] = {f"{name}_mhz": mhz for name, mhz in reading.clocks_mhz.items()}
    found |= {f"{name} °C": celsius for name, celsius in reading.temperatures_c.items()}
    events = sum(reading.throttled.values())
    return (
        found
        | ({"throttle events": events} if reading.throttled else {})
        | ({} if reading.load is None else {"load": reading.load})
    )


def _numbers(paths: Mapping[str, Path]) -> dict[str, int]:
    return {name: value for name, path in paths.items() if (value := number(path)) is not None}


def _passive_trip(zone: Path) -> float | None:
    """Return the lowest temperature in degrees Celsius at which the kernel begins to slow the machine down."""
    kinds = ((text(each), each.with_name(each.name.replace("type", "temp"))) for each in zone.glob("trip_point_*_type"))
    found = [value for kind, path in kinds if kind == "passive" and (value := number(path)) is not None and value > 0]
    return min(found) / 1e3 if found else None


def _load(path: Path) -> float | None:
    try:
        return float((text(path) or "").split()[0])
    except (IndexError, ValueError):
        return None


def _usable_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
