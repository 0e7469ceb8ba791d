"""In what state is the machine: power mode, clocks, heat, load, power? From /sys and /proc, without root or a daemon.

Nothing here raises but what looks for the power sensor.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from msn_deploy.core.errors import MissingDevice
from msn_deploy.machine.files import paths, read_number, read_text

# The GPU's node in the device tree: Nano, TX2, Xavier, Orin, Orin with JetPack 7. Thor's folder is called gpu-gpc-0.
_GPU_NODES = ("gm20b", "gp10b", "gv11b", "ga10b", "gpu")
# Most containers cannot read the node, which lies in /sys/firmware; then the folder's name tells: "17000000.ga10b".
_GPU_FOLDER = re.compile(rf"(?:.*\.)?({'|'.join(_GPU_NODES)})|gpu-gpc.*")
_OFFLINE_C = -256  # what NVIDIA's zones read while their unit is switched off
# Which rails add up to the module, and others by which its kind is known: Xavier NX, Orin Nano and NX; AGX Orin; Thor;
# AGX Xavier.
_MODULES = (
    (("VDD_IN",), ("VDD_CPU_GPU_CV", "VDD_SOC")),
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ()),
    (("VIN",), ("VDD_GPU", "VDD_CPU_SOC_MSS")),
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), ()),
)
# Linux 6.8, which Thor runs, does not tell how often an INA238 updates. Its driver lets the chip average 16 samples of
# bus, shunt and temperature, 1.052 ms each (INA238_ADC_CONFIG_DEFAULT, 0xfb6a).
_INA238_MS = 16 * 3 * 1.052
# Cooling devices that slow nothing down: fans; "hot-surface-alert", which only tells that the case is hot, though every
# zone of an Orin binds it to a passive trip point at 70 °C; a Nano's DRAM, which is refreshed more often from 70 °C on.
_HARMLESS = re.compile("fan|hot-surface|tegra-dram", re.IGNORECASE)
# Those that slow something down without a trip point: what a program like thermald drives.
_SLOWING = re.compile("cpufreq|devfreq|processor|powerclamp|throttle", re.IGNORECASE)
# Kinds of trip points at which Linux, or the chip itself ("hot"), slows down; at "active" ones fans start, and a Nano
# adapts its voltages.
_SLOWING_TRIPS = ("passive", "hot")


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
    """State of each cooling device that slows something down, 0 at rest."""
    trips: tuple[str, ...] = ()
    """Zones at or above the trip point at which something is slowed down."""
    load: float | None = None
    """Processes that want to run, mean of the last minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """Where the power of the whole module is read. rail: its name, or names with " + ". period_s: of one update."""

    rail: str
    period_s: float
    files: tuple[tuple[Path, ...], ...]
    """For each rail those whose numbers multiply to microwatts: millivolts and milliamperes, or the power itself."""

    def watts(self) -> float:
        """Read the power now. Raises MissingDevice if the sensor is gone."""
        total = 0.0
        for files in self.files:
            numbers = [read_number(path) for path in files]
            known = [number for number in numbers if number is not None]
            if len(known) < len(files):
                raise MissingDevice(
                    f"the power sensor stopped answering: {files[numbers.index(None)]} cannot be read.\n"
                    "Measure again, or leave out `--energy`."
                )
            total += math.prod(known) / 1e6
        return total


