"""Networks as people have them, each a source of `export`: several inputs and outputs, other types, open sizes."""

from __future__ import annotations

from pathlib import Path

HEAD = """
from collections import OrderedDict
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F


def block(cin, cout, stride=1):
    made = nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())
    with torch.no_grad():
        made[1].weight.uniform_(0.5, 1.5)
        made[1].bias.normal_()
        made[1].running_mean.normal_()
        made[1].running_var.uniform_(0.5, 2)
    return made


def build():
    torch.manual_seed(7)
    return Net().eval()
"""

DETECTOR = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down, self.deep = block(3, 16, 2), block(8, 16, 2), block(16, 32, 2)
        self.heads = nn.ModuleList(nn.Conv2d(c, 6, 1) for c in (16, 16, 32))

    def forward(self, images):
        a = self.stem(images)
        b = self.down(a.chunk(2, 1)[0])
        return [head(x) for head, x in zip(self.heads, (a, b, self.deep(b)))]
"""

STEREO = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.cost = block(3, 8), block(16, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, left, right):
        a, b = self.features(left), self.features(right)
        cost = self.cost(torch.cat([a, b], 1))
        return {"disparity": self.out(cost), "confidence": (a * b).mean(1, keepdim=True).sigmoid()}
"""

OCR = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.full((1, 3, 1, 1), 0.4), requires_grad=False)
        self.a, self.b = block(3, 8, 2), block(8, 16, 2)
        self.classes = nn.Linear(16, 11)

    def forward(self, x):
        y = self.b(self.a(x - self.mean)).mean(2)
        return self.classes(y.transpose(1, 2)).softmax(-1)
"""

CAMERA = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = block(3, 8, 2), block(8, 16, 2)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, frames):
        x = frames.permute(0, 3, 1, 2).float() / 255
        logits = self.out(self.b(self.a(x)))
        return logits, logits.argmax(1)
"""

NETWORKS = {"detector": DETECTOR, "stereo": STEREO, "ocr": OCR, "camera": CAMERA}
INPUTS = {
    "detector": ["images=1,3,64,64"],
    "stereo": ["left=1,3,32,48", "right=1,3,32,48"],
    "ocr": ["x=N,3,32,W=64"],
    "camera": ["frames=1,48,64,3:uint8"],
}
OUTPUTS = {
    "detector": ["output_0", "output_1", "output_2"],
    "stereo": ["disparity", "confidence"],
    "ocr": ["logits"],
    "camera": ["output_0", "output_1"],
}


def source(folder: Path, body: str) -> str:
    """Write a network as FILE.py and return the name of its factory."""
    path = folder / "net.py"
    path.write_text(HEAD + body, encoding="utf-8")
    return f"{path}:build"
