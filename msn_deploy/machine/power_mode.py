"""In which power mode is a Jetson, and do its clocks stand still? Read from files, without root rights.

Nothing here raises. Modes: nvpmodel's configuration and its status file; clocks: devfreq and cpufreq in /sys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from msn_deploy.machine.probe import names_in, read_text

_GPU_NAMES = ("gv11b", "gp10b", "ga10b", "gm20b", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """name: of the mode that is set, None if nothing tells. modes: the names of all, in the order of their ids."""

    name: str | None
    modes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockRange:
    """Between which frequencies a clock may move, MHz; it stands still where they are equal."""

    name: str
    lowest_mhz: int
    highest_mhz: int

    @property
    def pinned(self) -> bool:
        """Whether it stands still, as after `jetson_clocks`."""
        return self.lowest_mhz == self.highest_mhz


def read_power_mode(root: Path) -> PowerMode:
    """Return the power mode that nvpmodel recorded; a container sees it only if both files are mounted."""
    text = read_text(root / "etc/nvpmodel.conf") or ""
    modes = {int(at): name for at, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d{1,3})\s+NAME=(\w{1,40})\s*>", text)}
    status = re.search(r"pmode:(\d{1,6})", read_text(root / "var/lib/nvpmodel/status") or "")
    names = tuple(modes[at] for at in sorted(modes))
    return PowerMode(name=modes.get(int(status[1]), f"id {int(status[1])}") if status else None, modes=names)


def read_clocks(root: Path) -> tuple[ClockRange, ...]:
    """Return the range of the GPU's clock and of each CPU core's, as far as /sys tells them."""
    ranges = []
    devfreq = root / "sys/class/devfreq"
    for name in names_in(devfreq):
        node = read_text(devfreq / name / "device/of_node/name")
        if node in _GPU_NAMES or re.search(r"\.(gpu|ga10b|gv11b|gp10b)$|^gpu-gpc", name):
            ranges.append(_range(devfreq / name, "GPU", "min_freq", "max_freq", per_mhz=1_000_000))
    cores = root / "sys/devices/system/cpu"
    for name in names_in(cores):
        if re.fullmatch(r"cpu\d{1,4}", name):
            freq = cores / name / "cpufreq"
            ranges.append(_range(freq, name, "scaling_min_freq", "scaling_max_freq", per_mhz=1000))
    return tuple(each for each in ranges if each is not None)


def _range(folder: Path, name: str, low: str, high: str, *, per_mhz: int) -> ClockRange | None:
    lowest, highest = (read_text(folder / each) or "" for each in (low, high))
    if not all(re.fullmatch(r"[0-9]{1,15}", each) for each in (lowest, highest)):
        return None
    return ClockRange(name=name, lowest_mhz=int(lowest) // per_mhz, highest_mhz=int(highest) // per_mhz)
