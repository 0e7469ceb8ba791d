"""Images with a map beside each: a mask, a depth, or the image that is wanted of it.

    images/a.jpg, masks/a.png          masks, labels, annotations or SegmentationClass; see data.masks
    a.jpg, a_mask.png                  the same beside the image
    images/a.jpg, depth_mm/a.png       depth, depth_m, depth_cm, depth_mm; of whole numbers the unit has to be said
    images/a.jpg, targets/a.png        targets or clean

Splits are folders inside or outside of them (images/train, train/images), or VOC's ImageSets/Segmentation/train.txt.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.core.opening import open_input
from msn_deploy.data.decode import MOST_PIXELS, SUFFIXES, look_at, open_picture
from msn_deploy.data.folders import SPLITS, images_below, is_system, of_split, paired_folders, read_lines, split_folder
from msn_deploy.data.images import Raw, without_labels
from msn_deploy.data.masks import masks_of
from msn_deploy.data.npz import header_of, take
from msn_deploy.data.survey import measured_levels

DEPTH = re.compile(r"depths?(?:_(mm|cm|m))?")
"""What a folder or a column of depths is called."""
FOLDERS: dict[TaskName, tuple[str, ...]] = {
    "segmentation": ("masks", "labels", "annotations", "segmentationclass"),
    "depth": ("depth", "depth_m", "depth_cm", "depth_mm"),
    "image-to-image": ("targets", "clean"),
}
TASKS: tuple[TaskName, ...] = tuple(FOLDERS)
_METRES = {"mm": 0.001, "cm": 0.01, "m": 1.0}
_MASK = "_mask"
_LISTS = Path("ImageSets", "Segmentation")


def tasks_of(source: Path) -> tuple[TaskName, ...]:
    """Return the tasks for which a folder has images and maps of them."""
    if not source.is_dir():
        return ()
    return tuple(task for task in TASKS if any(_pairs(source, split, task) for split in SPLITS))


def read_maps(source: Path, split: str, task: TaskName | None) -> Raw:
    """Read the "train" or "test" split. Raises InputError for maps that do not belong to their images."""
    tasks = [each for each in TASKS if task in (None, each)]
    found = next((pairs for each in tasks if (pairs := _pairs(source, split, each))), None)
    if found is None:
        names = " or ".join(f"{each}/" for each in FOLDERS[tasks[0]])
        raise InputError(f"{source} has no {split} images beside {names} with files of the same names.")
    files = found.files(source, split)
    left_out = len(found.images) - len(found.maps)
    note = f" (left out: {left_out} without a map)" if left_out else ""
    if task is None:
        return without_labels(files, note=note)
    maps = {**found.others, **found.maps}
    read, classes = reader_of(task, list(maps.values()), found.called, [source, *found.places])
    return Raw(
        images=files,
        labels=checked(read, files, [maps[path] for path in files]),
        classes=classes,
        task=task,
        beside=list(maps),
        note=note,
    )


def reader_of(
    task: TaskName, files: Sequence[Path], called: str, places: Sequence[Path]
) -> tuple[Callable[[Path], NDArray[Any]], tuple[str, ...]]:
    """Return what reads a map of a task, and the classes. files: of all splits. called: their folder or column.

    places: where a list of classes may be.
    """
    if task == "segmentation":
        masks = masks_of(sorted(files), places)
        return masks.read, masks.classes
    if task == "depth":
        unit = DEPTH.fullmatch(called.lower())
        return lambda path: read_depth(path, unit=unit.group(1) if unit else None), ()
    levels = measured_levels(sorted(files))
    return lambda path: open_picture(path).to_bytes(levels), ()


def read_depth(path: Path, *, unit: str | None) -> NDArray[np.float32]:
    """Return a depth in metres, float32 (h, w), NaN where it is not above 0 or not finite, so not measured.

    unit: of the values in the file: "mm", "cm" or "m"; None: of fractions metres, of whole numbers it has to be said.
    Raises InputError.
    """
    values = _array(path) if path.suffix.lower() == ".npy" else open_picture(path, finite=False).pixels
    if values.ndim != 2:
        raise InputError(f"{path} has {values.ndim} dimensions, or colours; a depth has one number for each pixel.")
    return metres(values, unit, name=str(path))


def metres(values: NDArray[Any], unit: str | None, *, name: str) -> NDArray[np.float32]:
    """Return depths in metres, NaN where they are not above 0 or not finite; unit, errors: as for `read_depth`."""
    if unit is None and values.dtype.kind != "f":
        raise InputError(
            f"{name} holds whole numbers ({values.dtype}), and of what is not said.\n"
            "Call the folder, the column or the array depth_mm, depth_cm or depth_m."
        )
    depth = values.astype(np.float32)
    depth *= np.float32(_METRES[unit or "m"])
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def _array(path: Path) -> NDArray[Any]:
    with open_input(path, "image") as stream:
        header = header_of(stream, path)
        if header.dtype.kind not in "fiu" or math.prod(header.shape) > MOST_PIXELS:
            raise InputError(f"{path} is not an array of up to {MOST_PIXELS / 1e6:.0f} million numbers.")
        values = take(stream, header.shape, header, path)
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


def checked(
    read: Callable[[Path], NDArray[Any]], images: Sequence[Path], maps: Sequence[Path]
) -> Callable[[int], NDArray[Any]]:
    """Return a function from an index to a map, which has to be as large as the image."""

    def labels(at: int) -> NDArray[Any]:
        made, header = read(maps[at]), look_at(images[at])
        if made.shape[:2] != (header.height_px, header.width_px):
            raise InputError(
                f"{maps[at]} has {made.shape[1]}x{made.shape[0]} pixels, {images[at].name} {header.width_px}x"
                f"{header.height_px}.\nAn image and its map have to be of one size."
            )
        return made

    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """images: all of the folder. maps: of those that have one. others: the same of the other split. own: whether the
    folder is of one split alone. called: the folder of maps. places: where a list of classes may be.
    """

    images: list[Path]
    maps: dict[Path, Path]
    others: dict[Path, Path]
    own: bool
    called: str
    places: list[Path]

    def files(self, source: Path, split: str) -> list[Path]:
        """Return the images of a split: all, those of VOC's list, or those that fall to it."""
        files = [path for path in self.images if path in self.maps]
        if self.own:
            return files
        lists = [source / _LISTS / f"{name}.txt" for name in SPLITS[split]]
        listed = next((path for path in lists if path.is_file()), None)
        if listed is None:
            return [files[at] for at in of_split(len(files), split)]
        names = {line.strip() for line in read_lines(listed)}
        if chosen := [path for path in files if path.stem in names]:
            return chosen
        raise InputError(f"{listed} names none of the {len(files)} images that have a map.")


