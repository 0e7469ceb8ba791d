"""What of msn-deploy works on this machine? The lines of `doctor`, each with a verdict and what to type.

Nothing here raises, whatever the files of the machine hold.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from msn_deploy.core.model_info import DEFAULT_WORKSPACE_MIB
from msn_deploy.core.optional import install
from msn_deploy.machine.containers import GPU_FLAGS, MOUNTED, docker_run, gpu_flags
from msn_deploy.machine.device import COMPATIBLE_COPY, DeviceFacts, module_of, nodes_to_open, what_machine
from msn_deploy.machine.files import exists, group_of, read_text
from msn_deploy.machine.jetpacks import jetpack_of, jetpack_of_kernel, same_release
from msn_deploy.machine.libraries import (
    Library,
    cuda_version,
    find_libraries,
    has_compiler,
    installed_version,
    version_in,
)
from msn_deploy.machine.state import read_clocks, read_power_mode

_TENSORRT = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
_CONTEXT_MIB = 300  # a CUDA context with its kernels; a guess, as is the next line
_COPIES = 4  # of a model's weights while it is built: the file, the network, the builder's, the plan
BASE_IMAGE_FILE = "etc/msn-deploy/base-image"  # Dockerfile.jetson writes the name of its base there
_MOUNT_RELEASE, *_MOUNT_MODES = (f"-v {name}:{name}:ro" for name in MOUNTED)
_IN_CONTAINER = f"docker run {GPU_FLAGS[0]} ..., or {GPU_FLAGS[1]} where Docker knows no such runtime"
Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of `doctor`: a verdict, what was found, and what to type ("" if nothing)."""

    name: str
    verdict: Verdict
    found: str
    hint: str = ""


def _warning(name: str, found: str, hint: str) -> Check:
    """Return the line of something that limits what works here."""
    return Check(name=name, verdict="warning", found=found, hint=hint)


def _problem(name: str, found: str, hint: str) -> Check:
    """Return the line of something that has to be mended first."""
    return Check(name=name, verdict="problem", found=found, hint=hint)


