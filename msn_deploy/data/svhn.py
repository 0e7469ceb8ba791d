"""SVHN in its cropped form: MATLAB files with X (32, 32, 3, N) and y (N, 1), where label 10 stands for the digit 0.

The files are of MATLAB 5, plain or packed, as `save -v6` and `save -v7` write them. Our own code reads them although
scipy has a reader: that one, written in C, ends the whole process on some damaged files (seen with scipy 1.17.1: a
segmentation fault for a few changed bytes). It also keeps a device free of scipy.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import inflated, read_input, require_size
from msn_deploy.data.images import DIGITS, Raw

PUBLISHED = "train_32x32.mat and test_32x32.mat of ufldl.stanford.edu/housenumbers (format 2, cropped digits)"
_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
_HINT = f"Download it again: {PUBLISHED}."
_HEADER = 128  # bytes: text, version, byte order
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_MATRIX, _PACKED = 14, 15
_NUMERIC_CLASSES = range(6, 16)  # double to uint64; others are cells, structs, text, sparse, objects
_COMPLEX = 0x0800


def read_svhn(folder: Path, split: str) -> Raw | None:
    """Read the "train" or "test" split of a folder, or None if it holds no SVHN.

    Raises InputError if the split's file is missing, damaged or holds something else.
    """
    if not any(os.path.isfile(folder / name) for name in _FILES.values()):
        return None
    path, hint = folder / _FILES[split], _HINT
    found = read_matlab(path, hint=hint)
    images, labels = found.get("X"), found.get("y")
    if images is None or images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or images.ndim != 4:
        raise InputError(f"{path}: X should be uint8 32x32x3xN, is {_described(images)}.\n{hint}")
    if labels is None or labels.dtype.kind not in "iu" or labels.shape[1:] != (1,) or len(labels) == 0:
        raise InputError(f"{path}: y should be whole numbers Nx1, is {_described(labels)}.\n{hint}")
    if images.shape[3] != len(labels):
        raise InputError(f"{path} holds {images.shape[3]} images and {len(labels)} labels.\n{hint}")
    digits = labels[:, 0].astype(np.int64)
    if digits.min() < 1 or digits.max() > len(DIGITS):
        raise InputError(f"{path} has labels {digits.min()} to {digits.max()}, SVHN has 1 to 10.\n{hint}")
    return Raw(
        images=np.ascontiguousarray(images.transpose(3, 0, 1, 2)),
        labels=digits % len(DIGITS),
        classes=DIGITS,
    )


def _described(array: NDArray[np.generic] | None) -> str:
    return "missing" if array is None else f"{array.dtype} {'x'.join(map(str, array.shape))}"


def read_matlab(path: Path, *, hint: str) -> dict[str, NDArray[np.generic]]:
    """Return the real numeric arrays of a MATLAB 5 file by name, in the type that they are stored in.

    Variables of any other kind are left out. Raises InputError, which ends in `hint`, for damage and other formats.
    """
    raw = read_input(path, "data")
    if raw.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise InputError(f"{path} is a MATLAB 7.3 (HDF5) file; a version 5 file is needed.\n{hint}")
    if not raw.startswith(b"MATLAB 5.0"):
        raise InputError(f"{path} is not a MATLAB 5 file (starts with {raw[:4].hex(' ')}).\n{hint}")
    try:
        if raw[126:_HEADER] != b"IM":
            raise ValueError("no mark of little-endian numbers")
        return dict(_arrays(memoryview(raw)[_HEADER:], path))
    except (ValueError, KeyError, IndexError, struct.error, zlib.error) as cause:
        raise InputError(f"{path} is a damaged MATLAB file ({type(cause).__name__}: {cause}).\n{hint}") from cause


def _arrays(data: memoryview, path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    unpacked = 0
    for kind, content in _elements(data):
        if kind == _PACKED:
            _, size = struct.unpack("<II", inflated(content, 8))
            unpacked += size
            require_size(unpacked, source=f"{path}, unpacked,", kind="data")
            ((kind, content),) = _elements(memoryview(inflated(content, 8 + size + 1)))
        if kind != _MATRIX:
            raise ValueError(f"a variable of type {kind}")
        (_, flags), (_, shape), (_, name), *values = _elements(content)
        (word,) = struct.unpack_from("<I", flags)
        if word & 0xFF in _NUMERIC_CLASSES and not word & _COMPLEX:
            yield bytes(name).decode("ascii"), _array(np.frombuffer(shape, dtype="<i4").tolist(), *values[0])


def _array(shape: list[int], kind: int, content: memoryview) -> NDArray[np.generic]:
    stored = np.frombuffer(content, dtype=_NUMBERS[kind])
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) != len(stored):
        raise ValueError(f"{len(stored)} numbers for a shape of {shape}")
    return stored.reshape(shape, order="F")


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the content of each element; contents of up to 4 bytes may be in the tag itself."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        short = kind >> 16
        start = at + 4 if short else at + 8
        kind, size = (kind & 0xFFFF, short) if short else (kind, size)
        content = data[start : start + size]
        if len(content) < size or short > 4:
            raise ValueError(f"{size} bytes announced, {len(content)} there")
        yield kind, content
        padding = 0 if kind == _PACKED else -size % 8
        at = at + 8 if short else start + size + padding
