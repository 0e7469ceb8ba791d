from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from msn_deploy.machine.device import (
    COMPATIBLE_COPY,
    Gpu,
    board_words,
    first_gpu,
    module_of,
    nodes_to_open,
    target_of,
    what_machine,
)
from msn_deploy.machine.targets import TARGETS, find_target


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


# What /proc/device-tree/compatible holds: dumps of users, Linux' device trees and the lists of Jetson.GPIO; the last is
# a carrier with a name of its own (Lenovo's ThinkEdge SE70 is one, of a Xavier NX).
COMPATIBLE = {
    "nano": "nvidia,p3449-0000-b00+p3448-0000-b00 nvidia,jetson-nano nvidia,tegra210",
    "tx2": "nvidia,p2597-0000+p3310-1000 nvidia,tegra186",
    "xavier-nx": "nvidia,p3509-0000+p3668-0000 nvidia,p3668-0000 nvidia,tegra194",
    "agx-xavier": "nvidia,galen nvidia,jetson-xavier nvidia,p2822-0000+p2888-0001 nvidia,tegra194",
    "orin-nano-4gb": "nvidia,p3768-0000+p3767-0004 nvidia,p3767-0004 nvidia,tegra234",
    "orin-nano-8gb": "nvidia,p3768-0000+p3767-0005 nvidia,p3767-0005 nvidia,tegra234",
    "orin-nano-super": "nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234",
    "orin-nx-8gb": "nvidia,p3768-0000+p3767-0001-super nvidia,p3767-0001 nvidia,tegra234",
    "orin-nx-16gb": "acme,nx150 nvidia,p3767-0000 nvidia,tegra234",
    "agx-orin-32gb": "nvidia,p3737-0000+p3701-0004 nvidia,p3701-0004 nvidia,tegra234",
    "agx-orin-64gb": "nvidia,p3737-0000+p3701-0005 nvidia,p3701-0005 nvidia,tegra234",
    "thor-t4000": "nvidia,p4071-0000+p3834-0000 nvidia,p3834-0000 nvidia,tegra264",
    "thor-t5000": "nvidia,p4071-0000+p3834-0008 nvidia,p3834-0008 nvidia,tegra264",
}


def tree(compatible: str, model: str | None = None) -> dict[str, str]:
    files = {"proc/device-tree/compatible": "".join(f"{each}\0" for each in compatible.split())}
    return files | ({"proc/device-tree/model": model + "\0"} if model else {})


@pytest.mark.parametrize("name", COMPATIBLE)
@pytest.mark.parametrize("model", ["NX150_2024-12-23", "Jetson-AGX", "NVIDIA Jetson AGX Orin Developer Kit", None])
def test_a_module_is_known_by_its_part_number_whatever_the_text_of_its_carrier(tmp_path, name, model):
    facts = what_machine(machine_files(tmp_path, tree(COMPATIBLE[name], model)))
    assert facts.compatible == tuple(COMPATIBLE[name].split())
    assert facts.jetson == (model or "Jetson, model unknown")
    assert module_of(facts) == find_target(name).title


def test_every_jetson_of_the_table_has_part_numbers_of_its_own():
    assert set(COMPATIBLE) == {each.name for each in TARGETS if each.jetson}
    assert all(re.fullmatch(r"p\d{4}-\d{4}", part) for each in TARGETS for part in each.parts)
    assert all(bool(each.parts) == each.jetson for each in TARGETS)
    every = [part for each in TARGETS for part in each.parts]
    assert {part for part in every if every.count(part) > 1} == {"p3767-0003", "p3767-0005"}  # Super and not


@pytest.mark.parametrize(
    ("compatible", "model", "memory", "target"),
    [
        # the number behind "-as-" is what a developer kit emulates
        ("nvidia,p3737-0000+p3701-0000-as-p3767-0004 nvidia,tegra234", "any", 30, "orin-nano-4gb"),
        # a part that the table does not have: the text, if the chip fits it
        ("nvidia,p3767-0099 nvidia,tegra234", "NVIDIA Orin NX Developer Kit", 15.3, "orin-nx-16gb"),
        ("nvidia,p3767-0099 nvidia,tegra234", "acme nano box", 15.3, None),
        ("acme,box nvidia,tegra194", "Jetson-AGX", 31, "agx-xavier"),
        ("nvidia,tegra264", "acme", 61, None),
        (None, "Jetson-AGX", 31, "agx-xavier"),
        (None, "NX150_2024-12-23", 15.3, None),
        (None, "NVIDIA Orin NX Developer Kit", None, None),  # of 8 or of 16 GB
        (None, "quill", None, "tx2"),
    ],
)
def test_text_and_memory_decide_where_no_known_part_number_is(tmp_path, compatible, model, memory, target):
    files = tree(compatible, model) if compatible else jetson(model, memory or 0)
    if compatible or memory is None:
        files["proc/meminfo"] = "" if memory is None else f"MemTotal: {int(memory * 2**20)} kB\n"
    found = target_of(what_machine(machine_files(tmp_path, files)))
    assert (found.name if found else None) == target


