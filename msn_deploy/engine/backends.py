"""Which TensorRT builds for this target, or where else does the engine have to be built?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice, shorten
from msn_deploy.core.optional import install, require
from msn_deploy.machine.device import DeviceFacts, target_of, what_machine
from msn_deploy.machine.targets import Target

BACKENDS = ("auto", "tensorrt", "tensorrt-rtx")
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_STEP = "build-engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """An imported TensorRT. name: "tensorrt" or "tensorrt-rtx". module: its Python module, the same API in both."""

    name: str
    module: Any
    version: str

    @property
    def title(self) -> str:
        """Name and version for messages."""
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """It builds ahead of time, for GPUs that this machine lacks."""
        return self.name == "tensorrt-rtx"


def load_plugins(trt: Any, logger: Any, libraries: Sequence[Path], *, title: str) -> None:
    """Make the operators of these libraries known to TensorRT, and those of NVIDIA's own plugin library.

    A library registers its operators when it is loaded, as with trtexec's `--staticPlugins`. Raises InputError for one
    that does not load, and for any where TensorRT takes none (TensorRT-RTX).
    """
    if libraries:
        check_plugins(trt, title=title)
    for path in libraries:
        try:
            ctypes.CDLL(str(path.absolute()), mode=ctypes.RTLD_GLOBAL)
        except OSError as cause:
            raise InputError(
                f"{path} does not load: {shorten(cause)}.\n"
                "`--plugins` takes a shared library that was built on this machine for its TensorRT."
            ) from cause
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")


def check_plugins(trt: Any, *, title: str) -> None:
    """Raise InputError if this TensorRT has no way to add an operator."""
    if not (hasattr(trt.INetworkDefinition, "add_plugin_v3") or hasattr(trt.INetworkDefinition, "add_plugin_v2")):
        raise InputError(
            f"{title} takes no operators but its own.\n"
            "Leave `--plugins` out and replace them in the network, or build with TensorRT, which takes plugins."
        )


def pick_backend(
    name: str,
    target: Target | None,
    *,
    machine: DeviceFacts | None = None,
    load: Callable[..., ModuleType] = require,
) -> Backend:
    """Import the TensorRT that builds for a target; None = this machine's GPU, or any at all where it has none.

    "auto" prefers TensorRT where it can build (a GPU is here), and takes TensorRT-RTX otherwise.
    Raises InputError for a name or a pair of name and target that cannot be, MissingDevice if the engine has to be
    built elsewhere, MissingDependency if no TensorRT can be imported.
    """
    check_backend(name)
    machine = machine or what_machine()
    if target is not None and must_build_elsewhere(target, name, machine):
        raise needs_device(target)
    if target is not None and not target.jetson and name == "tensorrt":
        raise InputError(
            f"TensorRT builds only for the GPU that it runs on, not for {target.name}.\n"
            "Leave out `--target`, or take `--backend tensorrt-rtx`."
        )
    if name != "auto":
        candidates = [name]
    elif machine.jetson:
        candidates = ["tensorrt"] if target is None or target.jetson else ["tensorrt-rtx"]
    elif target is None and machine.has_gpu:
        candidates = ["tensorrt", "tensorrt-rtx"]
    else:
        candidates = ["tensorrt-rtx"]
    causes = []
    for candidate in candidates:
        try:
            module: Any = load(_MODULES[candidate], step=_STEP)
        except (MissingDependency, OSError) as cause:  # OSError: a wheel whose shared libraries do not load
            causes.append(f"{_MODULES[candidate]}: {cause.__cause__ or cause}")
        else:
            return Backend(name=candidate, module=module, version=str(getattr(module, "__version__", "unknown")))
    raise MissingDependency(
        f"`{_STEP}` could not import a TensorRT ({'; '.join(causes)}).\n"
        f"Workstation, with or without a GPU: {install('rtx')}. The full TensorRT can't be installed from the package "
        "index alone: its sdist fetches from the vendor's own index.\n"
        "Jetson: it comes with JetPack, never from pip: sudo apt install tensorrt python3-libnvinfer "
        "(a venv needs --system-site-packages)."
    )


def check_backend(name: str) -> None:
    """Raise InputError for a name that is not one of BACKENDS."""
    if name not in BACKENDS:
        raise InputError(f"there is no backend {name!r}.\nChoose one of {', '.join(BACKENDS)}.")


def must_build_elsewhere(target: Target, name: str, machine: DeviceFacts) -> bool:
    """Whether a plan for this target cannot be built on this machine, whatever is installed."""
    if not target.jetson:
        return False
    here = target_of(machine)
    other = here is not None and here.compute_capability != target.compute_capability
    return machine.jetson is None or other or name == "tensorrt-rtx"


def why_elsewhere(target: Target) -> str:
    """Return the sentence that says why a plan for a Jetson is built on it."""
    return (
        f"an engine for {target.title} ({target.sm}) is built on that device: TensorRT plans are tied to the GPU, the "
        f"OS and the exact TensorRT version, and TensorRT-RTX has no {target.sm} target"
    )


def needs_device(target: Target) -> MissingDevice:
    """Return the error for a plan that can't be built on this machine."""
    return MissingDevice(
        f"{why_elsewhere(target)}.\n"
        f"`msn-deploy build-engine ONNX --target {target.name}` writes a script that builds it there."
    )
