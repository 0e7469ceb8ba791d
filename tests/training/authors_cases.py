"""Files in the layout of the paper's authors, random, and their networks written down a second time in plain torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]

CNN3 = ((16, 1, 5, 5), (32, 16, 3, 3), (32, 32, 4, 4))
VGG7 = ((32, 3), (32, 32), (64, 32), (64, 64), (128, 64), (256, 128))
VGG7_AT = (0, 4, 9, 13, 18, 23)
KINDS = ("msn", "sn", "bn", "none", "svhn")


def published(kind: str, seed: int = 0) -> Tensors:
    """The tensors of a file of the authors, random, no value neutral."""
    rng = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(shape).uniform_(low, high, generator=rng)

    def layer(place: str, *shape: int) -> Tensors:
        fan_in = int(np.prod(shape[1:]))
        weight = torch.empty(shape).normal_(0, (2 / fan_in) ** 0.5, generator=rng)
        made = {f"{place}.weight": weight, f"{place}.bias": between(0.3, 0.9, shape[0])}
        return made | ({f"{place}.renorm": torch.ones(1, 1)} if kind in ("msn", "sn") else {})

    def norm(place: str, channels: int) -> Tensors:
        affine = {f"{place}.weight": between(1.2, 2.4, channels), f"{place}.bias": between(0.1, 0.5, channels)}
        variance = torch.ones(channels) if kind == "msn" else between(0.3, 0.8, channels)
        tracked = {f"{place}.running_mean": between(-0.9, -0.3, channels), f"{place}.running_var": variance}
        return {**(affine if kind != "svhn" else {}), **tracked, f"{place}.num_batches_tracked": torch.tensor(7)}

    net: Tensors = {}
    if kind == "svhn":
        for at, (out, channels) in zip(VGG7_AT, VGG7, strict=True):
            net |= layer(f"features.{at}", out, channels, 3, 3) | norm(f"features.{at + 1}", out)
        return net | layer("classifier.0", 10, 256)
    for at, shape in zip((0, 3, 6) if kind in ("msn", "bn") else (0, 2, 4), CNN3, strict=True):
        net |= layer(f"main.{at}", *shape) | (norm(f"main.{at + 1}", shape[0]) if kind in ("msn", "bn") else {})
    return net | layer("fc", 10, 8192)


def authors_forward(kind: str, net: Tensors, x: Tensor, *, forget: str = "") -> Tensor:
    """The authors' network in evaluation, float64; `forget` leaves out one term of it."""
    net = {name: tensor.double() for name, tensor in net.items()}
    bare = {"bias": 0.0, "gain": 1.0, "shift": 0.0, "mean": 0.0, "variance": 1.0}

    def term(what: str, name: str) -> Tensor:
        return torch.full_like(net[name], bare[what]) if forget == what else net[name]

    def weight(place: str) -> Tensor:
        raw = net[f"{place}.weight"]
        if kind not in ("msn", "sn") or forget == ("fc sigma" if place == "fc" else "sigma"):
            return raw
        return net[f"{place}.renorm"] * raw / torch.linalg.svdvals(raw.flatten(1))[0]

    def normed(y: Tensor, place: str) -> Tensor:
        y = y - term("mean", f"{place}.running_mean").view(-1, 1, 1)
        if kind != "msn":
            y = y / (term("variance", f"{place}.running_var").view(-1, 1, 1) + 1e-5).sqrt()
        if kind == "svhn":
            return y
        return y * term("gain", f"{place}.weight").view(-1, 1, 1) + term("shift", f"{place}.bias").view(-1, 1, 1)

    if kind == "svhn":
        for at in VGG7_AT:
            x = F.conv2d(x, weight(f"features.{at}"), term("bias", f"features.{at}.bias"), padding=int(at != 23))
            x = normed(x, f"features.{at + 1}").relu()
            x = F.max_pool2d(x, 2) if at in (4, 13, 18, 23) else x
        return F.linear(x.flatten(1), weight("classifier.0"), net["classifier.0.bias"])
    places = [f"main.{at}" for at in ((0, 3, 6) if kind in ("msn", "bn") else (0, 2, 4))]
    for place, stride in zip(places, (1, 1, 2), strict=True):
        x = F.conv2d(x, weight(place), term("bias", f"{place}.bias"), stride=stride, padding=2)
        x = normed(x, f"main.{int(place[5:]) + 1}") if kind in ("msn", "bn") else x
        x = x.relu() if kind == "none" or forget == "slope" else F.leaky_relu(x, 0.1)
    return F.linear(x.flatten(1), weight("fc"), net["fc.bias"])


def images(kind: str) -> Tensor:
    shape = (3, 3, 32, 32) if kind == "svhn" else (3, 1, 28, 28)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def write(path: Path, net: object, **changed: object) -> Path:
    """Save in torch's older format, as the authors' files are."""
    torch.save({"net": net, "acc": 97.53, "epoch": 41, **changed}, path, _use_new_zipfile_serialization=False)
    return path
