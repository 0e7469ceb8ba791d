"""Arrays in .npy and .npz files, read from front to back: what stands before the numbers, then as many as are wanted.

Objects are never loaded: they would run what the file says.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import Kind, open_entry, open_input, open_zip, taken

_NOT_NUMPY = (ValueError, LookupError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError)
"""What numpy raises on a text that it takes for a header."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the numbers of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


def archive(path: Path, stack: ExitStack, kind: Kind) -> ZipFile:
    """Open a .npz file, which is closed with the stack; kind: "any" for one that is read a piece at a time.

    Raises InputError.
    """
    return stack.enter_context(open_zip(stack.enter_context(open_input(path, kind)), source=path, kind=kind))


def array_in(path: Path, name: str, stack: ExitStack, kind: Kind) -> IO[bytes]:
    """Open an array of a .npz file, or a .npy file, for reading from its beginning. Raises InputError."""
    if path.suffix.lower() == ".npy":
        return stack.enter_context(open_input(path, kind))
    return stack.enter_context(open_entry(archive(path, stack, kind), f"{name}.npy", source=path))


def header_of(stream: IO[bytes], path: Path) -> Header:
    """Read what stands before the numbers. Raises InputError for another format, and for objects."""
    start = bytes(taken(stream, 8, source=path, kind="settings"))
    more = {1: 2, 2: 4}.get(start[6], 0)  # bytes that the length of the text takes
    length = taken(stream, more, source=path, kind="settings")
    text = taken(stream, int.from_bytes(length, "little"), source=path, kind="settings")
    try:
        lines = BytesIO(start + length + text)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[np.lib.format.read_magic(lines)[0]](lines)
        if min(shape, default=0) < 0 or not dtype.itemsize or dtype.shape:
            raise ValueError(shape)
    except _NOT_NUMPY as cause:
        raise InputError(f"{path} is not in numpy's format ({type(cause).__name__}).\nSave it again.") from cause
    if dtype.hasobject:
        raise InputError(f"{path} holds Python objects, which are never loaded.\nSave arrays of numbers.")
    return Header(shape, dtype, fortran)


def take(stream: IO[bytes], shape: tuple[int, ...], header: Header, path: Path) -> NDArray[Any]:
    """Read the next array of a stream. Raises InputError where it is very large, damaged, or ends before."""
    data = taken(stream, math.prod(shape) * header.dtype.itemsize, source=path, kind="data")
    array = np.frombuffer(data, header.dtype).reshape(shape, order="F" if header.fortran else "C")
    return array.astype(header.dtype.newbyteorder("="), copy=False)
