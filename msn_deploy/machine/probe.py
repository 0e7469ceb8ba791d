"""How are the files of any machine read, without ever raising, stalling or reading gigabytes?

Everything lies below a root, so that a test can describe a machine. What is a device, a pipe or a folder where a file
is expected counts as not there.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msn_deploy.core.optional import version_of

_LIMIT = 65536  # bytes: all these files are short
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt_rtx": ("tensorrt_rtx_cu13", "tensorrt_rtx_cu12", "tensorrt_rtx"),
}


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


def _may_open(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a machine is looked at; the defaults look at this one, a test gives those of another.

    root: where its file system starts. python: version and path of its interpreter. installed: the version of a Python
    module ("?" if it has none), None if it is not there. may_open: whether this process may read and write a device
    file. folder: where the work is done. free_bytes: of the disk under a folder; may raise OSError.
    """

    root: Path = Path("/")
    arch: str = field(default_factory=platform.machine)
    python: str = field(default_factory=lambda: f"{platform.python_version()}, {sys.executable}")
    installed: Callable[[str], str | None] = installed_version
    may_open: Callable[[Path], bool] = _may_open
    folder: Path = Path()
    free_bytes: Callable[[Path], int] = _free_bytes


def read_text(path: Path) -> str | None:
    """Return the printable start of a small file, without NULs and outer blanks; None if there is no such file."""
    raw = read_start(path, _LIMIT)
    if raw is None:
        return None
    text = raw.decode("utf-8", errors="replace")
    return "".join(char for char in text if char.isprintable() or char in "\n\t").strip()


def read_start(path: Path, count: int) -> bytes | None:
    """Return the first bytes of a plain file, or None."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            return None
        with path.open("rb") as stream:
            return stream.read(count)
    except (OSError, ValueError):
        return None


def exists(path: Path) -> bool:
    """Tell whether a path is there; what may not be looked at is not."""
    try:
        return path.exists()
    except OSError:
        return False


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder; none if there is no such folder, or it may not be listed."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []
