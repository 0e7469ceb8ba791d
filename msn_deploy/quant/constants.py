"""What a graph computes from its constants alone, computed: a weight or an epsilon is then there to be looked at."""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model.graphs import all_nodes, constants_of, drop_unread_constants, inner_graphs
from msn_deploy.quant.histograms import Load

_RANDOM = ("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
           "RandomUniformLike")  # fmt: skip
_MOST_GROWTH = 1 << 22  # numbers (16 MiB of float32) that a graph may gain, beside as many as it has


def fold_constants(model: ModelProto, *, load: Load) -> ModelProto:
    """Return the graph with the tensors that depend on no input as constants; the same one where there are none.

    load: what runs a graph, as in `histograms`. What is random, holds a graph of its own or does not run by itself
    stays computed, and all of it where the graph would grow by more than 2^22 numbers and as many as it has.
    """
    made = {value.name for value in model.graph.output}
    constant = set(constants_of(model.graph)) - made
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        computed = node.op_type not in (*_RANDOM, "Constant") and next(inner_graphs(node), None) is None
        if computed and made.isdisjoint(node.output) and all(name in constant or not name for name in node.input):
            constant.update(filter(None, node.output))
            nodes.append(node)
    inside = {id(node) for node in nodes}
    rest = [node for node in model.graph.node if id(node) not in inside]
    read = {name for node in rest for name in node.input}
    read |= {name for node in rest for graph in inner_graphs(node) for each in all_nodes(graph) for name in each.input}
    wanted = [name for node in nodes for name in node.output if name in read]
    if not wanted:
        return model
    part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = "constants"
    part.graph.initializer.extend(model.graph.initializer)
    part.graph.node.extend([*(node for node in rest if node.op_type == "Constant"), *nodes])
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    drop_unread_constants(part.graph)
    try:
        values = load(part).run({})
    except InputError:
        return model
    has = sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
    if sum(value.size for value in values.values()) > has + _MOST_GROWTH:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(rest)
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    drop_unread_constants(result.graph)
    return result
