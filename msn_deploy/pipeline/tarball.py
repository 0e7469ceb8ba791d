"""How are files packed so that the same files give the same bytes, and unpack nowhere but below one folder?"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath


def write_tarball(path: Path, contents: Mapping[str, bytes | Path], *, top: str, executable: Collection[str]) -> None:
    """Write a ustar archive of one folder `top`: names sorted, times and owners zero, nothing but plain files.

    contents: path in the folder -> bytes, or the file that holds them. Raises ValueError for a path that leads out.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(contents):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or top in ("", ".", ".."):
                raise ValueError(f"{top}/{name} would unpack outside of its folder")
            content = contents[name]
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.mode = 0o755 if name in executable else 0o644
            entry.size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
                archive.addfile(entry, stream)
