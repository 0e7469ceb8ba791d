"""On what machine, in what state, was this measured? Read from /proc and /sys, without root rights."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from msn_deploy.core.optional import version_of

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
    frequency_mhz ([lowest, highest] over the cores, now), load_average (1, 5, 15 minutes), versions (by package).
    root: where /proc and /sys are looked for; cores_usable, python and versions are those of this process.
    """
    cores = root / "sys/devices/system/cpu"
    return {
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": _text(root / "proc/sys/kernel/hostname"),
        "machine": _text(root / "proc/device-tree/model") or _text(root / "sys/class/dmi/id/product_name"),
        "cpu": _cpu_model(root),
        "cores_usable": _cores_usable(),
        "memory_mib": _memory_mib(root),
        "kernel": _text(root / "proc/sys/kernel/osrelease"),
        "python": platform.python_version(),
        "governor": _governor(cores),
        "frequency_mhz": _frequency_mhz(cores),
        "load_average": _load_average(root),
        "versions": {name: _first_version(names) for name, names in _DISTRIBUTIONS.items()},
    }


def _text(path: Path) -> str | None:
    """Return a small file's text, or None; device-tree strings end in a NUL."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n\t") or None
    except (OSError, ValueError):
        return None


def _cpu_model(root: Path) -> str | None:
    """x86 says "model name", some ARM kernels "Model" or "Hardware", others only an implementer and a part number."""
    text = _text(root / "proc/cpuinfo") or ""
    fields = dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.+)$", text, flags=re.MULTILINE))
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
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo") or "", flags=re.MULTILINE)
    return int(found[1]) // 1024 if found else None


def _per_core(cores: Path, name: str) -> list[str]:
    values = (_text(path) for path in sorted(cores.glob(f"cpu[0-9]*/cpufreq/{name}")))
    return [value for value in values if value]


def _governor(cores: Path) -> str | None:
    return ", ".join(sorted(set(_per_core(cores, "scaling_governor")))) or None


def _frequency_mhz(cores: Path) -> list[int] | None:
    mhz = [int(value) // 1000 for value in _per_core(cores, "scaling_cur_freq") if value.isdigit()]
    return [min(mhz), max(mhz)] if mhz else None


def _load_average(root: Path) -> list[float] | None:
    try:
        one, five, fifteen = map(float, (_text(root / "proc/loadavg") or "").split()[:3])
    except ValueError:
        return None
    return [one, five, fifteen]


def _first_version(names: tuple[str, ...]) -> str | None:
    return next((version for name in names if (version := version_of(name)) is not None), None)
