"""The IDX format of MNIST and its successors: magic 00 00 type rank, big-endian sizes, bytes; plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import open_input
from msn_deploy.core.errors import InputError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, *, rank: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes with the given number of dimensions; `.gz` is unpacked.

    Raises InputError if the file is missing, damaged, of another rank or type, or not of the size its header says.
    """
    with open_input(path) as stream:
        raw = stream.read()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as cause:
            raise InputError(f"{path} is a damaged gzip file ({cause}).\nDownload it again.") from cause
    header = 4 + 4 * rank
    if len(raw) < header or raw[:2] != b"\0\0" or raw[2] != _UNSIGNED_BYTE or raw[3] != rank:
        raise InputError(f"{path} is not an IDX file of bytes with {rank} dimensions (starts with {raw[:4].hex(' ')}).")
    shape = struct.unpack(f">{rank}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise InputError(
            f"{path} holds {len(raw) - header} bytes of data, its header promises {'x'.join(map(str, shape))}.\n"
            "Likely cause: a truncated download. Download it again."
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)
