"""What may come earlier: pooling, of which convolutions of one pixel and concatenations see less; casts of bytes.

And what a convolution can do itself: read its channels in another order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from msn_deploy.graph.affine import constant, present
from msn_deploy.graph.edits import free_name, set_constant
from msn_deploy.graph.operators import channel_order, is_channel_axis, keeps_constants, makes_smaller

# What moves the numbers of its first input and computes nothing.
_MOVES = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Identity", "Expand"}
_MOVES |= {"Tile", "DepthToSpace", "SpaceToDepth"}
_FLOATS = {int(ir.DataType.FLOAT), int(ir.DataType.FLOAT16)}


def pool_before_pointwise(graph: ir.Graph) -> dict[str, str]:
    """Move every average pooling before the 1x1 convolution that alone feeds it, in place.

    Returns, for each, the name of the tensor that is gone and of the pooled one that the convolution makes instead.
    """
    moved = {}
    for pool, value, conv in _poolings(graph, "AveragePool"):
        if not _is_pointwise(conv) or not keeps_constants(pool):
            continue
        pooled, first = pool.outputs[0], present(conv.inputs[0])
        moved[str(value.name)] = str(pooled.name)
        pool.replace_input_with(0, first)
        conv.replace_input_with(0, pooled)
        pooled.replace_all_uses_with(value, replace_graph_outputs=True)
        conv.replace_input_with(0, pooled)
        value.name, pooled.name = pooled.name, None
        pooled.name = free_name(graph, f"{first.name}.pooled")
        value.shape, pooled.shape = pooled.shape, None
    if moved:
        graph.sort()
    return moved


def pool_before_concat(graph: ir.Graph, known: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Move every pooling that makes images smaller before the concatenation of channels that it alone reads, in place.

    Each part is pooled, and the pooled parts are what is copied into one tensor. known: names of the tensors that the
    graph had before all changes. Returns, for each, the name of the whole tensor that is gone, and those of the known
    ones that show the same: the pooled tensor, or what is made of it.
    """
    gone = {}
    for pool, whole, concat in _poolings(graph, "AveragePool", "MaxPool"):
        if concat.op_type != "Concat" or not is_channel_axis(concat, whole):
            continue
        parts = [part for part in concat.inputs if part is not None]
        if any(constant(part) is not None for part in parts):
            continue
        pooled = pool.outputs[0]
        shown = [pooled] if pooled.name in known else [reader.outputs[0] for reader, _ in pooled.uses()]
        gone[str(whole.name)] = tuple(str(value.name) for value in shown)
        for index, part in enumerate(parts):
            own = ir.Node("", pool.op_type, [part], attributes=list(pool.attributes.values()), num_outputs=1)
            own.outputs[0].name, own.outputs[0].type = free_name(graph, f"{pooled.name}.{index}"), pooled.type
            concat.prepend(own)
            concat.replace_input_with(index, own.outputs[0])
        pooled.replace_all_uses_with(whole, replace_graph_outputs=True)
        graph.remove(pool, safe=True)
        whole.name, whole.shape = pooled.name, pooled.shape
    return gone


def order_into_convs(graph: ir.Graph) -> dict[str, tuple[str, ...]]:
    """Let convolutions read channels in the order in which they are, where all readers of a new order can, in place.

    Returns, for each tensor of a new order that is gone, the names of those that the convolutions make.
    """
    gone = {}
    for node in list(graph):
        order, made = channel_order(node), node.outputs[0]
        readers = list(made.uses())
        if order is None or made.is_graph_output() or sorted(order) != list(range(len(order))):
            continue
        if not readers or not all(index == 0 and _reads_all_channels(reader) for reader, index in readers):
            continue
        for conv, _ in readers:
            weight = present(constant(conv.inputs[1]))
            turned = np.empty_like(weight)
            turned[:, order] = weight
            set_constant(conv, 1, turned)
        gone[str(made.name)] = tuple(str(conv.outputs[0].name) for conv, _ in readers)
        made.replace_all_uses_with(present(node.inputs[0]))
        graph.remove(node, safe=True)
    return gone


def _reads_all_channels(node: ir.Node) -> bool:
    """Whether a node is a convolution without groups whose weight is a constant."""
    is_plain = node.op_type == "Conv" and not node.domain and node.attributes.get_int("group", 1) == 1
    return is_plain and constant(node.inputs[1]) is not None


def cast_bytes_first(graph: ir.Graph) -> None:
    """Cast an input of bytes before it is turned, cut or reshaped, in place: TensorRT takes it into a cast alone.

    Only where everything that is made of the bytes is cast to one type of floats in the end; the numbers are the same.
    """
    for given in graph.inputs:
        if given.dtype != ir.DataType.UINT8:
            continue
        moved, casts, waiting = [given], [], [given]
        while waiting:
            value = waiting.pop()
            for node, index in value.uses():
                if index == 0 and any(_is_own(node, kind, graph) for kind in _MOVES):
                    moved += node.outputs
                    waiting += node.outputs
                else:
                    casts.append(node)
        kinds = {each.attributes["to"].as_int() if _is_own(each, "Cast", graph) else 0 for each in casts}
        if (
            len(moved) == 1
            or len(kinds) != 1
            or not kinds <= _FLOATS
            or any(each.is_graph_output() for each in (*moved, *(cast.outputs[0] for cast in casts)))
        ):
            continue
        first = ir.Node("", "Cast", [given], [ir.AttrInt64("to", (kind := kinds.pop()))], num_outputs=1)
        made = first.outputs[0]
        made.name, made.shape = free_name(graph, f"{given.name}.float"), given.shape
        given.replace_all_uses_with(made)
        first.replace_input_with(0, given)
        graph.insert_before(graph[0], first)
        for value in (made, *moved[1:]):
            value.type = ir.TensorType(ir.DataType(kind))
        for cast in casts:
            cast.outputs[0].replace_all_uses_with(present(cast.inputs[0]))
            graph.remove(cast, safe=True)


def _is_own(node: ir.Node, kind: str, graph: ir.Graph) -> bool:
    return node.op_type == kind and not node.domain and node.graph is graph


def _poolings(graph: ir.Graph, *kinds: str) -> Iterator[tuple[ir.Node, ir.Value, ir.Node]]:
    """Yield each pooling that makes images smaller, what it alone reads, and the node that computes that."""
    for pool in [node for node in graph if node.op_type in kinds and not node.domain and len(node.outputs) == 1]:
        value = present(pool.inputs[0])
        producer = value.producer()
        if producer is not None and len(value.uses()) == 1 and not value.is_graph_output() and makes_smaller(pool):
            yield pool, value, producer


def _is_pointwise(conv: ir.Node) -> bool:
    if conv.op_type != "Conv" or conv.domain or len(conv.inputs) < 2:
        return False
    weight, given = constant(conv.inputs[1]), conv.attributes
    plain = not any(given.get_ints("pads", ())) and set(given.get_ints("strides", ())) <= {1}
    plain = plain and given.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    return weight is not None and plain and set(weight.shape[2:]) == {1}
