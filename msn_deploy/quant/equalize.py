"""Channels of very different size, brought to one, without changing what the network computes.

INT8 gives a tensor one scale, so a channel that is far larger than the others leaves these few steps; and one scale for
all weights of an output, so the weights that read a small channel leave the others few. The size of a channel is free:
it is divided by a factor, and the weights that read it are multiplied by it. The factors are powers of two, so every
product and every sum stays the same, bit for bit.

Where a positive factor passes through all that lies between two layers, the first layer's weights and bias take the
division; elsewhere (a Concat, a normalisation) a Mul in front of the layer does. Only layers whose rounding error falls
to less than half by it are changed; a network without any stays as it is.

Sources: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
4.1; G. Xiao et al., "SmoothQuant", ICML 2023, section 4, whose factors are those of `_factors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.data.feeds import Samples
from msn_deploy.model.graphs import attribute_of, free_name, names_of
from msn_deploy.quant.histograms import Load, SingleSample
from msn_deploy.quant.placement import name_of
from msn_deploy.quant.relus import only_reader, with_relus

LEAST_GAIN = 2.0  # times less squared error; below it, the networks measured gain and lose by chance
_STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # of the tensor's channels, against those of the weights
_PASSED = (
    "AveragePool", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu",
)  # fmt: skip
"""f(a * x) = a * f(x) for every channel and a > 0."""
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Read:
    """A layer that alone reads a tensor of `channels`; makers: constants that the channels are made of, with axes."""

    layer: NodeProto
    channels: int
    makers: tuple[tuple[str, int], ...]


def equalize(model: ModelProto, samples: Samples, *, load: Load) -> tuple[ModelProto, dict[str, int]]:
    """Return an FP32 graph with channels of one size, and how many moved in front of each layer; itself if none did.

    samples: real inputs, which tell the sizes. load: see `histograms`.
    Names stay, of layers and of tensors. The values of the tensors in front of such layers are others.
    """
    model = with_relus(model)
    result, moved, taken = onnx.ModelProto(), dict[str, int](), names_of(model)
    result.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    reads = list(_reads(result.graph, weights))
    sizes = _sizes(model, samples, [each.layer.input[0] for each in reads], load)
    before: dict[str, NodeProto] = {}
    for each in reads:
        layer, (largest, power) = each.layer, sizes[each.layer.input[0]]
        channels = each.channels if each.makers else largest.size
        axis = _input_axis(layer, channels)
        names = [*each.makers, (layer.input[1], axis)]
        values = [numpy_helper.to_array(weights[name]) for name, _ in names]
        if axis is None or values[-1].shape[axis] % channels or largest.size % channels:
            continue
        rows = (channels, -1)
        factors = _factors(
            largest.reshape(rows).max(axis=1), power.reshape(rows).sum(axis=1), _by_channel(values[-1], layer, axis)
        )
        if (factors == 1).all():
            continue
        by = [(1 / _along(factors, value, at)) for value, (_, at) in zip(values, names, strict=True)]
        by[-1] = 1 / by[-1]
        scaled = [value * each for value, each in zip(values, by, strict=True)]
        if not all(map(np.array_equal, (value / each for value, each in zip(scaled, by, strict=True)), values)):
            continue  # of a weight or bias that is nearly nothing, the smaller one would be rounded
        moved[name_of(layer)] = int((factors != 1).sum())
        for (name, _), value in zip(names, scaled, strict=True):
            weights[name].CopyFrom(numpy_helper.from_array(value, name))
        if not each.makers:
            made = free_name(f"{layer.input[0]}_equalized", taken)
            shape = (-1, *[1] * (values[-1].ndim - 2))
            constant = numpy_helper.from_array((1 / factors).reshape(shape), free_name(f"{made}_by", taken))
            result.graph.initializer.append(constant)
            before[layer.output[0]] = helper.make_node("Mul", [layer.input[0], constant.name], [made], name=made)
            layer.input[0] = made
    if not moved:
        return model, moved
    nodes = [new for node in result.graph.node for new in (before.get(node.output[0]), node) if new is not None]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result, moved


def _reads(graph: GraphProto, weights: Mapping[str, TensorProto]) -> Iterator[_Read]:
    """Yield each layer that alone reads a tensor, with the layer that makes it if a factor passes from there."""
    reader_of = only_reader(graph)

    def is_layer(node: NodeProto) -> bool:
        own = node.input[1:]  # read by no other node
        return node.op_type in ("Conv", "Gemm") and all(name in weights and name in reader_of for name in own)

    layers = {node.output[0]: node for node in graph.node if is_layer(node) and not attribute_of(node, "transA", 0)}
    made_by: dict[str, NodeProto] = {}
    for first in layers.values():
        made = first.output[0]
        while (node := reader_of.get(made)) is not None and node.input[0] == made:
            if node.output[0] in layers:
                made_by[node.output[0]] = first
            if node.op_type not in _PASSED or attribute_of(node, "axis", 1) != 1:  # that of Flatten
                break
            made = node.output[0]
    for output, layer in layers.items():
        read = layer.input[0]
        if read in weights or read not in reader_of:
            continue
        maker = made_by.get(output)
        if maker is None:
            yield _Read(layer, 0, ())
            continue
        axis = _output_axis(maker)
        channels = weights[maker.input[1]].dims[axis]
        if all(tuple(weights[name].dims) == (channels,) for name in maker.input[2:3]):
            yield _Read(layer, channels, ((maker.input[1], axis), *((name, 0) for name in maker.input[2:3])))


def _sizes(model: ModelProto, samples: Samples, tensors: list[str], load: Load) -> dict[str, tuple[Vector, Vector]]:
    """Return the largest magnitude and the mean square of each channel, on axis 1, of the tensors."""
    network = SingleSample(model, tensors, samples.rows, load)
    found: dict[str, tuple[Vector, Vector]] = {}
    for sample in samples:
        for name, value in network.run(sample).items():
            flat = np.abs(np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)).astype(np.float64)
            largest, power = found.get(name, (np.zeros(len(flat)), np.zeros(len(flat))))
            found[name] = np.maximum(largest, flat.max(axis=1)), power + np.square(flat).mean(axis=1) / len(samples)
    return found


def _output_axis(node: NodeProto) -> int:
    """Return the axis of a layer's weight that its outputs lie on."""
    return 0 if node.op_type == "Conv" or attribute_of(node, "transB", 0) else 1


