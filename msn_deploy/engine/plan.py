"""What is this plan, by its sidecar, and what does it meet on this machine?"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import Parent, Sidecar, read_sidecar, sidecar_path
from msn_deploy.core.errors import InputError, shown
from msn_deploy.core.model_info import PRECISIONS, ModelInfo, info_from_json
from msn_deploy.core.opening import open_input
from msn_deploy.machine.device import DeviceFacts, Gpu, first_gpu, module_of, target_of, what_machine
from msn_deploy.machine.libraries import find_libraries, installed_version, version_in
from msn_deploy.machine.targets import TARGETS, sm

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_KINDS: Mapping[str, tuple[type, ...]] = {
    "backend": (str,),
    "backend_version": (str,),
    "precision": (str,),
    "compute_capability": (str, type(None)),
    "device": (str, type(None)),
    "dla_core": (int, type(None)),
    "plugins": (list, type(None)),
    "version_compatible": (bool, type(None)),
    "hardware_compatible": (bool, type(None)),
    "machine": (dict, type(None)),
    "info": (str, type(None)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What a plan meets: the machine, its first GPU, and the version of each TensorRT that is installed, by backend.

    A version that cannot be told without importing it is "?".
    """

    machine: DeviceFacts
    gpu: Gpu | None
    versions: Mapping[str, str]

    @property
    def jetson(self) -> str | None:
        """The module, such as "Jetson Orin Nano 8GB"; None for any other machine, and where it is not known."""
        return module_of(self.machine)

    @property
    def compute_capability(self) -> str | None:
        """Such as "8.7"; None if there is no GPU."""
        if self.gpu is not None:
            return self.gpu.compute_capability
        target = target_of(self.machine)
        return target.compute_capability if target else None

    @property
    def title(self) -> str:
        """All of that in a few words."""
        libraries = " and ".join(f"{TITLES[name]} {version}" for name, version in self.versions.items())
        return _listed(
            libraries or "no TensorRT",
            sm(self.compute_capability) if self.compute_capability else "no GPU",
            self.jetson or self.machine.jetson or (self.gpu.name if self.gpu else None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan and what its sidecar says of it. data: the very bytes whose SHA-256 was taken.

    backend: "tensorrt" or "tensorrt-rtx". compute_capability: such as "8.7". device: the GPU that its kernels were
    timed on, jetson: the module, arch: of the CPU, l4t, driver: of the machine that timed them; all None where nothing
    says so. dla_core: None for the GPU.
    version_compatible: later TensorRT versions load it too. hardware_compatible: so does any GPU since Ampere.
    onnx: the file it was built from. info: what that file says of itself. needs: names of the libraries with plugins
    that it was built with. shapes: the ranges that it was given, as `--shapes` writes them. plugins: the libraries
    that are given to load it.
    """

    path: Path
    data: bytes = field(repr=False)
    sha256: str
    backend: str
    backend_version: str
    precision: str
    compute_capability: str | None
    device: str | None
    jetson: str | None
    arch: str | None
    l4t: str | None
    driver: str | None
    dla_core: int | None
    version_compatible: bool
    hardware_compatible: bool
    onnx: Parent
    info: ModelInfo | None
    needs: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()

    @property
    def is_rtx(self) -> bool:
        """It is of TensorRT-RTX, which finishes it on the GPU that it meets instead of timing kernels ahead."""
        return self.backend == "tensorrt-rtx"

    @property
    def title(self) -> str:
        """What it was built for, in a few words."""
        return _listed(
            f"{TITLES[self.backend]} {self.backend_version}",
            sm(self.compute_capability) if self.compute_capability else None,
            self.jetson or self.device,
        )

    def rebuild(self, here: Here) -> str:
        """Return the command that builds it for this machine, or for the same GPUs as before where there is none."""
        target = target_of(here.machine)
        if target is None and self.is_rtx and "tensorrt" not in here.versions:
            wanted = here.compute_capability or self.compute_capability
            target = next((each for each in TARGETS if not each.jetson and each.compute_capability == wanted), None)
        options = ["--precision", self.precision, *(["--target", target.name] if target else [])]
        if self.dla_core is not None and (target is None or self.dla_core < target.dla_cores):
            options += ["--dla", str(self.dla_core)]
        options += [word for shapes in self.shapes for word in ("--shapes", shapes)]
        options += [word for library in self.needs for word in ("--plugins", library)]
        return shlex.join(["msn-deploy", "build-engine", self.onnx.file, *options, "--out", self.path.name])


def what_is_here() -> Here:
    """Find out what this machine has; nothing of TensorRT or CUDA is imported."""
    found = {name: installed_version(module) for name, module in _MODULES.items()}
    if found["tensorrt"] == "?":  # bindings without metadata: JetPack's are of the version of its library
        found["tensorrt"] = version_in(find_libraries(Path("/")), "libnvinfer") or "?"
    versions = {name: version for name, version in found.items() if version is not None}
    return Here(machine=what_machine(), gpu=first_gpu(), versions=versions)


def read_plan(path: Path) -> Plan:
    """Read a plan and its sidecar, and compare them.

    Raises InputError: there is no such file, it has no sidecar, one of another version, or one of another file.
    """
    name = sidecar_path(path).name
    with open_input(path, "engine") as stream:
        if not os.path.exists(sidecar_path(path)):
            raise InputError(
                f"{path} has no sidecar {name}: nothing says where it comes from and what it was built for.\n"
                "Copy the sidecar too, or build the plan with `msn-deploy build-engine`."
            )
        side = read_sidecar(path)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        data = stream.read() if size == side.bytes else b""
    digest = hashlib.sha256(data).hexdigest()
    if size != side.bytes or digest != side.sha256:
        found = f"its SHA-256 is {digest[:12]}..., {name} says {side.sha256[:12]}..."
        if size != side.bytes:
            found = f"it has {size} bytes, {name} says {side.bytes}"
        raise InputError(
            f"{path} is damaged, or was replaced by another: {found}.\nCopy both files again, or build it again."
        )
    return _described(path, data, side, name)


def _described(path: Path, data: bytes, side: Sidecar, name: str) -> Plan:
    """Take what is needed out of a sidecar, which may hold anything: it is only sealed, not signed."""
    onnx = next((parent for parent in side.parents if parent.role == "onnx"), None)
    if side.kind != "engine" or onnx is None:
        raise InputError(f"{name} describes a file of kind {side.kind!r}, not a plan built from an ONNX file.")
    facts: dict[str, Any] = {key: side.facts.get(key) for key in _KINDS}
    for key, value in facts.items():
        known = {"backend": TITLES, "precision": PRECISIONS}.get(key)
        if type(value) not in _KINDS[key] or (known is not None and value not in known):
            raise InputError(
                f"{name} says {key} = {shown(value)}, which this version does not know.\nUpdate msn-deploy."
            )
    machine, info, needs = facts.pop("machine") or {}, facts.pop("info"), facts.pop("plugins") or []
    arch, model, memory, l4t, driver = (machine.get(key) for key in ("arch", "jetson", "memory_gib", "l4t", "driver"))
    shapes = side.config.get("shapes") or []
    if not isinstance(shapes, list):
        said = shown(shapes)
        raise InputError(f"{name} says shapes = {said}, which this version does not know.\nUpdate msn-deploy.")
    shapes = [str(each) for each in shapes]
    for text in (onnx.file, arch, model, l4t, driver, *map(str, needs), *shapes, *facts.values()):
        if isinstance(text, str) and not text.isprintable():  # it goes to the terminal, before anything is trusted
            raise InputError(f"{name} holds {shown(text)}, which cannot be a name.\nBuild the plan again.")
    compatible = machine.get("compatible") or ()
    module = None
    if isinstance(model, str) and isinstance(memory, int | float | None) and isinstance(compatible, list | tuple):
        module = module_of(_machine(model, memory, tuple(map(str, compatible))))
    return Plan(
        path=path,
        data=data,
        sha256=side.sha256,
        jetson=module,
        arch=arch if isinstance(arch, str) else None,
        l4t=l4t if isinstance(l4t, str) else None,
        driver=driver if isinstance(driver, str) else None,
        onnx=Parent(role=onnx.role, file=Path(onnx.file).name, sha256=onnx.sha256),
        info=None if info is None else info_from_json(info, source=name),
        needs=tuple(map(str, needs)),
        shapes=tuple(shapes),
        **{**facts, **{key: bool(facts[key]) for key in ("version_compatible", "hardware_compatible")}},
    )


def _machine(model: str, memory_gib: float | None, compatible: tuple[str, ...]) -> DeviceFacts:
    return DeviceFacts(
        arch="", jetson=model, l4t=None, memory_gib=memory_gib, memory_free_gib=None, driver=None, gpu_nodes=(),
        container=False, compatible=compatible,
    )  # fmt: skip


def _listed(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)
