"""Which images a name or a folder stands for: a known name, files of a known format, or one folder per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.model_info import Frame
from msn_deploy.data import feeds
from msn_deploy.data.cifar import read_cifar
from msn_deploy.data.decode import SUFFIXES
from msn_deploy.data.idx import PREFIX, read_idx_folder
from msn_deploy.data.images import LazyImages, Raw, fit_images, read_image
from msn_deploy.data.names import NAMES, download, folder_of
from msn_deploy.data.svhn import read_svhn

_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid")}
_CHUNK = 256  # images that are hashed together
_LARGEST_PX = 1024  # a side that no network here has: a forged sidecar must not fill the memory
_TEST_EVERY = 5  # in a folder without a split of its own, every fifth file of a class is for the test


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images with their labels."""

    source: str
    """The name or folder that they were loaded from."""
    images: Any
    """uint8 (N, H, W, C): an array, or LazyImages where that was asked for."""
    labels: NDArray[np.int64]
    """(N,)"""
    classes: tuple[str, ...]
    """The names that the labels index."""
    read: Mapping[str, Any] = field(default_factory=dict)
    """How they were loaded, which `is_as_recorded` does again; empty for arrays from elsewhere."""

    def sha256(self) -> str:
        """Return a digest of images, labels and classes: the identity of the data in provenance."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        for start in range(0, len(self.images), _CHUNK):
            digest.update(np.asarray(self.images[start : start + _CHUNK]).tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def as_parent(self) -> Parent:
        """Describe the images as the parent of what is made from them."""
        role = f"data:{self.read['split']}" if self.read else "data"
        return Parent(role=role, file=self.source, sha256=self.sha256(), read=self.read)

    def first(self, count: int | None, *, seed: int | None = None) -> Split:
        """Return a split of at most `count` samples (None keeps all), drawn evenly over the whole, or by a seed."""
        if count is None or count >= len(self.labels):
            return self
        if seed is None:
            chosen = np.linspace(0, len(self.labels) - 1, count).round().astype(np.int64)
        else:  # the legacy generator: its numbers are frozen, those of default_rng may change with numpy
            chosen = np.sort(np.random.RandomState(seed).permutation(len(self.labels))[:count])
        drawn = count if seed is None else [count, seed]
        read = {**self.read, "first": [*self.read.get("first", ()), drawn]} if self.read else {}
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], read=read)


def load_split(source: str, split: str, *, lazy: bool = False, **size: Any) -> Split:
    """Load the "train" or "test" split of a name or a folder, brought to (height, width, channels) by `fit_images`.

    Names: NAMES of data.names; a folder of that name in the working directory beats them. Folders: IDX
    (`train-images-idx3-ubyte[.gz]`, `t10k-...`), CIFAR-10 in its binary version, SVHN's cropped digits, or images in
    `train/CLASS/` and `test/CLASS/`, or in `CLASS/` alone, of which every fifth goes to the test.

    Args:
        source: The name or folder.
        split: "train" or "test".
        lazy: Image files are read, and images of the other formats brought to size, when they are looked at.
        **size: Of the images returned, as the fields of Frame: `height_px`, `width_px`, `channels`, `fit`, ...

    Raises:
        InputError: Nothing usable is there; the message says what was looked for.
    """
    size = Frame(**size).image_size
    found = _load(source, split, size)
    return replace(found, images=found.images if lazy else np.asarray(found.images), read={"split": split, **size})


def is_local(source: str) -> bool:
    """Whether `load_split` finds a name or folder on this machine, with nothing to download."""
    return os.path.exists(source) or (source in NAMES and folder_of(source) is not None)


def _load(source: str, split: str, size: dict[str, Any]) -> Split:
    folder: Path | None = Path(source)
    if source in NAMES and not os.path.exists(source):
        folder = folder_of(source)
        if folder is None:
            return _fitted(source, download(source, split), size)
    if folder is None or not os.path.exists(folder):
        hint = did_you_mean(source, list(NAMES)) if "/" not in source else "."
        raise InputError(
            f"no data called {source!r}{hint}\n`--data` takes a name, or a folder of a known format or of images."
        )
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is a file; `--data` takes a folder with IDX files, or one folder per class.")
    for read in (read_idx_folder, read_cifar, read_svhn):
        raw = read(folder, split)
        if raw is not None:
            return _fitted(source, raw, size)
    return _load_image_folder(source, folder, split, size)


def _fitted(source: str, raw: Raw, size: dict[str, Any]) -> Split:
    images = _lazy(len(raw.images), size, lambda at: fit_images(raw.images[at], **size))
    return Split(source=source, images=images, labels=raw.labels, classes=raw.classes)


def _lazy(count: int, size: dict[str, Any], read: Callable[[NDArray[np.intp]], NDArray[np.uint8]]) -> LazyImages:
    shape = (size["height_px"], size["width_px"], size["channels"])
    return LazyImages(picked=np.arange(count), image_shape=shape, read=read)


def _load_image_folder(source: str, folder: Path, split: str, size: dict[str, Any]) -> Split:
    named = next((folder / name for name in _FOLDERS[split] if (folder / name).is_dir()), None)
    other = "train" if split == "test" else "test"
    if named is None and any((folder / name).is_dir() for name in _FOLDERS[other]):
        raise InputError(f"{folder} has a folder for {other}ing but none called {' or '.join(_FOLDERS[split])}.")
    root = named or folder
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (root / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if named is None:
            found = [path for at, path in enumerate(found) if (at % _TEST_EVERY == 0) == (split == "test")]
        files += found
        labels += [label] * len(found)
    if not files:
        raise InputError(
            f"{folder} holds no {split} data: neither {PREFIX[split]}-images-idx3-ubyte[.gz] nor images in\n"
            f"{split}/CLASS/ or CLASS/ ({', '.join(SUFFIXES[:3])}, ...)."
        )
    images = _lazy(len(files), size, lambda at: np.stack([read_image(files[each], **size) for each in at]))
    return Split(source=source, images=images, labels=np.asarray(labels, dtype=np.int64), classes=classes)


def is_as_recorded(parent: Parent) -> bool | None:
    """Load the images of a data parent again, as they were loaded then, and compare; None if that can't be done here.

    Nothing is downloaded. False also where the source is there and can't be read any more.
    """
    if parent.role == feeds.ROLE:
        try:
            return feeds.digest_of(parent.file) == parent.sha256 if os.path.exists(parent.file) else None
        except InputError:
            return False
    if not is_local(parent.file) or not _is_plausible(parent.read):
        return None
    read = dict(parent.read)
    counts = read.pop("first", ())
    try:
        split = load_split(parent.file, **read)
    except InputError:
        return False
    for drawn in counts:
        count, seed = drawn if isinstance(drawn, list | tuple) else (drawn, None)
        split = split.first(count, seed=seed)
    return split.sha256() == parent.sha256


def _is_plausible(read: Mapping[str, Any]) -> bool:
    sides = (read.get("height_px"), read.get("width_px"))
    counts = read.get("first", ())
    try:
        Frame(**{name: value for name, value in read.items() if name not in ("split", "first")})
    except (InputError, TypeError):
        return False
    return (
        read.get("split") in ("train", "test")
        and all(isinstance(side, int) and 0 < side <= _LARGEST_PX for side in (*sides, read.get("short_px", 1)))
        and isinstance(counts, list | tuple)
        and all(map(_is_draw, counts))
    )


def _is_draw(drawn: Any) -> bool:
    """Whether this is a count, or a count and a seed."""
    count, seed = drawn if isinstance(drawn, list | tuple) and len(drawn) == 2 else (drawn, 0)
    return isinstance(count, int) and count > 0 and isinstance(seed, int) and 0 <= seed < 2**32
