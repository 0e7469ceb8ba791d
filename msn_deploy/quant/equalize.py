"""Channels far larger than their neighbours, brought to their size without changing what the network computes.

INT8 gives a tensor one scale, so a channel that is 1,000 times the others leaves these no steps. Where a positive
factor passes through all that lies between two layers, the size of a channel is free: the first layer's weights and
bias for it are divided by a factor, and the next layer's weights are multiplied by it. The factors are powers of two,
so every product and every sum stays the same, bit for bit. Only outliers move; a network without any stays as it is.

Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
4.1, whose factors make the largest weights of both layers equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.model.graphs import all_nodes
from msn_deploy.quant.placement import name_of

OUTLIER = 16.0  # times the median of a layer's channels
_PASSED = (
    "AveragePool", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu",
)  # fmt: skip
"""f(a * x) = a * f(x) for every channel and a > 0."""


def equalize(model: ModelProto) -> tuple[ModelProto, dict[str, int]]:
    """Return an FP32 graph without outliers, and how many channels of each layer moved; the graph itself if none did.

    Names stay, of layers and of tensors. The values of the tensors between two such layers are others.
    """
    result, moved = onnx.ModelProto(), dict[str, int]()
    result.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    for first, second in _neighbours(result, weights):
        names = (first.input[1], second.input[1], *first.input[2:3])
        own, other, *bias = values = [numpy_helper.to_array(weights[name]) for name in names]
        out = _output_axis(first)
        channels = own.shape[out]
        axis = _input_axis(second, channels)
        if axis is None or other.shape[axis] % channels or any(each.shape != (channels,) for each in bias):
            continue
        factors = _factors(_largest(own, out, channels), _largest(other, axis, channels))
        if (count := int((factors > 1).sum())) == 0:
            continue
        by = [1 / _along(factors, own, out), _along(factors, other, axis), *(1 / factors for _ in bias)]
        scaled = [value * each for value, each in zip(values, by, strict=True)]
        if not all(map(np.array_equal, (value / each for value, each in zip(scaled, by, strict=True)), values)):
            continue  # of a weight or bias that is nearly nothing, the smaller one would be rounded
        moved[name_of(first)] = count
        for name, value in zip(names, scaled, strict=True):
            weights[name].CopyFrom(numpy_helper.from_array(value, name))
    return (result, moved) if moved else (model, moved)


def _neighbours(model: ModelProto, weights: Mapping[str, TensorProto]) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Yield two layers of which the second alone reads the first, through operators that a factor passes through."""
    readers: dict[str, list[NodeProto]] = {}
    for node in all_nodes(model.graph):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = {value.name for value in model.graph.output}

    def is_layer(node: NodeProto) -> bool:
        own = node.input[1:]  # read by no other node
        return node.op_type in ("Conv", "Gemm") and all(name in weights and len(readers[name]) == 1 for name in own)

    for first in filter(is_layer, model.graph.node):
        made = first.output[0]
        while made not in kept and len(readers.get(made, ())) == 1:
            (node,) = readers[made]
            if node.op_type not in _PASSED or _given(node).get("axis", 1) != 1:  # that of Flatten
                if is_layer(node) and node.input[0] == made:
                    yield first, node
                break
            made = node.output[0]


def _given(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _output_axis(node: NodeProto) -> int:
    """Return the axis of a layer's weight that its outputs lie on."""
    return 0 if node.op_type == "Conv" or _given(node).get("transB", 0) else 1


def _input_axis(node: NodeProto, channels: int) -> int | None:
    """Return the axis of a layer's weight that its inputs lie on, in order; None where there is none."""
    groups = _given(node).get("group", 1)
    if node.op_type == "Gemm":
        return 1 - _output_axis(node)
    return 1 if groups == 1 else 0 if groups == channels else None


def _largest(weight: NDArray[Any], axis: int, channels: int) -> NDArray[Any]:
    """Return the largest magnitude of each channel, which may be several rows: pixels that were flattened."""
    largest: NDArray[Any] = np.abs(np.moveaxis(weight, axis, 0)).reshape(channels, -1).max(axis=1)
    return largest


def _factors(sent: NDArray[Any], read: NDArray[Any]) -> NDArray[Any]:
    """Return what to divide each channel by: 1, or for an outlier a power of two that makes both layers' weights equal.

    sent, read: the largest weight that makes a channel, and the largest that reads it.
    """
    alive = (sent > 0) & (read > 0)
    size = np.sqrt(np.divide(sent, read, out=np.ones_like(sent), where=alive))
    size /= np.median(size[alive]) if alive.any() else 1
    return np.where(alive & (size >= OUTLIER), np.exp2(np.rint(np.log2(size))), 1).astype(sent.dtype)


def _along(factors: NDArray[Any], weight: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return the factors of all rows of a weight, in a shape that fits it."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.repeat(factors, weight.shape[axis] // len(factors)).reshape(shape)
