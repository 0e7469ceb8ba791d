from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from msn_deploy.machine.environment import Environment, machine_name, read_environment


def put(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def cpufreq(cores: dict[int, tuple[str, str]]) -> dict[str, str | bytes]:
    found: dict[str, str | bytes] = {}
    for core, (governor, khz) in cores.items():
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        found |= {f"{folder}/scaling_governor": f"{governor}\n", f"{folder}/scaling_cur_freq": f"{khz}\n"}
    return found


def test_jetson_layout(tmp_path):
    root = put(
        tmp_path,
        {
            "proc/sys/kernel/hostname": "orin\n",
            "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
            "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
            "proc/meminfo": "MemTotal:        7802748 kB\nMemFree:          100 kB\n",
            "proc/loadavg": "0.52 0.41 0.30 2/512 4242\n",
            **cpufreq({0: ("schedutil", "729600"), 1: ("performance", "1728000"), 2: ("schedutil", "1510400")}),
        },
    )
    found = read_environment(root)
    assert found.machine == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert found.host == "orin"
    assert found.kernel == "5.15.148-tegra"
    assert found.cpu.endswith("implementer 0x41 part 0xd42")
    assert found.memory_mib == 7619
    assert found.load_average == (0.52, 0.41, 0.30)
    assert found.governor == "performance, schedutil"
    assert found.frequency_mhz == (729, 1728)


def test_workstation_layout(tmp_path):
    root = put(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9654 : 96-Core\nflags\t\t: fpu\n",
            "sys/class/dmi/id/product_name": "ProLiant DL385\n",
        },
    )
    found = read_environment(root)
    assert found.cpu == "AMD EPYC 9654 : 96-Core"
    assert found.machine == "ProLiant DL385"


def test_what_cannot_be_read_is_none(tmp_path):
    found = read_environment(tmp_path)
    absent = {"host", "machine", "cpu", "memory_mib", "kernel", "governor", "frequency_mhz", "load_average"}
    absent |= {"gpu", "l4t", "power_mode", "clocks_pinned", "gpu_limits_mhz"}
    assert {key for key, value in found.to_json().items() if value is None} == absent
    assert found.cores_usable >= 1
    assert found.versions["numpy"] == np.__version__


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0\0", b"nonsense\n", b"one two three four", b"1 2"])
def test_damaged_files_never_raise(tmp_path, content):
    names = [
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/loadavg",
        "proc/device-tree/model",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    ]
    found = read_environment(put(tmp_path, dict.fromkeys(names, content)))
    assert found.memory_mib is None
    assert found.load_average is None
    assert found.frequency_mhz is None


def test_a_folder_where_a_file_is_expected_is_none(tmp_path):
    (tmp_path / "proc/loadavg").mkdir(parents=True)
    assert read_environment(tmp_path).load_average is None


def test_this_machine_gives_json():
    found = read_environment()
    assert Environment.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert found.kernel
    assert found.memory_mib > 100


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"cpu": "AMD EPYC", "cores_usable": 2, "machine": "KVM"}, "epyc-2-cores"),
        ({"cpu": "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "cores_usable": 12}, "core-i7-9750h-12-cores"),
        ({"cpu": "AMD EPYC 7B13 64-Core Processor", "cores_usable": 4}, "epyc-7b13-4-cores"),
        ({"machine": "NVIDIA Jetson Orin Nano Developer Kit", "l4t": "36.4", "cores_usable": 6}, "jetson-orin-nano"),
        ({"cpu": None, "host": "box", "cores_usable": None}, "box-1-cores"),
        ({"cpu": "///", "cores_usable": 3}, "machine-3-cores"),
        ({}, "machine-1-cores"),
    ],
)
def test_the_name_of_a_machine_is_that_of_a_folder(environment, name):
    assert machine_name(Environment(**environment)) == name
