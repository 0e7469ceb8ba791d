"""Metrics of the two networks without msn-deploy: from PNG files to mAP and mIoU, in plain loops.

    python independent.py yolo NETWORK.onnx DATA coco|yolo OUT.json
    python independent.py masks NETWORK.onnx DATA crop|letterbox OUT.json

NETWORK.onnx is what ultralytics or torch exported. Nothing is imported but numpy, Pillow, onnxruntime and pycocotools;
letterbox, crop, decoding, non-maximum suppression and the counting of pixels are written again here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported

import numpy as np
import onnxruntime
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SCORE, OVERLAP, MOST = 0.001, 0.7, 300
GREY = 114
MEAN, STD = np.array([0.485, 0.456, 0.406], dtype=np.float32), np.array([0.229, 0.224, 0.225], dtype=np.float32)
LEFT_OUT = 255
SUMMARY = (
    *("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


class Network:
    """An ONNX file in ONNX Runtime on one thread, with one image input of batch 1."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (given,) = self._session.get_inputs()
        self._name = given.name
        self.height, self.width = given.shape[2:]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return the output for an image, float32 (height, width, 3)."""
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis], dtype=np.float32)
        return self._session.run(None, {self._name: batch})[0][0]


def letterboxed(image: Image.Image, height: int, width: int, fill: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return uint8 (height, width, 3), and where the image is: scale and start along x, then along y."""
    scale = min(width / image.width, height / image.height)
    wide, high = round(image.width * scale), round(image.height * scale)
    left, top = (width - wide) // 2, (height - high) // 2
    canvas = np.full((height, width, 3), fill, dtype=np.uint8)
    canvas[top : top + high, left : left + wide] = np.array(image.resize((wide, high), Image.Resampling.BILINEAR))
    return canvas, (wide / image.width, left, high / image.height, top)


def boxes_of(network: Network, path: Path) -> list[dict[str, Any]]:
    """Return the boxes of one picture, the best first: label, score, and corners in its pixels.

    likeliest: whether the label is the likeliest of its box.
    """
    image = Image.open(path).convert("RGB")
    pixels, (scale_x, left, scale_y, top) = letterboxed(image, network.height, network.width, GREY)
    rows = network(pixels.astype(np.float32) / np.float32(255)).T.tolist()  # centre, size, one score per class
    found = []
    for x, y, wide, high, *scores in rows:
        corners = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
        best = max(scores)
        found += [(score, label, corners, score == best) for label, score in enumerate(scores) if score > SCORE]
    found.sort(key=lambda each: -each[0])
    kept: list[tuple[float, int, tuple[float, ...], bool]] = []
    for each in found:
        if all(each[1] != other or overlap(each[2], box) <= OVERLAP for _, other, box, _ in kept):
            kept.append(each)
    told = []
    for score, label, (x1, y1, x2, y2), likeliest in kept[:MOST]:
        x1, x2 = (min(max((x - left) / scale_x, 0), image.width) for x in (x1, x2))
        y1, y2 = (min(max((y - top) / scale_y, 0), image.height) for y in (y1, y2))
        if x2 > x1 and y2 > y1:
            told.append({"label": label, "score": score, "box": [x1, y1, x2, y2], "likeliest": likeliest})
    return told


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return intersection over union."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return wide * high / (sum(areas) - wide * high)


def of_coco(data: Path) -> dict[str, Any]:
    """Return the labels of the test pictures as COCO's JSON has them."""
    return json.loads((data / "boxes" / "annotations" / "instances_test.json").read_text(encoding="utf-8"))


def of_text(data: Path) -> dict[str, Any]:
    """Return those of YOLO's text files in COCO's form."""
    images, annotations = [], []
    for number, path in enumerate(sorted((data / "boxes" / "images" / "test").iterdir()), start=1):
        with Image.open(path) as image:
            width, height = image.size
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        for line in (data / "boxes" / "labels" / "test" / f"{path.stem}.txt").read_text().splitlines():
            label, x, y, wide, high = map(float, line.split())
            box = [(x - wide / 2) * width, (y - high / 2) * height, wide * width, high * height]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": int(label) + 1, "bbox": box,
                    "area": box[2] * box[3], "iscrowd": 0,
                }
            )  # fmt: skip
    categories = [{"id": at + 1, "name": str(at)} for at in range(10)]
    return {"images": images, "annotations": annotations, "categories": categories}


