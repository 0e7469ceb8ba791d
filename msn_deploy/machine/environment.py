"""On what machine, in what state, was this measured? Read from /proc and /sys, without root rights."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import record
from msn_deploy.machine.device import board_text, what_machine
from msn_deploy.machine.files import paths, read_number, read_text
from msn_deploy.machine.libraries import installed_version
from msn_deploy.machine.state import clocks_pinned, gpu_node, gpu_range, load_average, read_power_mode, usable_cores

_PACKAGES = ("onnxruntime", "numpy", "tensorrt", "tensorrt-rtx")


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
        """Read what `to_json` wrote, in this version or an earlier one. Raises InputError for other types of values."""
        if not isinstance(value, Mapping):
            raise InputError("environment must be a section.")
        known = {each.name: value[each.name] for each in fields(cls) if value.get(each.name) is not None}
        return record(cls, known, source="environment")


def read_environment(root: Path = Path("/")) -> Environment:
    """Describe the machine; what cannot be read is None, and nothing raises.

    root: where /proc and /sys are looked for; cores_usable, python and versions are those of this process.
    """
    cores = paths(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    mhz = [khz // 1000 for core in cores if (khz := read_number(core / "scaling_cur_freq"))]
    governors = {name for core in cores if (name := read_text(core / "scaling_governor"))}
    facts, limits = what_machine(root), gpu_range(root)
    return Environment(
        time_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        host=read_text(root / "proc/sys/kernel/hostname"),
        machine=board_text(root) or read_text(root / "sys/class/dmi/id/product_name"),
        cpu=_cpu_model(root),
        cores_usable=len(usable_cores()),
        memory_mib=None if facts.memory_gib is None else int(1024 * facts.memory_gib),
        kernel=read_text(root / "proc/sys/kernel/osrelease"),
        python=platform.python_version(),
        governor=", ".join(sorted(governors)) or None,
        frequency_mhz=(min(mhz), max(mhz)) if mhz else None,
        load_average=load_average(root / "proc/loadavg") or None,
        gpu=_gpu(root),
        l4t=facts.l4t,
        power_mode=read_power_mode(root).title,
        clocks_pinned=clocks_pinned(root),
        gpu_limits_mhz=None if limits is None else (int(limits.lowest_mhz), int(limits.highest_mhz)),
        versions={name: installed_version(name.replace("-", "_")) for name in _PACKAGES},
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
    found = read_text(root / "proc/cpuinfo") or ""
    fields: dict[str, str] = dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.+)$", found, flags=re.MULTILINE))
    model = next((fields[key] for key in ("model name", "Model", "Hardware") if key in fields), None)
    if model is None and "CPU part" in fields:
        model = f"{platform.machine()} implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return model and model.strip()


def _gpu(root: Path) -> str | None:
    """Name the GPU: what the desktop driver says, else the node of the integrated one."""
    for path in paths(root, "proc/driver/nvidia/gpus/*/information"):
        found = re.search(r"^Model:\s*(.+)$", read_text(path) or "", flags=re.MULTILINE)
        if found:
            return found[1].strip()
    return gpu_node(root)
