"""Images and what is right for them as arrays of one .npz file, by their names.

    images        (N, H, W) or (N, H, W, 1 or 3), uint8; of other types `range`, what black and white are, is needed too
    labels        (N,) whole numbers: classes. (N, C) of 0 and 1: several classes. Fractions: as targets
    targets       (N,) or (N, values): numbers. (N, H, W) or (N, H, W, 3): the image that is wanted
    masks         (N, H, W) whole numbers: the class of each pixel, 255 is left out
    depth         (N, H, W), or depth_mm, depth_cm, depth_m: of whole numbers the unit has to be said
    classes       the names of classes or values, as texts

`train_` or `_train`, `test_` or `_test` (or val) at each name tell splits, as in `x_train`, `y_train`, which stand for
images and labels. Without them every fifth is for the test. Objects (pickles) are never loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.data.folders import SPLITS, of_split
from msn_deploy.data.images import Raw, without_labels
from msn_deploy.data.labels import IGNORED
from msn_deploy.data.maps import DEPTH, metres
from msn_deploy.data.npz import archive, array_in, header_of, take

TASKS: tuple[TaskName, ...] = (
    *("classification", "embedding", "multi-label", "regression"),
    *("segmentation", "depth", "image-to-image"),
)
_SHORT = {"x": "images", "y": "labels"}  # where they name their split
_ROLE = r"images|labels|masks|targets|depth(?:_mm|_cm|_m)?|x|y"
_OF = "|".join(dict.fromkeys(name for names in SPLITS.values() for name in names))
_NAME = re.compile(rf"(?:({_OF})_)?({_ROLE})(?:_({_OF}))?")
_MOST_CLASSES = 1 << 16


def is_arrays(source: Path) -> bool:
    """Whether a file holds images with labels by their names; `x` and `y` alone may be the inputs of any network."""
    if source.suffix.lower() != ".npz" or not source.is_file():
        return False
    try:
        return any("images" in of and len(of) > 1 for of in _File(source).found.values())
    except InputError:  # said where it is read
        return False


def read_arrays(source: Path, split: str, task: TaskName | None) -> Raw:
    """Read the "train" or "test" split. Raises InputError for arrays that are missing, of other sizes or kinds."""
    file = _File(source)
    key = next((name for name in SPLITS[split] if name in file.found), "")
    if "images" not in file.found.get(key, ()):
        raise InputError(f"{source} has no images for {split}ing; it has {', '.join(file.names)}.")
    images = file.images(key, "images")
    chosen = list(range(len(images))) if key else of_split(len(images), split)
    if not chosen:
        raise InputError(f"{source} has no image for the {split} split.")
    if task is None:
        return without_labels(images[chosen])
    labels, classes = _LABELS[task](file, key)
    if len(labels) != len(images):
        raise InputError(f"{source} has {len(images)} images, and labels for {len(labels)}.")
    kept = labels[chosen]
    if task not in ("segmentation", "depth", "image-to-image"):
        task = "classification" if task == "embedding" else task
        return Raw(images=images[chosen], labels=kept, classes=classes, task=task)
    if labels.shape[1:3] != images.shape[1:3]:
        raise InputError(f"{source}: maps are {_in_words(labels)}, the images {_in_words(images)}.")
    return Raw(images=images[chosen], labels=lambda at: kept[at], classes=classes, task=task)


class _File:
    """A .npz file. found: the name of each array that has a role, by its split ("" for none) and that role."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as stack:
            self.names = [name.removesuffix(".npy") for name in archive(path, stack, "data").namelist()]
        self.found: dict[str, dict[str, str]] = {}
        for name in self.names:
            match = _NAME.fullmatch(name.lower())
            if match is None or (match.group(1) and match.group(3)):
                continue
            split, role = match.group(1) or match.group(3) or "", match.group(2)
            if split or role not in _SHORT:
                self.found.setdefault(split, {})[_SHORT.get(role, role)] = name

    def array(self, key: str, role: str) -> NDArray[Any]:
        """Return an array with a first axis. Raises InputError without such an array, and for a very large one."""
        name = self.found[key].get(role)
        if name is None:
            raise InputError(f"{self.path} has no {role}; it has {', '.join(self.names)}.")
        array = self.read(name)
        if array.ndim == 0:
            raise InputError(f"{self.path}: {name} is one number.")
        return array

    def read(self, name: str) -> NDArray[Any]:
        """Return the array of that name."""
        with ExitStack() as stack:
            stream = array_in(self.path, name, stack, "data")
            header = header_of(stream, self.path)
            if header.dtype.kind not in "biufU":
                raise InputError(f"{self.path}: {name} is of {str(header.dtype)[:60]}; numbers are read.")
            return take(stream, header.shape, header, self.path)

    def every(self, role: str) -> Iterator[NDArray[Any]]:
        """Yield the arrays of a role in all splits."""
        return (self.array(key, role) for key, of in self.found.items() if role in of)

    def images(self, key: str, role: str) -> NDArray[np.uint8]:
        """Return images (N, H, W) or (N, H, W, 3) as bytes."""
        images, what = self.array(key, role), f"{self.path}: {role}"
        if images.ndim == 4 and images.shape[3] == 1:
            images = images[..., 0]
        if images.ndim not in (3, 4) or 0 in images.shape or (images.ndim == 4 and images.shape[3] != 3):
            first = images.ndim == 4 and images.shape[1] in (1, 3)
            hint = "\nIts channels come first: save it with .transpose(0, 2, 3, 1)." if first else ""
            raise InputError(
                f"{what} are {_in_words(images)}; N x height x width, or with 1 or 3 behind, is needed.{hint}"
            )
        if images.dtype == np.uint8:
            return images
        stated = self.read("range").ravel() if "range" in self.names else np.zeros(0)
        if stated.dtype.kind not in "iuf" or len(stated) != 2 or not -math.inf < stated[0] < stated[1] < math.inf:
            raise InputError(
                f"{what} are {images.dtype}, and what black and white are is not said.\n"
                "Save it too: numpy.savez(..., range=[0, 1])."
            )
        low, high = (np.float32(each) for each in stated)
        return np.stack([_bytes(each, low, high, what) for each in images])

    def names_of(self, count: int) -> tuple[str, ...] | None:
        """Return what the file calls its classes or values; None where it does not. Raises InputError for others."""
        if "classes" not in self.names:
            return None
        told = self.read("classes")
        if told.ndim != 1 or told.dtype.kind != "U" or len(told) < count:
            raise InputError(f"{self.path}: classes are {_in_words(told)}; a text for each of {count} is needed.")
        return tuple(map(str, told.tolist()))


