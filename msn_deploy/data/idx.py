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
from msn_deploy.data.images import Raw

PREFIX = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08


def read_idx_folder(folder: Path, split: str) -> Raw | None:
    """Read the "train" or "test" split of a folder with MNIST's file names, or None if it has no images of the split.

    Raises InputError for damaged files, and for images and labels that do not belong together.
    """
    images_file = _either(folder, f"{PREFIX[split]}-images-idx3-ubyte")
    if images_file is None:
        return None
    stem = f"{PREFIX[split]}-labels-idx1-ubyte"
    labels_file = _either(folder, stem)
    if labels_file is None:
        raise InputError(f"{images_file} has no labels beside it: {folder / stem}[.gz] is missing.")
    images = read_idx(images_file, rank=3)
    labels = read_idx(labels_file, rank=1).astype(np.int64)
    if len(images) != len(labels) or len(images) == 0:
        raise InputError(f"{images_file} holds {len(images)} images, {labels_file.name} {len(labels)} labels.")
    classes = tuple(str(label) for label in range(max(int(labels.max()) + 1, 10)))
    return Raw(images=images, labels=labels, classes=classes)


def _either(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


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
