"""Which images a name, a folder or a file stands for, with labels for a task, at the size that a network wants."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError, MissingDependency, did_you_mean
from msn_deploy.core.model_info import TASKS, Frame, TaskName
from msn_deploy.data import feeds
from msn_deploy.data.decode import Levels
from msn_deploy.data.formats import read_source
from msn_deploy.data.frame import fit_mask
from msn_deploy.data.images import LazyImages, Raw, fit_image, fit_images, read_image
from msn_deploy.data.labels import IGNORED as IGNORED
from msn_deploy.data.labels import ObjectLabels
from msn_deploy.data.names import MADE, NAMES, download, folder_of
from msn_deploy.data.scenes import read_scenes
from msn_deploy.data.survey import Survey, measured_levels, survey_arrays, survey_files

_LOG = logging.getLogger(__name__)
_BYTES = 1 << 25  # of images that are hashed together
_MOST_DRAWS = 16
_LARGEST_PX = 1024  # a side that no network here has: a forged sidecar must not fill the memory
_WIDEST = 1e39  # above all values of an image


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images with their labels."""

    source: str
    """The name or folder that they were loaded from."""
    images: Any
    """uint8 (N, H, W, C): an array, or LazyImages where that was asked for."""
    labels: Any
    """What is right for each image, by the task. classification, embedding: int64 (N,), an index into the classes.
    multi-label: bool (N, classes). regression: float64 (N, values). detection: ObjectLabels. segmentation: the classes
    uint8 (N, H, W, 1), IGNORED where nothing is said. depth: float32 (N, H, W, 1), NaN where it was not measured.
    image-to-image: uint8 (N, H, W, C), what is wanted. The last three are in the frame that the images were brought to,
    and are LazyImages where the images are."""
    classes: tuple[str, ...]
    """The names that labels index; of regression, the names of the values."""
    task: TaskName | None = "classification"
    """None for images without labels; those are (N, 0) then."""
    read: Mapping[str, Any] = field(default_factory=dict)
    """How they were loaded, which `is_as_recorded` does again; empty for arrays from elsewhere."""

    def sha256(self) -> str:
        """Return a digest of images, labels and classes: the identity of the data in provenance."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        for each in (self.images, self.labels):
            if isinstance(each, ObjectLabels):
                digest.update(each.tobytes())
                continue
            step = max(1, _BYTES // max(1, math.prod(each.shape[1:])))
            for start in range(0, len(each), step):
                digest.update(np.asarray(each[start : start + step]).tobytes())
        return digest.hexdigest()

    def as_parent(self) -> Parent:
        """Describe the images as the parent of what is made from them."""
        role = f"data:{self.read['split']}" if self.read else "data"
        return Parent(role=role, file=self.source, sha256=self.sha256(), read=self.read)

    def first(self, count: int | None, *, seed: int | None = None) -> Split:
        """Return a split of at most `count` samples (None keeps all), drawn evenly over the whole, or by a seed."""
        if count is None or count >= len(self.images):
            return self
        if seed is None:
            chosen = np.linspace(0, len(self.images) - 1, count).round().astype(np.int64)
        else:  # the legacy generator: its numbers are frozen, those of default_rng may change with numpy
            chosen = np.sort(np.random.RandomState(seed).permutation(len(self.images))[:count])
        drawn = count if seed is None else [count, seed]
        read = {**self.read, "first": [*self.read.get("first", ()), drawn]} if self.read else {}
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], read=read)


def load_split(
    source: str,
    split: str,
    *,
    task: TaskName | None = "classification",
    levels: Levels | None = None,
    lazy: bool = False,
    **size: Any,
) -> Split:
    """Load the "train" or "test" split of a name or a folder, brought to (height, width, channels) by `fit_images`.

    Names: NAMES of data.names; a folder of that name in the working directory beats them. Folders and files: those of
    data.formats, in docs/guides/data.md for people. What the images are like is logged in one line, and what the
    network will not see of them as a warning.

    Args:
        source: The name, folder or file.
        split: "train" or "test".
        task: What the labels are for, see `Split.labels`; None: images are wanted, with the classes that they have.
        levels: What is black and white in files of more than 8 bits; None: measured over the whole folder.
        lazy: Image files are read, and images of the other formats brought to size, when they are looked at.
        **size: Of the images returned, as the fields of Frame: `height_px`, `width_px`, `channels`, `fit`, ...

    Raises:
        InputError: Nothing usable is there, or no labels of that task; the message says what was looked for.
    """
    size = Frame(**size).image_size
    found, survey, note = _load(source, split, task, size, levels)
    height, width, channels = found.images.shape[1:]
    line = f"{split}: {len(found.images)} images{_labels_text(found)}, {survey.stored} -> {width}x{height} "
    _LOG.info("%s%s%s", line, "grey" if channels == 1 else "RGB", note, extra={"note": True})
    for warning in survey.warnings:
        _LOG.warning("%s: %s", source, warning)
    if lazy:
        return found
    labels = np.asarray(found.labels) if isinstance(found.labels, LazyImages) else found.labels
    return replace(found, images=np.asarray(found.images), labels=labels)


def _labels_text(split: Split) -> str:
    """Say what the labels are, in a few words."""
    count = len(split.classes)
    if isinstance(split.labels, ObjectLabels):
        return f", {sum(len(each.labels) for each in split.labels.images):,} boxes of {count} classes"
    if split.task == "regression":
        return f", {count} value{'s' * (count > 1)} ({', '.join(split.classes)})"
    if split.task in ("depth", "image-to-image"):
        return ", each with a depth map" if split.task == "depth" else ", each with the one that is wanted"
    return f", {count} classes" if split.task else ""


def is_local(source: str) -> bool:
    """Whether `load_split` finds a name or folder on this machine, with nothing to download."""
    return os.path.exists(source) or (source in NAMES and folder_of(source) is not None)


def _load(
    source: str, split: str, task: TaskName | None, size: dict[str, Any], levels: Levels | None
) -> tuple[Split, Survey, str]:
    """Return a split with lazy images, what they are like, and what else is to be noted."""
    raw = _raw(source, split, task)
    if task == "embedding" and raw.task == "classification":
        raw = replace(raw, task=task)
    if task not in (None, raw.task):
        raise InputError(f"{source} has one class for each image, and no labels for {task}.\nSee docs/guides/data.md.")
    read = {"split": split, **size}
    if isinstance(raw.images, np.ndarray):
        stored = raw.images
        images = _lazy(len(stored), size, lambda at: fit_images(stored[at], **size))
        survey = survey_arrays(stored, channels=size["channels"])
    else:
        files = raw.images
        levels = levels or measured_levels(sorted({*files, *raw.beside}))  # of both splits, so that they are read alike
        sizes: Sequence[tuple[int, int] | None] = raw.sizes or [None] * len(files)
        images = _lazy(
            len(files),
            size,
            lambda at: np.stack([read_image(files[each], levels=levels, told=sizes[each], **size) for each in at]),
        )
        read |= {} if levels is None else {"levels": list(levels)}
        survey = survey_files(files, channels=size["channels"], levels=levels)
    if raw.task != "classification":
        read["task"] = raw.task
    labels = _maps(raw.labels, raw.task, len(images), size) if callable(raw.labels) else raw.labels
    found = Split(source=source, images=images, labels=labels, classes=raw.classes, task=raw.task, read=read)
    return found, replace(survey, warnings=(*raw.warnings, *survey.warnings)), raw.note


def _raw(source: str, split: str, task: TaskName | None) -> Raw:
    folder: Path | None = Path(source)
    if source in NAMES and not os.path.exists(source):
        folder = folder_of(source)
        if folder is None:
            return download(source, split)
        if source in MADE:
            return read_scenes(folder, split, task)
    if folder is None or not os.path.exists(folder):
        hint = did_you_mean(source, list(NAMES)) if "/" not in source else "."
        raise InputError(
            f"no data called {source!r}{hint}\n`--data` takes a name, a folder or a file: see docs/guides/data.md."
        )
    return read_source(folder, split, task)


def _lazy(count: int, size: dict[str, Any], read: Callable[[NDArray[np.intp]], NDArray[Any]]) -> LazyImages:
    shape = (size["height_px"], size["width_px"], size["channels"])
    return LazyImages(picked=np.arange(count), image_shape=shape, read=read)


def _maps(read: Callable[[int], NDArray[Any]], task: TaskName | None, count: int, size: dict[str, Any]) -> LazyImages:
    """Return labels that have a place in an image, brought to where the image is in its frame."""
    if task == "image-to-image":
        return _lazy(count, size, lambda at: np.stack([fit_image(read(int(each)), name="", **size) for each in at]))
    frame, outside = Frame(**size), {"segmentation": IGNORED, "depth": np.nan}[task or ""]
    maps = _lazy(
        count,
        {**size, "channels": 1},
        lambda at: np.stack([fit_mask(read(int(each)), frame, outside=outside) for each in at]),
    )
    return replace(maps, dtype="float32" if task == "depth" else "uint8")


def is_known_as_recorded(parent: Parent) -> bool | None:
    """As `is_as_recorded`, for known names alone: a path that a sidecar names is not followed."""
    return is_as_recorded(parent) if parent.file in NAMES and parent.role != feeds.ROLE else None


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
    levels = read.pop("levels", None)
    try:
        task = read.pop("task", "classification")
        split, _, _ = _load(parent.file, read.pop("split"), task, read, levels and tuple(levels))
        for drawn in counts:
            count, seed = drawn if isinstance(drawn, list | tuple) else (drawn, None)
            split = split.first(count, seed=seed)
        return split.sha256() == parent.sha256
    except InputError:
        return False
    except MissingDependency:
        return None


def _is_plausible(read: Mapping[str, Any]) -> bool:
    sides = (read.get("height_px"), read.get("width_px"))
    counts, levels = read.get("first", ()), read.get("levels", (0, 1))
    try:
        Frame(**{name: value for name, value in read.items() if name not in ("split", "first", "levels", "task")})
    except (InputError, TypeError):
        return False
    return (
        read.get("split") in ("train", "test")
        and read.get("task") in (None, *TASKS)
        and all(isinstance(side, int) and 0 < side <= _LARGEST_PX for side in (*sides, read.get("short_px", 1)))
        and isinstance(levels, list | tuple)
        and len(levels) == 2
        and all(isinstance(each, int | float) for each in levels)
        and -_WIDEST < levels[0] < levels[1] < _WIDEST
        and isinstance(counts, list | tuple)
        and len(counts) <= _MOST_DRAWS
        and all(map(_is_draw, counts))
    )


def _is_draw(drawn: Any) -> bool:
    """Whether this is a count, or a count and a seed."""
    count, seed = drawn if isinstance(drawn, list | tuple) and len(drawn) == 2 else (drawn, 0)
    return isinstance(count, int) and count > 0 and isinstance(seed, int) and 0 <= seed < 2**32