def measure_boxes(network: Network, data: Path, labels: str) -> dict[str, Any]:
    """Return COCO's numbers, the AP of each class, and the boxes of each picture."""
    wanted = COCO()
    wanted.dataset = {"coco": of_coco, "yolo": of_text}[labels](data)
    wanted.createIndex()
    boxes, answers = {}, []
    for image in wanted.dataset["images"]:
        boxes[image["file_name"]] = found = boxes_of(network, data / "boxes" / "images" / "test" / image["file_name"])
        for each in found:
            x1, y1, x2, y2 = each["box"]
            answers.append(
                {
                    "image_id": image["id"], "category_id": each["label"] + 1, "score": each["score"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )  # fmt: skip
    judge = COCOeval(wanted, wanted.loadRes(answers), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    precision = judge.eval["precision"][:, :, :, 0, -1]
    of_class = {each["name"]: precision[:, :, at] for at, each in enumerate(wanted.dataset["categories"])}
    return {
        "metrics": {name: float(value) for name, value in zip(SUMMARY, judge.stats, strict=True) if value >= 0},
        "per_class": {name: float(each[each >= 0].mean()) for name, each in of_class.items() if (each >= 0).any()},
        "boxes": boxes,
    }


def nearest(mask: np.ndarray, wide: int, high: int) -> np.ndarray:
    """Return a mask (h, w) at another size, as torchvision scales masks: by Pillow.

    Where the centre of a new pixel falls on the edge between two old ones exactly, Pillow takes either.
    """
    return np.array(Image.fromarray(mask).resize((wide, high), Image.Resampling.NEAREST))


def prepared(image: Image.Image, mask: np.ndarray, side: int, fit: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what the network sees of a picture, uint8 (side, side, 3), and the class of each of these pixels."""
    if fit == "letterbox":
        pixels, (scale_x, left, scale_y, top) = letterboxed(image, side, side, 0)
        wide, high = round(image.width * scale_x), round(image.height * scale_y)
        wanted = np.full((side, side), LEFT_OUT, dtype=np.uint8)
        wanted[int(top) : int(top) + high, int(left) : int(left) + wide] = nearest(mask, wide, high)
        return pixels, wanted
    short = int(side / 0.875)
    wide, high = (short * each // min(image.size) for each in image.size)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    pixels = np.array(image.resize((wide, high), Image.Resampling.BILINEAR))
    here = slice(top, top + side), slice(left, left + side)
    return pixels[here], nearest(mask, wide, high)[here]


def measure_masks(network: Network, data: Path, fit: str) -> dict[str, Any]:
    """Return mIoU, pixel accuracy and the IoU of each class, counted class by class."""
    names = (data / "masks" / "classes.txt").read_text(encoding="utf-8").split()
    both, either = dict.fromkeys(range(len(names)), 0), dict.fromkeys(range(len(names)), 0)
    right = seen = 0
    for path in sorted((data / "masks" / "images" / "test").iterdir()):
        mask = np.array(Image.open(data / "masks" / "masks" / "test" / path.name))
        pixels, wanted = prepared(Image.open(path).convert("RGB"), mask, network.height, fit)
        scores = network((pixels.astype(np.float32) / np.float32(255) - MEAN) / STD)
        answer, counted = scores.argmax(axis=0), wanted != LEFT_OUT
        right += int(((answer == wanted) & counted).sum())
        seen += int(counted.sum())
        for label in both:
            one, other = (wanted == label) & counted, (answer == label) & counted
            both[label] += int((one & other).sum())
            either[label] += int((one | other).sum())
    each = {names[label]: both[label] / either[label] for label in both if either[label]}
    metrics = {"mIoU": sum(each.values()) / len(each), "pixel_accuracy": right / seen}
    return {"metrics": metrics, "per_class": each, "pixels": seen}


def main() -> None:
    """Measure one network."""
    kind, model, data, how, out = sys.argv[1:]
    result = {"yolo": measure_boxes, "masks": measure_masks}[kind](Network(model), Path(data), how)
    Path(out).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
