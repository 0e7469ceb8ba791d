"""In what state is the machine: power mode, clocks, heat, load, power? From /sys and /proc, without root or a daemon.

Nothing here raises but what looks for the power sensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msn_deploy.core.errors import MissingDevice
from msn_deploy.machine.files import paths, read_number, read_text

# The GPU's node in the device tree: Nano, TX2, Xavier, Orin, Orin with JetPack 7. Thor's folder is called gpu-gpc-0.
_GPU_NODES = ("gm20b", "gp10b", "gv11b", "ga10b", "gpu")
# Most containers cannot read the node, which lies in /sys/firmware; then the folder's name tells: "17000000.ga10b".
_GPU_FOLDER = re.compile(rf"(?:.*\.)?({'|'.join(_GPU_NODES)})|gpu-gpc.*")
_OFFLINE_C = -256  # what NVIDIA's zones read while their unit is switched off
# Which rails add up to the module, and others by which its kind is known: Orin Nano and NX, AGX Orin, Thor.
_MODULES = (
    (("VDD_IN",), ("VDD_CPU_GPU_CV", "VDD_SOC")),
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ()),
    (("VIN",), ("VDD_GPU", "VDD_CPU_SOC_MSS")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """The mode of nvpmodel."""

    number: int | None
    """None if nothing tells which is set."""
    modes: Mapping[int, str]
    """The names of all, by number."""

    @property
    def name(self) -> str | None:
        """Such as "MAXN_SUPER", or "id 2" where names are not known."""
        return None if self.number is None else self.modes.get(self.number, f"id {self.number}")

    @property
    def title(self) -> str | None:
        """Name and number: "MAXN_SUPER (id 2)"."""
        return f"{self.name} (id {self.number})" if self.number in self.modes else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockRange:
    """Between which frequencies a clock may move; it stands still where they are equal."""

    name: str
    lowest_mhz: float
    highest_mhz: float

    @property
    def pinned(self) -> bool:
        """Whether it stands still, as after `jetson_clocks`."""
        return self.lowest_mhz == self.highest_mhz


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The machine at one moment. What it does not tell is absent."""

    throttled: Mapping[str, int]
    """Counters of throttle and over-current events, which only rise."""
    clocks_mhz: Mapping[str, float]
    """"cpu" (the fastest core), "gpu", "emc"."""
    temperatures_c: Mapping[str, float]
    cooling: Mapping[str, int]
    """State of each passive cooling device, 0 at rest."""
    trips: tuple[str, ...] = ()
    """Zones at or above their passive trip point."""
    load: float | None = None
    """Processes that want to run, mean of the last minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """Where the power of the whole module is read. rail: its name, or names with " + ". period_s: of one update."""

    rail: str
    period_s: float
    files: tuple[tuple[Path, Path], ...]  # millivolts, milliamperes

    def watts(self) -> float:
        """Read the power now. Raises MissingDevice if the sensor is gone."""
        total = 0.0
        for volts, amperes in self.files:
            millivolts, milliamperes = read_number(volts), read_number(amperes)
            if millivolts is None or milliamperes is None:
                raise MissingDevice(f"the power sensor stopped answering: {volts} or {amperes.name} cannot be read.")
            total += millivolts * milliamperes / 1e6
        return total


def read_power_mode(root: Path) -> PowerMode:
    """Return the power mode; a container sees it only if both files are mounted.

    The service notes the number in /var/lib/nvpmodel/status as `pmode:0002`; names stand in /etc/nvpmodel.conf.
    """
    found = re.findall(
        r"<\s*POWER_MODEL\s+ID=([0-9]{1,3})\s+NAME=([^\s<>]{1,40})\s*>", read_text(root / "etc/nvpmodel.conf") or ""
    )
    status = re.search(r"pmode:([0-9]{1,6})", read_text(root / "var/lib/nvpmodel/status") or "")
    names = {int(number): name for number, name in found}
    return PowerMode(number=int(status[1]) if status else None, modes=dict(sorted(names.items())))


def gpu_folder(root: Path) -> Path | None:
    """Return the devfreq folder of the integrated GPU: cur_freq, min_freq and max_freq in Hz."""
    for folder in paths(root, "sys/class/devfreq/*"):
        if read_text(folder / "device/of_node/name") in _GPU_NODES or _GPU_FOLDER.fullmatch(folder.name):
            return folder
    return None


def gpu_node(root: Path) -> str | None:
    """Return the name of the integrated GPU: "ga10b", or "gpu-gpc-0" on Thor; the same with and without its node."""
    folder = gpu_folder(root)
    return None if folder is None else read_text(folder / "device/of_node/name") or folder.name.rpartition(".")[2]


def read_clocks(root: Path) -> tuple[ClockRange, ...]:
    """Return the range of the GPU's clock ("GPU", the first) and of each online core's ("cpu0"), as far as known."""
    gpu = gpu_folder(root)
    ranges = [] if gpu is None else [_range("GPU", gpu / "min_freq", gpu / "max_freq", per_mhz=1_000_000)]
    for core in _cores(root):
        freq = core / "cpufreq"
        if read_number(core / "online") != 0:
            ranges.append(_range(core.name, freq / "scaling_min_freq", freq / "scaling_max_freq", per_mhz=1000))
    return tuple(each for each in ranges if each is not None)


def gpu_range(root: Path) -> ClockRange | None:
    """Return the range of the integrated GPU's clock, or None."""
    return next((each for each in read_clocks(root) if each.name == "GPU"), None)