def mounted(*places):
    """What the kernel says of mounts."""
    lines = [f"{at} 1 8:1 /home/x{place} {place} ro,relatime - ext4 /dev/sda1 rw\n" for at, place in enumerate(places)]
    return {"proc/self/mountinfo": "".join(lines)}


@pytest.mark.parametrize("end", ["\0", "\n"])
def test_a_container_knows_the_module_by_the_mounted_copies(tmp_path, end):
    strings = COMPATIBLE["orin-nx-8gb"].split()
    files = {COMPATIBLE_COPY.lstrip("/"): "".join(each + end for each in strings), ".dockerenv": "", "dev/nvmap": ""}
    files |= mounted(COMPATIBLE_COPY)
    facts = what_machine(machine_files(tmp_path, files))
    assert (target_of(facts), facts.container) == (find_target("orin-nx-8gb"), True)


def test_a_container_without_them_on_a_jetson_is_one_by_its_device_files(tmp_path):
    (tmp_path / "sys/firmware").mkdir(parents=True)  # Docker puts an empty folder there
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/device-tree").symlink_to(tmp_path / "sys/firmware/devicetree/base")
    facts = what_machine(machine_files(tmp_path, {"dev/nvmap": "", "dev/nvhost-gpu": "", ".dockerenv": ""}))
    assert (facts.jetson, facts.compatible, module_of(facts)) == ("Jetson, model unknown", (), None)


def test_a_board_in_words_for_a_script():
    words = board_words(find_target("agx-xavier"))
    assert (words.mine, words.not_mine) == (("xavier", "jetson-agx"), "xavier nx")
    for target in (each for each in TARGETS if each.jetson):
        words = board_words(target)
        assert set(target.parts) <= set(words.parts)
        assert not set(words.parts) & set(words.not_parts)
        assert {*words.parts, *words.not_parts} == {part for each in TARGETS for part in each.parts}
    with pytest.raises(ValueError, match="rtx-sm86"):
        board_words(find_target("rtx-sm86"))


def test_a_container_knows_the_board_by_the_mounted_copy(tmp_path):
    files = jetson("NVIDIA Jetson Orin Nano Developer Kit", 7.4)
    del files["proc/device-tree/model"]
    files |= {"tmp/nv_jetson_model": "NVIDIA Jetson Orin Nano Developer Kit\0", ".dockerenv": ""}
    files |= mounted("/tmp/nv_jetson_model")
    facts = what_machine(machine_files(tmp_path, files))
    assert (facts.jetson, facts.container) == ("NVIDIA Jetson Orin Nano Developer Kit", True)


@pytest.mark.parametrize("others", [(), ("/", "/tmp", "/tmp/nv_jetson_model2", "/srv/tmp/nv_jetson_model")])
def test_a_file_in_tmp_makes_no_jetson_of_a_workstation(tmp_path, others):
    files = {**DESKTOP, "tmp/nv_jetson_model": "NVIDIA Jetson AGX Orin Developer Kit\0", **mounted(*others)}
    files["tmp/nv_jetson_compatible"] = "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0"
    facts = what_machine(machine_files(tmp_path, files))
    assert (facts.jetson, facts.compatible, target_of(facts)) == (None, (), None)


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
    names = ("dev/nvhost-gpu", "dev/nvmap", "dev/dri/renderD128", "dev/nvgpu/igpu0/ctrl", "dev/nvgpu/igpu0/dbg")
    found = nodes_to_open(machine_files(tmp_path, dict.fromkeys(names, "")))
    assert found == ("/dev/nvhost-gpu", "/dev/nvgpu/igpu0/ctrl", "/dev/nvmap")


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
