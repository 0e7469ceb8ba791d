"""CIFAR-10 in its binary version: records of a label and 3 x 32 x 32 bytes, channel after channel.

Source of the layout: www.cs.toronto.edu/~kriz/cifar.html. The Python version is a pickle and is never opened.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import read_input, require_size
from msn_deploy.data.images import Raw

PUBLISHED = "cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html"
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_FILES = {"train": _TRAIN, "test": ("test_batch.bin",)}
_INSIDE = "cifar-10-batches-bin"  # the folder that the archive unpacks to
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD = 1 + 3 * 32 * 32
_RECORD_100 = _RECORD + 1  # CIFAR-100 has two labels


def read_cifar(folder: Path, split: str) -> Raw | None:
    """Read the "train" or "test" split of a folder, or None if it holds no CIFAR-10.

    Raises InputError for missing, truncated or mixed-up files, for CIFAR-100 and for the pickled version.
    """
    if os.path.isdir(folder / _INSIDE):
        folder = folder / _INSIDE
    names = {name for names in _FILES.values() for name in names if os.path.isfile(folder / name)}
    if not names:
        for pickled in ("data_batch_1", "cifar-10-batches-py/data_batch_1"):
            if os.path.isfile(folder / pickled):
                raise InputError(
                    f"{folder / pickled} is of CIFAR-10's Python version, a pickle; it is not opened.\n"
                    f"Take the binary version: {PUBLISHED}."
                )
        return None
    wanted = _FILES[split]
    if missing := [name for name in wanted if name not in names]:
        raise InputError(
            f"{folder} has no {', '.join(missing)}, which CIFAR-10's {split} split needs.\nUnpack {PUBLISHED} again."
        )
    require_size(sum(os.path.getsize(folder / name) for name in wanted), source=folder, kind="data")
    parts = [_records(folder / name) for name in wanted]
    if len({len(part) for part in parts}) > 1:
        counts = ", ".join(f"{name} {len(part)}" for name, part in zip(wanted, parts, strict=True))
        raise InputError(f"{folder}: its batches hold unlike numbers of images ({counts}).\nUnpack {PUBLISHED} again.")
    images = np.concatenate([part[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for part in parts])
    labels = np.concatenate([part[:, 0] for part in parts]).astype(np.int64)
    return Raw(images=np.ascontiguousarray(images), labels=labels, classes=_classes(folder))


def _records(path: Path) -> np.ndarray:
    raw = read_input(path, "data")
    if not raw or len(raw) % _RECORD:
        is_100 = bool(raw) and len(raw) % _RECORD_100 == 0
        likely = "it is of CIFAR-100, whose records have two labels" if is_100 else "a truncated download"
        raise InputError(
            f"{path} has {len(raw)} bytes, no multiple of {_RECORD}, the size of a record.\n"
            f"Likely cause: {likely}. Unpack {PUBLISHED} again."
        )
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _RECORD)
    if (highest := int(records[:, 0].max())) >= len(_CLASSES):
        raise InputError(f"{path} has a label {highest}; CIFAR-10 has 0 to 9.\nUnpack {PUBLISHED} again.")
    return records


def _classes(folder: Path) -> tuple[str, ...]:
    path = folder / "batches.meta.txt"
    if not os.path.isfile(path):
        return _CLASSES
    names = tuple(read_input(path, "settings").decode("utf-8", "replace").split())
    if names != _CLASSES:
        raise InputError(f"{path} does not name the ten classes of CIFAR-10.\nUnpack {PUBLISHED} again.")
    return names