def clocks_pinned(root: Path) -> bool | None:
    """Tell whether `jetson_clocks` is on: GPU and every online core stand still. None without an integrated GPU."""
    return None if gpu_range(root) is None else all(each.pinned for each in read_clocks(root))


def pinned_mhz(root: Path) -> dict[str, float]:
    """Return the clock of the GPU in MHz if it is locked, as {"gpu": mhz}: below that, it is throttled."""
    gpu = gpu_range(root)
    return {"gpu": gpu.highest_mhz} if gpu is not None and gpu.pinned else {}


class Probe:
    """Reads the state of the machine below `root`; the files are looked up once, so that a reading is quick."""

    def __init__(self, root: Path = Path("/")) -> None:
        gpu = gpu_folder(root)
        self._load = root / "proc/loadavg"
        usable = usable_cores() if root == Path("/") else None
        cores = [each for each in _cores(root) if usable is None or int(each.name.removeprefix("cpu")) in usable]
        self._cores = [each / "cpufreq/scaling_cur_freq" for each in cores]
        self._devices = {"gpu": None if gpu is None else gpu / "cur_freq", "emc": _emc_file(root)}
        self._counters = {
            f"{core.name} {name.removesuffix('_count')}": core / "thermal_throttle" / name
            for core in cores
            for name in ("core_throttle_count", "package_throttle_count")
        } | {path.name: path for path in paths(root, "sys/class/hwmon/hwmon*/oc*_event_cnt")}
        # A fan is a cooling device too, but it slows nothing down.
        named = [(read_text(each / "type"), each) for each in paths(root, "sys/class/thermal/cooling_device*")]
        self._cooling = {
            f"{name} {each.name}": each / "cur_state" for name, each in named if name and "fan" not in name
        }
        # PMIC-Die on NVIDIA's boards is a constant, not a sensor.
        zones = [(read_text(each / "type"), each) for each in paths(root, "sys/class/thermal/thermal_zone*")]
        self._zones = {
            name: (each / "temp", _passive_trip(each)) for name, each in zones if name and "PMIC" not in name
        }

    def __call__(self) -> Reading:
        """Read everything once."""
        khz = [value for path in self._cores if (value := read_number(path)) is not None]
        clocks = {"cpu": max(khz) / 1e3} if khz else {}
        for name, path in self._devices.items():
            if path is not None and (hertz := read_number(path)) is not None:
                clocks[name] = hertz / 1e6
        temperatures, trips = {}, []
        for name, (path, trip_c) in self._zones.items():
            celsius = (read_number(path) or _OFFLINE_C * 1000) / 1e3
            if celsius > _OFFLINE_C:
                temperatures[name] = celsius
                trips += [name] if trip_c is not None and celsius >= trip_c else []
        return Reading(
            throttled=_numbers(self._counters),
            clocks_mhz=clocks,
            temperatures_c=temperatures,
            cooling=_numbers(self._cooling),
            trips=tuple(trips),
            load=next(iter(load_average(self._load)), None),
        )


