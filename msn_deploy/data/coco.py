"""COCO's JSON: boxes and regions of the objects in images, from one file per split.

    annotations/instances_train2017.json, instances_val2017.json   images in train2017/, images/train2017/, images/, ...
    train/_annotations.coco.json, valid/_annotations.coco.json     images beside them, as Roboflow writes it
    FILE.json                                                      images beside it or in images/; every fifth: test

Source of the format: cocodataset.org/#format-data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.core.opening import MOST_BYTES, read_input
from msn_deploy.core.reader import parse_json
from msn_deploy.data.decode import MOST_PIXELS
from msn_deploy.data.folders import IMAGES, SPLITS, inside, of_split, split_folder
from msn_deploy.data.images import Raw, without_labels
from msn_deploy.data.labels import BACKGROUND, IGNORED, ObjectLabels, Objects
from msn_deploy.data.regions import FAR, numbers_of, painted, polygons_mask, runs_mask

TASKS: tuple[TaskName, ...] = ("detection", "segmentation")
_PER_SPLIT = "_annotations.coco.json"
_FOLDER = "annotations"
_START = "instances_"
_MOST_PARTS = 8_000_000  # COCO's own largest file has half of that


def is_coco(source: Path) -> bool:
    """Whether a folder is laid out as one of COCO's, or a file may be of COCO's."""
    if source.is_file():
        return source.suffix.lower() == ".json"
    return bool(_found(source))


def read_coco(source: Path, split: str, task: TaskName | None) -> Raw:
    """Read the "train" or "test" split. Raises InputError for missing images, and for anything that is not COCO's."""
    file, own = _file_of(source, split)
    told = _Told(file)
    chosen = told.images if own else [told.images[at] for at in of_split(len(told.images), split)]
    if not chosen:
        raise InputError(f"{file} has no image for the {split} split.")
    folder = _images_folder(source, file, chosen)
    files = [inside(folder, each.name, file=file) for each in chosen]
    if missing := [path for path in files if not path.is_file()]:
        raise InputError(
            f"{len(missing)} of the {len(files)} images that {file} names are not in {folder}, such as "
            f"{missing[0].name}.\nPut them there."
        )
    if task is None:
        return without_labels(files)
    sizes = [(each.width_px, each.height_px) for each in chosen]
    if task == "segmentation":
        if len(told.names) >= IGNORED:
            raise InputError(f"{file} has {len(told.names)} categories; maps of classes hold up to {IGNORED - 1}.")
        return Raw(
            images=files, labels=lambda at: told.mask(chosen[at]), classes=(BACKGROUND, *told.names), task=task,
            sizes=sizes,
        )  # fmt: skip
    labels = ObjectLabels(tuple(told.objects(each) for each in chosen))
    empty = sum(len(told.annotations_of(each)) for each in chosen) - sum(len(each.labels) for each in labels.images)
    warnings = (f"{empty} boxes without width or height are left out",) if empty else ()
    return Raw(images=files, labels=labels, classes=told.names, task=task, sizes=sizes, warnings=warnings)


def _found(folder: Path) -> dict[str, Path]:
    """Return the files of annotations by split; "" for one that is of no split."""
    found = {}
    for split in ("train", "test"):
        inner = split_folder(folder, split)
        if inner is not None and (inner / _PER_SPLIT).is_file():
            found[split] = inner / _PER_SPLIT
    if found or not (folder / _FOLDER).is_dir():
        return found
    every = sorted(path for path in (folder / _FOLDER).iterdir() if path.suffix.lower() == ".json")
    named = [path for path in every if path.name.startswith(_START)] or every
    for split in ("train", "test"):
        for name in SPLITS[split]:
            if of := [path for path in named if name in path.stem.lower().removeprefix(_START)]:
                if len(of) > 1:
                    raise InputError(f"{folder / _FOLDER} has {of[0].name} and {of[1].name} for the {split} split.")
                found[split] = of[0]
                break
    return found or ({"": named[0]} if len(named) == 1 else {})


def _file_of(source: Path, split: str) -> tuple[Path, bool]:
    """Return the file of a split, and whether it is of that split alone."""
    if source.is_file():
        return source, False
    found = _found(source)
    if "" in found:
        return found[""], False
    if split not in found:
        raise InputError(f"{source} has annotations in {', '.join(map(str, found.values()))}, none for {split}ing.")
    return found[split], True


