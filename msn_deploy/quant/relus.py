"""A Max with a bound per channel in front of a layer, as the ReLU that it was: INT8 keeps a zero, and rounds a bound.

The fold takes the shift of a norm through a ReLU: relu(s * x + t) = s * max(x, -t / s) + t. What is below its bound
becomes the bound, which INT8 rounds; all of them share one error, which adds up over the channels. Here it is
relu(x - bound), and the layer gets what the bound gave it in its bias. Exact in real numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.model.graphs import (
    all_nodes,
    attribute_of,
    attributes_of,
    constants_of,
    drop_unread_constants,
    free_name,
    names_of,
)

Array = NDArray[np.float32]


def with_relus(model: ModelProto) -> ModelProto:
    """Return the graph with an Add and a ReLU for each such Max, under its name; the graph itself if there is none."""
    result, taken = onnx.ModelProto(), names_of(model)
    result.CopyFrom(model)
    constants, reader_of = constants_of(result.graph), only_reader(result.graph)
    nodes: list[NodeProto] = []

    def constant(like: str, value: NDArray[np.floating]) -> str:
        tensor = numpy_helper.from_array(value.astype(np.float32), free_name(like, taken))
        result.graph.initializer.append(tensor)
        return tensor.name

    for node in result.graph.node:
        bound = _bound_of(node, constants)
        layer = None if bound is None else _layer_behind(node.output[0], bound, constants, reader_of)
        if bound is None or layer is None:
            nodes.append(node)
            continue
        made = node.output[0]
        shifted, by = free_name(f"{made}_shifted", taken), constant(f"{made}_shift", -bound)
        nodes.append(helper.make_node("Add", [node.input[0], by], [shifted], name=shifted))
        nodes.append(helper.make_node("Relu", [shifted], [made], name=node.name))
        weight = _weight_by_input(layer, constants)
        bias = numpy_helper.to_array(constants[layer.input[2]]) if len(layer.input) > 2 else np.zeros(len(weight))
        total = bias + weight.sum(axis=2, dtype=np.float64) @ bound.reshape(-1).astype(np.float64)
        inputs = [*layer.input[:2], constant(f"{layer.output[0]}_bias", total)]
        del layer.input[:]
        layer.input.extend(inputs)
    if len(nodes) == len(model.graph.node):
        return model
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    drop_unread_constants(result.graph)
    return result


def only_reader(graph: GraphProto) -> dict[str, NodeProto]:
    """Return for each tensor that one node alone reads, and that is not an output of the graph, that node."""
    readers: dict[str, list[NodeProto]] = {}
    for node in all_nodes(graph):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = {value.name for value in graph.output}
    return {name: nodes[0] for name, nodes in readers.items() if len(nodes) == 1 and name not in kept}


def _weight_by_input(layer: NodeProto, constants: Mapping[str, TensorProto]) -> Array:
    """Return the weight of a Conv or Gemm as (outputs, inputs, taps)."""
    weight = numpy_helper.to_array(constants[layer.input[1]])
    if layer.op_type == "Gemm" and not attribute_of(layer, "transB", 0):
        weight = weight.T
    return weight.reshape(*weight.shape[:2], -1)


def _bound_of(node: NodeProto, constants: Mapping[str, TensorProto]) -> Array | None:
    """Return what a Max bounds its only other input by, one number per channel, as the fold writes it: (C, 1, ...)."""
    if node.op_type != "Max" or len(node.input) != 2 or node.input[0] in constants or node.input[1] not in constants:
        return None
    bound = numpy_helper.to_array(constants[node.input[1]])
    return bound if bound.dtype == np.float32 and bound.ndim and len(bound) == bound.size > 1 else None


def _layer_behind(
    made: str, bound: Array, constants: Mapping[str, TensorProto], reader_of: Mapping[str, NodeProto]
) -> NodeProto | None:
    """Return the layer that alone reads a tensor, through what keeps a constant per channel; None without one."""
    while (node := reader_of.get(made)) is not None and node.input[0] == made:
        if node.op_type in ("Conv", "Gemm"):
            return node if _takes_a_shift(node, bound, constants) else None
        if not _keeps_constants(node, bound.ndim - 1, constants):
            return None
        made = node.output[0]
    return None


def _takes_a_shift(layer: NodeProto, bound: Array, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a layer sees a shift of its input as a bias: it has no border of zeros, and reads all channels."""
    told = attributes_of(layer)
    plain = told.get("group", 1) == 1 and not any(told.get("pads", ())) and told.get("auto_pad", b"NOTSET") == b"NOTSET"
    plain &= not told.get("transA", 0) and told.get("alpha", 1.0) == told.get("beta", 1.0) == 1.0
    if not plain or any(name not in constants for name in layer.input[1:]):
        return False
    weight = _weight_by_input(layer, constants)
    same_rank = layer.op_type == "Gemm" or len(constants[layer.input[1]].dims) == bound.ndim + 1
    biases = [tuple(constants[name].dims) == weight.shape[:1] for name in layer.input[2:3]]
    return same_rank and weight.shape[1] == bound.size and all(biases)


def _keeps_constants(node: NodeProto, sides: int, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a channel of one value stays one, of that value, whatever else is there: poolings without a border."""
    told = attributes_of(node)
    if node.op_type == "AveragePool":
        return not any(told.get("pads", ())) and not told.get("ceil_mode", 0) and "auto_pad" not in told
    if node.op_type != "ReduceMean":
        return node.op_type in ("Flatten", "GlobalAveragePool", "Identity")
    axes = told.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in constants:
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    return axes is not None and sorted(axis % (sides + 2) for axis in axes) == list(range(2, sides + 2))
