"""What docs/guides/tasks.md says of benchmarks/tasks/peers.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def block(result: Mapping[str, Any]) -> str:
    """Return a table of both metrics, and a paragraph about the boxes."""
    detection, segmentation, trained = result["detection"], result["segmentation"], result["trained"]
    rows = [
        "| network | `--data` | metric | `eval` | independent | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for labels, called in (("coco", "COCO's JSON"), ("yolo", "YOLO's text")):
        each = detection["labels"][labels]
        rows += [_row("YOLOv8n", called, name, each) for name in ("mAP50", "mAP")]
    for fit, called in (("crop", "masks, cropped"), ("letterbox", "masks, letterboxed")):
        rows.append(_row("LR-ASPP", called, "mIoU", segmentation[fit]))
    boxes, own = detection["labels"]["coco"]["boxes"], detection["ultralytics"]
    high, wide = trained["yolo"]["input"]
    versions = result["versions"]
    return "\n\n".join(
        [
            "\n".join(rows),
            "The last column covers all numbers that `eval` reports and the independent script computes, those of each "
            "class included, which `eval` rounds to six decimals. Of "
            f"{boxes['pairs'] + boxes['alone']:,} boxes before the metric, {boxes['pairs']:,} are the same in both: "
            f"they overlap by at least {_below_one(boxes['least_iou'])}, and their scores differ by at most "
            f"{boxes['largest_score_difference']:.1g}.",
            "What `infer` shows was also compared with what ultralytics itself predicts from the same ONNX file. In "
            f"pictures that get larger on their way in, {_own(own['larger'])}. In pictures that get smaller, "
            f"{_own(own['smaller'])}: ultralytics scales with OpenCV, which then leaves out pixels, and msn-deploy "
            "with Pillow, which does not.",
            f"The pictures are 96 to 204 pixels wide and high, the detector's input {wide}x{high}, so that every one "
            f"is letterboxed. ultralytics {trained['yolo']['ultralytics']}, torchvision "
            f"{trained['masks']['torchvision'].partition('+')[0]}, ONNX Runtime {versions['onnxruntime']}, pycocotools "
            f"{versions['pycocotools']}. Raw: `benchmarks/results/xeon-2-cores/task-peers.json`.",
        ]
    )


def _own(each: Mapping[str, Any]) -> str:
    return (
        f"{each['pairs']} boxes are in both and {each['alone']} in one alone; pairs overlap by "
        f"{each['median_iou']:.3f} in the median and {each['least_iou']:.3f} at least, and their scores differ by "
        f"{each['median_score_difference']:.1g} in the median and {each['largest_score_difference']:.1g} at most"
    )


def _row(network: str, data: str, metric: str, each: Mapping[str, Any]) -> str:
    ours, other = (each[side][metric] for side in ("eval", "independent"))
    largest = max(each["difference"], each["difference_per_class"])
    return f"| {network} | {data} | {metric} | {ours:.6f} | {other:.6f} | {f'{largest:.1g}' if largest else '0'} |"


def _below_one(share: float) -> str:
    """Return a share in as many digits as tell it from 1, rounded down."""
    digits = 3
    while share < 1 and int(share * 10**digits) == 10**digits - 1 and digits < 7:
        digits += 1
    return f"{int(share * 10**digits) / 10**digits:.{digits}f}"
