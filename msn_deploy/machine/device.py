"""What machine is this? Its board, L4T, memory, driver, device files, and its GPU.

Nothing here raises.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msn_deploy.machine.files import exists, is_folder, paths, read_start, read_text
from msn_deploy.machine.targets import TARGETS, Target, find_target

# The first device file that a process with CUDA opens: of the desktop's and Thor's driver (a container may have been
# given another GPU than the first), of Tegra's until JetPack 7, of Tegra's since JetPack 5, of WSL. /dev/nvgpu is a
# folder of folders, one per GPU.
_GPU_NODES = ("dev/nvidia[0-9]*", "dev/nvhost-gpu", "dev/nvgpu/*/ctrl", "dev/dxg")
# What it opens beside that one. Profilers and debuggers open more of /dev/nvgpu; nothing of CUDA opens a render node.
_HELPER_NODES = (
    "dev/nvidiactl",
    "dev/nvidia-uvm",
    "dev/nvhost-ctrl-gpu",
    "dev/nvhost-as-gpu",
    "dev/nvgpu/*/as",
    "dev/nvgpu/*/channel",
    "dev/nvgpu/*/power",
    "dev/nvgpu/*/tsg",
    "dev/nvmap",
)
# A container sees neither: Docker masks /sys/firmware, where the first leads to. No file of /proc can be mounted, so
# copies in /tmp take their place, the first of them by convention. They count where they are mounted: anyone can put a
# file into /tmp, and only root a mount.
_FOLDERS = ("proc/device-tree", "sys/firmware/devicetree/base")
TREE_COPY = "/tmp/nv_jetson_"
"""How the copies in a container begin; the name of the file follows."""
COMPATIBLE_COPY = f"{TREE_COPY}compatible"
_UNKNOWN = "Jetson, model unknown"

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...

# Compute capability by chip, as the end of a compatible string names it.
_CHIPS = {
    "nvidia,tegra210": "5.3",
    "nvidia,tegra186": "6.2",
    "nvidia,tegra194": "7.2",
    "nvidia,tegra234": "8.7",
    "nvidia,tegra264": "11.0",
}
# What the model text of a board holds, the first that fits; names of several modules are told apart by their memory.
# A carrier may have a text of its own, such as "NX150_2024-12-23". AGX Xavier says "Jetson-AGX" (L4T 32.2 on), TX2
# "quill"; an Orin Nano with 8 GB and "Super" in its text is the third of its row.
_BOARDS = (
    ("thor", ("thor-t4000", "thor-t5000"), 96),
    ("agx orin", ("agx-orin-32gb", "agx-orin-64gb"), 56),
    ("orin nx", ("orin-nx-8gb", "orin-nx-16gb"), 14),
    ("orin nano", ("orin-nano-4gb", "orin-nano-8gb", "orin-nano-super"), 7),
    ("xavier nx", ("xavier-nx",), 0),
    ("xavier", ("agx-xavier",), 0),
    ("jetson-agx", ("agx-xavier",), 0),
    ("tx2", ("tx2",), 0),
    ("quill", ("tx2",), 0),
    ("nano", ("nano",), 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What the files of a machine say about it; None = not there or not readable.

    arch: such as "aarch64". jetson: the board's model text, which may be any; None on any other machine. l4t: such as
    "36.4.3". memory_gib, memory_free_gib: total and available RAM. driver: version of the NVIDIA kernel driver.
    gpu_nodes: the GPU device files that exist. container: running in one. compatible: what a Jetson's device tree says
    of carrier, module and chip, the most exact first: "nvidia,p3768-0000+p3767-0005", "nvidia,tegra234".
    """

    arch: str
    jetson: str | None
    l4t: str | None
    memory_gib: float | None
    memory_free_gib: float | None
    driver: str | None
    gpu_nodes: tuple[str, ...]
    container: bool
    compatible: tuple[str, ...] = ()

    @property
    def has_gpu(self) -> bool:
        """A GPU that programs on this machine can open."""
        return bool(self.gpu_nodes)


def what_machine(root: Path = Path("/"), *, arch: str | None = None) -> DeviceFacts:
    """Describe the machine whose file system starts at `root`; arch: None is this process's. Never raises."""
    model, compatible = board_text(root), _compatible(root)
    l4t = _l4t(read_text(root / "etc/nv_tegra_release"))
    is_jetson = l4t is not None or not _CHIPS.keys().isdisjoint(compatible) or exists(root / "dev/nvmap")
    if model and not is_jetson:  # a container, with a copy of the text alone
        is_jetson = re.search(r"nvidia|jetson|tegra|quill", model, re.I) is not None
    memory = read_text(root / "proc/meminfo") or ""
    driver = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", read_text(root / "proc/driver/nvidia/version") or "")
    return DeviceFacts(
        arch=arch or platform.machine(),
        jetson=(model or _UNKNOWN)[:80] if is_jetson else None,
        l4t=l4t,
        memory_gib=_gib(memory, "MemTotal"),
        memory_free_gib=_gib(memory, "MemAvailable"),
        driver=driver[1] if driver else None,
        gpu_nodes=_nodes(root, _GPU_NODES),
        container=any(exists(root / name) for name in (".dockerenv", "run/.containerenv")),
        compatible=compatible if is_jetson else (),
    )


