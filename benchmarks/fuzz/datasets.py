"""A small data set of each format that `--data` reads, each in a folder of its own."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
_COUNT = 20
_RNG_SEED = 5
Pixels = NDArray[np.uint8]


def _pictures(count: int = _COUNT, side: int = SIDE, channels: int = 3) -> Pixels:
    return np.random.default_rng(_RNG_SEED).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def _save(path: Path, pixels: Pixels, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def _idx(folder: Path) -> None:
    for split, packed in (("train", True), ("t10k", False)):
        images = _pictures(side=28, channels=1)[..., 0]
        content = {
            f"{split}-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes(),
            f"{split}-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, _COUNT) + bytes(range(10)) * 2,
        }
        for name, raw in content.items():
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)


def _cifar(folder: Path) -> None:
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        planes = _pictures(2, 32).transpose(0, 3, 1, 2)
        (folder / f"{name}.bin").write_bytes(b"".join(bytes([at]) + each.tobytes() for at, each in enumerate(planes)))


def _svhn(folder: Path) -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    def matrix(name: bytes, array: Pixels) -> bytes:
        sizes = np.asarray(array.shape, "<i4").tobytes()
        inside = element(6, struct.pack("<II", 9, 0)) + element(5, sizes) + element(1, name)
        return element(14, inside + element(2, array.tobytes(order="F")))

    labels = np.arange(1, 5, dtype=np.uint8)[:, np.newaxis]
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    for split in ("train", "test"):
        packed = (
            zlib.compress(matrix(*each)) for each in ((b"X", _pictures(4, 32).transpose(1, 2, 3, 0)), (b"y", labels))
        )
        content = b"".join(struct.pack("<II", 15, len(each)) + each for each in packed)
        (folder / f"{split}_32x32.mat").write_bytes(head + content)


def _coco(folder: Path) -> None:
    for at, pixels in enumerate(_pictures()):
        _save(folder / "images" / f"{at}.png", pixels)
    boxes = [
        {"id": at + 1, "image_id": at, "category_id": 1 + at % 2, "iscrowd": 0, "area": 30, "bbox": [2, 3, 5, 6],
         "segmentation": [[2, 3, 7, 3, 7, 9, 2, 9]]}
        for at in range(_COUNT)
    ]  # fmt: skip
    boxes[3] |= {"iscrowd": 1, "segmentation": {"size": [SIDE, SIDE], "counts": [20, 30, SIDE * SIDE - 50]}}
    content = {
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}],
        "images": [{"id": at, "file_name": f"{at}.png", "width": SIDE, "height": SIDE} for at in range(_COUNT)],
        "annotations": boxes,
    }
    (folder / "all.json").write_text(json.dumps(content))


def _yolo(folder: Path) -> None:
    for split in ("train", "val"):
        for at, pixels in enumerate(_pictures(4)):
            _save(folder / "images" / split / f"{at}.png", pixels)
            labels = folder / "labels" / split / f"{at}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("0 0.5 0.5 0.4 0.3\n1 0.2 0.2 0.6 0.2 0.6 0.7\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car, person]\n")


def _masks(folder: Path) -> None:
    for at, pixels in enumerate(_pictures()):
        _save(folder / "images" / f"{at}.png", pixels)
        _save(folder / "masks" / f"{at}.png", pixels[..., 0] % 3)
    (folder / "classes.txt").write_text("road\ncar\nsky\n")


def _depth(folder: Path) -> None:
    (folder / "depth_mm").mkdir()
    for at, pixels in enumerate(_pictures()):
        _save(folder / "images" / f"{at}.jpg", pixels)
        if at % 2:
            _save(folder / "depth_mm" / f"{at}.png", pixels[..., 0].astype(np.uint16) * 40)
        else:
            np.save(folder / "depth_mm" / f"{at}.npy", pixels[..., 0].astype(np.float32) * 40)


def _wanted(folder: Path) -> None:
    for split in ("train", "test"):
        for at, pixels in enumerate(_pictures(4)):
            for kind in ("images", "targets"):
                _save(folder / split / kind / f"{at}.png", pixels)


def _table(folder: Path) -> None:
    rows = ["file,label,height,leaves,wet,split"]
    for at, pixels in enumerate(_pictures()):
        _save(folder / "img" / f"{at}.png", pixels)
        rows.append(f"img/{at}.png,{'cat' if at % 2 else 'dog'},{at}.5,{at},{at % 2},{'test' if at > 15 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def _arrays(folder: Path) -> None:
    pictures = _pictures()
    np.savez(folder / "set.npz", images=pictures, labels=np.arange(_COUNT) % 2, classes=np.array(["cat", "dog"]))
    np.savez(folder / "values.npz", images=pictures, targets=np.linspace(0, 1, _COUNT))
    np.savez(
        folder / "maps.npz", images=pictures, masks=pictures[..., 0] % 3, depth_mm=pictures[..., 0].astype(np.uint16)
    )


def _feeds(folder: Path) -> None:
    feeds = _pictures().transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.savez(folder / "feeds.npz", x=feeds)
    np.save(folder / "feeds.npy", feeds)


def _folders(folder: Path) -> None:
    for split in ("train", "test"):
        for at, pixels in enumerate(_pictures(18)):
            kind = ("png", "jpg", "bmp", "gif", "webp", "tif")[at % 6]
            _save(folder / split / ("cat" if at % 2 else "dog") / f"{at}.{kind}", pixels)


def _images(folder: Path) -> None:
    """Write a file of every kind of image that people have."""
    pixels = _pictures(1, 24)[0]
    for kind in ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm"):
        _save(folder / f"a.{kind}", pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    _save(folder / "turned.jpg", pixels, exif=exif)
    _save(folder / "wide.png", pixels[..., 0].astype(np.uint16) * 200)
    Image.fromarray(pixels).convert("P").save(folder / "palette.png")
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(folder / "alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "float.tif")
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
    (folder / "plain.png").write_bytes(stream.getvalue())


DATASETS: dict[str, Callable[[Path], None]] = {
    "idx": _idx,
    "cifar": _cifar,
    "svhn": _svhn,
    "coco": _coco,
    "yolo": _yolo,
    "masks": _masks,
    "depth": _depth,
    "wanted": _wanted,
    "table": _table,
    "arrays": _arrays,
    "feeds": _feeds,
    "folders": _folders,
    "images": _images,
}
