"""A graph without its large weights, for a tool that asks only how they are shaped, and with them again."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx import ModelProto

_LARGE = 1 << 12  # bytes; sizes, axes and the like, which a tool may look at, are smaller
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED = "BatchNormalization"  # into the weights before it, by tools that see them

Weights = dict[str, ir.TensorProtocol]


def without_weights(model: ModelProto) -> tuple[ModelProto, Weights]:
    """Return a graph in which large weights are further inputs, and these; the graph that is given is left alone.

    Only weights of layers that read the network's input go, and none that another may equal, for a tool may merge them.
    All stay where a norm is left that a tool may fuse.
    """
    apart = ir.from_proto(model)
    graph = apart.graph
    if any(node.op_type == _FUSED or _has_graph(node) for node in graph):
        return model, {}
    computed = _from_input(graph)
    large = [(value, _start(value)) for value in graph.initializers.values() if _is_weight_of(value, computed)]
    alike = Counter(start for _, start in large)
    moved: Weights = {}
    for value in [value for value, start in large if alike[start] == 1]:
        tensor, name = value.const_value, str(value.name)
        assert tensor is not None
        value.shape, value.dtype = tensor.shape, tensor.dtype  # type: ignore[assignment]
        moved[name], value.const_value = tensor, None
        del graph.initializers[name]
        graph.inputs.append(value)
    return ir.to_proto(apart), moved


def _is_weight_of(value: ir.Value, computed: set[ir.Node]) -> bool:
    """Whether a value is large and nothing but the weight of layers in `computed`."""
    if value.const_value is None or value.const_value.nbytes < _LARGE:
        return False
    if value.is_graph_input() or value.is_graph_output() or not value.uses():
        return False
    return all(node.op_type in _LAYERS and at == 1 and node in computed for node, at in value.uses())


def _start(value: ir.Value) -> tuple[object, ...]:
    """Return what equal weights have in common, and others hardly ever: sizes, and the first numbers."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    return array.dtype.str, array.shape, array.ravel()[:16].tobytes()


def with_weights(model: ModelProto, weights: Weights) -> ModelProto:
    """Return a graph of `without_weights`, or what a tool made of one, with the weights in it again."""
    if not weights:
        return model
    whole = ir.from_proto(model)
    for value in [value for value in whole.graph.inputs if value.name in weights]:
        whole.graph.inputs.remove(value)
        value.const_value = weights[str(value.name)]
        whole.graph.register_initializer(value)
    return ir.to_proto(whole)


def _has_graph(node: ir.Node) -> bool:
    return any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values())


def _from_input(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes of which an input depends on the network's."""
    found: set[ir.Node] = set()
    given = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        if any(value in given for value in node.inputs):
            found.add(node)
            given.update(node.outputs)
    return found