def find_sensor(root: Path = Path("/")) -> Sensor:
    """Find the INA3221 rails that add up to the module. Raises MissingDevice that says which rail is not there."""
    found: dict[str, tuple[Path, Path]] = {}
    period_ms = 0
    for device in paths(root, "sys/bus/i2c/devices/*"):
        if "ina3221" not in (read_text(device / "name") or ""):
            continue
        for label_file in paths(device, "hwmon/hwmon*/in[1-3]_label"):
            label, channel = read_text(label_file), label_file.name[2]
            if label is None or "NC" in label:
                continue
            found[label] = (label_file.with_name(f"in{channel}_input"), label_file.with_name(f"curr{channel}_input"))
            period_ms = max(period_ms, read_number(label_file.with_name("update_interval")) or 0)
    if not found:
        raise MissingDevice(
            "energy needs an INA3221 power sensor, as Jetson modules have; this machine shows none.\n"
            "In a container, /sys has to be visible. Without `--energy` the latencies are measured."
        )
    rails, _ = max(_MODULES, key=lambda module: len({*module[0], *module[1]} & found.keys()))
    lacking = [label for label in rails if label not in found]
    if lacking:
        raise MissingDevice(
            f"the power of the whole module is not there: rail {', '.join(lacking)} is missing among "
            f"{', '.join(found)}.\nA part would be reported as all of it. Leave out `--energy`."
        )
    if period_ms <= 0:
        raise MissingDevice("the INA3221 driver does not tell how often it updates (update_interval); energy needs it.")
    return Sensor(rail=" + ".join(rails), period_s=period_ms / 1e3, files=tuple(found[label] for label in rails))


def load_average(path: Path) -> tuple[float, ...]:
    """Return what /proc/loadavg says: over 1, 5 and 15 minutes; () if it is not three numbers."""
    try:
        one, five, fifteen = map(float, (read_text(path) or "").split()[:3])
    except ValueError:
        return ()
    return (one, five, fifteen)


def _cores(root: Path) -> list[Path]:
    cores = paths(root, "sys/devices/system/cpu/cpu[0-9]*")
    return [each for each in cores if re.fullmatch(r"cpu[0-9]{1,4}", each.name)]


def usable_cores() -> set[int]:
    """Return the cores that this process may run on; a container or taskset may leave fewer than the machine has."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _range(name: str, low: Path, high: Path, *, per_mhz: int) -> ClockRange | None:
    lowest, highest = read_number(low), read_number(high)
    if lowest is None or highest is None:
        return None
    return ClockRange(name=name, lowest_mhz=lowest / per_mhz, highest_mhz=highest / per_mhz)


def _emc_file(root: Path) -> Path | None:
    """Return the file with the memory clock in Hz; on Orin it lies in debugfs, which only root may read."""
    for name in ("sys/class/devfreq/bwmgr/cur_freq", "sys/kernel/debug/bpmp/debug/clk/emc/rate"):
        if read_number(root / name) is not None:
            return root / name
    return None


def _numbers(files: Mapping[str, Path]) -> dict[str, int]:
    return {name: value for name, path in files.items() if (value := read_number(path)) is not None}


def _passive_trip(zone: Path) -> float | None:
    """Return the lowest temperature in degrees Celsius at which the kernel begins to slow the machine down."""
    types = paths(zone, "trip_point_*_type")
    kinds = [(read_text(each), each.with_name(each.name.replace("type", "temp"))) for each in types]
    found = [value for kind, path in kinds if kind == "passive" and (value := read_number(path)) is not None]
    return min((value for value in found if value > 0), default=0) / 1e3 or None