def _images_folder(source: Path, file: Path, images: Sequence[_Image]) -> Path:
    """Return the first of the usual folders that has the first image."""
    root, name = file.parent if source.is_file() else source, file.stem.removeprefix(_START)
    places = [file.parent] if file.name == _PER_SPLIT else []
    places += [root / name, *(root / each / name for each in IMAGES)]
    split = next((split for split, names in SPLITS.items() if any(each in name.lower() for each in names)), None)
    if split is not None:
        for outer in (root, *(root / each for each in IMAGES)):
            if outer.is_dir() and (inner := split_folder(outer, split)) is not None:
                places.append(inner)
    places += [*(root / each for each in IMAGES), root]
    for place in places:
        if place.is_dir() and inside(place, images[0].name, file=file).is_file():
            return place
    looked = ", ".join(str(each) for each in dict.fromkeys(places))
    raise InputError(f"{file} names {images[0].name!r}, which is in none of {looked}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    id: int
    name: str
    width_px: int
    height_px: int


class _Told:
    """What a file says, checked where it is read. names: of the categories in the order of their ids."""

    def __init__(self, file: Path) -> None:
        self._file = file
        content = _json(file)
        self._content: dict[str, list[dict[str, Any]]] = {}
        for key in ("images", "annotations", "categories"):
            of = content.get(key) if isinstance(content, dict) else None
            if not isinstance(of, list) or not all(isinstance(each, dict) for each in of):
                raise InputError(
                    f"{file} is not COCO's JSON: {key!r} is not a list of objects.\n"
                    "It needs images, annotations and categories (cocodataset.org/#format-data)."
                )
            self._content[key] = of
        self.images = [self._image(each) for each in self._content["images"]]
        if len({each.id for each in self.images}) < len(self.images):
            raise InputError(f"{file} has two images of one id.")
        named = {_whole(each, "id", file, "a category"): each.get("name") for each in self._content["categories"]}
        if len(named) < len(self._content["categories"]) or not all(isinstance(each, str) for each in named.values()):
            raise InputError(f"{file}: its categories need an id of their own and a name each.")
        self.names = tuple(str(named[each]) for each in sorted(named))
        self._index = {each: at for at, each in enumerate(sorted(named))}

    def _image(self, of: dict[str, Any]) -> _Image:
        number = _whole(of, "id", self._file, "an image")
        what = f"image {number}"
        width, height = (_whole(of, key, self._file, what) for key in ("width", "height"))
        if not isinstance(of.get("file_name"), str) or not (width > 0 < height and width * height <= MOST_PIXELS):
            raise InputError(
                f"{self._file}: {what} of {width}x{height} pixels has the file_name "
                f"{str(of.get('file_name'))[:100]}.\n"
                f"A name and up to {MOST_PIXELS / 1e6:.0f} million pixels are needed."
            )
        return _Image(id=number, name=of["file_name"], width_px=width, height_px=height)

    @cached_property
    def _of_image(self) -> dict[int, list[dict[str, Any]]]:
        of: dict[int, list[dict[str, Any]]] = {each.id: [] for each in self.images}
        for each in self._content["annotations"]:
            number = _whole(each, "image_id", self._file, _called(each))
            if number not in of:
                raise InputError(f"{self._file}: {_called(each)} is of image {number}, which is not there.")
            of[number].append(each)
        return of

    def annotations_of(self, image: _Image) -> list[dict[str, Any]]:
        return self._of_image[image.id]

    def objects(self, image: _Image) -> Objects:
        """Return the objects of an image; boxes without extent are left out."""
        boxes, labels, crowd, areas = [], [], [], []
        for each in self.annotations_of(image):
            what = f"{self._file}: {_called(each)}"
            box = numbers_of(each.get("bbox"), name=what)
            far = FAR * max(image.width_px, image.height_px)
            if len(box) != 4 or min(box[2:]) < 0 or np.abs(box).max() > far:
                raise InputError(
                    f"{what} has the bbox {str(each.get('bbox'))[:100]}; x, y, width and height are needed, "
                    f"of an image of {image.width_px}x{image.height_px} pixels."
                )
            if min(box[2:]) == 0:
                continue
            area = numbers_of([each.get("area", math.prod(box[2:]))], name=f"{what}: area")
            boxes.append([*box[:2], *(box[:2] + box[2:])])
            labels.append(self._label(each))
            crowd.append(each.get("iscrowd", 0) == 1)
            areas.append(area[0])
        return Objects(
            boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.asarray(labels, dtype=np.int64),
            crowd=np.asarray(crowd, dtype=bool),
            areas=np.asarray(areas, dtype=np.float64),
            width_px=image.width_px,
            height_px=image.height_px,
        )

    def mask(self, image: _Image) -> NDArray[np.uint8]:
        """Return the map of an image, of 0 for the background and 1 for the first category."""
        return painted(self._regions(image), image.height_px, image.width_px)

    def _regions(self, image: _Image) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        height, width = image.height_px, image.width_px
        for each in self.annotations_of(image):
            what, drawn = f"{self._file}: {_called(each)}", each.get("segmentation")
            if isinstance(drawn, dict):
                if drawn.get("size") != [height, width]:
                    raise InputError(f"{what} has run lengths for {drawn.get('size')}, the image is {[height, width]}.")
                where = runs_mask(drawn.get("counts"), height, width, name=what)
            elif isinstance(drawn, list) and drawn:
                where = polygons_mask(drawn, height, width, name=what)
            else:
                raise InputError(f"{what} has no segmentation; without regions there are no masks.")
            yield 1 + self._label(each), where

    def _label(self, annotation: dict[str, Any]) -> int:
        number = _whole(annotation, "category_id", self._file, _called(annotation))
        if number not in self._index:
            raise InputError(f"{self._file}: {_called(annotation)} is of category {number}, which is not there.")
        return self._index[number]


def _json(file: Path) -> Any:
    raw = read_input(file, "annotations")
    if (count := raw.count(b"[") + raw.count(b"{")) > _MOST_PARTS:  # each takes much more memory than its two brackets
        raise InputError(f"{file} has {count:,} lists and objects; up to {_MOST_PARTS:,} are read.")
    return parse_json(raw, source=str(file), most_bytes=MOST_BYTES["annotations"])


def _whole(of: dict[str, Any], key: str, file: Path, what: str) -> int:
    value = of.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{file}: {what} has the {key} {str(value)[:60]}, not a whole number.")
    return value


def _called(annotation: dict[str, Any]) -> str:
    return f"annotation {str(annotation.get('id'))[:30]}"