def read_power_mode(root: Path) -> PowerMode:
    """Return the power mode; a container sees it only if both files are mounted.

    The service notes the number in /var/lib/nvpmodel/status as `pmode:0002`; names are in /etc/nvpmodel.conf.
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
        self._cooling, self._zones = _heat(root)

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
    """Find the rails that add up to the module. Raises MissingDevice that says which of them is not there."""
    found: dict[str, tuple[tuple[Path, ...], float]] = {}
    for device in paths(root, "sys/bus/i2c/devices/*"):
        found |= _rails(device, read_text(device / "name") or "")
    if not found:
        raise MissingDevice(
            "energy needs the power sensor of a Jetson module (INA3221, on Thor INA238 too); /sys/bus/i2c shows no "
            "rail of one.\nIn a container /sys has to be visible; JetPack 4 has another driver. Leave out `--energy`."
        )
    rails, _ = max(_MODULES, key=lambda module: len({*module[0], *module[1]} & found.keys()))
    lacking = [label for label in rails if label not in found]
    if lacking:
        raise MissingDevice(
            f"the power of the whole module is not there: rail {', '.join(lacking)} is missing among "
            f"{', '.join(found)}.\nA part would be reported as all of it. Leave out `--energy`."
        )
    periods_ms = [found[label][1] for label in rails]
    if min(periods_ms) <= 0:
        raise MissingDevice(
            "the driver of the power sensor does not tell how often it updates (update_interval); energy needs it.\n"
            "Leave out `--energy`."
        )
    return Sensor(
        rail=" + ".join(rails), period_s=max(periods_ms) / 1e3, files=tuple(found[label][0] for label in rails)
    )


def _rails(device: Path, chip: str) -> dict[str, tuple[tuple[Path, ...], float]]:
    """Return, of a device on the I2C bus, the files of each rail (see Sensor) and ms between updates, 0 if unknown."""
    found: dict[str, tuple[tuple[Path, ...], float]] = {}
    for hwmon in paths(device, "hwmon/hwmon*"):
        told_ms = read_number(hwmon / "update_interval") or 0
        if chip.startswith("ina238"):  # one channel, named by the device itself
            label = read_text(hwmon / "label") or read_text(hwmon / "in1_label")
            found |= {} if label is None else {label: ((hwmon / "power1_input",), told_ms or _INA238_MS)}
        for channel in (1, 2, 3) if chip.startswith("ina3221") else ():
            label = read_text(hwmon / f"in{channel}_label")
            if label is not None and "NC" not in label:
                found[label] = ((hwmon / f"in{channel}_input", hwmon / f"curr{channel}_input"), told_ms)
    return found


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
    """Return the file with the memory clock in Hz; on Orin it is in debugfs, which only root may read."""
    for name in ("sys/class/devfreq/bwmgr/cur_freq", "sys/kernel/debug/bpmp/debug/clk/emc/rate"):
        if read_number(root / name) is not None:
            return root / name
    return None


def _numbers(files: Mapping[str, Path]) -> dict[str, int]:
    return {name: value for name, path in files.items() if (value := read_number(path)) is not None}


def _heat(root: Path) -> tuple[dict[str, Path], dict[str, tuple[Path, float | None]]]:
    """Look up what can slow the machine down when it is hot: by name, states and zones.

    Returns the state of each cooling device that slows something down; and the temperature of each zone, with the
    lowest one in degrees Celsius at which such a device is put to work, if there is one. What a trip point does is
    known only by the devices that the zone binds to it (cdevN, cdevN_trip_point).
    """
    zones: dict[str, tuple[Path, float | None]] = {}
    reasons: dict[str, set[str]] = defaultdict(set)  # folder of a cooling device -> kinds of its trip points
    for zone in paths(root, "sys/class/thermal/thermal_zone*"):
        slowing: list[int] = []
        for bound in paths(zone, "cdev*_trip_point"):
            point, device = read_number(bound), zone / bound.name.removesuffix("_trip_point")
            kind = read_text(zone / f"trip_point_{point}_type") or ""
            if kind:
                reasons[os.path.basename(os.path.realpath(device))].add(kind)
            celsius = read_number(zone / f"trip_point_{point}_temp")
            if _slows(read_text(device / "type") or "", {kind}) and celsius is not None and celsius > 0:
                slowing.append(celsius)
        name = read_text(zone / "type")
        if name and "PMIC" not in name:  # on NVIDIA's boards a constant, not a sensor
            zones[name] = (zone / "temp", min(slowing) / 1e3 if slowing else None)
    devices = [(read_text(each / "type") or "", each) for each in paths(root, "sys/class/thermal/cooling_device*")]
    cooling = {
        f"{kind} {each.name}": each / "cur_state" for kind, each in devices if _slows(kind, reasons.get(each.name, ()))
    }
    return cooling, zones


def _slows(kind: str, trips: Collection[str]) -> bool:
    """Tell whether a kind of cooling device slows something down; trips: kinds of the trip points it is bound to."""
    if not kind or _HARMLESS.search(kind):
        return False
    return any(each in _SLOWING_TRIPS for each in trips) if trips else _SLOWING.search(kind) is not None
