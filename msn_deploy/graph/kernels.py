"""Operators in float64 by torch: those that take most of the time, and those that onnx's own reference gets wrong.

Each takes what its node says (`Call`) and its inputs, and returns its output or outputs. Where a form of an operator is
not known here it raises NotImplementedError, and `reference` asks the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Call:
    """What a node says beside its inputs."""

    operator: str
    version: int
    """Opset of its domain."""
    given: Mapping[str, Any]
    """Its attributes, tensors as arrays."""
    outputs: int

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.given.get(name, default)


Kernel = Callable[..., Any]
KERNELS: dict[str, Kernel] = {}


def kernel(*operators: str) -> Callable[[Kernel], Kernel]:
    """Make a function the kernel of operators of the default domain."""

    def add(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(operators, function))
        return function

    return add


def tensor(array: Array) -> Tensor:
    """Return an array as torch sees it, on the same memory."""
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))  # which makes a number a list of one


def floats(*arrays: Array | None) -> list[Tensor]:
    """Return arrays of floating point as tensors."""
    if any(each is not None and each.dtype.kind != "f" for each in arrays):
        raise NotImplementedError("numbers that are not floating point")
    return [tensor(each) for each in arrays if each is not None]


class Window:
    """Where the windows of a convolution or pooling lie, every attribute spelled out."""

    def __init__(self, call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> None:
        self.sides, self.kernel, self.sizes = len(sizes), list(kernel), list(sizes)
        self.strides = list(call.get("strides") or [1] * self.sides)
        self.dilations = list(call.get("dilations") or [1] * self.sides)
        self.spans = [dilation * (width - 1) + 1 for width, dilation in zip(self.kernel, self.dilations, strict=True)]
        self.before, self.behind = self._pads(call.get("auto_pad", "NOTSET"), call.get("pads"))

    def _pads(self, auto: str, pads: Any) -> tuple[list[int], list[int]]:
        if auto in ("NOTSET", ""):
            pads = list(pads or [0] * 2 * self.sides)
            return pads[: self.sides], pads[self.sides :]
        if auto == "VALID":
            return [0] * self.sides, [0] * self.sides
        missing = [
            max(0, (-(-size // stride) - 1) * stride + span - size)
            for size, span, stride in zip(self.sizes, self.spans, self.strides, strict=True)
        ]
        less, more = [each // 2 for each in missing], [each - each // 2 for each in missing]
        return (less, more) if auto == "SAME_UPPER" else (more, less)

    def counts(self, *, ceil: bool) -> list[int]:
        """Return how many windows there are along each side. One that would begin behind the picture is none."""
        found = []
        for i in range(self.sides):
            room = self.sizes[i] + self.before[i] + self.behind[i] - self.spans[i]
            count = (-(-room // self.strides[i]) if ceil else room // self.strides[i]) + 1
            if ceil and (count - 1) * self.strides[i] >= self.sizes[i] + self.before[i]:
                count -= 1
            found.append(count)
        return found

    def taps(self, x: Tensor, axis: int, count: int) -> list[Tensor]:
        """Return, for each place in the window along one side, that part of an already padded tensor."""
        stride, dilation = self.strides[axis], self.dilations[axis]
        starts = [at * dilation for at in range(self.kernel[axis])]
        return [x.narrow(2 + axis, at, (count - 1) * stride + 1)[_every(2 + axis, stride)] for at in starts]

    def padded(self, x: Tensor, counts: Sequence[int], value: float) -> Tensor:
        """Return a tensor with as much on both ends of each side as the windows reach; less where they end before."""
        pads: list[int] = []
        for i in reversed(range(self.sides)):
            needed = (counts[i] - 1) * self.strides[i] + self.spans[i]
            pads += [self.before[i], needed - self.before[i] - self.sizes[i]]
        return F.pad(x, pads, value=value) if any(pads) else x


def _every(axis: int, stride: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(None, None, stride))


@kernel("MaxPool")
def _max_pool(call: Call, x: Array) -> Any:
    at, kind = Window(call, x.shape[2:], call.given["kernel_shape"]), x.dtype
    counts = at.counts(ceil=bool(call.get("ceil_mode", 0)))
    image = tensor(x if kind.kind == "f" else x.astype(np.float64))
    image = at.padded(image, counts, -math.inf)
    if call.outputs == 1:
        for axis in range(at.sides):
            first, *others = at.taps(image, axis, counts[axis])
            image = first.clone() if others else first
            for other in others:
                torch.maximum(image, other, out=image)
        return image.numpy().astype(kind, copy=False)
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[at.sides - 1]
    y, places = pool(image, at.kernel, at.strides, 0, at.dilations, return_indices=True)
    order: Literal["C", "F"] = "F" if call.get("storage_order", 0) else "C"
    where = np.unravel_index(places.numpy(), image.shape[2:])
    inside = [each - first for each, first in zip(where, at.before, strict=True)]
    flat: Array = np.ravel_multi_index(tuple(inside), x.shape[2:], order=order)
    flat = flat + np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * at.sides) * math.prod(x.shape[2:])
    return y.numpy().astype(kind, copy=False), flat.astype(np.int64)


@kernel("AveragePool", "LpPool")
def _summing_pool(call: Call, x: Array) -> Array:
    at = Window(call, x.shape[2:], call.given["kernel_shape"])
    counts = at.counts(ceil=bool(call.get("ceil_mode", 0)))
    (image,) = floats(x)
    power = call.get("p", 2) if call.operator == "LpPool" else 0
    if power:
        image = image.abs() ** power
    image = at.padded(image, counts, 0.0)
    for axis in range(at.sides):
        first, *others = at.taps(image, axis, counts[axis])
        image = first.clone()
        for other in others:
            image += other
    if power:
        return (image ** (1 / power)).numpy()
    for axis in range(at.sides):
        padding = bool(call.get("count_include_pad", 0))
        low = -at.before[axis] if padding else 0
        high = at.sizes[axis] + (at.behind[axis] if padding else 0)
        starts = np.arange(counts[axis]) * at.strides[axis] - at.before[axis]
        places = starts[:, None] + np.arange(at.kernel[axis]) * at.dilations[axis]
        held = tensor(((places >= low) & (places < high)).sum(1).astype(x.dtype))
        image = image / held.reshape(-1, *[1] * (at.sides - 1 - axis))
    return image.numpy()


@kernel("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(call: Call, x: Array) -> Any:
    (image,) = floats(x)
    axes = list(range(2, x.ndim))
    if call.operator == "GlobalAveragePool":
        return image.mean(axes, keepdim=True).numpy()
    if call.operator == "GlobalMaxPool":
        return image.amax(axes, keepdim=True).numpy()
    power = call.get("p", 2)
    return ((image.abs() ** power).sum(axes, keepdim=True) ** (1 / power)).numpy()


@kernel("BatchNormalization")
def _batch_norm(call: Call, x: Array, gain: Array, bias: Array, mean: Array, var: Array) -> Any:
    """The one of evaluation. Before opset 14 a training one has more outputs; `momentum` never means training."""
    if call.get("training_mode", 0) or call.outputs > 1:
        raise NotImplementedError("a batch normalisation in training")
    image, *terms = floats(x, gain, bias, mean, var)
    if gain.ndim == 1 and x.ndim > 1:
        terms = [each.reshape(-1, *[1] * (x.ndim - 2)) for each in terms]
    scale = terms[0] / (terms[3] + call.get("epsilon", 1e-5)).sqrt()
    return (image * scale).add_(terms[1] - terms[2] * scale).numpy()


@kernel("InstanceNormalization")
def _instance_norm(call: Call, x: Array, gain: Array, bias: Array) -> Array:
    image, scale, shift = floats(x, gain, bias)
    by_channel = (-1, *[1] * (x.ndim - 2))
    y = _standardised(image, list(range(2, x.ndim)), call.get("epsilon", 1e-5))[0]
    return (y * scale.reshape(by_channel)).add_(shift.reshape(by_channel)).numpy()


@kernel("LayerNormalization")
def _layer_norm(call: Call, x: Array, gain: Array, bias: Array | None = None) -> Any:
    image, scale, *shift = floats(x, gain, bias)
    first = call.get("axis", -1)
    axes = list(range(first % x.ndim, x.ndim))
    y, mean, inverse = _standardised(image, axes, call.get("epsilon", 1e-5))
    y = y * scale
    y = y.add_(shift[0]) if shift else y
    return tuple(each.numpy() for each in (y, mean, inverse))[: call.outputs]


@kernel("MeanVarianceNormalization")
def _mean_variance_norm(call: Call, x: Array) -> Array:
    """With the constant 1e-9 that its definition adds to the deviation."""
    (image,) = floats(x)
    axes = list(call.get("axes", [0, 2, 3]))
    apart = image - image.mean(axes, keepdim=True)
    return (apart / ((apart * apart).mean(axes, keepdim=True).sqrt() + 1e-9)).numpy()


@kernel("GroupNormalization")
def _group_norm(call: Call, x: Array, gain: Array, bias: Array) -> Array:
    image, scale, shift = floats(x, gain, bias)
    groups = call.given["num_groups"]
    grouped = image.reshape(x.shape[0], groups, -1)
    y = _standardised(grouped, [2], call.get("epsilon", 1e-5))[0]
    parts = groups if len(gain) == groups and call.version < 21 else x.shape[1]  # before 21: one per group
    y = y.reshape(x.shape[0], parts, -1) * scale[:, None] + shift[:, None]
    return y.reshape(x.shape).numpy()


def _standardised(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    apart = x - mean
    inverse = 1 / ((apart * apart).mean(axes, keepdim=True) + epsilon).sqrt()
    return apart.mul_(inverse), mean, inverse


@kernel("LRN")
def _lrn(call: Call, x: Array) -> Any:
    (image,) = floats(x)
    size = call.given["size"]
    squares = F.pad(image * image, [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2])
    total = sum((squares.narrow(1, at, x.shape[1]) for at in range(1, size)), squares.narrow(1, 0, x.shape[1]))
    return (image / (call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * total) ** call.get("beta", 0.75)).numpy()


@kernel("LpNormalization")
def _lp_norm(call: Call, x: Array) -> Any:
    (image,) = floats(x)
    length = torch.linalg.vector_norm(image, call.get("p", 2), dim=call.get("axis", -1), keepdim=True)
    return torch.where(length == 0, torch.zeros_like(image), image / length).numpy()


@kernel("MatMul")
def _matmul(call: Call, a: Array, b: Array) -> Array:
    return np.asarray(torch.matmul(*floats(a, b)).numpy())


@kernel("Gemm")
def _gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Array:
    left, right, *added = floats(a, b, c)
    left = left.T if call.get("transA", 0) else left
    right = right.T if call.get("transB", 0) else right
    y = left @ right
    y = y if call.get("alpha", 1.0) == 1 else y * call.given["alpha"]
    for each in added:
        y = y + each * call.get("beta", 1.0)
    return y.numpy()


@kernel("Einsum")
def _einsum(call: Call, *inputs: Array) -> Array:
    return np.asarray(torch.einsum(call.given["equation"].replace(" ", ""), *floats(*inputs)).numpy())


@kernel("Add", "Sub", "Mul", "Div", "Pow")
def _arithmetic(call: Call, a: Array, b: Array) -> Array:
    if call.version < 7 and call.get("broadcast", 0) and "axis" in call.given:
        b = b.reshape(*b.shape, *[1] * (a.ndim - b.ndim - call.given["axis"] % a.ndim))
    compute: dict[str, Any] = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow}
    return np.asarray(compute[call.operator](*floats(a, b)).numpy())


_GELU_SLOPE = math.sqrt(2 / math.pi)
UNARY: dict[str, Callable[[Call, Tensor], Tensor]] = {
    "Relu": lambda _, x: torch.relu(x),
    "LeakyRelu": lambda call, x: F.leaky_relu(x, call.get("alpha", 0.01)),
    "Elu": lambda call, x: torch.where(x > 0, x, call.get("alpha", 1.0) * torch.expm1(torch.clamp(x, max=0))),
    "Celu": lambda call, x: F.celu(x, call.get("alpha", 1.0)),
    "Selu": lambda call, x: (
        call.get("gamma", 1.0507010221481323)
        * torch.where(x > 0, x, call.get("alpha", 1.6732631921768188) * torch.expm1(torch.clamp(x, max=0)))
    ),
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "HardSigmoid": lambda call, x: torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1),
    "HardSwish": lambda _, x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "Mish": lambda _, x: x * torch.tanh(F.softplus(x, threshold=math.inf)),
    "Swish": lambda call, x: x * torch.sigmoid(call.get("alpha", 1.0) * x),
    "Tanh": lambda _, x: torch.tanh(x),
    "Softplus": lambda _, x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype)),
    "Softsign": lambda _, x: x / (1 + x.abs()),
    "ThresholdedRelu": lambda call, x: torch.where(x > call.get("alpha", 1.0), x, torch.zeros((), dtype=x.dtype)),
    "Erf": lambda _, x: torch.erf(x),
    "Gelu": lambda call, x: (
        0.5 * x * (1 + torch.tanh(_GELU_SLOPE * (x + 0.044715 * x**3)))
        if call.get("approximate", "none") == "tanh"
        else 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    ),
    "Exp": lambda _, x: torch.exp(x),
    "Log": lambda _, x: torch.log(x),
    "Sqrt": lambda _, x: torch.sqrt(x),
    "Reciprocal": lambda _, x: torch.reciprocal(x),
    "Abs": lambda _, x: torch.abs(x),
    "Neg": lambda _, x: torch.neg(x),
    "Sin": lambda _, x: torch.sin(x),
    "Cos": lambda _, x: torch.cos(x),
}
"""Operators of one tensor, through which gradients flow."""


@kernel(*UNARY)
def _unary(call: Call, x: Array) -> Array:
    return np.asarray(UNARY[call.operator](call, *floats(x)).numpy())


@kernel("PRelu")
def _prelu(call: Call, x: Array, slope: Array) -> Array:
    """Its slope is broadcast as in numpy; one per channel, as older files have it, is (C,)."""
    image, slopes = floats(x, slope)
    if slope.ndim == 1 and x.ndim > 2 and len(slope) == x.shape[1] and call.version < 7:
        slopes = slopes.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(image < 0, image * slopes, image).numpy()


@kernel("Clip")
def _clip(call: Call, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    (image,) = floats(x)
    low = call.get("min") if low is None else low
    high = call.get("max") if high is None else high
    image = image if low is None else torch.clamp(image, min=float(low))
    return (image if high is None else torch.clamp(image, max=float(high))).numpy()


@kernel("Softmax", "LogSoftmax", "Hardmax")
def _softmax(call: Call, x: Array) -> Any:
    (image,) = floats(x)
    compute: Any = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax, "Hardmax": _hardmax}[call.operator]
    if call.version >= 13:
        return compute(image, call.get("axis", -1)).numpy()
    rows = math.prod(x.shape[: call.get("axis", 1) % max(1, x.ndim)])
    return compute(image.reshape(rows, -1), 1).reshape(x.shape).numpy()


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter_(axis, x.argmax(axis, keepdim=True), 1.0)


@kernel("Concat")
def _concat(call: Call, *inputs: Array) -> Array:
    return torch.cat([tensor(each) for each in inputs], call.get("axis", 1)).numpy()


@kernel("Dropout")
def _dropout(call: Call, x: Array, ratio: Array | None = None, training: Array | None = None) -> Any:
    if (training is not None and bool(training)) or (call.version < 7 and not call.get("is_test", 0)):
        raise NotImplementedError("a dropout in training")
    return (x, np.ones(x.shape, dtype=bool if call.version >= 10 else x.dtype))[: call.outputs]


@kernel("Optional")
def _optional(_: Call, held: Any = None) -> Any:
    return held


@kernel("GridSample")
def _grid_sample(call: Call, x: Array, grid: Array) -> Array:
    named = call.get("mode", "linear" if call.version >= 20 else "bilinear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(named, named)
    image, places = floats(x, grid)
    padding, corners = call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0))
    return F.grid_sample(image, places, mode=mode, padding_mode=padding, align_corners=corners).numpy()
