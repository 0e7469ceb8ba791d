"""The IDX format of MNIST and its successors: magic 00 00 type rank, big-endian sizes, bytes; plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import Readable, open_input, require_size, up_to
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
    with open_input(path, "data") as stream:
        unpacked: Readable = gzip.GzipFile(fileobj=stream) if path.suffix == ".gz" else stream
        header = up_to(unpacked, 4 + 4 * rank, source=path)
        if len(header) < 4 + 4 * rank or header[:4] != bytes((0, 0, _UNSIGNED_BYTE, rank)):
            starts = header[:4].hex(" ")
            raise InputError(f"{path} is not an IDX file of bytes with {rank} dimensions (starts with {starts}).")
        shape = struct.unpack(f">{rank}I", header[4:])
        require_size(count := math.prod(shape), source=path, kind="data")
        values = up_to(unpacked, count + 1, source=path)
    if len(values) != count:
        has = f"more than {count}" if len(values) > count else len(values)
        raise InputError(
            f"{path} holds {has} bytes of data, its header promises {'x'.join(map(str, shape))}.\nDownload it again."
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
