"""How much of the machine does this process use while something runs: cores, GPU, memory? From /proc and /sys."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from msn_deploy.machine.files import read_number, read_text
from msn_deploy.machine.state import gpu_folder

_PEAK = re.compile(r"^VmHWM:\s+([0-9]{1,15}) kB", re.MULTILINE)
_TOTAL = re.compile(r"^MemTotal:\s+([0-9]{1,15}) kB", re.MULTILINE)
_AVAILABLE = re.compile(r"^MemAvailable:\s+([0-9]{1,15}) kB", re.MULTILINE)
_RESET_PEAK = "5"  # proc(5), clear_refs: the peak of the resident memory starts again from what is resident now

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used, over some time. None: this machine does not tell."""

    cores: float
    """Processor time of this process over the time that went by: 2.0 is two cores busy."""
    gpu: float | None = None
    """How busy the integrated GPU was, 0 to 1, by all programs."""
    host_mib: float | None = None
    """Most resident memory of this process."""
    device_mib: float | None = None
    """Most memory in use on a GPU with memory of its own, by all programs."""
    shared_mib: float | None = None
    """Most memory in use on a board whose GPU shares it, by all programs."""


class Gauge:
    """Takes the usage between `begin` and `end`; `look` in between sees what only shows at a moment."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        device_mib: Callable[[], float] | None = None,
        clock: Clock = time.perf_counter_ns,
        cpu_clock: Clock = time.process_time_ns,
    ) -> None:
        """Find what tells the usage.

        Args:
            root: Where /proc and /sys are looked for.
            device_mib: Says how much memory of a GPU is in use, if one is.
            clock: Of the time, ns.
            cpu_clock: Of the processor time of this process, ns.
        """
        gpu = gpu_folder(root)
        self._load = None if gpu is None else gpu / "device/load"
        self._shared = gpu is not None
        self._memory, self._status = root / "proc/meminfo", root / "proc/self/status"
        self._clear = root / "proc/self/clear_refs"
        self._device_mib = None if self._shared else device_mib
        self._clock, self._cpu_clock = clock, cpu_clock
        self.begin()

    def begin(self) -> None:
        """Start again."""
        self._loads: list[float] = []
        self._used: list[float] = []
        with suppress(OSError):  # then the peak is that of the whole process until now
            self._clear.write_text(_RESET_PEAK, encoding="ascii")
        self._began, self._cpu_began = self._clock(), self._cpu_clock()

    def look(self) -> None:
        """Note how busy the GPU is, and how much memory is in use."""
        if self._load is not None and (permille := read_number(self._load)) is not None:
            self._loads.append(permille / 1000)
        if self._shared:
            text = read_text(self._memory) or ""
            total, available = _TOTAL.search(text), _AVAILABLE.search(text)
            self._used += [(int(total[1]) - int(available[1])) / 1024] if total and available else []
        elif self._device_mib is not None:
            self._used.append(self._device_mib())

    def end(self) -> Usage:
        """Return what was used since `begin`."""
        cores = (self._cpu_clock() - self._cpu_began) / max(1, self._clock() - self._began)
        self.look()
        peak = _PEAK.search(read_text(self._status) or "")
        most = max(self._used, default=None)
        return Usage(
            cores=cores,
            gpu=fmean(self._loads) if self._loads else None,
            host_mib=int(peak[1]) / 1024 if peak else None,
            device_mib=None if self._shared else most,
            shared_mib=most if self._shared else None,
        )