def _input_axis(node: NodeProto, channels: int) -> int | None:
    """Return the axis of a layer's weight that its inputs lie on, in order; None where there is none."""
    groups = attribute_of(node, "group", 1)
    if node.op_type == "Gemm":
        return 1 - _output_axis(node)
    return 1 if groups == 1 else 0 if groups == channels else None


def _by_channel(weight: NDArray[Any], layer: NodeProto, axis: int) -> NDArray[Any]:
    """Return a weight as (inputs, outputs, taps); outputs is 1 where each reads one input, and is scaled by it."""
    moved = np.moveaxis(weight, axis, 0)
    if axis == _output_axis(layer):
        return moved.reshape(len(moved), 1, -1)
    return moved.reshape(*moved.shape[:2], -1)


def _factors(largest: Vector, power: Vector, weight: NDArray[Any]) -> NDArray[np.float32]:
    """Return what to divide each channel by: powers of two, all 1 where that gains less than LEAST_GAIN.

    largest, power: of each channel (C,), as `_sizes` finds them. weight: (C * rows, outputs, taps) that reads them.

    The candidates are |x| ** strength / |w| ** (1 - strength) of the largest values of a channel and of its weights.
    """
    each = np.abs(weight).reshape(len(largest), -1, *weight.shape[1:]).astype(np.float64)
    by_output = each.max(axis=(1, 3))  # (C, outputs)
    own = weight.shape[1] == 1
    read, total, taps = by_output.max(axis=1), np.square(each).sum(axis=(1, 2, 3)), weight.shape[2]
    alive = (largest > 0) & (read > 0)

    def error(factors: Vector) -> float:
        """Return the squared error of all outputs, but for a constant: of steps of the tensor and of the weights."""
        of_tensor = (largest / factors).max() ** 2 * (total * factors**2).sum()
        if own:
            return float(of_tensor)
        steps = (by_output * factors[:, None]).max(axis=0)
        return float(of_tensor + taps * np.square(steps).sum() * (power / factors**2).sum())

    best = np.ones(len(largest))
    least = error(best) / LEAST_GAIN
    for strength in _STRENGTHS if alive.any() else ():
        size = np.where(alive, largest, 1) ** strength / np.where(alive, read, 1) ** (1 - strength)
        factors = np.where(alive, np.exp2(np.rint(np.log2(size / np.median(size[alive])))), 1)
        if (found := error(factors)) < least:
            best, least = factors, found
    return best.astype(np.float32)


def _along(factors: NDArray[np.float32], weight: NDArray[Any], axis: int | None) -> NDArray[np.float32]:
    """Return the factors of all rows of a weight, in a shape that fits it."""
    assert axis is not None
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.repeat(factors, weight.shape[axis] // len(factors)).reshape(shape)
