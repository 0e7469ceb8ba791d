"""What does an ONNX graph compute in float64? The truth that folds and other tools' graphs are held against.

Evaluated by onnx's own reference implementation, but for convolutions: of those, its transposed one is wrong for groups
(onnx 1.23) and the plain one slow, so torch computes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from msn_deploy.core.errors import InputError

Array = NDArray[Any]
Values = dict[str, Array]


def run_float64(model: ModelProto, x: Array) -> Array:
    """Return the first output for one input batch (N, ...), computed in float64 from the model's weights."""
    return values_float64(to_double(model), x)[model.graph.output[0].name]


def values_float64(model: ModelProto, x: Array) -> Values:
    """Return every tensor of a graph of doubles (see `to_double`) by name, for one input batch (N, ...).

    Raises InputError for a graph that the reference implementation can't run.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    given = next(value.name for value in model.graph.input if value.name not in weights)
    try:
        evaluator = ReferenceEvaluator(model, new_ops=[Conv, ConvTranspose])
        found: Values = evaluator.run(None, {given: x.astype("float64")}, intermediate=True)
    except Exception as cause:  # whatever numpy or the reference raises on an operator that it can't run
        first = (str(cause).splitlines() or [""])[0][:160]
        raise InputError(f"the graph could not be evaluated in float64: {type(cause).__name__}: {first}") from cause
    return found


class Conv(OpRun):  # type: ignore[misc]  # onnx is not typed
    """Convolution of one to three dimensions by torch; its name is how the evaluator knows it."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        import torch

        sides = x.ndim - 2
        strides, dilations, group = strides or [1] * sides, dilations or [1] * sides, group or 1
        pads = _explicit_pads(auto_pad, pads, x.shape[2:], w.shape[2:], strides, dilations)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:sides], pads[sides:], strict=True)])
        convolve: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[sides - 1]
        bias = None if b is None else torch.tensor(b)
        y = convolve(torch.tensor(padded), torch.tensor(w), bias, strides, 0, dilations, group)
        return (y.numpy(),)


class ConvTranspose(OpRun):  # type: ignore[misc]  # onnx is not typed
    """Transposed convolution of one to three dimensions by torch; padding here is cutting off."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        output_padding: list[int] | None = None,
        output_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        import torch

        if output_shape or auto_pad not in (None, "NOTSET", "VALID"):
            raise NotImplementedError("a transposed convolution with auto_pad or output_shape")
        sides = x.ndim - 2
        strides, dilations, pads = strides or [1] * sides, dilations or [1] * sides, pads or [0] * 2 * sides
        more = output_padding or [0] * sides
        convolve: Any = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[sides - 1]
        y = convolve(torch.tensor(x), torch.tensor(w), None, strides, 0, 0, group or 1, dilations).numpy()
        y = np.pad(y, [(0, 0), (0, 0), *((0, each) for each in more)])
        y = y[(..., *(slice(pads[i], y.shape[2 + i] - pads[sides + i]) for i in range(sides)))]
        return (y if b is None else y + b.reshape(-1, *[1] * sides),)


def _explicit_pads(
    auto: str | None, pads: list[int] | None, sizes: Any, kernel: Any, strides: list[int], dilations: list[int]
) -> list[int]:
    if auto in (None, "NOTSET", "VALID"):
        return pads or [0] * 2 * len(sizes)
    missing = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        missing.append(max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size))
    before = [each // 2 if auto == "SAME_UPPER" else each - each // 2 for each in missing]
    return before + [each - first for each, first in zip(missing, before, strict=True)]


def to_double(model: ModelProto) -> ModelProto:
    """Return a copy whose float32 tensors, casts and types are float64."""
    return _converted(model, TensorProto.FLOAT, TensorProto.DOUBLE)


def to_single(model: ModelProto) -> ModelProto:
    """Return a copy whose float64 tensors, casts and types are float32, each number rounded once."""
    return _converted(model, TensorProto.DOUBLE, TensorProto.FLOAT)


def _converted(model: ModelProto, old: int, new: int) -> ModelProto:
    """Return a copy of a model with one floating type in the place of another; float32 and float64 are meant."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graphs = [copied.graph]
    while graphs:
        graph = graphs.pop()
        for tensor in graph.initializer:
            _convert_tensor(tensor, old, new)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == old:
                value.type.tensor_type.elem_type = new
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _convert_tensor(attribute.t, old, new)
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
                    attribute.i = new
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    return copied


def _convert_tensor(tensor: TensorProto, old: int, new: int) -> None:
    if tensor.data_type == old:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(new)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
