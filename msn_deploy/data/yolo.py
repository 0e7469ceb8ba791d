"""YOLO's text labels: one file per image, a line per object, in shares of the image's width and height.

    data.yaml                      path, train, val, test and names; a folder or a list of files (.txt) for each split
    images/train, labels/train     or train/images, train/labels, or images, labels alone; names in classes.txt

`CLASS CX CY W H` is a box, `CLASS X1 Y1 X2 Y2 X3 Y3 ...` a polygon. An image without a file of labels shows no object.
Source of the format: docs.ultralytics.com/datasets/detect and .../segment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.core.optional import require
from msn_deploy.data.decode import SUFFIXES, look_at
from msn_deploy.data.folders import SPLITS, images_below, inside, is_system, of_split, paired_folders, read_lines
from msn_deploy.data.images import Raw, without_labels
from msn_deploy.data.labels import BACKGROUND, IGNORED, ObjectLabels, Objects
from msn_deploy.data.regions import painted, polygons_mask

TASKS: tuple[TaskName, ...] = ("detection", "segmentation")
_YAML = (".yaml", ".yml")
_KEYS = {"train": ("train",), "test": ("test", "val")}
_LABELS = ("labels",)
_NAMES = ("classes.txt", "obj.names")
_MOST_CLASSES = 1 << 16
_BEYOND = 1.01  # what rounding may give in place of 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Where the images of a split are. beside: those of the other split. names: None where no file tells them."""

    files: list[Path]
    beside: list[Path]
    names: tuple[str, ...] | None
    told_by: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One object: its class, and the numbers behind it, 4 of a box or 6 and more of a polygon, from 0 to 1."""

    label: int
    numbers: NDArray[np.float64]
    at: str

    @property
    def is_box(self) -> bool:
        return len(self.numbers) == 4


def is_yolo(source: Path) -> bool:
    """Whether a folder is laid out as one of YOLO's, or a file may be the data.yaml of one."""
    if source.is_file():
        return source.suffix.lower() in _YAML
    return _yaml_of(source) is not None or _has_text_labels(source)


def read_yolo(source: Path, split: str, task: TaskName | None) -> Raw:
    """Read the "train" or "test" split. Raises InputError for what is not of the format, and for paths out of it."""
    file = source if source.is_file() else _yaml_of(source)
    found = _told_by(file, split) if file is not None else _in_folders(source, split)
    if not found.files:
        raise InputError(f"{source} has no images for the {split} split.")
    if task is None:
        return without_labels(found.files)
    lines = [_lines(path) for path in found.files]
    if not any(lines):
        raise InputError(
            f"none of the {len(lines)} images of {source} has labels.\n"
            f"Looked for was {_labels_file(found.files[0])}, ..."
        )
    names = found.names
    if names is None:
        every = [*lines, *map(_lines, found.beside)]
        names = tuple(str(at) for at in range(1 + max(each.label for of in every for each in of)))
    for each in (each for of in lines for each in of):
        if each.label >= len(names):
            raise InputError(f"{each.at} is of class {each.label}; {found.told_by} has 0 to {len(names) - 1}.")
    headers = [look_at(path) for path in found.files]
    sizes = [(each.width_px, each.height_px) for each in headers]
    if task == "segmentation":
        if box := next((each for of in lines for each in of if each.is_box), None):
            raise InputError(f"{box.at} is a box; for segmentation each object needs a polygon.")
        if len(names) >= IGNORED:
            raise InputError(f"{source} has {len(names)} classes; maps of classes hold up to {IGNORED - 1}.")
        return Raw(
            images=found.files, labels=lambda at: _mask(lines[at], *sizes[at]), classes=(BACKGROUND, *names),
            task=task, sizes=sizes, beside=found.beside, warnings=found.warnings,
        )  # fmt: skip
    labels = ObjectLabels(tuple(_objects(of, *size) for of, size in zip(lines, sizes, strict=True)))
    return Raw(
        images=found.files, labels=labels, classes=names, task=task, sizes=sizes, beside=found.beside,
        warnings=found.warnings,
    )  # fmt: skip


