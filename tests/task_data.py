"""Pictures that a tiny network learns within seconds: red and green rectangles on grey, as COCO's file has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30)}


def write_rectangles(folder: Path, *, count: int = 80, side: int = 32) -> Path:
    """Write pictures of one or two rectangles, every fifth for the test; return the file for `--data`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    annotations: list[dict[str, Any]] = []
    for at in range(count):
        pixels = rng.integers(90, 120, (side, side, 3), dtype=np.uint8)
        for half in range(int(rng.integers(1, 3))):
            label = int(rng.integers(0, 2))
            wide, high = (int(each) for each in rng.integers(side // 4, side // 2 - 2, 2))
            left, top = half * side // 2 + 1, int(rng.integers(0, side - high))
            pixels[top : top + high, left : left + wide] = list(COLOURS.values())[label]
            right, bottom = left + wide, top + high
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": at, "category_id": label, "iscrowd": 0,
                    "bbox": [left, top, wide, high], "area": wide * high,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / "images" / f"{at:03}.png")
    content = {
        "categories": [{"id": at, "name": name} for at, name in enumerate(COLOURS)],
        "images": [{"id": at, "file_name": f"{at:03}.png", "width": side, "height": side} for at in range(count)],
        "annotations": annotations,
    }
    (folder / "rectangles.json").write_text(json.dumps(content))
    return folder / "rectangles.json"
