"""On what machine, in what state, was this measured? Read from /proc and /sys, without root rights."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from msn_deploy.core.optional import version_of
from msn_deploy.machine import jetson
from msn_deploy.machine.sysfs import folders, number, text

# The first that is installed counts: onnxruntime comes under several names, one per provider.
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "numpy": ("numpy",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A machine and its state as a measurement notes them. None: not known, or not asked for when it was written."""

    time_utc: str | None = None
    """ISO 8601, to the second."""
    host: str | None = None
    machine: str | None = None
    """Board or product."""
    cpu: str | None = None
    cores_usable: int | None = None
    """Of this process: a container or taskset may leave fewer than the machine has."""
    memory_mib: int | None = None
    kernel: str | None = None
    python: str | None = None
    governor: str | None = None
    frequency_mhz: tuple[int, ...] | None = None
    """(lowest, highest) over the cores, at that moment."""
    load_average: tuple[float, ...] | None = None
    """Over 1, 5 and 15 minutes."""
    gpu: str | None = None
    l4t: str | None = None
    power_mode: str | None = None
    """Of nvpmodel: "MAXN_SUPER (id 2)"."""
    clocks_pinned: bool | None = None
    """By jetson_clocks; None where there is no integrated GPU."""
    gpu_limits_mhz: tuple[int, ...] | None = None
    """(lowest, highest) that the GPU's clock may take."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """By package; None: not installed."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, unknown values too."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Environment:
        """Read what `to_json` wrote, in this version or an earlier one. Raises ValueError for other types of values."""
        if not isinstance(value, Mapping):
            raise ValueError("environment must be an object")
        known = {each.name: value[each.name] for each in fields(cls) if value.get(each.name) is not None}
        for name, content in known.items():
            kind = _KINDS.get(name, str)
            if kind is tuple and isinstance(content, list):
                known[name] = content = tuple(content)
            numbers = content if kind is tuple and isinstance(content, tuple) else ()
            if not isinstance(content, kind) or not all(isinstance(number, int | float) for number in numbers):
                raise ValueError(f"environment: {name} is {content!r}")
        return cls(**known)


# Of values that are no text.
_KINDS: Mapping[str, type] = {
    "cores_usable": int,
    "memory_mib": int,
    "frequency_mhz": tuple,
    "load_average": tuple,
    "clocks_pinned": bool,
    "gpu_limits_mhz": tuple,
    "versions": dict,
}


def read_environment(root: Path = Path("/")) -> Environment:
    """Describe the machine; what cannot be read is None, and nothing raises.

    root: where /proc and /sys are looked for; cores_usable, python and versions are those of this process.
    """
    cores = root / "sys/devices/system/cpu"
    return Environment(
        time_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        host=text(root / "proc/sys/kernel/hostname"),
        machine=text(root / "proc/device-tree/model") or text(root / "sys/class/dmi/id/product_name"),
        cpu=_cpu_model(root),
        cores_usable=_cores_usable(),
        memory_mib=_memory_mib(root),
        kernel=text(root / "proc/sys/kernel/osrelease"),
        python=platform.python_version(),
        governor=_governor(cores),
        frequency_mhz=_frequency_mhz(cores),
        load_average=_load_average(root),
        gpu=_gpu(root),
        l4t=_l4t(root),
        power_mode=jetson.power_mode(root),
        clocks_pinned=jetson.clocks_pinned(root),
        gpu_limits_mhz=_gpu_limits_mhz(root),
        versions={name: _first_version(names) for name, names in _DISTRIBUTIONS.items()},
    )


def machine_name(environment: Environment) -> str:
    """Return a short name of the machine that can be a folder's: "epyc-2-cores", "jetson-orin-nano"."""
    jetson_board = environment.l4t and environment.machine
    said = str(jetson_board or environment.cpu or environment.host or "machine").lower()
    said = re.sub(r"\((r|tm)\)|@.*|\b(nvidia|amd|intel|cpu|processor|developer|kit|\d+-core)\b", " ", said)
    name = "-".join(re.findall(r"[a-z0-9]+", said)) or "machine"
    return name if jetson_board else f"{name}-{environment.cores_usable or 1}-cores"


def _cpu_model(root: Path) -> str | None:
    """x86 says "model name", some ARM kernels "Model" or "Hardware", others only an implementer and a part number."""
    found = text(root / "proc/cpuinfo") or ""
    fields = dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.+)$", found, flags=re.MULTILINE))
    for key in ("model name", "Model", "Hardware"):
        if key in fields:
            return str(fields[key]).strip()
    if "CPU part" in fields:
        return (
            f"{platform.machine()} implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}".strip()
        )
    return None


def _cores_usable() -> int | None:
    """Count the cores this process may run on; a container or taskset may leave fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count()


def _memory_mib(root: Path) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", text(root / "proc/meminfo") or "", flags=re.MULTILINE)
    return int(found[1]) // 1024 if found else None


def _per_core(cores: Path, name: str) -> list[str]:
    values = (text(path) for path in sorted(cores.glob(f"cpu[0-9]*/cpufreq/{name}")))
    return [value for value in values if value]


def _governor(cores: Path) -> str | None:
    return ", ".join(sorted(set(_per_core(cores, "scaling_governor")))) or None


def _frequency_mhz(cores: Path) -> tuple[int, int] | None:
    mhz = [int(value) // 1000 for value in _per_core(cores, "scaling_cur_freq") if value.isdigit()]
    return (min(mhz), max(mhz)) if mhz else None


def _load_average(root: Path) -> tuple[float, float, float] | None:
    try:
        one, five, fifteen = map(float, (text(root / "proc/loadavg") or "").split()[:3])
    except ValueError:
        return None
    return (one, five, fifteen)


def _gpu(root: Path) -> str | None:
    """Name the GPU: what the desktop driver says, else the node of the integrated one."""
    for path in folders(root, "proc/driver/nvidia/gpus/*/information"):
        found = re.search(r"^Model:\s*(.+)$", text(path) or "", flags=re.MULTILINE)
        if found:
            return found[1].strip()
    folder = jetson.gpu_folder(root)
    return None if folder is None else text(folder / "device/of_node/name") or folder.name


def _l4t(root: Path) -> str | None:
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text(root / "etc/nv_tegra_release") or "")
    return f"{found[1]}.{found[2]}" if found else None


def _gpu_limits_mhz(root: Path) -> tuple[int, int] | None:
    folder = jetson.gpu_folder(root)
    if folder is None:
        return None
    low, high = number(folder / "min_freq"), number(folder / "max_freq")
    return None if low is None or high is None else (low // 10**6, high // 10**6)


def _first_version(names: tuple[str, ...]) -> str | None:
    return next((version for name in names if (version := version_of(name)) is not None), None)
