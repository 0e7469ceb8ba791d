"""Splits as plain operators: TensorRT has no sequences, which are what exporters and other tools write for `chunk`.

A sequence that something else than a constant position reads stays, with the type of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from msn_deploy.graph.affine import constant, present, shape_of
from msn_deploy.graph.edits import free_name, graph_of

_MADE_BY = ("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence")
_SIZES_ARE_INPUTS = 13  # opset since which Split and Squeeze take as inputs what were attributes
_END = np.iinfo(np.int64).max

Part = Callable[[int], ir.Value | None]
"""Returns the part of a split tensor at a position; None where it can't be written without a sequence."""


def type_sequences(model: ir.Model) -> None:
    """Give every sequence that has no type yet one: onnx_ir's shape inference would make it that of a tensor."""
    for graph in model.graphs():
        for node in graph:
            for output, is_sequence in zip(node.outputs, _are_sequences(node), strict=False):
                if output.type is None and is_sequence:
                    output.type = ir.SequenceType(ir.TensorType(ir.DataType.UNDEFINED))


def has_old_sequences(model: ir.Model) -> bool:
    """Whether a model of an opset below 13 has sequences, which onnxscript would write in operators of opset 13."""
    old = model.opset_imports.get("", 0) < _SIZES_ARE_INPUTS
    return old and any(node.op_type in _MADE_BY and not node.domain for graph in model.graphs() for node in graph)


def _are_sequences(node: ir.Node) -> list[bool]:
    """Return of each output, as far as it is known, whether it is a sequence."""
    if node.domain:
        return []
    if node.op_type in _MADE_BY:
        return [True] * len(node.outputs)
    if node.op_type == "If":
        sources: Sequence[ir.Value | None] = node.attributes["then_branch"].as_graph().outputs
    else:
        sources = node.inputs[2:] if node.op_type == "Loop" else node.inputs if node.op_type == "Identity" else ()
    return [value is not None and isinstance(value.type, ir.SequenceType) for value in sources]


def split_plainly(model: ir.Model) -> None:
    """Make tensors of what is read at a constant position of a split sequence, and say the sizes of every Split."""
    opset = model.opset_imports.get("", 0)
    for node in [node for node in model.graph if not node.domain]:
        if node.op_type == "SplitToSequence":
            _without_sequence(node, opset)
        elif node.op_type == "Split" and "num_outputs" in node.attributes:
            _say_sizes(node)


def _without_sequence(node: ir.Node, opset: int) -> None:
    if len(node.inputs) > 1:
        node.attributes.pop("keepdims", None)  # which then says nothing, and misleads onnxscript
    part = _parts(node, opset)
    for reader, _ in tuple(node.outputs[0].uses()):
        position = constant(reader.inputs[1]) if reader.op_type == "SequenceAt" else None
        if position is None:
            continue
        value = part(int(position.item()))
        if value is not None:
            made = reader.outputs[0]
            value.type = value.type or made.type or present(node.inputs[0]).type
            value.shape = value.shape or made.shape
            reader.prepend(identity := ir.Node("", "Identity", [value], num_outputs=1))  # an output keeps its name
            identity.outputs[0].name, made.name = made.name, None
            identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
            made.replace_all_uses_with(identity.outputs[0], replace_graph_outputs=True)
            graph_of(reader).remove(reader, safe=True)
    if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        graph_of(node).remove(node, safe=True)


def _parts(node: ir.Node, opset: int) -> Part:
    """Return what writes the parts of a SplitToSequence before it."""
    value, axis, sizes = _split(node)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    squeezed = given is None and node.attributes.get_int("keepdims", 1) == 0
    if sizes is not None:
        parts: list[ir.Value] = []

        def by_split(at: int) -> ir.Value | None:
            if not -len(sizes) <= at < len(sizes):
                return None
            if not parts:
                parts.extend(_written(node, "Split", [value], opset, sizes=sizes, axis=axis))
            return _written(node, "Squeeze", [parts[at]], opset, axes=[axis])[0] if squeezed else parts[at]

        return by_split

    def by_slice(at: int) -> ir.Value | None:
        if squeezed:
            return _written(node, "Gather", [value, _number(node, at)], opset, axis=axis)[0]
        if given is None:
            ends = [_number(node, [start]) for start in (at, _END if at == -1 else at + 1)]
        elif at < 0 or given.shape is None or len(given.shape) != 0:
            return None
        else:
            (size,) = _written(node, "Cast", [given], opset, to=int(ir.DataType.INT64))
            (size,) = _written(node, "Reshape", [size, _number(node, [1])], opset)
            ends = [_written(node, "Mul", [size, _number(node, [each])], opset)[0] for each in (at, at + 1)]
        return _written(node, "Slice", [value, *ends, _number(node, [axis])], opset)[0]

    return by_slice


def _split(node: ir.Node) -> tuple[ir.Value, int, list[int] | None]:
    """Return what a node splits, along which axis, and into which sizes, None if they are not known."""
    value, axis = present(node.inputs[0]), node.attributes.get_int("axis", 0)
    shape = shape_of(value)
    whole = shape[axis] if -len(shape) <= axis < len(shape) else None
    if node.op_type == "Split":
        count = len(node.outputs)
        size = None if whole is None else -(-whole // count)
    elif len(node.inputs) < 2 or node.inputs[1] is None:
        size = 1
    else:
        given = constant(node.inputs[1])
        if given is not None and given.ndim == 1:
            return value, axis, [int(each) for each in given]
        size = None if given is None else int(given)
    if whole is None or size is None or size < 1:
        return value, axis, None
    return value, axis, [min(size, whole - start) for start in range(0, whole, size)]


def _say_sizes(node: ir.Node) -> None:
    """Write the sizes of a Split that says how many parts there are, which opset 17 can't read."""
    _, _, sizes = _split(node)
    if sizes is not None and len(sizes) == len(node.outputs):
        node.attributes.pop("num_outputs")
        node.resize_inputs(2)
        node.replace_input_with(1, _number(node, sizes))


def _written(
    before: ir.Node,
    kind: str,
    inputs: list[ir.Value],
    opset: int,
    *,
    sizes: Sequence[int] = (),
    axes: Sequence[int] = (),
    **numbers: int,
) -> Sequence[ir.Value]:
    """Write a node before another one, and return its outputs, one for each size."""
    attributes: list[ir.Attr] = [ir.AttrInt64(name, number) for name, number in numbers.items()]
    for name, listed in (("split", sizes), ("axes", axes)):
        if listed and opset >= _SIZES_ARE_INPUTS:
            inputs = [*inputs, _number(before, listed)]
        elif listed:
            attributes.append(ir.AttrInt64s(name, listed))
    made = ir.Node("", kind, inputs, attributes=attributes, num_outputs=max(1, len(sizes)))
    before.prepend(made)
    for at, output in enumerate(made.outputs):
        output.name = free_name(graph_of(before), f"{before.outputs[0].name}.{kind.lower()}.{at}")
    made.name = made.outputs[0].name
    return made.outputs


def _number(node: ir.Node, number: int | Sequence[int]) -> ir.Value:
    """Return a constant of the graph of a node."""
    graph, tensor = graph_of(node), ir.tensor(np.asarray(number, dtype=np.int64))
    name = free_name(graph, f"{node.outputs[0].name}.{'x'.join(map(str, np.ravel(number)))}")
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value
