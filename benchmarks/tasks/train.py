"""Train YOLOv8n of ultralytics, or LR-ASPP of torchvision, on the files of scenes.py, and export it to ONNX.

    python train.py yolo|masks DATA WORK

It runs in the environment that peers.py makes. ultralytics (AGPL) is imported here, and nothing of it is copied. Both
start from random weights: nothing is downloaded.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
SEED = 3
YOLO_PX, YOLO_EPOCHS = 128, 20
YOLO_SHAPE = (128, 160)  # height and width of the ONNX file: neither square nor the size of any picture
MASK_PX, MASK_EPOCHS, MASK_BATCH = 128, 18, 8
MASK_CLASSES = 11
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def train_yolo(data: Path, work: Path) -> dict[str, Any]:
    """Train with ultralytics' own trainer and export with its own exporter."""
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    torchvision = without_compiled_operators()
    torchvision.ops.nms = _nms  # what ultralytics calls when it validates
    ultralytics: Any = importlib.import_module("ultralytics")
    model = ultralytics.YOLO("yolov8n.yaml")
    model.train(
        data=str(data / "boxes" / "data.yaml"), imgsz=YOLO_PX, epochs=YOLO_EPOCHS, batch=8, nbs=8, seed=SEED,
        optimizer="AdamW", lr0=0.002, cos_lr=True, warmup_epochs=0.5, mosaic=0.0, fliplr=0.0, scale=0.2,
        device="cpu", workers=0, val=False, plots=False, project=str(work), name="yolo", exist_ok=True,
    )  # fmt: skip
    best = ultralytics.YOLO(str(work / "yolo" / "weights" / "last.pt"))
    shutil.copy(best.export(format="onnx", imgsz=list(YOLO_SHAPE), simplify=False, opset=17), work / "yolo.onnx")
    predict(data, work)
    return {"epochs": YOLO_EPOCHS, "input": list(YOLO_SHAPE), "ultralytics": ultralytics.__version__}


def predict(data: Path, work: Path) -> None:
    """Write what ultralytics itself predicts with the ONNX file, of each test picture."""
    ultralytics: Any = importlib.import_module("ultralytics")
    model, found = ultralytics.YOLO(str(work / "yolo.onnx"), task="detect"), {}
    for path in sorted((data / "boxes" / "images" / "test").iterdir()):
        (told,) = model.predict(str(path), imgsz=list(YOLO_SHAPE), conf=0.25, iou=0.7, device="cpu", verbose=False)
        rows = zip(told.boxes.cls.tolist(), told.boxes.conf.tolist(), told.boxes.xyxy.tolist(), strict=True)
        found[path.name] = [{"label": int(label), "score": score, "box": box} for label, score, box in rows]
    (work / "predicted.json").write_text(json.dumps(found), encoding="utf-8")


def train_masks(data: Path, work: Path) -> dict[str, Any]:
    """Train torchvision's network as its references do: cross-entropy, ImageNet's mean and deviation."""
    torchvision = without_compiled_operators()
    torch.manual_seed(SEED)
    models = torchvision.models
    trunk = models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    layers = models._utils.IntermediateLayerGetter(trunk, {"layer1": "low", "layer3": "high"})  # strides 4 and 16
    net = models.segmentation.lraspp.LRASPP(layers, 64, 256, MASK_CLASSES)
    images, masks = zip(*(_pair(path) for path in sorted((data / "masks" / "images" / "train").iterdir())), strict=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = MASK_EPOCHS * (len(images) // MASK_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    weight = torch.ones(MASK_CLASSES)
    weight[0] = 0.3  # four fifths of all pixels
    generator = random.Random(SEED)
    net.train()
    for epoch in range(MASK_EPOCHS):
        order, losses = generator.sample(range(len(images)), len(images)), []
        for start in range(0, len(order) - MASK_BATCH + 1, MASK_BATCH):
            drawn = [_cropped(images[at], masks[at], generator) for at in order[start : start + MASK_BATCH]]
            batch, wanted = (torch.stack(each) for each in zip(*drawn, strict=True))
            loss = F.cross_entropy(net(_normalised(batch))["out"], wanted.long(), weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{MASK_EPOCHS}: loss {np.mean(losses):.4f}", flush=True)
        torch.save(net.state_dict(), work / "masks.pt")
    net.eval()
    torch.onnx.export(
        _Plain(net), (torch.zeros(1, 3, MASK_PX, MASK_PX),), work / "masks.onnx", input_names=["image"],
        output_names=["out"], opset_version=18, dynamo=True, external_data=False,
    )  # fmt: skip
    return {"epochs": MASK_EPOCHS, "input": [MASK_PX, MASK_PX], "torchvision": torchvision.__version__}


class _Plain(torch.nn.Module):
    """The network with its one tensor in place of a dictionary."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.net(image)["out"]
        return made


def _pair(path: Path) -> tuple[Tensor, Tensor]:
    """Return an image (3, h, w) and its classes (h, w), enlarged as the crop of the preset enlarges them."""
    image, mask = Image.open(path), Image.open(Path(str(path).replace("/masks/images/", "/masks/masks/")))
    short = int(MASK_PX / 0.875)
    size = tuple(short * side // min(image.size) for side in image.size)
    pixels = np.array(image.resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(
        np.array(mask.resize(size, Image.Resampling.NEAREST))
    )


def _cropped(image: Tensor, mask: Tensor, generator: random.Random) -> tuple[Tensor, Tensor]:
    top, left = (generator.randint(0, side - MASK_PX) for side in mask.shape)
    here = (..., slice(top, top + MASK_PX), slice(left, left + MASK_PX))
    return image[here], mask[here]


def _normalised(batch: Tensor) -> Tensor:
    return (batch / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def without_compiled_operators() -> Any:
    """Return torchvision, also beside a torch that its compiled part is not for, as zoo.py does."""
    sys.path.insert(0, str(HERE.parent / "networks"))
    importlib.import_module("zoo").without_compiled_operators()
    return importlib.import_module("torchvision")


def _nms(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Return which boxes (N, 4) are kept, the best first, as torchvision's compiled operator does."""
    order, kept = scores.argsort(descending=True, stable=True), []
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    areas = sides.prod(dim=1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        shared = torch.minimum(boxes[best, 2:], boxes[order, 2:]) - torch.maximum(boxes[best, :2], boxes[order, :2])
        both = shared.clamp(min=0).prod(dim=1)
        order = order[both / (areas[best] + areas[order] - both) <= overlap]
    return torch.tensor(kept, dtype=torch.int64)


def main() -> None:
    """Train one network, unless its ONNX file is there."""
    name, data, work = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve()
    if (work / f"{name}.onnx").is_file() and (work / f"{name}.json").is_file():
        return
    began = time.monotonic()
    told = {"yolo": train_yolo, "masks": train_masks}[name](data, work)
    told |= {"torch": torch.__version__, "minutes": round((time.monotonic() - began) / 60, 1)}
    (work / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