def _pairs(folder: Path, split: str, task: TaskName) -> _Pairs | None:
    """Return the images of a split with their maps; of the whole folder, where it has no splits; None without any."""
    try:
        pair = paired_folders(folder, split, FOLDERS[task])
    except InputError:  # the other split alone
        return None
    if pair is not None:
        images, maps = images_below(pair.images), _maps(pair.images, pair.others)
        others = _maps(*pair.besides) if pair.besides else {}
        called = next(each.name for each in (pair.others, pair.others.parent) if each.name.lower() in FOLDERS[task])
        found = _Pairs(
            images=images, maps=maps, others=others, own=pair.own, called=called,
            places=[pair.others, pair.others.parent],
        )  # fmt: skip
        return found if maps else None
    if task != "segmentation":
        return None
    own, other = split_folder(folder, split), split_folder(folder, "train" if split == "test" else "test")
    if own is None and other is not None:
        return None
    images, maps = _beside(own or folder)
    others = _beside(other)[1] if other is not None else {}
    return _Pairs(images=images, maps=maps, others=others, own=own is not None, called="", places=[]) if maps else None


def _maps(images: Path, others: Path) -> dict[Path, Path]:
    """Return the map of each image that has one: of the same path, but for the suffix and a `_mask` before it."""
    there = {}
    for where, _, names in os.walk(others):
        for name in names:
            path = Path(where, name)
            if not is_system(name) and path.suffix.lower() in (*SUFFIXES, ".npy"):
                there[path.relative_to(others).with_name(path.stem.removesuffix(_MASK))] = path
    keys = {path: path.relative_to(images).with_suffix("") for path in images_below(images)}
    return {path: there[key] for path, key in keys.items() if key in there}


def _beside(folder: Path) -> tuple[list[Path], dict[Path, Path]]:
    """Return the images in a folder, and the masks beside them."""
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    images = [path for stem, path in files.items() if not stem.endswith(_MASK) and not is_system(path.name)]
    return images, {path: files[path.stem + _MASK] for path in images if path.stem + _MASK in files}
