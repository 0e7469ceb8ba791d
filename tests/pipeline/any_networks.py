"""Networks as people bring them: a detector, a stereo pair, a line of text, a camera's frames; a factory each."""

from __future__ import annotations

import torch
from torch import nn


def _block(given: int, made: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made), nn.SiLU())


def _made(kind: type[nn.Module], seed: int) -> nn.Module:
    """Make a network of seeded numbers whose every BatchNorm is away from its neutral start, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = kind()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(module.weight, 0.6, 1.6)
                nn.init.uniform_(module.bias, -0.4, 0.4)
    return net.eval()


class Detector(nn.Module):
    """Like YOLO: a split backbone, a neck that upsamples, and a head at each of three strides."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2))
        self.inner = _block(16, 16)
        self.p3, self.p4, self.p5 = _block(48, 32, 2), _block(32, 32, 2), _block(32, 32, 2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.neck4, self.neck3 = _block(64, 32), _block(64, 32)
        self.heads = nn.ModuleList(nn.Conv2d(32, 4 + classes, 1) for _ in range(3))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, second = self.stem(image).chunk(2, 1)
        p3 = self.p3(torch.cat([first, second, self.inner(second)], 1))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.neck4(torch.cat([self.up(p5), p4], 1))
        n3 = self.neck3(torch.cat([self.up(n4), p3], 1))
        small, middle, large = (head(each) for head, each in zip(self.heads, (n3, n4, p5), strict=True))
        return small, middle, large


class Stereo(nn.Module):
    """Two images through one encoder, to disparity and how sure it is."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_block(3, 16, 2), _block(16, 16))
        self.decoder = nn.Sequential(_block(32, 16), nn.ConvTranspose2d(16, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.disparity, self.sure = nn.Conv2d(16, 1, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        both = self.decoder(torch.cat([self.encoder(left), self.encoder(right)], 1))
        return {"disparity": self.disparity(both), "sure": torch.sigmoid(self.sure(both))}


class Text(nn.Module):
    """A line of text of any width, to scores of characters along it."""

    def __init__(self, characters: int = 20) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(1, 16, 2), _block(16, 32, 2), _block(32, 32), nn.AvgPool2d((8, 1)))
        self.scores = nn.Conv2d(32, characters, 1)

    def forward(self, line: torch.Tensor) -> torch.Tensor:
        return self.scores(self.features(line)).squeeze(2).permute(0, 2, 1)


class Camera(nn.Module):
    """A camera's frames as they come: bytes, channels last, normalised inside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([123.7, 116.3, 103.5]))
        self.register_buffer("std", torch.tensor([58.4, 57.1, 57.4]))
        self.features = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2), _block(32, 32))
        self.classes = nn.Linear(32, 6)

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        x = frame.permute(0, 3, 1, 2).float()
        x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        return self.classes(self.features(x).mean((2, 3)))


def detector() -> nn.Module:
    return _made(Detector, 1)


def stereo() -> nn.Module:
    return _made(Stereo, 2)


def text() -> nn.Module:
    return _made(Text, 3)


def camera() -> nn.Module:
    return _made(Camera, 4)
