"""`digits-scenes` as files that people have: PNG images of several shapes, with COCO's JSON, YOLO's text and masks.

    boxes/images/train/0000.png, boxes/labels/train/0000.txt, boxes/data.yaml    YOLO, groups left out
    boxes/annotations/instances_train.json                                       COCO, the same images
    masks/images/train/0000.png, masks/masks/train/0000.png, masks/classes.txt   a class for each pixel

The scenes are 96x96. A picture is one of them, or two beside or above each other, with a grey margin of 0 to 12 pixels
to the right and below: so a network of one size has to letterbox or crop them in different ways.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msn_deploy.data.images import DIGITS
from msn_deploy.data.scenes import SIDE_PX
from msn_deploy.data.sources import load_split

_GREY = 60  # of the margin, about that of the ground
_MOST_MARGIN = 13


def write_scenes(folder: Path, splits: Sequence[str] = ("train", "test")) -> None:
    """Write splits below a folder, unless it is there."""
    if folder.is_dir():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in splits:
        _write(partial, split)
    names = "".join(f"  {at}: '{name}'\n" for at, name in enumerate(DIGITS))
    paths = "train: images/train\nval: images/test\n"
    (partial / "boxes" / "data.yaml").write_text(f"{paths}names:\n{names}", encoding="utf-8")
    (partial / "masks" / "classes.txt").write_text("\n".join(("background", *DIGITS)) + "\n", encoding="utf-8")
    partial.rename(folder)


def _write(root: Path, split: str) -> None:
    size = {"height_px": SIDE_PX, "width_px": SIDE_PX, "channels": 3}
    boxes = load_split("digits-scenes", split, task="detection", **size)
    maps = load_split("digits-scenes", split, task="segmentation", **size).labels[..., 0]
    for kind in ("boxes/images", "boxes/labels", "masks/images", "masks/masks"):
        (root / kind / split).mkdir(parents=True)
    (root / "boxes" / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    at = 0
    while at + 2 <= len(boxes.images):
        number = len(images)
        places = ([(0, 0)], [(0, 0), (SIDE_PX, 0)], [(0, 0), (0, SIDE_PX)])[number % 3]  # left and top of each scene
        chosen = list(range(at, at + len(places)))
        at += len(places)
        pixels = _picture([boxes.images[each] for each in chosen], places, number)
        classes = _picture([maps[each] for each in chosen], places, number)
        height, width = classes.shape
        name, lines = f"{number:04d}.png", []
        for each, (left, top) in zip(chosen, places, strict=True):
            objects = boxes.labels.images[each]
            columns = (objects.boxes, objects.labels, objects.crowd, objects.areas)
            for box, label, crowd, area in zip(*(column.tolist() for column in columns), strict=True):
                x1, y1, x2, y2 = box[0] + left, box[1] + top, box[2] + left, box[3] + top
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": number + 1, "category_id": label + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": int(crowd),
                    }
                )  # fmt: skip
                shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
                lines += [] if crowd else [" ".join([str(label), *map(repr, shares)])]
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        for kind in ("boxes", "masks"):
            Image.fromarray(pixels).save(root / kind / "images" / split / name)
        Image.fromarray(classes).save(root / "masks" / "masks" / split / name)
        (root / "boxes" / "labels" / split / f"{number:04d}.txt").write_text("".join(f"{line}\n" for line in lines))
    told = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": at + 1, "name": name} for at, name in enumerate(DIGITS)],
    }
    (root / "boxes" / "annotations" / f"instances_{split}.json").write_text(json.dumps(told), encoding="utf-8")


def _picture(scenes: list[NDArray[np.uint8]], places: list[tuple[int, int]], number: int) -> NDArray[np.uint8]:
    """Put scenes where they belong, on grey; of maps of classes the margin is background."""
    left, top = places[-1]
    height, width = top + SIDE_PX + number * 7 % _MOST_MARGIN, left + SIDE_PX + number * 5 % _MOST_MARGIN
    made = np.full((height, width, *scenes[0].shape[2:]), _GREY if scenes[0].ndim == 3 else 0, dtype=np.uint8)
    for scene, (left, top) in zip(scenes, places, strict=True):
        made[top : top + SIDE_PX, left : left + SIDE_PX] = scene
    return made
