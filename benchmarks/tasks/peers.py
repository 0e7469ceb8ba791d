"""`eval` against independent metrics, of YOLOv8n and of a segmentation network of torchvision: `make peers-tasks`.

Both are trained here on `digits-scenes` as files, exported to ONNX by their own tools, and given to msn-deploy with a
preset. What is there is kept: typed again, it goes on. The two packages are in an environment of their own,
which train.py alone runs in.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scenes import write_scenes

from msn_deploy.pipeline.evaluate import open_image_model
from msn_deploy.pipeline.images import split_for
from msn_deploy.tasks.boxes import iou
from msn_deploy.tasks.scoring import placements_of

sys.path.append(str(Path(__file__).resolve().parents[1]))
from result import add_out, give

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = (
    "torchvision==0.28.0", "ultralytics==8.4.190",
    # What importing them, and training, needs.
    "ultralytics-thop", "opencv-python-headless", "polars", "polars-runtime-32", "psutil", "requests",
    "charset-normalizer", "urllib3", "certifi",
)  # fmt: skip
SHOWN = 0.25
LABELS = {"coco": "boxes", "yolo": "boxes/data.yaml"}  # what `--data` is given for each format
FITS = {"crop": (), "letterbox": ("--fit", "letterbox")}  # added to `--preprocess imagenet`
LEAST_METRIC, LEAST_IOU, LEAST_BOXES = 0.5, 0.999, 100
MOST_METRIC, MOST_SCORE = 1e-6, 1e-4  # how far metrics and scores may differ

Boxes = Mapping[str, Sequence[Mapping[str, Any]]]
"""Of each picture, by the name of its file: boxes with `label`, `score` and `box`."""


def compared(ours: Boxes, others: Boxes) -> dict[str, Any]:
    """Pair boxes of one label that overlap by half or more, the best of each first, and say how far apart pairs are."""
    overlaps, scores, left = [], [], 0
    for name in sorted({*ours, *others}):
        rest = list(others.get(name, ()))
        for each in sorted(ours.get(name, ()), key=lambda box: -box["score"]):
            same = [other for other in rest if other["label"] == each["label"]]
            shared = iou(*(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in ([each["box"]], _of(same))))
            if not same or shared.max() < 0.5:
                left += 1
                continue
            apart = [abs(other["score"] - each["score"]) for other in same]
            best = min(range(len(same)), key=lambda at: (round(1 - shared[0][at], 4), apart[at]))
            overlaps.append(float(shared[0][best]))
            scores.append(apart[best])
            rest.remove(same[best])
        left += len(rest)
    return {
        "pairs": len(overlaps),
        "alone": left,
        "least_iou": min(overlaps, default=0.0),
        "median_iou": float(np.median(overlaps or [0.0])),
        "largest_score_difference": max(scores, default=1.0),
        "median_score_difference": float(np.median(scores or [1.0])),
    }


def _of(boxes: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [each["box"] for each in boxes]


def difference(ours: Mapping[str, float], others: Mapping[str, float]) -> float:
    """Return the largest difference of numbers that both have. Raises ValueError where one has others."""
    if ours.keys() != others.keys():
        raise ValueError(f"{sorted(ours)} and {sorted(others)} are not the same numbers")
    return max(abs(ours[name] - others[name]) for name in ours)


def boxes_measured(model: Path, data: str) -> dict[str, list[dict[str, Any]]]:
    """Return the boxes that `eval` hands to its metric, of each picture."""
    opened = open_image_model(model, threads=1)
    split = split_for(opened.info, opened.prep, data, "test", task="detection", lazy=True)
    task, placements = opened.task(split.classes), placements_of(split.labels, opened.prep)
    assert task is not None
    assert placements is not None
    found = {}
    for at, placement in enumerate(placements):
        images = np.asarray(split.images[at : at + 1])
        (answer,) = task.answers(opened.run(opened.prepared(images)), [placement])
        rows = zip(answer.labels.tolist(), answer.scores.tolist(), answer.boxes.tolist(), strict=True)
        found[f"{at:04d}.png"] = [{"label": label, "score": score, "box": box} for label, score, box in rows]
    return found


def detection(data: Path, work: Path) -> dict[str, Any]:
    """Compare `eval` and `infer` of YOLOv8n with independent.py, and `infer` with ultralytics' own predictions."""
    model = work / "yolo.msn.onnx"
    told = {"--task": "detection", "--read": "head=yolov8", "--classes": ",".join("0123456789")}
    _cli("export", work / "yolo.onnx", "--preprocess", "yolo", *_flat(told), "--out", model)
    result: dict[str, Any] = {"labels": {}}
    for labels, source in LABELS.items():
        of_eval = _cli_json(work / f"eval-{labels}.json", "eval", model, "--data", data / source)
        other = _independent("yolo", work / "yolo.onnx", data, labels, work / f"independent-{labels}.json")
        metrics = {of_eval["metric"]: of_eval["value"], **of_eval["metrics"]}
        result["labels"][labels] = {
            "eval": metrics,
            "independent": other["metrics"],
            "difference": difference(metrics, other["metrics"]),
            "difference_per_class": difference(of_eval["per_class"], other["per_class"]),
            "boxes": compared(boxes_measured(model, str(data / source)), other["boxes"]),
        }
    infer = _cli_json(work / "infer.json", "infer", model, data / "boxes" / "images" / "test")
    shown = {Path(each["image"]).name: [{**box, "label": int(box["label"])} for box in each["boxes"]] for each in infer}
    predicted = json.loads((work / "predicted.json").read_text(encoding="utf-8"))
    result["infer"] = compared(shown, {name: _shown(boxes) for name, boxes in other["boxes"].items()})
    result["ultralytics"] = {
        way: compared(*({name: each[name] for name in names} for each in (shown, predicted)))
        for way, names in _ways(data / "boxes" / "images" / "test", *_trained(work, "yolo")["input"]).items()
    }
    return result


