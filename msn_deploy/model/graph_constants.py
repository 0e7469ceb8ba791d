"""What in a graph is known before it runs, and what is computed from its input?"""

from __future__ import annotations

import onnx
from onnx import GraphProto, ModelProto, TensorProto


def constants_of(model: ModelProto) -> dict[str, TensorProto]:
    """Return all constants by name: initializers, and what Constant nodes make."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def activations(model: ModelProto) -> list[str]:
    """Return the float tensors that depend on the input, itself included, in graph order."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    constant = {"", *(tensor.name for tensor in model.graph.initializer)}
    found = [value.name for value in model.graph.input if value.name not in constant]
    for node in model.graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
        else:
            found += node.output
    return [name for name in found if name in floats]


def drop_unread_constants(graph: GraphProto) -> None:
    """Take out, in place, the constants that no node reads any more."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