def board_text(root: Path) -> str | None:
    """Return the model text of a board with a device tree, a Jetson or another; None on any other machine."""
    return next((text for text in map(read_text, _tree_files(root, "model")) if text), None)


def target_of(machine: DeviceFacts) -> Target | None:
    """Return the target that a Jetson is; None for any other machine, and where that can't be told.

    The part number of the module decides. Where a container has a copy of the model text alone, modules that differ
    only in memory share it, so their memory decides; the kernel keeps some of it.
    """
    is_super = re.search(r"\bsuper\b", " ".join((*machine.compatible, machine.jetson or "")), re.I) is not None
    for text in machine.compatible:
        numbers = re.findall(r"p\d{4}-\d{4}", text)  # of the carrier too; the last is what "-as-" emulates
        for number in reversed(numbers):
            fitting = [each for each in TARGETS if number in each.parts]
            if fitting:
                return fitting[-1] if is_super else fitting[0]
    chip = next((_CHIPS[each] for each in machine.compatible if each in _CHIPS), None)
    for words, modules, large_gib in _BOARDS:
        if words in (machine.jetson or "").lower() and chip in (None, find_target(modules[0]).compute_capability):
            if len(modules) > 1 and machine.memory_gib is None:
                return None
            small, large, fast = (*modules, modules[-1], modules[-1])[:3]
            is_large = machine.memory_gib is not None and machine.memory_gib >= large_gib
            return find_target((fast if is_super else large) if is_large else small)
    return None


def module_of(machine: DeviceFacts) -> str | None:
    """Return the title of a Jetson's module, such as "Jetson Orin NX 16GB"; None where it is not known.

    A carrier may have a text of its own, and a container may see none.
    """
    target = target_of(machine)
    return target.title if target else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardWords:
    """By what a board is known as a target, for a script: by a part number in /proc/device-tree/compatible first.

    parts: those of the target. not_parts: those of others. mine, not_mine: words of the model text, in lower case, that
    mean the target and another board; for where no part number is readable. Modules that differ in memory alone are one
    board: one ONNX file serves them.
    """

    parts: tuple[str, ...]
    not_parts: tuple[str, ...]
    mine: tuple[str, ...]
    not_mine: str


def board_words(target: Target) -> BoardWords:
    """Return by what a Jetson target is known. Raises ValueError for any other."""
    family = {name for _, modules, _ in _BOARDS if target.name in modules for name in modules}
    mine = tuple(words for words, modules, _ in _BOARDS if family & set(modules))
    if not mine:
        raise ValueError(f"{target.name} is not a Jetson")
    not_mine = next((words for words, _, _ in _BOARDS if mine[0] in words and words != mine[0]), "")
    parts = {part: each.name in family for each in TARGETS for part in each.parts}
    return BoardWords(
        parts=tuple(part for part, its in parts.items() if its),
        not_parts=tuple(part for part, its in parts.items() if not its),
        mine=mine,
        not_mine=not_mine,
    )


def nodes_to_open(root: Path) -> tuple[str, ...]:
    """Return the device files that a process with CUDA opens, of those that exist."""
    return _nodes(root, (*_GPU_NODES, *_HELPER_NODES))


def _nodes(root: Path, patterns: tuple[str, ...]) -> tuple[str, ...]:
    found = (path for pattern in patterns for path in paths(root, pattern) if not is_folder(path))
    return tuple(f"/{path.relative_to(root)}" for path in found)


def _compatible(root: Path) -> tuple[str, ...]:
    """Return the strings of the device tree's root, which end in NULs (in a copy perhaps in line breaks)."""
    for path in _tree_files(root, "compatible"):
        words = re.findall(r"[\x21-\x7e]{1,80}", (read_start(path, 1024) or b"").decode("ascii", "replace"))
        if words:
            return tuple(words[:16])
    return ()


def _tree_files(root: Path, name: str) -> list[Path]:
    """Return where a file of the device tree's root may lie; it need not."""
    copy = f"{TREE_COPY}{name}"
    mounts = (read_start(root / "proc/self/mountinfo", 1 << 20) or b"").decode("utf-8", "replace").splitlines()
    is_mounted = any(line.split()[4:5] == [copy] for line in mounts)
    return [*(root / folder / name for folder in _FOLDERS), *([root / copy.lstrip("/")] if is_mounted else [])]


def _l4t(text: str | None) -> str | None:
    """Read "# R36 (release), REVISION: 4.3, GCID: ..." as "36.4.3"."""
    found = re.search(r"R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3})*)", text or "")
    return f"{found[1]}.{found[2]}" if found else None


def _gib(meminfo: str, key: str) -> float | None:
    found = re.search(rf"^{key}:\s+(\d{{1,15}}) kB", meminfo, re.M)
    return int(found[1]) / 2**20 if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as CUDA names it, such as "Orin", and its compute capability, such as "8.7"."""

    name: str
    compute_capability: str


def first_gpu(load: Callable[[str], Any] = ctypes.CDLL) -> Gpu | None:
    """Return the first GPU that CUDA shows this process; None without a driver or a GPU. Never raises."""
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    calls: tuple[Callable[[], int], ...] = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    )
    if any(call() != 0 for call in calls):
        return None
    return Gpu(name=name.value.decode(errors="replace"), compute_capability=f"{major.value}.{minor.value}")
