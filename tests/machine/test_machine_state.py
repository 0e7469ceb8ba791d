from __future__ import annotations

from pathlib import Path

import pytest
from doctor_machines import Machine, clocks, power
from fake_sysfs import CONTAINER_GPUS, FakeJetson

from msn_deploy.machine.state import Probe, clocks_pinned, gpu_folder, load_average, read_clocks, read_power_mode

CORE = "sys/devices/system/cpu/cpu2/cpufreq/scaling_min_freq"


def write(root: Path, name: str, content: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_power_mode_and_clocks(tmp_path):
    Machine(title="", files=power(2, "15W", "25W", "MAXN_SUPER") | clocks(306, 1020)).build(tmp_path)
    mode = read_power_mode(tmp_path)
    assert (mode.name, [*mode.modes.values()]) == ("MAXN_SUPER", ["15W", "25W", "MAXN_SUPER"])
    gpu, core = read_clocks(tmp_path)
    assert (gpu.name, gpu.lowest_mhz, gpu.highest_mhz, gpu.pinned) == ("GPU", 306, 1020, False)
    assert (core.name, core.highest_mhz, core.pinned) == ("cpu0", 1510.4, True)
    write(tmp_path, "var/lib/nvpmodel/status", b"pmode:0009")
    assert read_power_mode(tmp_path).name == "id 9"
    write(tmp_path, "sys/class/devfreq/15340000.vic/min_freq", b"1")  # another device than the GPU
    assert len(read_clocks(tmp_path)) == 2


def test_a_power_mode_without_a_name(tmp_path: Path) -> None:
    FakeJetson(tmp_path, "orin-nano")
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert read_power_mode(tmp_path).title == "id 2"


@pytest.mark.parametrize("floating", ["sys/class/devfreq/17000000.gpu/min_freq", CORE])
def test_clocks_are_pinned_only_if_gpu_and_every_core_that_is_on_are(floating: str, tmp_path: Path) -> None:
    FakeJetson(tmp_path, "orin-nano")
    assert clocks_pinned(tmp_path) is True
    (tmp_path / floating).write_text("115200\n")
    assert clocks_pinned(tmp_path) is False


@pytest.mark.parametrize("line", ["< POWER_MODEL ID=0 NAME=MAXN-SUPER >", "<POWER_MODEL ID=0 NAME=MAXN-SUPER>"])
def test_a_name_with_a_hyphen(line, tmp_path):
    Machine(title="", files={"etc/nvpmodel.conf": line, "var/lib/nvpmodel/status": "pmode:0000"}).build(tmp_path)
    mode = read_power_mode(tmp_path)
    assert (mode.name, mode.title) == ("MAXN-SUPER", "MAXN-SUPER (id 0)")


@pytest.mark.parametrize("gpu", sorted(CONTAINER_GPUS))
def test_the_gpu_is_known_by_its_folder_or_its_node(gpu, tmp_path):
    (tmp_path / "sys/class/devfreq/15340000.vic").mkdir(parents=True)
    assert gpu_folder(tmp_path) is None
    write(tmp_path, f"sys/class/devfreq/{gpu}/cur_freq", b"306000000")
    assert gpu_folder(tmp_path).name == gpu
    assert Probe(tmp_path)().clocks_mhz == {"gpu": 306}
    assert clocks_pinned(tmp_path) is None  # its limits are not known
    node = CONTAINER_GPUS[gpu] if "." in gpu else "gpu"
    host = tmp_path / "host"
    write(host, "sys/class/devfreq/1.soc/device/of_node/name", node.encode() + b"\0")
    assert gpu_folder(host).name == "1.soc"


def test_a_core_that_is_off_moves_no_clock(tmp_path):
    FakeJetson(tmp_path, "thor")
    assert [each.name for each in read_clocks(tmp_path)] == ["GPU", "cpu0", "cpu1", "cpu2"]


def test_the_load(tmp_path):
    assert load_average(write(tmp_path, "loadavg", b"0.5 0.4 0.3 1/2 3")) == (0.5, 0.4, 0.3)
    assert load_average(write(tmp_path, "loadavg", b"0.5 0.4")) == ()
