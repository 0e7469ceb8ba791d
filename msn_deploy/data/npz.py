"""Arrays in .npy and .npz files, read from front to back: what stands before the numbers, then as many as are wanted.

Objects are never loaded: they would run what the file says.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import open_input
from msn_deploy.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the numbers of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


def archive(path: Path, stack: ExitStack) -> zipfile.ZipFile:
    """Open a .npz file, which is closed with the stack. Raises InputError."""
    stream = stack.enter_context(open_input(path))
    try:
        return stack.enter_context(zipfile.ZipFile(stream))
    except (zipfile.BadZipFile, OSError, ValueError) as cause:
        raise InputError(f"{path} is not a .npz file ({type(cause).__name__}).\nSave it with numpy.savez.") from cause


def array_in(path: Path, name: str, stack: ExitStack) -> IO[bytes]:
    """Open an array of a .npz file, or a .npy file, for reading from its beginning. Raises InputError."""
    if path.suffix.lower() == ".npy":
        stream: IO[bytes] = stack.enter_context(open_input(path))
        return stream
    try:
        return stack.enter_context(archive(path, stack).open(f"{name}.npy"))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as cause:
        raise InputError(f"{path}: {name} cannot be read ({type(cause).__name__}).\nSave it again.") from cause


def header_of(stream: IO[bytes], path: Path) -> Header:
    """Read what stands before the numbers. Raises InputError for another format, and for objects."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
        if min(shape, default=0) < 0:
            raise ValueError(shape)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as cause:
        raise InputError(f"{path} is not in numpy's format ({type(cause).__name__}).\nSave it again.") from cause
    if dtype.hasobject:
        raise InputError(f"{path} holds Python objects, which are never loaded.\nSave arrays of numbers.")
    return Header(shape, dtype, fortran)


def take(stream: IO[bytes], shape: tuple[int, ...], header: Header, path: Path) -> NDArray[Any]:
    """Read the next array of a stream. Raises InputError where it is damaged or ends before."""
    size = math.prod(shape) * header.dtype.itemsize
    try:
        data = stream.read(size)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, OverflowError) as cause:
        raise InputError(f"{path} is damaged ({type(cause).__name__}).\nSave it again.") from cause
    if len(data) < size:
        raise InputError(f"{path} was cut off: {size} bytes of an array are {len(data)}.\nSave or copy it again.")
    array = np.frombuffer(data, header.dtype).reshape(shape, order="F" if header.fortran else "C")
    return array.astype(header.dtype.newbyteorder("="))
