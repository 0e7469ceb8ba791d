"""What in a graph is known before it runs?"""

from __future__ import annotations

from onnx import GraphProto, ModelProto, TensorProto


def constants_of(model: ModelProto) -> dict[str, TensorProto]:
    """Return all constants by name: initializers, and what Constant nodes make."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def drop_unread_constants(graph: GraphProto) -> None:
    """Take out, in place, the constants that no node reads any more."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
