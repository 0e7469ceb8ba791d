"""SVHN's cropped digits: MATLAB files of version 5 with X (32, 32, 3, N) and y (N, 1), in which 10 stands for 0.

Source of the layout: ufldl.stanford.edu/housenumbers.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np

from msn_deploy.core.artifacts import open_input
from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require
from msn_deploy.data.raw import DIGITS, Raw

PUBLISHED = "train_32x32.mat and test_32x32.mat of ufldl.stanford.edu/housenumbers"
_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def read_svhn(folder: Path, split: str) -> Raw | None:
    """Read the "train" or "test" split of a folder, or None if it holds no SVHN.

    Raises InputError for a missing or damaged file, MissingDependency (exit 3) without scipy.
    """
    if not any(os.path.isfile(folder / name) for name in _FILES.values()):
        return None
    path = folder / _FILES[split]
    scipy_io = require("scipy.io", step="reading SVHN")
    with open_input(path) as stream:
        raw = stream.read()
    try:
        content = scipy_io.loadmat(BytesIO(raw), variable_names=("X", "y"))
    except Exception as cause:  # damaged bytes make scipy raise nearly anything, also MemoryError
        version = " (version 7.3, an HDF5 file)" if isinstance(cause, NotImplementedError) else ""
        raise InputError(
            f"{path} is no readable MATLAB file{version}: {type(cause).__name__}.\nDownload it again: {PUBLISHED}."
        ) from cause
    images, labels = content.get("X"), content.get("y")
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        raise InputError(f"{path} has no X and y, which SVHN's cropped digits have.\nDownload it again: {PUBLISHED}.")
    count = images.shape[-1] if images.ndim else 0
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, count) or labels.shape != (count, 1) or not count:
        raise InputError(
            f"{path}: X is {images.dtype} {images.shape}, y {labels.shape}; expected uint8 (32, 32, 3, N), (N, 1).\n"
            f"Download it again: {PUBLISHED}."
        )
    digits = labels[:, 0]
    if digits.dtype.kind not in "ui" or not ((digits >= 1) & (digits <= 10)).all():
        raise InputError(f"{path}: y must hold whole numbers from 1 to 10.\nDownload it again: {PUBLISHED}.")
    return Raw(
        images=np.ascontiguousarray(images.transpose(3, 0, 1, 2)),
        labels=digits.astype(np.int64) % 10,
        classes=DIGITS,
    )
