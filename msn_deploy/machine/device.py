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

from msn_deploy.machine.files import exists, names_in, read_text
from msn_deploy.machine.targets import Target, find_target

_GPU_NODES = ("dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu", "dev/dxg")  # desktop and Thor, Tegra, Tegra (JP7), WSL
# What a process opens beside the first ones, before CUDA works.
_HELPER_NODES = ("dev/nvidiactl", "dev/nvidia-uvm", "dev/nvhost-ctrl-gpu", "dev/nvmap")
# /tmp/nv_jetson_model: by convention a copy of the first, mounted into containers, where /proc files can't be.
_MODEL_FILES = ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "tmp/nv_jetson_model")

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...

# What the model text of a board holds, the first that fits; names of several modules are told apart by their memory.
_BOARDS = (
    ("thor", ("thor-t4000", "thor-t5000"), 96),
    ("agx orin", ("agx-orin-32gb", "agx-orin-64gb"), 56),
    ("orin nx", ("orin-nx-8gb", "orin-nx-16gb"), 14),
    ("super", ("orin-nano-4gb", "orin-nano-super"), 7),
    ("orin nano", ("orin-nano-4gb", "orin-nano-8gb"), 7),
    ("xavier nx", ("xavier-nx",), 0),
    ("xavier", ("agx-xavier",), 0),
    ("tx2", ("tx2",), 0),
    ("quill", ("tx2",), 0),
    ("nano", ("nano",), 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What the files of a machine say about it; None = not there or not readable.

    arch: such as "aarch64". jetson: the board's model text, None on any other machine. l4t: such as "36.4.3".
    memory_gib, memory_free_gib: total and available RAM. driver: version of the NVIDIA kernel driver.
    gpu_nodes: the GPU device files that exist. container: running in one.
    """

    arch: str
    jetson: str | None
    l4t: str | None
    memory_gib: float | None
    memory_free_gib: float | None
    driver: str | None
    gpu_nodes: tuple[str, ...]
    container: bool

    @property
    def has_gpu(self) -> bool:
        """A GPU that programs on this machine can open."""
        return bool(self.gpu_nodes)


def what_machine(root: Path = Path("/"), *, arch: str | None = None) -> DeviceFacts:
    """Describe the machine whose file system starts at `root`; arch: None is this process's. Never raises."""
    model = board_text(root)
    l4t = _l4t(read_text(root / "etc/nv_tegra_release"))
    board = model if model and (l4t or re.search(r"nvidia|jetson|tegra|quill", model, re.I)) else None
    memory = read_text(root / "proc/meminfo") or ""
    driver = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", read_text(root / "proc/driver/nvidia/version") or "")
    return DeviceFacts(
        arch=arch or platform.machine(),
        jetson=board[:80] if board else ("Jetson, model unknown" if l4t else None),
        l4t=l4t,
        memory_gib=_gib(memory, "MemTotal"),
        memory_free_gib=_gib(memory, "MemAvailable"),
        driver=driver[1] if driver else None,
        gpu_nodes=tuple(f"/{name}" for name in _GPU_NODES if exists(root / name)),
        container=any(exists(root / name) for name in (".dockerenv", "run/.containerenv")),
    )


def board_text(root: Path) -> str | None:
    """Return the model text of a board with a device tree, a Jetson or another; None on any other machine."""
    return next((text for text in (read_text(root / name) for name in _MODEL_FILES) if text), None)


def target_of(machine: DeviceFacts) -> Target | None:
    """Return the target that a Jetson is; None for any other machine and for a board that is not known.

    Modules that differ only in memory share one model text, so their memory decides; the kernel keeps some of it.
    """
    model, memory = (machine.jetson or "").lower(), machine.memory_gib or 0.0
    for words, modules, large_gib in _BOARDS:
        if words in model:
            return find_target(modules[-1] if memory >= large_gib else modules[0])
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardWords:
    """Which words of a board's model text, in lower case, mean a target, and which one means another board.

    Modules that differ in memory alone have the same words: one ONNX file serves them.
    """

    mine: tuple[str, ...]
    not_mine: str


def board_words(target: Target) -> BoardWords:
    """Return the words for a Jetson target. Raises ValueError for any other."""
    family = {name for _, modules, _ in _BOARDS if target.name in modules for name in modules}
    mine = tuple(words for words, modules, _ in _BOARDS if family & set(modules) and words != "super")
    if not mine:
        raise ValueError(f"{target.name} is no Jetson")
    not_mine = next((words for words, _, _ in _BOARDS if mine[0] in words and words != mine[0]), "")
    return BoardWords(mine=mine, not_mine=not_mine)


def nodes_to_open(root: Path) -> tuple[str, ...]:
    """Return the device files that a process with CUDA opens, of those that exist."""
    render = (f"dev/dri/{name}" for name in names_in(root / "dev/dri") if name.startswith("renderD"))
    return tuple(f"/{name}" for name in (*_GPU_NODES, *_HELPER_NODES, *render) if exists(root / name))


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