def _trained(work: Path, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
    return told


def _ways(folder: Path, high: int, wide: int) -> dict[str, list[str]]:
    """Return which pictures get larger on their way into the network, and which smaller."""
    ways: dict[str, list[str]] = {"larger": [], "smaller": []}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            ways["larger" if image.width <= wide and image.height <= high else "smaller"].append(path.name)
    return ways


def _shown(boxes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what is to be shown of boxes."""
    return [each for each in boxes if each["score"] >= SHOWN and each["likeliest"]]


def masks(data: Path, work: Path) -> dict[str, Any]:
    """Compare `eval` of the segmentation network with independent.py, cropped and letterboxed."""
    result = {}
    for fit, options in FITS.items():
        model = work / f"masks-{fit}.msn.onnx"
        told = {"--task": "segmentation", "--classes": str(data / "masks" / "classes.txt")}
        _cli("export", work / "masks.onnx", "--preprocess", "imagenet", *options, *_flat(told), "--out", model)
        of_eval = _cli_json(work / f"eval-{fit}.json", "eval", model, "--data", data / "masks")
        other = _independent("masks", work / "masks.onnx", data, fit, work / f"independent-{fit}.json")
        metrics = {"mIoU": of_eval["value"], "pixel_accuracy": of_eval["metrics"]["pixel_accuracy"]}
        result[fit] = {
            "eval": metrics,
            "independent": other["metrics"],
            "difference": difference(metrics, other["metrics"]),
            "difference_per_class": difference(of_eval["per_class"], other["per_class"]),
            "pixels": other["pixels"],
        }
    return result


def failures(result: Mapping[str, Any]) -> list[str]:
    """Return what does not hold of what is wanted."""
    wanted = []
    for labels, each in result["detection"]["labels"].items():
        boxes = each["boxes"]
        wanted += [
            (f"{labels}: mAP50 is {each['eval']['mAP50']:.4f}", each["eval"]["mAP50"] >= LEAST_METRIC),
            (f"{labels}: {boxes['pairs']} boxes, {boxes['alone']} alone", _agree(boxes)),
            (f"{labels}: metrics differ by {each['difference']:g}", _are_close(each)),
        ]
    for fit, each in result["segmentation"].items():
        wanted.append((f"{fit}: metrics differ by {each['difference']:g}", _are_close(each)))
    crop = result["segmentation"]["crop"]["eval"]["mIoU"]
    wanted += [
        (f"mIoU is {crop:.4f}", crop >= LEAST_METRIC),
        ("infer gives other boxes", _agree(result["detection"]["infer"])),
    ]
    return [what for what, holds in wanted if not holds]


def _agree(boxes: Mapping[str, Any]) -> bool:
    near = boxes["least_iou"] > LEAST_IOU and boxes["largest_score_difference"] < MOST_SCORE
    return boxes["pairs"] >= LEAST_BOXES and not boxes["alone"] and near


def _are_close(each: Mapping[str, Any]) -> bool:
    return max(each["difference"], each["difference_per_class"]) <= MOST_METRIC


def _flat(options: Mapping[str, str]) -> list[str]:
    return [part for each in options.items() for part in each]


def _cli(*words: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "msn_deploy", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"msn-deploy {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr}")


def _cli_json(out: Path, *words: object) -> Any:
    _cli(*words, "--json", out)
    return json.loads(out.read_text(encoding="utf-8"))


def _independent(kind: str, model: Path, data: Path, how: str, out: Path) -> Any:
    words = [sys.executable, HERE / "independent.py", kind, model, data, how, out]
    subprocess.run([str(each) for each in words], check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    """Train what is not there, compare, and write the result; exit code 1 if something wanted does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_out(parser)
    parser.add_argument("--work", type=Path, default=Path("runs/task-peers"))
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv" / "task-peers")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    write_scenes(work / "data")
    sys.path.insert(0, str(HERE.parent / "networks"))
    python = importlib.import_module("run").environment(options.environment.resolve(), PACKAGES)
    trained = {}
    for name in ("yolo", "masks"):
        env = os.environ | {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(work)}
        env |= {"PYTHONPATH": str(ROOT)}
        subprocess.run(
            [str(each) for each in (python, HERE / "train.py", name, work / "data", work)], env=env, check=True
        )
        trained[name] = _trained(work, name)
    result = {
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("numpy", "pillow", "onnxruntime", "pycocotools", "onnx")},
        "trained": trained,
        "detection": detection(work / "data", work),
        "segmentation": masks(work / "data", work),
    }
    give(result, options.out)
    if failed := failures(result):
        raise SystemExit("does not hold: " + "; ".join(failed))


if __name__ == "__main__":
    main()
