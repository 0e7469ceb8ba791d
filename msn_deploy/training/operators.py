"""ONNX operators in torch, through which gradients flow: what a graph that is trained may consist of.

Each takes what its node says (`Call`) and its inputs, which are tensors, and returns its output or outputs. Sizes and
indices are int64 tensors on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional as F

from msn_deploy.graph.kernels import UNARY, Call, Window
from msn_deploy.graph.resize import resize

Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {name: (lambda call, x: UNARY[call.operator](call, x)) for name in UNARY}


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def add(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _edges(at: Window, extra: list[int] | None = None) -> list[int]:
    """Return what lies around a picture, as F.pad takes it."""
    more = extra or [0] * at.sides
    return [each for i in reversed(range(at.sides)) for each in (at.before[i], at.behind[i] + more[i])]


def _centred(at: Window, x: Tensor, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Return a picture and the padding that torch is to add, which is the same on both ends of a side."""
    if at.before == at.behind:
        return x, at.before
    return F.pad(x, _edges(at), value=value), [0] * at.sides


@_operator("Conv")
def _conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Any:
    at = Window(call, x.shape[2:], w.shape[2:])
    x, pads = _centred(at, x)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[at.sides - 1]
    return convolve(x, w, b, at.strides, pads, at.dilations, call.get("group", 1))


@_operator("ConvTranspose")
def _conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Any:
    at = Window(call, x.shape[2:], w.shape[2:])
    if call.get("output_shape") or call.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
        raise NotImplementedError("a ConvTranspose with auto_pad or output_shape")
    extra = list(call.get("output_padding") or [0] * at.sides)
    convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[at.sides - 1]
    if at.before == at.behind:
        return convolve(x, w, b, at.strides, at.before, extra, call.get("group", 1), at.dilations)
    y = convolve(x, w, None, at.strides, 0, 0, call.get("group", 1), at.dilations)
    ends = [each for i in reversed(range(at.sides)) for each in (-at.before[i], extra[i] - at.behind[i])]
    y = F.pad(y, ends)
    return y if b is None else y + b.reshape(-1, *[1] * at.sides)


