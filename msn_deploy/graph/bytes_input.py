"""An input of floats becomes one of bytes, and the graph prepares them: what a processor did before is in the network.

    bytes -> Cast -> [Transpose] -> [Sub mean] -> [Div deviation] -> [Gather: order of colours] -> the network as it was

The cast comes first because TensorRT takes an input of bytes into a cast alone. Mean and deviation are on the scale of
0 to 255. `fold_graph` then takes all of it into the first layers, as far as that is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto

from msn_deploy.core.model_info import Preprocess
from msn_deploy.graph.affine import present
from msn_deploy.graph.edits import free_name

_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # channels
_Step = tuple[str, ir.Attr | None, tuple[str, NDArray[np.generic]] | None]
"""An operator of one input, its attribute, and the name and value of the constant that it reads besides."""


def take_bytes(model: ModelProto, was: Preprocess, now: Preprocess) -> ModelProto:
    """Return a model whose only input takes bytes, uint8, prepared by `now`; the given one is left alone.

    was: what the network itself takes, float32 or float16. now: bytes (`is_bytes`), and else the same but for the order
    of colours, which are both red, green, blue in some order, and the layout.
    """
    made = ir.from_proto(model)
    graph = made.graph
    at, given = next((at, each) for at, each in enumerate(graph.inputs) if each.name not in graph.initializers)
    kind = present(given.dtype)
    turn = _turn(given) if was.layout == "NHWC" else None
    moved: list[_Step] = [("Cast", ir.AttrInt64("to", int(ir.DataType.FLOAT)), None)]
    if now.layout != was.layout:
        order = _TO_FIRST if was.layout == "NCHW" else _TO_LAST
        moved.append(("Transpose", ir.AttrInt64s("perm", order), None))
    steps = _numbers(was, now, channels_first=was.layout == "NCHW" or turn is not None)
    back: list[_Step] = [("Cast", ir.AttrInt64("to", int(kind)), None)] if kind != ir.DataType.FLOAT else []
    if turn is not None and not back:
        made_by_turn = turn.outputs[0]
        last = ir.Value(name=free_name(graph, f"{made_by_turn.name}.prepared"))
        if steps:
            made_by_turn.replace_all_uses_with(last)
            nodes = _chain(graph, made_by_turn, steps, last)
            graph.insert_after(turn, nodes)
        steps = []
    name = str(given.name)
    taken = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=_shape(given, was, now))
    graph.inputs[at] = taken
    given.name = None
    given.name = free_name(graph, f"{name}.prepared")
    nodes = _chain(graph, taken, [*moved, *steps, *back], given)
    if len(graph):
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)
    return ir.to_proto(made)


def _turn(given: ir.Value) -> ir.Node | None:
    """Return the node that alone reads channels last and puts them first, as TensorFlow's networks begin."""
    readers = {node for node, _ in given.uses()}
    node = readers.pop() if len(readers) == 1 else None
    if node is None or node.op_type != "Transpose" or node.domain or node.outputs[0].is_graph_output():
        return None
    return node if tuple(node.attributes.get_ints("perm", ())) == _TO_FIRST else None


def _numbers(was: Preprocess, now: Preprocess, *, channels_first: bool) -> list[_Step]:
    """Return what makes prepared numbers of bytes, in the order of colours of the bytes, and then the network's."""
    is_turned = was.colour != now.colour
    steps: list[_Step] = []
    for operator, name, values, nothing in (("Sub", "mean", was.mean, 0.0), ("Div", "std", was.std, 1.0)):
        vector = (255 * np.asarray(values)).astype(np.float32)
        if (vector == nothing).all():
            continue
        vector = vector[::-1] if is_turned else vector
        same = len(set(vector.tolist())) == 1
        number = vector[0] if same else vector.reshape(-1, 1, 1) if channels_first else vector
        steps.append((operator, None, (f"preparation.{name}", np.array(number))))
    if is_turned:
        order = np.arange(was.channels - 1, -1, -1)
        steps.append(("Gather", ir.AttrInt64("axis", 1 if channels_first else 3), ("preparation.order", order)))
    return steps


def _chain(graph: ir.Graph, start: ir.Value, steps: Sequence[_Step], end: ir.Value) -> list[ir.Node]:
    """Return nodes that make `end` of `start`, one behind the other; their constants are in the graph already."""
    nodes: list[ir.Node] = []
    value = start
    for at, (operator, attribute, number) in enumerate(steps):
        made = end if at == len(steps) - 1 else ir.Value(name=free_name(graph, f"{start.name}.{operator.lower()}"))
        inputs = [value]
        if number is not None:
            name, array = number
            tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape))
            kind = ir.TensorType(tensor.dtype)
            inputs.append(
                ir.Value(name=free_name(graph, name), type=kind, shape=ir.Shape(array.shape), const_value=tensor)
            )
            graph.register_initializer(inputs[1])
        attributes = [] if attribute is None else [attribute]
        nodes.append(ir.Node("", operator, inputs, attributes, outputs=[made], name=str(made.name)))
        value = made
    return nodes


def _shape(given: ir.Value, was: Preprocess, now: Preprocess) -> ir.Shape | None:
    """Return the sizes of the bytes; open ones keep their names."""
    if given.shape is None or was.layout == now.layout:
        return given.shape
    order = _TO_LAST if was.layout == "NCHW" else _TO_FIRST
    return ir.Shape([given.shape[at] for at in order])
