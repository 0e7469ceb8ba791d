"""Which of NVIDIA's libraries does a file system hold, are they whole, and which Python packages are installed?

Since JetPack 5 the container runtime mounts the driver alone; images that were built as if it mounted everything hold
empty files in place of libraries, which the loader calls `file too short`. Nothing here raises, and nothing is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import version_of
from msn_deploy.core.reader import parse_json
from msn_deploy.machine.files import exists, names_in, read_start, read_text

_FOLDERS = (
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "usr/lib/aarch64-linux-gnu/tegra",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/wsl/lib",
    "usr/lib64",
    "usr/local/cuda/lib64",
    "usr/local/tensorrt/lib",
)
_NAME = re.compile(r"(libnvinfer\w*|libnvonnxparser|libcudart|libcuda)\.so((?:\.\d{1,9}){0,6})")
# By module; the first that is installed counts. Others are named as their module.
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),  # one per provider
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
}
_ELF = b"\x7fELF"
_HEADER = 64  # bytes of an ELF header: the loader calls anything shorter "file too short"


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """One library file. family: such as "libnvinfer". version: as its name says, such as "10.3.0", perhaps "".

    fault: "" if it looks whole, else what the loader would say of it.
    """

    path: str
    family: str
    version: str
    bytes: int
    fault: str


def installed_version(module: str) -> str | None:
    """Return the version of an installed module without importing it; "?" if it has none, None if it is not there."""
    versions = (version_of(distribution) for distribution in _DISTRIBUTIONS.get(module, (module,)))
    if found := next(filter(None, versions), None):
        return found
    try:
        return None if find_spec(module) is None else "?"
    except (ImportError, ValueError):  # a half-removed package
        return None


def find_libraries(root: Path) -> tuple[Library, ...]:
    """Return TensorRT's libraries, CUDA's runtime and the driver's, where the loader and JetPack look for them."""
    found = []
    for folder in _FOLDERS:
        for name in names_in(root / folder):
            match = _NAME.fullmatch(name)
            if match:
                size, fault = _look_at(root / folder / name)
                path, version = f"/{folder}/{name}", match[2].lstrip(".")
                found.append(Library(path=path, family=match[1], version=version, bytes=size, fault=fault))
    return tuple(found)


def version_in(libraries: tuple[Library, ...], family: str) -> str | None:
    """Return the most exact version that the names of a family tell ("10.3.0" before "10"); None if there is none."""
    versions = [each.version for each in libraries if each.family == family and each.version]
    return max(versions, key=lambda version: version.count("."), default=None)


def cuda_version(root: Path, libraries: tuple[Library, ...]) -> str | None:
    """Return the version of the CUDA toolkit, or at least of its runtime library; None if neither is there."""
    for name in ("cuda", *(name for name in names_in(root / "usr/local") if name.startswith("cuda-"))):
        home = root / "usr/local" / name
        try:
            version = parse_json(read_text(home / "version.json") or "{}", source="version.json")["cuda"]["version"]
        except (InputError, KeyError, TypeError):
            version = None
        text = version if isinstance(version, str) else read_text(home / "version.txt") or ""
        found = re.search(r"\d{1,3}\.\d{1,3}(\.\d{1,5})?", text)
        if found:
            return found[0]
    return version_in(libraries, "libcudart")


def has_compiler(root: Path) -> bool:
    """Tell whether CUDA's compiler is there, which pycuda is built with."""
    homes = (name for name in names_in(root / "usr/local") if name.startswith("cuda"))
    return any(exists(root / "usr/local" / name / "bin/nvcc") for name in homes)


def _look_at(path: Path) -> tuple[int, str]:
    try:
        size = path.stat().st_size
    except OSError:
        return 0, "link to nothing"
    start = read_start(path, len(_ELF))
    if start is None:
        return size, "cannot be read"
    if size < _HEADER:
        return size, f"file too short ({size} bytes)"
    return size, "" if start == _ELF else "invalid ELF header"
