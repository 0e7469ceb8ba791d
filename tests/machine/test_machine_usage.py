"""What this process uses of a machine, told by files that a test writes."""

from __future__ import annotations

import pytest
from fake_sysfs import FakeJetson

from msn_deploy.machine.usage import Gauge, Usage

MS = 1_000_000


class Clocks:
    """Of the time, and of the processor."""

    def __init__(self) -> None:
        self.now = self.busy = 0

    def gauge(self, root, **options) -> Gauge:
        return Gauge(root, clock=lambda: self.now, cpu_clock=lambda: self.busy, **options)


def written(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_cores_are_processor_time_over_time(tmp_path):
    clocks = Clocks()
    gauge = clocks.gauge(tmp_path)
    clocks.now, clocks.busy = 50 * MS, 900 * MS
    gauge.begin()
    clocks.now, clocks.busy = 150 * MS, 1050 * MS
    assert gauge.end() == Usage(cores=1.5)


def test_a_board_says_how_busy_its_gpu_is_and_how_much_memory_all_programs_use(tmp_path):
    board = FakeJetson(tmp_path, "orin-nano")
    (gpu,) = board.root.glob("sys/class/devfreq/*gpu*")
    gauge = Clocks().gauge(board.root, device_mib=lambda: 1.0)
    for permille, available in ((400, 6000), (800, 5000)):
        written(gpu, "device/load", f"{permille}\n")
        written(board.root, "proc/meminfo", f"MemTotal: 8192000 kB\nMemAvailable: {available * 1024} kB\n")
        gauge.look()
    written(gpu, "device/load", "900\n")
    written(board.root, "proc/meminfo", f"MemTotal: 8192000 kB\nMemAvailable: {7000 * 1024} kB\n")
    usage = gauge.end()
    assert usage.gpu == pytest.approx(0.7)
    assert usage.shared_mib == 8000 - 5000
    assert usage.device_mib is None, "there is no other memory"


def test_a_card_has_memory_of_its_own(tmp_path):
    values = iter([700.0, 900.0, 800.0])
    gauge = Clocks().gauge(tmp_path, device_mib=lambda: next(values))
    gauge.look()
    gauge.look()
    usage = gauge.end()
    assert (usage.device_mib, usage.shared_mib, usage.gpu) == (900.0, None, None)


def test_the_peak_of_this_process_starts_again(tmp_path):
    written(tmp_path, "proc/self/status", "Name:\tx\nVmHWM:\t  204800 kB\nVmRSS:\t 1 kB\n")
    written(tmp_path, "proc/self/clear_refs", "")
    gauge = Clocks().gauge(tmp_path)
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"
    assert gauge.end().host_mib == 200


def test_the_peak_of_this_very_process():
    gauge = Gauge()
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    high = gauge.end().host_mib
    assert high > 64
