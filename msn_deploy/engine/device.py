"""What machine is this, and what of msn-deploy works on it?

Everything is read from files below a root, so that any machine can be described in a test. Nothing here raises.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msn_deploy.core.optional import version_of
from msn_deploy.engine.targets import Target, find_target

_GPU_NODES = ("dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu", "dev/dxg")  # desktop and Thor, Tegra, Tegra (JP7), WSL
# /tmp/nv_jetson_model: by convention a copy of the first, mounted into containers, where /proc files can't be.
_MODEL_FILES = ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "tmp/nv_jetson_model")
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt_rtx": ("tensorrt_rtx_cu13", "tensorrt_rtx_cu12", "tensorrt_rtx"),
}
Importable = Callable[[str], str | None]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of `doctor`: verdict "ok", "warning" or "problem", what was found, and what to do ("" if nothing)."""

    name: str
    verdict: str
    found: str
    hint: str = ""


def what_machine(root: Path = Path("/")) -> DeviceFacts:
    """Describe the machine whose file system starts at `root`. Never raises."""
    model = next((text for text in (_text(root / name) for name in _MODEL_FILES) if text), None)
    l4t = _l4t(_text(root / "etc/nv_tegra_release"))
    board = model if model and (l4t or re.search(r"nvidia|jetson|tegra|quill", model, re.I)) else None
    memory = _text(root / "proc/meminfo") or ""
    driver = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", _text(root / "proc/driver/nvidia/version") or "")
    return DeviceFacts(
        arch=platform.machine(),
        jetson=board or ("Jetson, model unknown" if l4t else None),
        l4t=l4t,
        memory_gib=_gib(memory, "MemTotal"),
        memory_free_gib=_gib(memory, "MemAvailable"),
        driver=driver[1] if driver else None,
        gpu_nodes=tuple(f"/{name}" for name in _GPU_NODES if _exists(root / name)),
        container=any(_exists(root / name) for name in (".dockerenv", "run/.containerenv")),
    )


def target_of(machine: DeviceFacts) -> Target | None:
    """Return the target that a Jetson is; None for any other machine and for a board that is not known.

    Modules that differ only in memory share one model text, so their memory decides; the kernel keeps some of it.
    """
    model, memory = (machine.jetson or "").lower(), machine.memory_gib or 0.0
    rules = (
        ("thor", "thor-t5000" if memory >= 96 else "thor-t4000"),
        ("agx orin", "agx-orin-64gb" if memory >= 56 else "agx-orin-32gb"),
        ("orin nx", "orin-nx-16gb" if memory >= 14 else "orin-nx-8gb"),
        ("super", "orin-nano-super" if memory >= 7 else "orin-nano-4gb"),
        ("orin nano", "orin-nano-8gb" if memory >= 7 else "orin-nano-4gb"),
        ("xavier nx", "xavier-nx"),
        ("xavier", "agx-xavier"),
        ("tx2", "tx2"),
        ("quill", "tx2"),
        ("nano", "nano"),
    )
    return next((find_target(name) for words, name in rules if words in model), None)


def checks(root: Path = Path("/"), importable: Importable | None = None) -> list[Check]:
    """Judge the machine for `msn-deploy doctor`, one line per question. Never raises.

    importable: gives the version of a module ("?" if it has none), or None if it is not installed.
    """
    installed = importable or installed_version
    machine = what_machine(root)
    return [
        _python(),
        *(_package(name, installed(name), machine) for name in ("onnxruntime", "onnx", "torch", "pycuda")),
        _tensorrt(installed("tensorrt"), installed("tensorrt_rtx"), machine),
        _driver(machine),
        _jetson(machine),
        _memory(machine),
        _disk(),
    ]


def installed_version(module: str) -> str | None:
    """Return the version of an installed module without importing it; "?" if it has none, None if it is not there."""
    from importlib.util import find_spec

    for distribution in _DISTRIBUTIONS.get(module, (module,)):
        version = version_of(distribution)
        if version is not None:
            return version
    try:
        return None if find_spec(module) is None else "?"
    except (ImportError, ValueError):  # a half-removed package
        return None


def _python() -> Check:
    # No check of the version: a Python before 3.10 could not have imported this file.
    return Check(name="python", verdict="ok", found=f"{platform.python_version()}, {sys.executable}")


