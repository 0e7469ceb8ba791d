"""Where a Jetson keeps its clocks and its power mode. From sysfs alone: no root rights, no daemon, no tegrastats."""

from __future__ import annotations

import re
from pathlib import Path

from msn_deploy.machine.sysfs import folders, number, text

# Names of the GPU's device-tree node: Xavier, TX2, Orin, Orin with JetPack 7. Thor's folder is called gpu-gpc-0.
_GPU_NODES = {"gv11b", "gp10b", "ga10b", "gpu"}


def gpu_folder(root: Path) -> Path | None:
    """Return the devfreq folder of the integrated GPU: cur_freq, min_freq and max_freq in Hz."""
    for folder in folders(root, "sys/class/devfreq/*"):
        if folder.name.startswith("gpu-gpc") or text(folder / "device/of_node/name") in _GPU_NODES:
            return folder
    return None


def emc_file(root: Path) -> Path | None:
    """Return the file with the memory clock in Hz; on Orin it lies in debugfs, which only root may read."""
    for name in ("sys/class/devfreq/bwmgr/cur_freq", "sys/kernel/debug/bpmp/debug/clk/emc/rate"):
        if number(root / name) is not None:
            return root / name
    return None


def clocks_pinned(root: Path) -> bool | None:
    """Tell whether `jetson_clocks` is on: GPU and every online core have equal lower and upper limits.

    None where there is no integrated GPU.
    """
    gpu = gpu_folder(root)
    if gpu is None:
        return None
    cores = [each for each in folders(root, "sys/devices/system/cpu/cpu[0-9]*") if number(each / "online") != 0]
    limits = [(gpu / "min_freq", gpu / "max_freq")]
    limits += [(core / "cpufreq/scaling_min_freq", core / "cpufreq/scaling_max_freq") for core in cores]
    values = [(number(low), number(high)) for low, high in limits]
    return all(low is not None and low == high for low, high in values)


def pinned_mhz(root: Path) -> dict[str, float]:
    """Return the clock of the GPU in MHz if it is locked, as {"gpu": mhz}: below that, it is throttled."""
    gpu = gpu_folder(root)
    low, high = (None, None) if gpu is None else (number(gpu / "min_freq"), number(gpu / "max_freq"))
    return {"gpu": high / 1e6} if high is not None and low == high else {}


def power_mode(root: Path) -> str | None:
    """Return the nvpmodel mode as "NAME (id N)".

    The service notes the id in /var/lib/nvpmodel/status as `pmode:0002`; names stand in /etc/nvpmodel.conf.
    """
    found = re.search(r"pmode:(\d+)", text(root / "var/lib/nvpmodel/status") or "")
    if found is None:
        return None
    number_ = int(found[1])
    names = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text(root / "etc/nvpmodel.conf") or "")
    name = next((name for each, name in names if int(each) == number_), None)
    return f"id {number_}" if name is None else f"{name} (id {number_})"
