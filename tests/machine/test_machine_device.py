from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from msn_deploy.engine import target_of, what_machine
from msn_deploy.machine.device import Gpu, first_gpu, nodes_to_open


def machine_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def jetson(
    model: str, memory_gib: float, release: str = "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: g"
) -> dict[str, str]:
    return {
        "proc/device-tree/model": model + "\0",
        "proc/meminfo": f"MemTotal:       {int(memory_gib * 2**20)} kB\nMemAvailable:   {int(memory_gib * 2**19)} kB\n",
        "etc/nv_tegra_release": release + "\n",
        "dev/nvhost-gpu": "",
    }


DESKTOP = {
    "proc/meminfo": "MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   16777216 kB\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\n"
    "GCC version:  gcc version 11.4.0\n",
    "dev/nvidia0": "",
}


@pytest.mark.parametrize(
    ("model", "memory", "target"),
    [
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7.4, "orin-nano-super"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 7.4, "orin-nano-8gb"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 3.3, "orin-nano-4gb"),
        ("NVIDIA Orin NX Developer Kit", 15.3, "orin-nx-16gb"),
        ("NVIDIA Orin NX Developer Kit", 7.3, "orin-nx-8gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 61.4, "agx-orin-64gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 29.8, "agx-orin-32gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", 122.8, "thor-t5000"),
        ("NVIDIA Jetson Xavier NX Developer Kit", 6.7, "xavier-nx"),
        ("NVIDIA Jetson Nano Developer Kit", 3.9, "nano"),
        ("quill", 7.7, "tx2"),
        ("NVIDIA Jetson Something New", 7.7, None),
    ],
)
def test_a_jetson_is_known_by_its_model_and_memory(tmp_path, model, memory, target):
    facts = what_machine(machine_files(tmp_path, jetson(model, memory)))
    assert facts.jetson == model
    assert facts.l4t == "36.4.3"
    assert facts.memory_gib == pytest.approx(memory, abs=1e-5)
    assert facts.has_gpu
    found = target_of(facts)
    assert (found.name if found else None) == target


def test_a_container_knows_the_board_by_the_mounted_copy(tmp_path):
    files = jetson("NVIDIA Jetson Orin Nano Developer Kit", 7.4)
    del files["proc/device-tree/model"]
    files |= {"tmp/nv_jetson_model": "NVIDIA Jetson Orin Nano Developer Kit\0", ".dockerenv": ""}
    facts = what_machine(machine_files(tmp_path, files))
    assert (facts.jetson, facts.container) == ("NVIDIA Jetson Orin Nano Developer Kit", True)


def test_a_workstation_with_a_gpu(tmp_path):
    facts = what_machine(machine_files(tmp_path, DESKTOP))
    assert (facts.jetson, facts.l4t, facts.driver, facts.gpu_nodes) == (None, None, "535.104.05", ("/dev/nvidia0",))
    assert (facts.memory_gib, facts.memory_free_gib, facts.container) == (32.0, 16.0, False)


def test_another_arm_board_is_no_jetson(tmp_path):
    facts = what_machine(machine_files(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B\0"}))
    assert facts.jetson is None
    assert target_of(facts) is None


def test_an_empty_root_says_nothing_and_breaks_nothing(tmp_path):
    facts = what_machine(tmp_path)
    assert (facts.jetson, facts.l4t, facts.memory_gib, facts.driver, facts.gpu_nodes) == (None, None, None, None, ())
    assert nodes_to_open(tmp_path) == ()


def test_garbage_and_folders_in_place_of_files_break_nothing(tmp_path):
    for name in ("proc/meminfo", "etc/nv_tegra_release", "proc/driver/nvidia/version"):
        (tmp_path / name).mkdir(parents=True)
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"\xff\xfe NVIDIA \0\0")
    facts = what_machine(tmp_path)
    assert facts.l4t is None
    assert facts.memory_gib is None


def test_numbers_without_end_are_no_numbers(tmp_path):
    """Python refuses to read an int of thousands of digits; no file of a machine may bring it to try."""
    digits = "9" * 6000
    texts = {
        "proc/meminfo": f"MemTotal: {digits} kB\n",
        "etc/nv_tegra_release": f"# R{digits} (release), REVISION: {digits}.{digits}\n",
        "proc/driver/nvidia/version": f"Module {digits}.{digits}.{digits}\n",
    }
    facts = what_machine(machine_files(tmp_path, texts))
    assert (facts.memory_gib, facts.l4t, facts.driver) == (None, None, None)


def test_the_device_files_of_a_gpu(tmp_path):
    names = ("dev/nvhost-gpu", "dev/nvmap", "dev/dri/renderD128", "dev/dri/card0")
    found = nodes_to_open(machine_files(tmp_path, dict.fromkeys(names, "")))
    assert found == ("/dev/nvhost-gpu", "/dev/nvmap", "/dev/dri/renderD128")


class Driver:
    """A libcuda that knows one GPU; `fails` is the call that reports an error."""

    def __init__(self, fails=""):
        self._fails = fails

    def __getattr__(self, name):
        def call(*args):
            if name == self._fails:
                return 100
            if name == "cuDeviceGetName":
                args[0].value = b"Orin"
            if name == "cuDeviceGetAttribute":
                ctypes.cast(args[0], ctypes.POINTER(ctypes.c_int)).contents.value = {75: 8, 76: 7}[args[1]]
            return 0

        return call


def test_the_driver_names_the_gpu():
    assert first_gpu(lambda name: Driver()) == Gpu(name="Orin", compute_capability="8.7")


@pytest.mark.parametrize("fails", ["cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"])
def test_a_driver_without_a_gpu_is_no_gpu(fails):
    assert first_gpu(lambda name: Driver(fails)) is None


def test_no_driver_is_no_gpu():
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    assert first_gpu(missing) is None
