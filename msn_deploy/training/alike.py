"""What stands between Q/DQ pairs, written so that PyTorch and ONNX Runtime give the same bits.

A product, a sum or a bound is rounded once wherever IEEE 754 holds. An operator of several steps is rounded as its
kernel likes: a BatchNormalization multiplies and adds with one rounding or two, and x / 6 is not x * (1 / 6). A value
in the middle between two levels of INT8 then falls to different sides. So such operators become their steps.

A layer between two pairs, with nothing else there, is an integer kernel in ONNX Runtime, which rounds the ratio of the
three scales first. With its bias as a sum behind it, the layer is computed in float, as its nodes say.

A mean over many positions sums up numbers whose sums no longer fit float32: its result depends on their order. So what
the averaged layers read gets coarser steps, see `fake_quant`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.model.graphs import attribute_of, constants_of, drop_unread_constants, free_name, names_of, sized

_MOVES = ("Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""ONNX Runtime takes rounding from behind them to before them."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_MEANS = ("GlobalAveragePool", "ReduceMean", "ReduceSum")
_MANY = 16  # positions
_CLIPPED = (0.0, 1.0)
Step = tuple[str, Sequence[float] | NDArray[np.generic] | str]
"""An operator, and its other inputs: constants, or a tensor by name."""


def spelled_out(model: ModelProto) -> ModelProto:
    """Return a copy of a float graph in which operators of several steps are those steps."""
    result = ModelProto()
    result.CopyFrom(model)
    graph, constants = result.graph, constants_of(model.graph)
    shapes, taken = sized(model, batch=1), names_of(model)
    known = (*shapes.input, *shapes.value_info, *shapes.output)
    ranks = {
        each.name: len(each.type.tensor_type.shape.dim) for each in known if each.type.tensor_type.HasField("shape")
    }
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        _put(graph, node, _steps(node, constants, ranks), taken)
    drop_unread_constants(graph)
    return result


def with_biases_apart(model: ModelProto) -> ModelProto:
    """Return a copy of a graph with Q/DQ pairs, in which a layer that is rounded right away has its bias behind it."""
    result = ModelProto()
    result.CopyFrom(model)
    graph, constants = result.graph, constants_of(model.graph)
    makers = {name: node for node in graph.node for name in node.output}
    rounded, taken = {id(node) for node in _rounded_layers(graph, makers)}, names_of(model)
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        weight = constants.get(makers[node.input[1]].input[0]) if id(node) in rounded else None
        own = node.input[2] if len(node.input) > 2 else ""
        if weight is None or (own and own not in constants):
            graph.node.append(node)
            continue
        shape = _bias_shape(node, tuple(weight.dims))
        bias = numpy_helper.to_array(constants[own]) if own else np.zeros(1, np.float32)
        layer = NodeProto()
        layer.CopyFrom(node)
        del layer.input[2:]
        layer.output[0] = free_name(f"{layer.output[0]}_product", taken)
        graph.node.append(layer)
        _put(graph, node, [("Add", np.broadcast_to(bias, shape[:1]).reshape(shape))], taken, source=layer.output[0])
    drop_unread_constants(graph)
    return result


def scales_of_averaged(model: ModelProto) -> set[str]:
    """Return the scales of what those layers read whose results are averaged over many positions."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [node.input[0] for node in model.graph.node if _is_mean(node)]
    found, seen = set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or name in seen or node.op_type == "DequantizeLinear":
            continue
        seen.add(name)
        first = makers.get(node.input[0]) if node.op_type in (*_LAYERS, "MatMul") else None
        if first is not None and first.op_type == "DequantizeLinear":
            found.add(first.input[1])
        else:
            waiting += node.input
    return found


def _is_mean(node: NodeProto) -> bool:
    sizes = next((each.ints for each in node.attribute if each.name == "kernel_shape"), ())
    return node.op_type in _MEANS or (node.op_type == "AveragePool" and math.prod(sizes) > _MANY)


def _steps(node: NodeProto, constants: Mapping[str, TensorProto], ranks: Mapping[str, int]) -> list[Step]:
    """Return what a node consists of; nothing for one that is a single step, or not known."""
    if node.op_type == "HardSigmoid":
        return [
            ("Mul", [attribute_of(node, "alpha", 0.2)]),
            ("Add", [attribute_of(node, "beta", 0.5)]),
            ("Clip", _CLIPPED),
        ]
    if node.op_type == "HardSwish":
        return [("Mul", [1 / 6]), ("Add", [0.5]), ("Clip", _CLIPPED), ("Mul", node.input[0])]
    if node.op_type != "BatchNormalization" or node.input[0] not in ranks or len(node.output) > 1:
        return []
    if not all(name in constants for name in node.input[1:5]):
        return []
    gain, bias, mean, var = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:5])
    scale = gain / np.sqrt(var + attribute_of(node, "epsilon", 1e-5))
    shape = (-1, *[1] * (ranks[node.input[0]] - 2))
    return [("Mul", scale.reshape(shape)), ("Add", (bias - mean * scale).reshape(shape))]


def _put(graph: GraphProto, node: NodeProto, steps: Sequence[Step], taken: set[str], *, source: str = "") -> None:
    """Append the steps of a node, from what it reads (or `source`) to what it makes; the node itself if it has none.

    taken: names that are not free; those that the steps get are added.
    """
    if not steps:
        graph.node.append(node)
        return
    made, before = node.output[0], source or node.input[0]
    for at, (kind, others) in enumerate(steps):
        last = at == len(steps) - 1
        output = made if last else free_name(f"{made}_step{at}", taken)
        names = [others] if isinstance(others, str) else []
        values = [] if isinstance(others, str) else list(others) if kind == "Clip" else [np.asarray(others)]
        for value in values:
            names.append(free_name(f"{output}_{kind.lower()}{len(names)}", taken))
            each = np.asarray(value, np.float32)
            graph.initializer.append(numpy_helper.from_array(each.reshape(()) if each.size == 1 else each, names[-1]))
        graph.node.append(helper.make_node(kind, [before, *names], [output], name=free_name(f"{output}_{kind}", taken)))
        before = output


def _rounded_layers(graph: GraphProto, makers: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    """Yield the layers whose result a QuantizeLinear reads, itself or moved."""
    for node in graph.node:
        name = node.input[0] if node.op_type == "QuantizeLinear" else ""
        while name in makers and makers[name].op_type in _MOVES:
            name = makers[name].input[0]
        layer = makers.get(name)
        if layer is None or layer.op_type not in _LAYERS or layer.input[1] not in makers:
            continue
        if attribute_of(layer, "alpha", 1.0) == attribute_of(layer, "beta", 1.0) == 1:
            yield layer


def _bias_shape(node: NodeProto, weight: tuple[int, ...]) -> tuple[int, ...]:
    if node.op_type == "Gemm":
        return (weight[0 if attribute_of(node, "transB", 0) else 1],)
    channels = weight[0] if node.op_type == "Conv" else weight[1] * attribute_of(node, "group", 1)
    return channels, *[1] * (len(weight) - 2)
