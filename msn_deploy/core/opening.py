"""The one way in for files that anybody may have made: plain files of a bounded size, unpacked within bounds.

    read_input(path, "settings")                  # all of it
    with open_input(path, "data") as stream:      # a stream of bytes, closed with the block
        taken(stream, count, source=path, kind="data")

A pipe would wait for its writer and a device may never end, so they are refused; what /proc shows has no size, so it is
empty. What is packed says first how much it holds: that is compared with the bound before anything is unpacked.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, Protocol

from msn_deploy.core.errors import InputError, size_text

Kind = Literal[
    "settings", "sidecar", "result", "text", "annotations", "weights", "model", "engine", "image", "data", "any"
]  # fmt: skip
MOST_BYTES: dict[Kind, int] = {
    "settings": 1 << 20,
    "sidecar": 1 << 24,
    "result": 1 << 28,
    "text": 1 << 25,
    "annotations": 1 << 29,
    "weights": (1 << 31) - 1,  # what one ONNX file can hold
    "model": (1 << 31) - 1,
    "engine": 1 << 32,
    "image": 1 << 30,
    "data": 5 << 28,
    "any": sys.maxsize,
}
"""How much of a file is taken in at most, packed or unpacked. any: of files that are read block by block."""
_CALLED: dict[Kind, str] = {
    "settings": "files of settings",
    "sidecar": "sidecars",
    "result": "results",
    "text": "lists and tables",
    "annotations": "files of annotations",
    "weights": "files of weights",
    "model": "ONNX files",
    "engine": "engines",
    "image": "images",
    "data": "files of data",
    "any": "files",
}
_ENTRIES = 1 << 16  # of an archive
_BLOCK = 1 << 20
_DAMAGE = (zlib.error, zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError)


@contextmanager
def open_input(path: Path, kind: Kind) -> Iterator[IO[bytes]]:
    """Open a plain file for reading bytes; every way in which that fails is an InputError that names it."""
    stream, size = _opened(path, kind)
    with stream:
        yield stream if size else io.BytesIO()


def is_same(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to the same place, links followed; Path.resolve raises where links go in a circle."""
    return os.path.realpath(one) == os.path.realpath(other)


def read_input(path: Path, kind: Kind) -> bytes:
    """Return the bytes of a plain file, as many as it has when it is opened. Raises InputError as `open_input`."""
    stream, size = _opened(path, kind)
    with stream:
        try:
            return stream.read(size)
        except OSError as cause:
            raise InputError(f"{path} cannot be read: {cause.strerror}.") from cause


def _opened(path: Path, kind: Kind) -> tuple[IO[bytes], int]:
    """Open a file; return also its size."""
    try:
        _require_plain(path, os.stat(path).st_mode)  # opening may be enough to change what a device does
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.\nCheck the path; `ls {path.parent}` shows what is there.") from None
    except OSError as cause:
        raise InputError(f"{path} cannot be read: {cause.strerror}.") from cause
    except ValueError as cause:  # a NUL, or half of a surrogate pair
        raise InputError(f"{str(path)!r} cannot be the name of a file.") from cause
    try:
        its = os.fstat(stream.fileno())
        _require_plain(path, its.st_mode)  # of what was opened: it may be another one by now
        require_size(its.st_size, source=path, kind=kind)
    except InputError:
        stream.close()
        raise
    return stream, its.st_size


def _require_plain(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; a file is needed.")
    if not stat.S_ISREG(mode):
        what = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise InputError(f"{path} is not a plain file: it is {what}.\nGive the name of a file.")


def require_size(count: int, *, source: object, kind: Kind) -> None:
    """Raise InputError for more bytes than a file of that kind may have, or may unpack to."""
    if count > (most := MOST_BYTES[kind]):
        said = size_text(min(count, sys.maxsize))  # a header can hold any number
        raise InputError(f"{source} has {said}; {_CALLED[kind]} of up to {size_text(most)} are read.")


class Readable(Protocol):
    """What bytes come from: a file, or what unpacks one."""

    def read(self, size: int, /) -> bytes:
        """Return up to that many of the next bytes; none at the end."""
        ...


def up_to(stream: Readable, count: int, *, source: object) -> bytearray:
    """Return the next `count` bytes of a stream, plain or unpacked, or all if they are fewer.

    Memory grows with what comes, not with what was announced. Raises InputError where the stream is damaged.
    """
    data = bytearray()
    try:
        while block := stream.read(min(_BLOCK, count - len(data))):
            data += block
    except _DAMAGE as cause:
        raise InputError(f"{source} is damaged ({type(cause).__name__}).\nSave or copy it again.") from cause
    return data


def taken(stream: Readable, count: int, *, source: object, kind: Kind) -> bytearray:
    """Return the next `count` bytes of a stream, plain or unpacked, as many as its header has announced.

    Raises InputError for more than a file of that kind may hold, and where the stream is damaged or ends before.
    """
    require_size(count, source=source, kind=kind)
    data = up_to(stream, count, source=source)
    if len(data) < count:
        raise InputError(f"{source} was cut off: of {count} bytes {len(data)} are there.\nSave or copy it again.")
    return data


def inflated(packed: bytes | memoryview, count: int) -> bytes:
    """Return the first `count` bytes, or all if they are fewer, that zlib's format unpacks to. Raises zlib.error."""
    return zlib.decompressobj().decompress(packed, count) if count else b""


def open_entry(archive: zipfile.ZipFile, name: str, *, source: object) -> IO[bytes]:
    """Open an entry of a zip archive. Raises InputError where it is missing, damaged or encrypted."""
    try:
        return archive.open(name)
    except (*_DAMAGE, LookupError) as cause:
        raise InputError(f"{source}: {name} cannot be read ({type(cause).__name__}).\nSave it again.") from cause


def open_zip(stream: IO[bytes], *, source: object, kind: Kind) -> zipfile.ZipFile:
    """Open a zip archive, of which zipfile unpacks no more than its directory announces.

    Raises InputError for a damaged one, one that is packed in an unusual way, and one whose entries have more together
    than a file of that kind may.
    """
    try:
        archive = zipfile.ZipFile(stream)
    except _DAMAGE as cause:
        raise InputError(f"{source} is not a whole zip archive ({type(cause).__name__}).") from cause
    entries = archive.infolist()
    if len(entries) > _ENTRIES:
        raise InputError(f"{source} has {len(entries)} entries; archives of up to {_ENTRIES} are read.")
    if any(each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for each in entries):
        raise InputError(f"{source} is packed otherwise than by deflate.\nPack it again.")
    require_size(sum(each.file_size for each in entries), source=f"{source}, unpacked,", kind=kind)
    return archive