@_operator("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = a.T if call.get("transA", 0) else a, b if call.get("transB", 0) else b.T
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if alpha == 1 and (c is None or (beta == 1 and c.dim() == 1)):
        return F.linear(a, b, c)
    y: Tensor = alpha * F.linear(a, b)
    return y if c is None else y + beta * c


@_operator("MaxPool")
def _max_pool(call: Call, x: Tensor) -> Any:
    at = Window(call, x.shape[2:], call.given["kernel_shape"])
    if call.outputs > 1:
        raise NotImplementedError("a MaxPool that says where")
    if any(2 * pad > width for pad, width in zip(at.before, at.kernel, strict=True)) or at.before != at.behind:
        x, pads = F.pad(x, _edges(at), value=-math.inf), [0] * at.sides
    else:
        pads = at.before
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[at.sides - 1]
    return pool(x, at.kernel, at.strides, pads, at.dilations, ceil_mode=bool(call.get("ceil_mode", 0)))


@_operator("AveragePool")
def _average_pool(call: Call, x: Tensor) -> Any:
    at = Window(call, x.shape[2:], call.given["kernel_shape"])
    if max(at.dilations) > 1:
        raise NotImplementedError("an AveragePool with dilations")
    counted = bool(call.get("count_include_pad", 0))
    if at.before != at.behind and not counted:
        raise NotImplementedError("an AveragePool with other padding at both ends")
    x, pads = _centred(at, x)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[at.sides - 1]
    return pool(x, at.kernel, at.strides, pads, bool(call.get("ceil_mode", 0)), counted)


@_operator("GlobalAveragePool")
def _global_average(_: Call, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@_operator("GlobalMaxPool")
def _global_max(_: Call, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


@_operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def _reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Any:
    chosen = _ints(axes) if axes is not None else list(call.get("axes") or ())
    if not chosen:
        if call.get("noop_with_empty_axes", 0):
            return x
        chosen = list(range(x.dim()))
    compute: dict[str, Any] = {
        "ReduceMean": torch.mean,
        "ReduceSum": torch.sum,
        "ReduceMax": torch.amax,
        "ReduceMin": torch.amin,
        "ReduceL2": lambda x, dim, keepdim: torch.linalg.vector_norm(x, 2, dim, keepdim),
    }
    return compute[call.operator](x, dim=chosen, keepdim=bool(call.get("keepdims", 1)))


@_operator("BatchNormalization")
def _batch_norm(call: Call, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if call.get("training_mode", 0) or call.outputs > 1:
        raise NotImplementedError("a BatchNormalization in training")
    return F.batch_norm(x, mean, var, gain, bias, False, 0.0, call.get("epsilon", 1e-5))


@_operator("LayerNormalization")
def _layer_norm(call: Call, x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = call.get("axis", -1) % x.dim()
    return F.layer_norm(x, x.shape[axis:], gain, bias, call.get("epsilon", 1e-5))


@_operator("InstanceNormalization")
def _instance_norm(call: Call, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, x.shape[1], gain, bias, call.get("epsilon", 1e-5))


@_operator("GroupNormalization")
def _group_norm(call: Call, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    groups = call.given["num_groups"]
    if len(gain) != x.shape[1]:  # before opset 21: one per group
        gain, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (gain, bias))
    return F.group_norm(x, groups, gain, bias, call.get("epsilon", 1e-5))


OPERATORS |= {
    "MatMul": lambda _, a, b: torch.matmul(a, b),
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Pow": lambda _, a, b: a**b,
    "Max": lambda _, *each: reduce(torch.maximum, each),
    "Min": lambda _, *each: reduce(torch.minimum, each),
    "Sum": lambda _, *each: reduce(torch.add, each),
    "PRelu": lambda _, x, slope: torch.where(x < 0, x * slope, x),
    "Softmax": lambda call, x: x.softmax(call.get("axis", -1)),
    "LogSoftmax": lambda call, x: x.log_softmax(call.get("axis", -1)),
    "Identity": lambda _, x: x,
    "Dropout": lambda _, x, *__: x,
    "Concat": lambda call, *each: torch.cat(each, call.given["axis"]),
    "Transpose": lambda call, x: x.permute(call.get("perm") or list(reversed(range(x.dim())))),
    "Where": lambda _, wanted, a, b: torch.where(wanted, a, b),
    "Equal": lambda _, a, b: a == b,
    "Less": lambda _, a, b: a < b,
    "Greater": lambda _, a, b: a > b,
    "Einsum": lambda call, *each: torch.einsum(call.given["equation"].replace(" ", ""), *each),
}


@_operator("Div")
def _div(_: Call, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@_operator("Clip")
def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least = float(low) if low is not None else call.get("min")
    most = float(high) if high is not None else call.get("max")
    return x if least is None and most is None else torch.clamp(x, min=least, max=most)


@_operator("Reshape")
def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _ints(shape)
    if not call.get("allowzero", 0):
        sizes = [x.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    return x.reshape(sizes)


@_operator("Flatten")
def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis % x.dim() if axis != x.dim() else axis]), -1)


@_operator("Squeeze")
def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _ints(axes) if axes is not None else call.get("axes")
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@_operator("Unsqueeze")
def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _ints(axes) if axes is not None else list(call.given["axes"])
    rank = x.dim() + len(chosen)
    for axis in sorted(each % rank for each in chosen):
        x = x.unsqueeze(axis)
    return x


@_operator("Split")
def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Any:
    axis = call.get("axis", 0)
    if sizes is not None or call.get("split"):
        return torch.split(x, _ints(sizes) if sizes is not None else list(call.given["split"]), axis)
    return torch.split(x, -(-x.shape[axis] // call.outputs), axis)


@_operator("Slice")
def _slice(
    call: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    first, last = _ints(starts), _ints(ends)
    chosen = _ints(axes) if axes is not None else list(range(len(first)))
    widths = _ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(chosen, first, last, widths, strict=True):
        places = torch.arange(x.shape[axis], device=x.device)
        if step < 0:
            size = x.shape[axis]
            x = x.index_select(
                axis, torch.tensor(range(size)[slice(start, max(end, -size - 1), step)], device=x.device)
            )
            continue
        kept = range(len(places))[start : min(end, len(places)) : step]
        at = [slice(None)] * x.dim()
        at[axis] = slice(kept.start, kept.stop, kept.step)
        x = x[tuple(at)]
    return x


@_operator("Gather")
def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.dim()
    places = indices.to(x.device)
    chosen: list[Any] = [slice(None)] * axis
    return x[(*chosen, torch.where(places < 0, places + x.shape[axis], places))]


@_operator("Shape")
def _shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[call.get("start", 0) : call.get("end")], dtype=torch.int64)


@_operator("Expand")
def _expand(_: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(_ints(shape))))


@_operator("Cast")
def _cast(call: Call, x: Tensor) -> Tensor:
    if call.given["to"] == TensorProto.FLOAT:
        return x.float()
    return x.to(torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(call.given["to"]))).dtype)


@_operator("Pad")
def _pad(call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, *axes: Tensor) -> Tensor:
    if axes:
        raise NotImplementedError("a Pad that names its axes")
    given = _ints(pads) if pads is not None else list(call.given["pads"])
    ends = [each for at in reversed(range(x.dim())) for each in (given[at], given[at + x.dim()])]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[call.get("mode", "constant")]
    if mode == "constant":
        return F.pad(x, ends, value=float(value) if value is not None else call.get("value", 0.0))
    if any(ends[2 * (x.dim() - 2) :]):
        raise NotImplementedError(f"a Pad by {call.get('mode')} of the batch or the channels")
    return F.pad(x, ends[: 2 * (x.dim() - 2)], mode=mode)


@_operator("Resize", "Upsample")
def _resize(call: Call, x: Tensor, *numbers: Tensor | None) -> Tensor:
    return resize(call, x, *(None if each is None else each.cpu().numpy() for each in numbers))


@_operator("DepthToSpace")
def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    block, (n, channels, height, width) = call.given["blocksize"], x.shape
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, channels // block**2, height * block, width * block)


def _ints(sizes: Tensor) -> list[int]:
    return [int(each) for each in sizes.reshape(-1).tolist()]