def _ok(name: str, found: str, hint: str = "") -> Check:
    return Check(name=name, verdict="ok", found=found, hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """How a machine is looked at; the defaults look at this one, a test gives those of another."""

    root: Path = Path("/")
    """Where its file system starts."""
    arch: str = field(default_factory=platform.machine)
    python: str = field(default_factory=lambda: f"{platform.python_version()}, {sys.executable}")
    """Version and path of its interpreter."""
    installed: Callable[[str], str | None] = installed_version
    """The version of a Python module ("?" if it has none), None if it is not there."""
    may_open: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK)
    """Whether this process may read and write a device file."""
    group_of: Callable[[Path], int | None] = group_of
    """The number of the group, not root's, whose members may read and write a device file; None if there is none."""
    folder: Path = Path()
    """Where the work is done."""
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    """Of the disk under a folder; may raise OSError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """All that was read of the machine."""

    host: Host
    facts: DeviceFacts
    libraries: tuple[Library, ...]


def checks(host: Host | None = None, *, model_bytes: int = 0) -> list[Check]:
    """Judge a machine, one line per question; model_bytes: size of the ONNX file that will be built. Never raises."""
    host = host or Host()
    seen = _Machine(host=host, facts=what_machine(host.root, arch=host.arch), libraries=find_libraries(host.root))
    lines = [
        _ok("python", host.python),  # one before 3.10 could not have imported this file
        *(_package(name, seen) for name in ("onnxruntime", "onnx", "torch", "pycuda")),
        _tensorrt(seen),
        _whole_libraries(seen),
        _cuda(seen),
        _gpu(seen.facts),
        _rights(seen),
    ]
    if seen.facts.jetson is None:
        lines.append(_ok("jetson", "not a Jetson"))
    else:
        base = version_in(seen.libraries, "libnvinfer")
        lines += [
            _jetson(host.root, seen.facts),
            _image(host.root, seen.facts, tensorrt=base),
            _runtime(host.root, seen.facts),
            _power_mode(host.root, seen.facts),
            _clocks(host.root),
        ]
    return [*lines, _memory(seen, model_bytes), _disk(host)]


def build_peak_mib(libraries: tuple[Library, ...], *, model_bytes: int = 0) -> float:
    """Predict the memory of a build, MiB: the workspace, TensorRT's libraries, a CUDA context and copies of the model.

    An upper bound where the libraries are only partly paged in; TensorRT itself tells nothing before it builds.
    """
    mapped = max((each.bytes for each in libraries if each.family == "libnvinfer"), default=0)
    mapped += sum(each.bytes for each in libraries if each.family.startswith("libnvinfer_builder"))
    return DEFAULT_WORKSPACE_MIB + _CONTEXT_MIB + (mapped + _COPIES * model_bytes) / 2**20


def _package(name: str, seen: _Machine) -> Check:
    version, jetson = seen.host.installed(name), seen.facts.jetson
    if version is not None:
        return _ok(name, version)
    extra = "jetson" if jetson else "export"
    needed = {"onnxruntime": "eval, infer and bench need it", "onnx": "eval, bench and build-engine need it"}
    if name in needed:
        return _problem(name, "not installed", f"{needed[name]}: {install(extra)}")
    if name == "pycuda" and jetson:
        cuda = "" if has_compiler(seen.host.root) else "   (needs nvcc: sudo apt install nvidia-jetpack)"
        return _warning(name, "not installed", f"Engines run with it: {install('jetson')}{cuda}")
    if name == "torch" and not jetson:
        hint = f"train and export need it, the rest works without: {install('train')}"
        return _warning(name, "not installed", hint)
    return _ok(name, "not installed (not needed here)")


def _tensorrt(seen: _Machine) -> Check:
    full, rtx = seen.host.installed("tensorrt"), seen.host.installed("tensorrt_rtx")
    named = (("TensorRT", full), ("TensorRT-RTX", rtx))
    found = ", ".join(f"{name} {version}" for name, version in named if version) or "not installed"
    if seen.facts.jetson and (second := _second_tensorrt(seen, full)):
        hint = "pip uninstall -y tensorrt tensorrt-cu12 tensorrt-cu13   (JetPack's own is the one that fits)"
        return _problem("tensorrt", f"{found}; {second}", hint)
    if full or (rtx and not seen.facts.jetson):
        return _ok("tensorrt", found)
    jetpack = jetpack_of(seen.facts.l4t) if seen.facts.jetson else None
    if jetpack is not None and not jetpack.runs_package and (library := version_in(seen.libraries, "libnvinfer")):
        hint = f"JetPack's bindings are for Python {jetpack.python}: build with trtexec, as a bundle's build.sh does."
        return _warning("tensorrt", f"{found} for this Python; its library is {library}", hint)
    if seen.facts.jetson:
        hint = "It comes with JetPack: sudo apt install tensorrt python3-libnvinfer   (never pip install it here)"
        return _problem("tensorrt", found, hint)
    hint = f"build-engine needs it, also without a GPU; ONNX files run without: {install('rtx')}"
    return _warning("tensorrt", found, hint)


def _second_tensorrt(seen: _Machine, bindings: str | None) -> str | None:
    """Say what shows that pip brought a TensorRT beside JetPack's."""
    if seen.host.installed("tensorrt_libs") is not None:
        return "pip brought a second one (tensorrt_libs)"
    library = version_in(seen.libraries, "libnvinfer")
    if bindings is None or bindings == "?" or library is None or same_release(bindings, library):
        return None
    return f"its library is libnvinfer {library}"


def _whole_libraries(seen: _Machine) -> Check:
    broken = [each for each in seen.libraries if each.fault]
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        hint = "Install JetPack's packages again: sudo apt install --reinstall tensorrt nvidia-l4t-cuda"
        if seen.facts.container:
            hint = (
                "The image was made for a runtime that mounts them; take one that brings its own, such as "
                f"l4t-jetpack, and start it with {GPU_FLAGS[0]}."
            )
        return _problem("libraries", f"{broken[0].path}: {broken[0].fault}{more}", hint)
    found = [each for each in seen.libraries if each.family in _TENSORRT]
    if not found:
        return _ok("libraries", "no TensorRT libraries of the system")
    main = max((each for each in found if each.family == "libnvinfer"), key=lambda e: e.bytes, default=found[0])
    return _ok("libraries", f"{main.path}, {main.bytes / 2**20:.1f} MiB")


def _cuda(seen: _Machine) -> Check:
    version = cuda_version(seen.host.root, seen.libraries)
    driver = any(each.family == "libcuda" for each in seen.libraries)
    found = f"{version or 'no toolkit'}, {'libcuda found' if driver else 'no libcuda'}"
    if seen.facts.has_gpu and not driver:
        hint = "The driver's library is not here. "
        hint += f"Start with: {_IN_CONTAINER}" if seen.facts.container else "Install the NVIDIA driver."
        return _warning("cuda", found, hint)
    if seen.facts.jetson and version is None:
        return _warning("cuda", found, "It comes with JetPack: sudo apt install nvidia-jetpack")
    return _ok("cuda", found)


