"""Random small networks as programs: hypothesis draws a list of steps, `RandomNet` runs it in torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from msn_deploy.msn import MSNConv2d, MSNConvTranspose2d, SNConv2d, SNConvTranspose2d

CHANNELS, SIDE = 4, 8
NORMS = ("bn", "bn-bare", "msn", "msn-affine", "sn", "torch-sn", "weight-norm", "none")


@dataclass
class Program:
    """Steps, each (kind, sources, options); a step appends one tensor (C, H, W) to the list that it reads from."""

    steps: list[tuple[str, tuple[int, ...], dict[str, Any]]] = field(default_factory=list)
    shapes: list[tuple[int, int, int]] = field(default_factory=lambda: [(CHANNELS, SIDE, SIDE)])
    head: str = "raw"
    seed: int = 0


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Draw a program of three to nine steps."""
    program = Program(
        seed=draw(st.integers(0, 2**20)), head=draw(st.sampled_from(["raw", "flatten", "mean", "mean-bn"]))
    )
    for _ in range(draw(st.integers(3, 9))):
        # Mostly the newest tensor, so that the steps make a network and not a heap.
        newest = len(program.shapes) - 1
        source = newest if draw(st.integers(0, 3)) else draw(st.integers(0, newest))
        kinds = ["conv", "conv", "transposed", "norm", "norm", "relu", "relu", "leaky", "prelu", "relu6", "sigmoid"]
        kinds += [
            "max-pool",
            "avg-pool",
            "concat",
            "add",
            "upsample",
            "shift",
            "scale",
            "gain",
            "times",
            "times",
            "beside",
            "beside",
        ]
        kind = draw(st.sampled_from(kinds))
        _append(draw, program, kind, source)
    return program


