"""On what machine, in what state, was this measured? Read from /proc and /sys, without root rights."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
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


def read_environment(root: Path = Path("/")) -> dict[str, Any]:
    """Describe the machine; what cannot be read is None, and nothing raises.

    Keys: time_utc, host, machine (board or product), cpu, cores_usable, memory_mib, kernel, python, governor,
    frequency_mhz ([lowest, highest] over the cores, now), load_average (1, 5, 15 minutes), gpu, l4t, power_mode
    (nvpmodel's), clocks_pinned (by jetson_clocks), gpu_limits_mhz ([lowest, highest] allowed), versions (by package).
    root: where /proc and /sys are looked for; cores_usable, python and versions are those of this process.
    """
    cores = root / "sys/devices/system/cpu"
    return {
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": text(root / "proc/sys/kernel/hostname"),
        "machine": text(root / "proc/device-tree/model") or text(root / "sys/class/dmi/id/product_name"),
        "cpu": _cpu_model(root),
        "cores_usable": _cores_usable(),
        "memory_mib": _memory_mib(root),
        "kernel": text(root / "proc/sys/kernel/osrelease"),
        "python": platform.python_version(),
        "governor": _governor(cores),
        "frequency_mhz": _frequency_mhz(cores),
        "load_average": _load_average(root),
        "gpu": _gpu(root),
        "l4t": _l4t(root),
        "power_mode": jetson.power_mode(root),
        "clocks_pinned": jetson.clocks_pinned(root),
        "gpu_limits_mhz": _gpu_limits_mhz(root),
        "versions": {name: _first_version(names) for name, names in _DISTRIBUTIONS.items()},
    }


def machine_name(environment: Mapping[str, Any]) -> str:
    """Return a short name of the machine that can be a folder's: "epyc-2-cores", "jetson-orin-nano"."""
    jetson_board = environment.get("l4t") and environment.get("machine")
    said = str(jetson_board or environment.get("cpu") or environment.get("host") or "machine").lower()
    said = re.sub(r"\((r|tm)\)|@.*|\b(nvidia|amd|intel|cpu|processor|developer|kit|\d+-core)\b", " ", said)
    name = "-".join(re.findall(r"[a-z0-9]+", said)) or "machine"
    return name if jetson_board else f"{name}-{environment.get('cores_usable') or 1}-cores"


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


def _frequency_mhz(cores: Path) -> list[int] | None:
    mhz = [int(value) // 1000 for value in _per_core(cores, "scaling_cur_freq") if value.isdigit()]
    return [min(mhz), max(mhz)] if mhz else None


def _load_average(root: Path) -> list[float] | None:
    try:
        one, five, fifteen = map(float, (text(root / "proc/loadavg") or "").split()[:3])
    except ValueError:
        return None
    return [one, five, fifteen]


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


def _gpu_limits_mhz(root: Path) -> list[int] | None:
    folder = jetson.gpu_folder(root)
    if folder is None:
        return None
    low, high = number(folder / "min_freq"), number(folder / "max_freq")
    return None if low is None or high is None else [low // 10**6, high // 10**6]


def _first_version(names: tuple[str, ...]) -> str | None:
    return next((version for name in names if (version := version_of(name)) is not None), None)