def _package(name: str, version: str | None, machine: DeviceFacts) -> Check:
    if version is not None:
        return Check(name=name, verdict="ok", found=version)
    extra = "jetson" if machine.jetson else "export"
    absent = {
        "onnxruntime": ("problem", f"eval, infer and bench need it: pip install 'msn-deploy[{extra}]'"),
        "onnx": ("problem", f"eval, bench and build-engine need it: pip install 'msn-deploy[{extra}]'"),
        "torch": ("warning", "train and export need it: pip install 'msn-deploy[train]'; the rest works without."),
        "pycuda": ("ok", ""),
    }
    on_device = {"torch": ("ok", ""), "pycuda": ("warning", "Install it with: pip install 'msn-deploy[jetson]'")}
    verdict, hint = (on_device if machine.jetson and name in on_device else absent)[name]
    not_needed = " (not needed here)" if verdict == "ok" else ""
    return Check(name=name, verdict=verdict, found=f"not installed{not_needed}", hint=hint)


def _tensorrt(full: str | None, rtx: str | None, machine: DeviceFacts) -> Check:
    found = ", ".join(f"{name} {version}" for name, version in (("TensorRT", full), ("TensorRT-RTX", rtx)) if version)
    found = found or "not installed"
    if full or (rtx and not machine.jetson):
        return Check(name="tensorrt", verdict="ok", found=found)
    if machine.jetson:
        hint = "It comes with JetPack: sudo apt install tensorrt python3-libnvinfer   (never pip install it here)"
        return Check(name="tensorrt", verdict="problem", found=found, hint=hint)
    hint = "build-engine needs it: pip install 'msn-deploy[rtx]'   (builds without a GPU); ONNX files run without."
    return Check(name="tensorrt", verdict="warning", found=found, hint=hint)


def _driver(machine: DeviceFacts) -> Check:
    if machine.has_gpu:
        version = f"driver {machine.driver}, " if machine.driver else ""
        return Check(name="gpu", verdict="ok", found=version + ", ".join(machine.gpu_nodes))
    if machine.jetson:
        hint = (
            "Start the container with: docker run --runtime nvidia ..." if machine.container else "Flash JetPack anew."
        )
        return Check(name="gpu", verdict="problem", found="no GPU device file", hint=hint)
    found = f"driver {machine.driver}, but no GPU device file" if machine.driver else "no NVIDIA GPU"
    hint = "Training, eval and bench run on the CPU; TensorRT-RTX still builds engines, which run elsewhere."
    return Check(name="gpu", verdict="warning", found=found, hint=hint)


def _jetson(machine: DeviceFacts) -> Check:
    if machine.jetson is None:
        return Check(name="jetson", verdict="ok", found="not a Jetson")
    found = f"{machine.jetson}, L4T {machine.l4t or 'unknown'}"
    if machine.l4t is None:
        hint = "In a container add: -v /etc/nv_tegra_release:/etc/nv_tegra_release"
        return Check(name="jetson", verdict="warning", found=found, hint=hint)
    if int(machine.l4t.partition(".")[0]) < 36:
        hint = "JetPack before 6 has a Python older than 3.10: build there with trtexec."
        return Check(name="jetson", verdict="warning", found=found, hint=hint)
    return Check(name="jetson", verdict="ok", found=found)


def _memory(machine: DeviceFacts) -> Check:
    if machine.memory_gib is None:
        return Check(name="memory", verdict="warning", found="unknown")
    free = machine.memory_free_gib
    found = f"{machine.memory_gib:.1f} GiB" + ("" if free is None else f", {free:.1f} GiB free")
    if free is not None and free < 1:
        hint = "Building an engine may run out of memory; close other programs or lower `--workspace-mib`."
        return Check(name="memory", verdict="warning", found=found, hint=hint)
    return Check(name="memory", verdict="ok", found=found)


def _disk() -> Check:
    try:
        free = shutil.disk_usage(Path.cwd()).free / 2**30
    except OSError as cause:  # such as a working directory that was deleted
        return Check(name="disk", verdict="warning", found=f"unknown ({cause.strerror})")
    if free < 1:
        hint = "Runs and engines may not fit; free some space or use `--out`."
        return Check(name="disk", verdict="warning", found=f"{free:.1f} GiB free here", hint=hint)
    return Check(name="disk", verdict="ok", found=f"{free:.1f} GiB free here")


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:  # bounded: these are short, and a stray device file must not stall us
            return stream.read(65536).decode("utf-8", errors="replace").replace("\0", "").strip()
    except OSError:
        return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _l4t(text: str | None) -> str | None:
    """Read "# R36 (release), REVISION: 4.3, GCID: ..." as "36.4.3"."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text or "")
    return f"{found[1]}.{found[2]}" if found else None


def _gib(meminfo: str, key: str) -> float | None:
    found = re.search(rf"^{key}:\s+(\d+) kB", meminfo, re.M)
    return int(found[1]) / 2**20 if found else None