def _yaml_of(folder: Path) -> Path | None:
    """Return the file of a folder that names its classes: data.yaml, or the only one that does."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _YAML and not is_system(path.name))
    named = [path for path in files if _names_classes(path)]
    return next((path for path in named if path.stem == "data"), named[0] if len(named) == 1 else None)


def _names_classes(path: Path) -> bool:
    try:
        return any(line.startswith("names:") for line in read_lines(path, "settings"))
    except InputError:  # something else that is called so
        return False


def _has_text_labels(folder: Path) -> bool:
    pairs = [paired_folders(folder, split, _LABELS) for split in SPLITS if _is_there(folder, split)]
    return any(pair is not None and _has_text(pair.others) for pair in pairs)


def _is_there(folder: Path, split: str) -> bool:
    try:
        return paired_folders(folder, split, _LABELS) is not None
    except InputError:  # the other split has folders
        return False


def _has_text(folder: Path) -> bool:
    return any(name.endswith(".txt") for _, _, files in os.walk(folder) for name in files)


def _in_folders(folder: Path, split: str) -> _Found:
    pair = paired_folders(folder, split, _LABELS)
    assert pair is not None
    files = images_below(pair.images)
    beside = images_below(pair.besides[0]) if pair.besides else []
    if not pair.own:
        chosen = of_split(len(files), split)
        beside = files
        files = [files[at] for at in chosen]
    places = [pair.others, pair.others.parent, folder]
    listed = next((place / name for place in places for name in _NAMES if (place / name).is_file()), None)
    names = None if listed is None else tuple(line.strip() for line in read_lines(listed) if line.strip())
    return _Found(files=files, beside=beside, names=names, told_by=listed or pair.others)


def _told_by(file: Path, split: str) -> _Found:
    """Read a data.yaml: which images there are, and the names of the classes."""
    yaml = require("yaml", step=f"reading {file.name}")
    text = "\n".join(read_lines(file, "settings"))
    try:
        if any(isinstance(each, yaml.AliasToken) for each in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise ValueError("an alias, which can stand for any number of values")
        told = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        raise InputError(
            f"{file} is not YAML ({type(cause).__name__}: {' '.join(str(cause).split())[:120]})."
        ) from cause
    if not isinstance(told, dict) or "names" not in told:
        raise InputError(f"{file} names no classes: it needs `names:` and the images as `train:` and `val:`.")
    names, warnings = _names(told["names"], file), list[str]()
    count, root, place = told.get("nc", len(names)), file.parent, told.get("path") or "."
    if count != len(names):
        raise InputError(f"{file} has {len(names)} names, which is not what `nc:` says.")
    if not isinstance(place, str):
        raise InputError(f"{file}: `path:` is not a text.")
    if os.path.realpath(root / place) != os.path.realpath(root):
        root = inside(root, place, file=file)
    key = next((key for key in _KEYS[split] if told.get(key)), None)
    other = next((key for key in _KEYS["train" if split == "test" else "test"] if told.get(key)), None)
    if key is None and (other is None or split == "train"):
        raise InputError(f"{file} has no images for {split}ing: it needs `{_KEYS[split][-1]}:`.")
    files = list(_listed(told[key or other], root, file, warnings))
    beside = list(_listed(told[other], root, file, [], needed=False)) if other else []
    if key is None or (split == "train" and other is None):  # one list for both
        beside, files = files, [files[at] for at in of_split(len(files), split)]
    return _Found(files=files, beside=beside, names=names, told_by=file, warnings=tuple(warnings))


def _names(told: Any, file: Path) -> tuple[str, ...]:
    if isinstance(told, dict):
        if sorted(map(str, told)) != sorted(str(at) for at in range(len(told))) or not all(
            type(at) is int for at in told
        ):
            raise InputError(f"{file}: the numbers of its names are not 0 to {len(told) - 1}.")
        told = [told[at] for at in range(len(told))]
    if not isinstance(told, list) or not told or not all(type(each) in (str, int) for each in told):
        raise InputError(f"{file}: `names:` is not a list of texts. Put words such as yes, no or 1.5 into quotes.")
    return tuple(map(str, told))


def _listed(told: Any, root: Path, file: Path, warnings: list[str], *, needed: bool = True) -> Iterator[Path]:
    """Yield the images of a split: of folders, and of .txt files with a path in each line.

    needed: False where it does that they are on another machine.
    """
    for name in told if isinstance(told, list) else [told]:
        if not isinstance(name, str):
            raise InputError(f"{file} has a {type(name).__name__} where a folder of images is needed.")
        beyond = name.removeprefix("../")
        if beyond != name and (root / beyond).is_dir():  # as Roboflow writes it, of folders beside the file
            warnings.append(f"{file.name} says {name}: read was {beyond}")
            name = beyond
        place = inside(root, name, file=file)
        if place.is_dir():
            yield from images_below(place)
        elif place.suffix == ".txt" and place.is_file():
            for line in filter(None, map(str.strip, read_lines(place))):
                path = inside(place.parent, line, file=place)
                if path.suffix.lower() not in SUFFIXES:
                    raise InputError(
                        f"{place} names {line[:200]!r}, which is not an image ({', '.join(SUFFIXES[:3])}, ...)."
                    )
                yield path
        elif needed:
            raise InputError(f"{file} names {name!r}, and {place} is neither a folder nor a list of images (.txt).")


def _labels_file(image: Path) -> Path:
    """Return where the labels of an image are: the last folder called images is labels in their path."""
    parts = list(image.parts)
    at = next((at for at in reversed(range(len(parts) - 1)) if parts[at].lower() in ("images",)), None)
    if at is not None:
        parts[at] = "labels"
    return Path(*parts).with_suffix(".txt")


def _lines(image: Path) -> list[_Line]:
    file = _labels_file(image)
    if not file.is_file():
        return []
    return [
        _line(line.split(), f"{file}, line {at}")
        for at, line in enumerate(read_lines(file, "settings"), start=1)
        if line.strip()
    ]


def _line(words: Sequence[str], at: str) -> _Line:
    try:
        numbers = np.asarray([float(word) for word in words], dtype=np.float64)
    except ValueError as cause:
        raise InputError(f"{at} holds {' '.join(words)[:60]!r}: not numbers.") from cause
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise InputError(
            f"{at} has {len(numbers)} numbers; a box has 5 (class, centre, size), polygons 7, 9, 11, ... (class, x, y)."
        )
    label, rest = numbers[0], numbers[1:]
    if not np.isfinite(numbers).all() or label < 0 or label % 1 or label >= _MOST_CLASSES:
        raise InputError(f"{at} has the class {words[0][:20]}, or numbers that are not finite.")
    if rest.min() < 1 - _BEYOND or rest.max() > _BEYOND or (len(rest) == 4 and min(rest[2:]) <= 0):
        raise InputError(f"{at} has {rest.min():g} to {rest.max():g}: not shares of the image from 0 to 1.")
    return _Line(label=int(label), numbers=rest, at=at)


def _objects(lines: Sequence[_Line], width: int, height: int) -> Objects:
    boxes, areas = [], []
    for each in lines:
        points = (each.numbers.reshape(-1, 2) * (width, height)).astype(np.float64)
        if each.is_box:
            centre, size = points
            boxes.append([*(centre - size / 2), *(centre + size / 2)])
            areas.append(float(size[0] * size[1]))
        else:
            following = np.roll(points, -1, axis=0)
            boxes.append([*points.min(axis=0), *points.max(axis=0)])
            areas.append(abs(float((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum())) / 2)
    return Objects(
        boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.asarray([each.label for each in lines], dtype=np.int64),
        crowd=np.zeros(len(lines), dtype=bool),
        areas=np.asarray(areas, dtype=np.float64),
        width_px=width,
        height_px=height,
    )


def _mask(lines: Sequence[_Line], width: int, height: int) -> NDArray[np.uint8]:
    scale = (width, height)

    def regions() -> Iterator[tuple[int, NDArray[np.bool_]]]:
        for each in lines:
            corners = (each.numbers.reshape(-1, 2) * scale).ravel().tolist()
            yield 1 + each.label, polygons_mask([corners], height, width, name=each.at)

    return painted(regions(), height, width)
