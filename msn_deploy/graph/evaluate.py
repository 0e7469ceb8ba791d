"""What does an ONNX graph compute in float64? The truth that folds and other tools' graphs are compared with.

Computed by onnx's reference implementation, with convolutions and poolings by torch: its own transposed convolution is
wrong for groups, its max pooling for rounded-up sizes with padding (onnx 1.23), and its convolution is slow.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn import functional as F

from msn_deploy.core.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """One tensor, for one feed, in every graph."""

    feed: int
    """Which of the feeds, from 0."""
    name: str
    values: tuple[Array, ...]
    """One per graph, in their order."""
    in_float32: frozenset[str] = frozenset()
    """Names of the nodes on the way to it that could be computed in float32 only."""


def run_float64(model: ModelProto, x: Array) -> Array:
    """Return the first output for one input batch (N, ...), computed in float64 from the model's weights."""
    double = ir.from_proto(model)
    to_double(double)
    name = model.graph.output[0].name
    given = next(each for each in double.graph.inputs if str(each.name) not in double.graph.initializers)
    (found,) = values_float64([double], [{str(given.name): x}], {name})
    return found.values[0]


def values_float64(
    models: Sequence[ir.Model], feeds: Sequence[Mapping[str, Array]], wanted: Collection[str]
) -> Iterator[Found]:
    """Yield each wanted tensor of graphs of doubles (see `to_double`) for each feed, as soon as every graph has it.

    feeds: an array for every input, by its name; those of floats are made float64. What was yielded is not kept here.
    Raises InputError for a graph that the reference implementation can't run.
    """
    for at, feed in enumerate(feeds):
        given = {name: x.astype("float64") if x.dtype.kind == "f" else x for name, x in feed.items()}
        each = [_values(model, given, wanted) for model in models]
        for name in each[0]:
            yield Found(feed=at, name=name, values=tuple(values[name] for values in each))