def _gpu(facts: DeviceFacts) -> Check:
    if facts.has_gpu:
        version = f"driver {facts.driver}, " if facts.driver else ""
        return _ok("gpu", version + ", ".join(facts.gpu_nodes))
    if facts.jetson:
        inside = f"Start the container with: {_IN_CONTAINER}"
        hint = inside if facts.container else "Flash JetPack anew; `dmesg | grep -i nvgpu` may say why."
        return _problem("gpu", "no GPU device file", hint)
    found = f"driver {facts.driver}, but no GPU device file" if facts.driver else "no NVIDIA GPU"
    hint = "Training, eval and bench run on the CPU; TensorRT-RTX still builds engines, which run elsewhere."
    return _warning("gpu", found, hint)


def _rights(seen: _Machine) -> Check:
    nodes = nodes_to_open(seen.host.root)
    if not nodes:
        return _ok("rights", "no device files to open")
    closed = [node for node in nodes if not seen.host.may_open(seen.host.root / node.lstrip("/"))]
    if not closed:
        return _ok("rights", f"may open all {len(nodes)} device files")
    groups = list(dict.fromkeys(seen.host.group_of(seen.host.root / node.lstrip("/")) for node in closed))
    if None in groups:
        hint = "No group may open it: `ls -l` it. On a Jetson its udev rule did not run: sudo udevadm trigger"
    elif seen.facts.container:
        hint = "Start the container with: " + " ".join(f"--group-add {group}" for group in groups)
    else:
        names = _group_names(seen.host.root)
        said = ",".join(names.get(group, str(group)) for group in groups if group is not None)
        hint = f"sudo usermod -aG {said} $USER   and log in again"
    more = f" and {len(closed) - 2} more" if closed[2:] else ""
    return _problem("rights", f"may not open {', '.join(closed[:2])}{more}", hint)


def _group_names(root: Path) -> dict[int, str]:
    """Return the names of this machine's groups by number; a container's need not be those of its host."""
    found = re.findall(r"^([^:\s]{1,32}):[^:\n]*:(\d{1,10}):", read_text(root / "etc/group") or "", re.M)
    return {int(number): name for name, number in found}


def _memory(seen: _Machine, model_bytes: int) -> Check:
    total, free = seen.facts.memory_gib, seen.facts.memory_free_gib
    if total is None:
        return _warning("memory", "unknown", "/proc/meminfo says nothing; `free -m` may.")
    peak = build_peak_mib(seen.libraries, model_bytes=model_bytes) / 1024
    found = f"{total:.1f} GiB" + ("" if free is None else f", {free:.1f} GiB free; a build may take {peak:.1f} GiB")
    if free is not None and free < peak:
        hint = "Close other programs (a desktop takes 1 GiB: sudo init 3), or lower `build-engine --workspace-mib`."
        return _warning("memory", found, hint)
    return _ok("memory", found)


def _disk(host: Host) -> Check:
    try:
        free = host.free_bytes(host.folder) / 2**30
    except OSError as cause:  # such as a working directory that was deleted
        return _warning("disk", f"unknown ({cause.strerror})", "Go to a folder that is there: cd")
    if free < 1:
        hint = "Runs and engines may not fit; free some space or use `--out`."
        return _warning("disk", f"{free:.1f} GiB free here", hint)
    return _ok("disk", f"{free:.1f} GiB free here")


def _jetson(root: Path, machine: DeviceFacts) -> Check:
    """Which board, L4T and JetPack, and whether the Python package supports it."""
    jetpack = jetpack_of(machine.l4t)
    known = f" (JetPack {jetpack.major})" if jetpack else ""
    module = module_of(machine)
    found = f"{machine.jetson} ({module or 'which module is unknown'}), L4T {machine.l4t or 'unknown'}{known}"
    if machine.l4t is None:
        guess = jetpack_of_kernel(read_text(root / "proc/sys/kernel/osrelease") or "")
        found += f", by its kernel JetPack {guess}" if guess else ""
        hint = f"In a container add: {_MOUNT_RELEASE}" if machine.container else "cat /etc/nv_tegra_release"
        return _warning("jetson", found, hint)
    if jetpack is None or not jetpack.runs_package:
        hint = "JetPack before 6 has a Python older than 3.10: build there with trtexec, as a bundle's build.sh does."
        return _warning("jetson", found, hint)
    if module is None and machine.container:
        tree = f"tr '\\0' '\\n' </proc/device-tree/compatible >{COMPATIBLE_COPY}"
        hint = f"On the host: {tree}   and start the container with: -v {COMPATIBLE_COPY}:{COMPATIBLE_COPY}:ro"
        return _warning("jetson", found, hint)
    return _ok("jetson", found)


