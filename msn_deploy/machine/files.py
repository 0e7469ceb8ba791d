"""How are the files of any machine read, without ever raising, stalling or reading gigabytes?

Every path is below a root that the caller gives, so that a test can describe a machine. What is a device, a pipe or a
folder where a file is expected counts as not there.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_LIMIT = 65536  # bytes: all these files are short


def read_text(path: Path) -> str | None:
    """Return the printable start of a small file, without NULs and outer blanks; None if that is nothing."""
    raw = read_start(path, _LIMIT)
    if raw is None:
        return None
    text = raw.decode("utf-8", errors="replace")
    return "".join(char for char in text if char.isprintable() or char in "\n\t").strip() or None


def read_number(path: Path) -> int | None:
    """Return a file's whole number, or None."""
    text = read_text(path) or ""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def read_start(path: Path, count: int) -> bytes | None:
    """Return the first bytes of a plain file, or None."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            return None
        with path.open("rb") as stream:
            return stream.read(count)
    except (OSError, ValueError):  # a driver may answer with any error
        return None


def exists(path: Path) -> bool:
    """Tell whether a path is there; what may not be looked at is not."""
    try:
        return path.exists()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Tell whether a path leads to a folder; what may not be looked at does not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def group_of(path: Path) -> int | None:
    """Return the number of the group, not root's, whose members may read and write a file; None if there is none."""
    try:
        its = path.stat()
    except OSError:
        return None
    return its.st_gid if its.st_gid != 0 and its.st_mode & 0o060 == 0o060 else None


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder; none if there is no such folder, or it may not be listed."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def paths(root: Path, pattern: str) -> list[Path]:
    """Return what matches below the root, sorted by the numbers in the names, so that cpu10 comes after cpu9."""

    def key(path: Path) -> tuple[int, str]:
        digits = "".join(letter for letter in path.name if letter in "0123456789")
        return (int(digits[:18] or -1), path.name)

    try:
        return sorted(root.glob(pattern), key=key)
    except OSError:
        return []