def _append(draw: st.DrawFn, program: Program, kind: str, source: int) -> None:
    channels, height, width = shape = program.shapes[source]
    options: dict[str, Any] = {}
    sources: tuple[int, ...] = (source,)
    if kind in ("conv", "transposed"):
        out = draw(st.sampled_from([2, 4, 6]))
        groups = draw(st.sampled_from([each for each in (1, 1, 2) if channels % each == 0 == out % each]))
        options = {"out": out, "groups": groups, "kernel": draw(st.integers(1, 3)), "bias": draw(st.booleans())}
        options |= {"stride": draw(st.integers(1, 2)), "dilation": draw(st.integers(1, 2))}
        options |= {"padding": draw(st.integers(0, options["kernel"] - 1)), "norm": draw(st.sampled_from(NORMS))}
        span = options["dilation"] * (options["kernel"] - 1)
        if kind == "conv":
            options["mode"] = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "circular"]))
            if options["padding"] >= min(height, width):
                options["mode"] = "zeros"
            sides = [(each + 2 * options["padding"] - span - 1) // options["stride"] + 1 for each in (height, width)]
        else:
            options["more"] = draw(st.integers(0, max(options["stride"], options["dilation"]) - 1))
            sides = [
                (each - 1) * options["stride"] - 2 * options["padding"] + span + options["more"] + 1
                for each in (height, width)
            ]
        if min(sides) < 1 or max(sides) > 24:
            return
        shape = (out, *sides)
    elif kind in ("max-pool", "avg-pool"):
        options = {"kernel": draw(st.integers(1, 3)), "stride": draw(st.integers(1, 2)), "ceil": draw(st.booleans())}
        options |= {"padding": draw(st.integers(0, options["kernel"] // 2)), "counted": draw(st.booleans())}
        if min(height, width) < options["kernel"]:
            return
        # torch drops a last window that lies in the padding alone, ONNX's shape inference does not.
        room = [each + 2 * options["padding"] - options["kernel"] for each in (height, width)]
        options["ceil"] &= all(
            (-(-each // options["stride"])) * options["stride"] < side + options["padding"]
            for each, side in zip(room, (height, width), strict=True)
        )
        pool = F.max_pool2d if kind == "max-pool" else F.avg_pool2d
        where = (options["kernel"], options["stride"], options["padding"])
        shape = tuple(pool(torch.zeros(shape), *where, ceil_mode=options["ceil"]).shape)
    elif kind == "upsample":
        options = {"mode": draw(st.sampled_from(["nearest", "bilinear"]))}
        if max(height, width) > 10:
            return
        shape = (channels, 2 * height, 2 * width)
    elif kind in ("concat", "add"):
        fitting = [at for at, each in enumerate(program.shapes) if each[1:] == shape[1:]]
        if kind == "add":
            fitting = [at for at in fitting if program.shapes[at] == shape]
        sources = (source, draw(st.sampled_from(fitting)))
        shape = (shape[0] + program.shapes[sources[1]][0], height, width) if kind == "concat" else shape
        if shape[0] > 12:
            return
    elif kind == "norm":
        options = {"affine": draw(st.booleans())}
    elif kind == "relu6" and draw(st.booleans()):
        return
    elif kind == "beside":
        groups = draw(st.sampled_from([1, channels]))
        kernels = draw(st.lists(st.sampled_from([1, 3, 3, 5]), min_size=1, max_size=3))
        options = {"groups": groups, "kernels": kernels, "identity": draw(st.sampled_from(["none", "plain", "norm"]))}
    elif kind == "times":
        options = {"factor": draw(st.sampled_from([0.125, 0.5, 2.0, 4.0])), "divides": draw(st.booleans())}
    if kind in ("norm", "conv", "transposed"):
        options["gains"] = draw(st.sampled_from(["positive", "positive", "mixed", "with-zero"]))
    program.steps.append((kind, sources, options))
    program.shapes.append(shape)


class RandomNet(nn.Module):
    """A program in float64, with gains, biases and statistics that are not neutral."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        torch.manual_seed(program.seed)
        self.layers = nn.ModuleList(
            self._layer(kind, program.shapes[sources[0]][0], options) for kind, sources, options in program.steps
        )
        channels, height, width = program.shapes[-1]
        features = channels * height * width if program.head == "flatten" else channels
        self.linear = nn.Linear(features, 3)
        self.last_norm = nn.BatchNorm1d(3) if program.head == "mean-bn" else nn.Identity()
        self.double().eval()
        with torch.no_grad():
            for name, tensor in self.named_parameters():
                if name.endswith(("shift", "bias")):
                    tensor.copy_(torch.randn(tensor.shape))
            for (_, _, options), layer in zip(program.steps, self.layers, strict=True):
                self._fill(layer, options.get("gains", "positive"))
            self._fill(self.last_norm, "mixed")

    @staticmethod
    def _layer(kind: str, channels: int, options: dict[str, Any]) -> nn.Module:
        if kind == "conv":
            return _normed(nn.Conv2d, MSNConv2d, SNConv2d, channels, options, padding_mode=options["mode"])
        if kind == "transposed":
            more = {"output_padding": options["more"]}
            return _normed(nn.ConvTranspose2d, MSNConvTranspose2d, SNConvTranspose2d, channels, options, **more)
        if kind == "norm":
            return nn.BatchNorm2d(channels, affine=options["affine"])
        if kind == "prelu":
            return nn.PReLU(channels)
        if kind == "beside":
            many = {"groups": options["groups"], "bias": False}
            branches = [
                nn.Conv2d(channels, channels, width, padding=width // 2, **many) for width in options["kernels"]
            ]
            return nn.ModuleList([*branches, *(nn.BatchNorm2d(channels) for _ in range(len(branches) + 1))])
        if kind in ("shift", "scale"):
            return nn.ParameterDict({"value": torch.randn(channels, 1, 1)})
        if kind == "gain":
            return nn.ParameterDict({"value": torch.rand(channels, 1, 1) + 0.1})
        return nn.Identity()

    @staticmethod
    def _fill(layer: nn.Module, gains: str) -> None:
        for module in layer.modules():
            for name in ("running_mean", "running_var", "weight" if isinstance(module, nn.BatchNorm2d) else "gain"):
                tensor = getattr(module, name, None)
                if not isinstance(tensor, Tensor):
                    continue
                values = torch.randn(tensor.shape, dtype=tensor.dtype)
                if name == "running_var":
                    values = values.square() + 0.1
                elif name != "running_mean":
                    values = values.abs() + 0.1
                    if gains == "mixed":
                        values = values * torch.where(torch.rand(values.shape) < 0.5, -1.0, 1.0)
                    elif gains == "with-zero":
                        values[0] = 0.0
                tensor.copy_(values)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for (kind, sources, options), layer in zip(self.program.steps, self.layers, strict=True):
            values.append(_step(kind, layer, [values[at] for at in sources], options))
        y = values[-1]
        if self.program.head == "raw":
            return y
        y = torch.flatten(y, 1) if self.program.head == "flatten" else y.mean((2, 3))
        return self.last_norm(self.linear(y))


def _normed(plain: Any, msn: Any, sn: Any, channels: int, options: dict[str, Any], **more: Any) -> nn.Module:
    norm = options["norm"]
    shape = (channels, options["out"], options["kernel"], options["stride"], options["padding"])
    more |= {"groups": options["groups"], "dilation": options["dilation"], "bias": options["bias"]}
    if norm in ("msn", "msn-affine"):
        return msn(*shape, affine=norm == "msn-affine", **more)
    if norm == "sn":
        return sn(*shape, **more)
    layer = plain(*shape, **more)
    if norm == "torch-sn":
        return parametrizations.spectral_norm(layer)
    if norm == "weight-norm":
        return parametrizations.weight_norm(layer)
    if norm.startswith("bn"):
        return nn.Sequential(layer, nn.BatchNorm2d(options["out"], affine=norm == "bn"))
    return layer


def _step(kind: str, layer: nn.Module, inputs: list[Tensor], options: dict[str, Any]) -> Tensor:
    x = inputs[0]
    if kind == "relu":
        return torch.relu(x)
    if kind == "leaky":
        return F.leaky_relu(x, 0.125)  # which the float32 attribute of ONNX holds exactly
    if kind == "relu6":
        return F.relu6(x)
    if kind == "sigmoid":
        return torch.sigmoid(x)
    if kind == "beside":
        count = len(options["kernels"])
        parts = [norm(conv(x)) for conv, norm in zip(layer[:count], layer[count:-1], strict=True)]
        parts += {"none": [], "plain": [x], "norm": [layer[-1](x)]}[options["identity"]]
        return sum(parts[1:], parts[0])
    if kind == "shift":
        return x + layer["value"]
    if kind in ("scale", "gain"):
        return layer["value"] * x
    if kind == "times":  # factors that the float32 constants of the exporter hold exactly
        return x / options["factor"] if options["divides"] else x * options["factor"]
    if kind == "max-pool":
        return F.max_pool2d(x, options["kernel"], options["stride"], options["padding"], ceil_mode=options["ceil"])
    if kind == "avg-pool":
        where = (options["kernel"], options["stride"], options["padding"])
        return F.avg_pool2d(x, *where, ceil_mode=options["ceil"], count_include_pad=options["counted"])
    if kind == "concat":
        return torch.cat(inputs, 1)
    if kind == "add":
        return inputs[0] + inputs[1]
    if kind == "upsample":
        return F.interpolate(x, scale_factor=2, mode=options["mode"])
    return layer(x)