def _bytes(image: NDArray[Any], low: np.float32, high: np.float32, what: str) -> NDArray[np.uint8]:
    if not np.isfinite(image).all():
        raise InputError(f"{what} hold values that are not finite.")
    scaled = (image.astype(np.float32) - low) * (np.float32(255) / (high - low))
    made: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return made


def _numbered(file: _File, low: int, high: int) -> tuple[str, ...]:
    """Return the names of classes from the lowest to the highest number. Raises InputError for others than these."""
    if low < 0 or high >= _MOST_CLASSES:
        raise InputError(f"{file.path} has classes from {low} to {high}; they count from 0.")
    return file.names_of(high + 1) or tuple(map(str, range(max(2, high + 1))))


def _classes(file: _File, key: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    labels = [each[:, 0] if each.ndim == 2 and each.shape[1] == 1 else each for each in file.every("labels")]
    mine = file.array(key, "labels")
    if any(each.ndim != 1 or each.dtype.kind not in "iub" for each in labels):
        raise InputError(f"{file.path}: labels are {_in_words(mine)}; one whole number for each image is needed.")
    low, high = min(each.min(initial=0) for each in labels), max(each.max(initial=0) for each in labels)
    return mine.reshape(-1).astype(np.int64), _numbered(file, int(low), int(high))


def _several(file: _File, key: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    labels = file.array(key, "labels")
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise InputError(f"{file.path}: labels are {_in_words(labels)}; 0 or 1 for each class of an image is needed.")
    return labels == 1, file.names_of(labels.shape[1]) or tuple(map(str, range(labels.shape[1])))


def _values(file: _File, key: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    values = file.array(key, "targets" if "targets" in file.found[key] else "labels")
    values = values[:, np.newaxis] if values.ndim == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError(f"{file.path}: targets are {_in_words(values)}; finite numbers for each image are needed.")
    count = values.shape[1]
    return values.astype(np.float64), file.names_of(count) or tuple(f"value {at}" for at in range(count))


def _masks(file: _File, key: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    high, leaves_out = 0, False
    for each in file.every("masks"):
        if each.dtype.kind not in "iub" or each.min(initial=0) < 0 or each.max(initial=0) > IGNORED:
            raise InputError(f"{file.path}: masks are {_in_words(each)}; whole numbers from 0 to {IGNORED} are needed.")
        told = each != IGNORED
        high, leaves_out = max(high, int(each.max(initial=0, where=told))), leaves_out or not told.all()
    if high == 0 and leaves_out:
        raise InputError(f"{file.path}: masks hold nothing but 0 and {IGNORED}, and {IGNORED} is left out.\nSave 1.")
    return _maps(file, key, "masks").astype(np.uint8, copy=False), _numbered(file, 0, high)


def _depth(file: _File, key: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    role = next((role for role in file.found[key] if role.startswith("depth")), "depth")
    unit = DEPTH.fullmatch(role)
    return metres(_maps(file, key, role), unit.group(1) if unit else None, name=f"{file.path}: {role}"), ()


def _maps(file: _File, key: str, role: str) -> NDArray[Any]:
    maps = file.array(key, role)
    maps = maps[..., 0] if maps.ndim == 4 and maps.shape[3] == 1 else maps
    if maps.ndim != 3 or maps.dtype.kind not in "biuf":
        raise InputError(f"{file.path}: {role} are {_in_words(maps)}; N x height x width is needed.")
    return maps


_LABELS: dict[TaskName, Callable[[_File, str], tuple[NDArray[Any], tuple[str, ...]]]] = {
    "classification": _classes,
    "embedding": _classes,
    "multi-label": _several,
    "regression": _values,
    "segmentation": _masks,
    "depth": _depth,
    "image-to-image": lambda file, key: (file.images(key, "targets"), ()),
}


def _in_words(array: NDArray[Any]) -> str:
    return f"{array.dtype} of {'x'.join(map(str, array.shape))}"
