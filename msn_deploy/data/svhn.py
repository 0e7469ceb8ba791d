"""SVHN in its cropped form: MATLAB files with X (32, 32, 3, N) and y (N, 1), where label 10 stands for the digit 0."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.data.images import DIGITS, Raw
from msn_deploy.data.matlab import read_matlab

PUBLISHED = "train_32x32.mat and test_32x32.mat of ufldl.stanford.edu/housenumbers (format 2, cropped digits)"
_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
_HINT = f"Download it again: {PUBLISHED}."


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