def _values(model: ir.Model, feed: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # torch's of read-only weights, numpy's of what overflows
            found: Any = _evaluator(model).run(None, dict(feed), intermediate=True)
    except Exception as cause:  # whatever numpy or the reference raises on an operator that it can't run
        first = (str(cause).splitlines() or [""])[0][:160]
        raise InputError(
            f"the graph could not be evaluated in float64, to prove its folds: {type(cause).__name__}: {first}\n"
            "`--no-fold` exports it with its norms as they are."
        ) from cause
    return {name: value for name, value in found.items() if name in wanted}


def _evaluator(model: ir.Model) -> ReferenceEvaluator:
    """Return what runs the graph on the very arrays of its weights, which a protocol buffer would copy twice."""
    bare = model.clone()
    bare.graph.initializers.clear()
    evaluator = ReferenceEvaluator(ir.to_proto(bare), new_ops=OPERATORS)
    weights = model.graph.initializers.values()
    evaluator.rt_inits_.update({value.name: value.const_value.numpy() for value in weights if value.const_value})
    return evaluator


def to_double(model: ir.Model) -> None:
    """Make the float32 tensors, casts and types of a graph float64, in place."""
    _convert(model, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def to_single(model: ir.Model) -> None:
    """Make the float64 tensors, casts and types of a graph float32, in place, each number rounded once."""
    _convert(model, ir.DataType.DOUBLE, ir.DataType.FLOAT)


def _convert(model: ir.Model, old: ir.DataType, new: ir.DataType) -> None:
    """Put one floating type in the place of another; float32 and float64 are meant."""
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            if value.dtype == old:
                value.dtype = new
            if value.const_value is not None:
                value.const_value = _converted(value.const_value, old, new)
        for node in graph:
            for each in list(node.attributes.values()):
                if each.type == ir.AttributeType.TENSOR:
                    node.attributes[each.name] = ir.AttrTensor(each.name, _converted(each.as_tensor(), old, new))
            if node.op_type == "Cast" and node.attributes["to"].value == old:
                node.attributes["to"] = ir.AttrInt64("to", int(new))


def _converted(tensor: ir.TensorProtocol, old: ir.DataType, new: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(new.numpy()), name=tensor.name) if tensor.dtype == old else tensor


class Conv(OpRun):
    """Convolution of one to three dimensions; the name of the class is that of its operator."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
        at = _Window(given, x, w.shape[2:])
        x, pads = at.padded(x, 0.0, ceil=False)
        convolve: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[at.sides - 1]
        tensors = [None if each is None else _tensor(each) for each in (x, w, b)]
        y = convolve(*tensors, at.strides, pads, at.dilations, given.get("group") or 1)
        return (y.numpy(),)


class ConvTranspose(OpRun):
    """Transposed convolution of one to three dimensions; padding here is cutting off."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
        if given.get("output_shape") or given.get("auto_pad") not in (None, "NOTSET", "VALID"):
            raise NotImplementedError("a transposed convolution with auto_pad or output_shape")
        at = _Window(given, x, w.shape[2:])
        convolve: Any = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[at.sides - 1]
        group = given.get("group") or 1
        y = convolve(_tensor(x), _tensor(w), None, at.strides, 0, 0, group, at.dilations).numpy()
        y = np.pad(y, [(0, 0), (0, 0), *((0, each) for each in given.get("output_padding") or [0] * at.sides)])
        before, behind = at.pads[: at.sides], at.pads[at.sides :]
        inner = [slice(before[i], y.shape[2 + i] - behind[i]) for i in range(at.sides)]
        y = y[(slice(None), slice(None), *inner)]
        return (y if b is None else y + b.reshape(-1, *[1] * at.sides),)


class MaxPool(OpRun):
    """Largest value of each window; its second output, the indices, is not computed."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:
        at, ceil = _Window(given, x, given["kernel_shape"]), bool(given.get("ceil_mode"))
        x, pads = at.padded(x, -np.inf, ceil=ceil)
        pool: Any = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[at.sides - 1]
        return (pool(_tensor(x), at.kernel, at.strides, pads, at.dilations, ceil).numpy(),)


class AveragePool(OpRun):
    """Mean of each window."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:
        at, ceil = _Window(given, x, given["kernel_shape"]), bool(given.get("ceil_mode"))
        counted = bool(given.get("count_include_pad"))
        if set(at.dilations) != {1} or (at.pads[: at.sides] != at.pads[at.sides :] and not counted):
            raise NotImplementedError("an average pooling with dilation or uneven padding")
        x, pads = at.padded(x, 0.0, ceil=ceil)
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[at.sides - 1]
        return (pool(_tensor(x), at.kernel, at.strides, pads, ceil, counted).numpy(),)


class _Window:
    """Where the windows of a convolution or pooling lie, every attribute spelled out."""

    def __init__(self, given: dict[str, Any], x: Array, kernel: Any) -> None:
        self.sides, self.kernel = x.ndim - 2, list(kernel)
        self.strides = list(given.get("strides") or [1] * self.sides)
        self.dilations = list(given.get("dilations") or [1] * self.sides)
        self.pads = self._pads(given.get("auto_pad"), given.get("pads"), x.shape[2:])

    def _pads(self, auto: str | None, pads: Any, sizes: tuple[int, ...]) -> list[int]:
        if auto in (None, "NOTSET", "VALID"):
            return list(pads or [0] * 2 * self.sides)
        missing = []
        for size, width, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            missing.append(max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size))
        before = [each // 2 if auto == "SAME_UPPER" else each - each // 2 for each in missing]
        return before + [each - first for each, first in zip(missing, before, strict=True)]

    def padded(self, x: Array, value: float, *, ceil: bool) -> tuple[Array, list[int]]:
        """Return the input and the padding per axis that torch takes, which is the same on both sides."""
        before, behind = self.pads[: self.sides], self.pads[self.sides :]
        if before == behind:
            return x, before
        if ceil:
            raise NotImplementedError("a pooling with rounded-up sizes and uneven padding")
        return np.pad(x, [(0, 0), (0, 0), *zip(before, behind, strict=True)], constant_values=value), [0] * self.sides


def _tensor(array: Array) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array))


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool]