def _image(root: Path, machine: DeviceFacts, *, tensorrt: str | None) -> Check:
    """Whether the container fits the L4T of its host: by the base image it was built on, else by its TensorRT."""
    if not machine.container:
        return _ok("image", "not in a container")
    base = (read_text(root / BASE_IMAGE_FILE) or "unknown")[:120]
    host, stock = machine.l4t, jetpack_of(machine.l4t)
    found = f"base {base}, host L4T {host or 'unknown'}"
    if host is None or stock is None:
        return _warning("image", found, f"Whether they fit can't be told; add: {_MOUNT_RELEASE}")
    rebuild = "Build the image with --build-arg BASE_IMAGE=... of the host's JetPack; Dockerfile.jetson lists them."
    tag = re.search(r"l4t-(?:jetpack|base):r(\d{1,3}(?:\.\d{1,3})*)", base)  # of l4t-tensorrt it is TensorRT's
    if tag and ((inside := jetpack_of(tag[1])) is None or inside.images != stock.images):
        return _problem("image", found, rebuild)
    if tag:
        return _ok("image", found)
    if tensorrt is None:
        return _warning("image", f"{found}, no TensorRT in the image", f"Engines can't be built in it. {rebuild}")
    if not same_release(tensorrt, stock.tensorrt):
        its = ".".join(stock.tensorrt.split(".")[:2])
        return _warning("image", f"{found}, TensorRT {tensorrt} where JetPack {stock.major} has {its}", rebuild)
    return _ok("image", f"{found}, TensorRT {tensorrt}")


def _runtime(root: Path, machine: DeviceFacts) -> Check:
    """Whether containers get the GPU: NVIDIA's runtime or a CDI description; in a container, whether this one did."""
    if machine.container:
        if machine.has_gpu:
            return _ok("runtime", "this container has the GPU")
        return _problem("runtime", "this container has no GPU", f"Start it with: {_IN_CONTAINER}")
    ways = gpu_flags(root)
    if ways:
        supported = machine.l4t is None or ((its := jetpack_of(machine.l4t)) is not None and its.runs_package)
        line = docker_run(root, gpu=next(iter(ways.values()))) if supported else ""
        return _ok("runtime", " and ".join(ways), hint=line)
    if exists(root / "usr/bin/nvidia-ctk"):
        hint = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
        return _warning("runtime", "nvidia-container-toolkit, but Docker does not know of it", hint)
    hint = "Only containers need it: sudo apt install nvidia-container-toolkit"
    return _warning("runtime", "no nvidia runtime, no CDI description", hint)


def _power_mode(root: Path, machine: DeviceFacts) -> Check:
    """In which power mode it is: a latency without it means nothing."""
    mode = read_power_mode(root)
    among = f" (of {', '.join(mode.modes.values())})" if mode.modes else ""
    if mode.name is None:
        hint = f"In a container add: {' '.join(_MOUNT_MODES)}" if machine.container else "sudo nvpmodel -q"
        return _warning("power mode", f"unknown{among}", hint)
    return _ok("power mode", f"{mode.name}{among}")


def _clocks(root: Path) -> Check:
    """Whether the clocks stand still, as a measurement wants them."""
    ranges = read_clocks(root)
    if not ranges:
        return _warning("clocks", "unknown", "On the device itself: sudo jetson_clocks --show")
    moving = [each for each in ranges if not each.pinned]
    if moving:
        first = moving[0]
        found = f"{first.name} moves between {first.lowest_mhz:.0f} and {first.highest_mhz:.0f} MHz"
        found += f", as {len(moving) - 1} other clocks do" if moving[1:] else ""
        return _warning("clocks", found, "Before `bench`, on the device itself: sudo jetson_clocks")
    return _ok("clocks", f"pinned, {ranges[0].name} at {ranges[0].highest_mhz:.0f} MHz")
