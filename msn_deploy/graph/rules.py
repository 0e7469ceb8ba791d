"""Which operators can take a per-channel affine map into themselves, and which let one pass?

Two questions, answered by data flow, each with a plan of edits or a refusal:

`plan_into_producers`: value := map(value), by changing what computes the value.
`plan_into_readers`:   every reader sees x where it saw map(x), by changing the readers.

Each has a table with one small function per operator; operators that are in neither let a map pass or refuse it
(`_PASSES`).

The rules are exact in real numbers: a scale passes what is linear and, where it is not negative, what is positively
homogeneous (ReLU, LeakyReLU, PReLU, max pooling); a shift passes what keeps constants (pooling that covers its input
evenly, interpolation, cuts along the sides). relu(s * x + t) = s * max(x, -t / s) + t for s > 0, so a shift passes ReLU
as a Max. A shift before zero padding is not a constant behind it: refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from msn_deploy.graph.affine import Affine, affine_of, channels_of, constant, present, shape_of
from msn_deploy.graph.edits import (
    add_to_bound,
    map_inputs,
    map_outputs,
    scale_conv_inputs,
    scale_conv_outputs,
    scale_matmul_inputs,
    scale_matmul_outputs,
)
from msn_deploy.graph.operators import (
    broadcasts,
    channel_order,
    interpolates,
    is_channel_axis,
    keeps_channels,
    keeps_constants,
    named,
    sees_no_border,
)

Code = Literal[
    "",
    "COMPUTED_WEIGHT",
    "CONTROL_FLOW",
    "GRAPH_INPUT",
    "GRAPH_OUTPUT",
    "HALF_PRECISION",
    "INPUT_DEPENDENT",
    "MIXED_PRECISION",
    "NEGATIVE_GAIN",
    "NONLINEAR_BETWEEN",
    "NOT_FINITE",
    "NOT_PER_CHANNEL",
    "PADDED_BORDER",
    "QUANTISED",
    "READ_ELSEWHERE",
    "TINY_GAIN",
    "TRAIN_MODE",
    "UNKNOWN_OPERATOR",
    "UNKNOWN_SHAPE",
]
_ASKS_FOR_SIZES = (  # what a map does there depends on the sizes of what they read and make
    *("Add", "Concat", "Flatten", "Gemm", "MatMul", "Max", "ReduceMean", "Reshape", "Resize", "Upsample"),
)
_FARTHEST_BOUND = 1e4  # -t / s of a Max; beyond it, rounding it to float32 or float16 would be felt


class Refused(Exception):
    """A map cannot go where it should: a code for machines, a reason for people."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code: Code = code
        self.why = why


@dataclass(frozen=True, slots=True)
class Plan:
    """Edits that move a map, none of them made yet."""

    edits: tuple[tuple[Callable[[ir.Node, Affine], None], ir.Node, Affine], ...] = ()
    same: tuple[str, ...] = ()
    """Names of the tensors behind the readers, which stay what they are."""
    changed: tuple[str, ...] = ()
    """Names of the tensors on the way, which hold something else afterwards."""

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.edits + other.edits, self.same + other.same, self.changed + other.changed)

    def carry_out(self) -> None:
        """Make the edits."""
        for edit, node, of in self.edits:
            edit(node, of)


def plan_into_producers(value: ir.Value, of: Affine) -> Plan:
    """Plan to make a value `of(value)`. Raises Refused. All readers of the value get the new one."""
    node = value.producer()
    if node is None:
        raise Refused("GRAPH_INPUT", "it reads the input of the network")
    if len(value.uses()) + value.is_graph_output() > 1:
        raise Refused("READ_ELSEWHERE", f"what it reads, the output of {named(node)}, is also read without it")
    if node.domain:
        raise Refused("UNKNOWN_OPERATOR", f"{named(node)} of the domain {node.domain} stands before it")
    plan = Plan(changed=(str(value.name),))
    if affine_of(node) is not None:
        return plan + Plan(((map_outputs, node, of),))
    _require_sizes(node, value)
    return plan + _PRODUCERS.get(node.op_type, _before_any)(node, of)


def plan_into_readers(value: ir.Value, of: Affine) -> Plan:
    """Plan to let every reader of a value see x where it saw `of(x)`. Raises Refused."""
    if value.is_graph_output():
        raise Refused("GRAPH_OUTPUT", "its output is the output of the network")
    plan = Plan(changed=(str(value.name),))
    for node in dict.fromkeys(node for node, _ in value.uses()):
        if node.domain:
            raise Refused("UNKNOWN_OPERATOR", f"{named(node)} of the domain {node.domain} reads it")
        own = affine_of(node)
        if own is not None and own.value is value:
            plan += _taken_in(node, map_inputs, of)
        else:
            _require_sizes(node, value)
            plan += _READERS.get(node.op_type, _behind_any)(node, value, of)
    return plan


def plan_scale_into_readers(value: ir.Value, of: Affine) -> Plan:
    """Plan to let every reader of a value see x + t / s where it saw `of(x)`, s * x + t. Raises Refused."""
    if not (np.abs(of.shift) < _FARTHEST_BOUND * np.abs(of.scale)).all():
        raise Refused("TINY_GAIN", f"a gain so small that shift / gain is {_FARTHEST_BOUND:g} or more")
    return plan_into_readers(value, Affine(scale=of.scale, shift=np.zeros_like(of.shift)))


def _require_sizes(node: ir.Node, value: ir.Value) -> None:
    """Raise Refused for an operator that asks for sizes which shape inference could not tell."""
    for each in (value, node.outputs[0]) if node.op_type in _ASKS_FOR_SIZES else ():
        rank = len(shape_of(each))
        if rank == 0 or (rank > 1 and channels_of(each) is None):
            raise Refused("UNKNOWN_SHAPE", f"the channels of {each.name} at {named(node)} are not known")


def _taken_in(node: ir.Node, edit: Callable[[ir.Node, Affine], None], of: Affine) -> Plan:
    return Plan(((edit, node, of),), (str(node.outputs[0].name),))


# Producers: make the output of a node `of(output)`.


def _before_any(node: ir.Node, of: Affine) -> Plan:
    _require_passes(node, of)
    return plan_into_producers(present(node.inputs[0]), of)


def _conv_made(node: ir.Node, of: Affine) -> Plan:
    _require_constants(node, 1, 2)
    return Plan(((scale_conv_outputs, node, of),))


def _product_made(node: ir.Node, of: Affine) -> Plan:
    if not _is_layer(node, node.outputs[0]):
        return _before_any(node, of)
    _require_constants(node, 2)
    return Plan(((scale_matmul_outputs, node, of),))


def _concat_made(node: ir.Node, of: Affine) -> Plan:
    if not is_channel_axis(node, node.outputs[0]):
        return _before_any(node, of)
    plan, start = Plan(), 0
    for part in map(present, node.inputs):
        stop = start + present(channels_of(part))
        plan += plan_into_producers(part, of.part(start, stop))
        start = stop
    return plan


def _sum_made(node: ir.Node, of: Affine) -> Plan:
    left, right = map(present, node.inputs)
    if left is right or broadcasts(left, right):
        raise Refused("UNKNOWN_OPERATOR", f"{named(node)} adds tensors of two shapes, or one to itself")
    scaled = Affine(scale=of.scale, shift=np.zeros_like(of.shift))
    return plan_into_producers(left, of) + plan_into_producers(right, scaled)


def _max_made(node: ir.Node, of: Affine) -> Plan:
    value = _bounded(node)
    _require_positive(node, of)
    return plan_into_producers(value, of) + Plan(((add_to_bound, node, of),))


_PRODUCERS: dict[str, Callable[[ir.Node, Affine], Plan]] = {
    "Conv": _conv_made,
    "ConvTranspose": _conv_made,
    "Gemm": _product_made,
    "MatMul": _product_made,
    "Concat": _concat_made,
    "Add": _sum_made,
    "Max": _max_made,
}

# Readers: let a node see x where it saw the value, `of(x)`.


def _behind_any(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    _require_passes(node, of)
    return plan_into_readers(node.outputs[0], of)


def _conv_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    if node.inputs[0] is not value:
        return _behind_any(node, value, of)
    _require_constants(node, 1, 2)
    if not of.only_scales and not sees_no_border(node):
        raise Refused("PADDED_BORDER", f"{named(node)} pads with zeros, which its shift would have to change")
    return _taken_in(node, scale_conv_inputs, of)


def _product_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    if node.inputs[0] is not value or not _is_layer(node, value):
        return _behind_any(node, value, of)
    _require_constants(node, 2)
    if node.attributes.get_int("transA", 0):
        raise Refused("NOT_PER_CHANNEL", f"{named(node)} reads it transposed")
    return _taken_in(node, scale_matmul_inputs, of)


def _concat_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    """The map of the whole: that of the value, of which all else is left alone."""
    if not is_channel_axis(node, node.outputs[0]):
        return _behind_any(node, value, of)
    sizes = [present(channels_of(each)) for each in node.inputs]
    scales = [of.scale if each is value else np.ones(size) for each, size in zip(node.inputs, sizes, strict=True)]
    shifts = [of.shift if each is value else np.zeros(size) for each, size in zip(node.inputs, sizes, strict=True)]
    return plan_into_readers(node.outputs[0], Affine(scale=np.concatenate(scales), shift=np.concatenate(shifts)))


def _flatten_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    """From (N, C, ...) to (N, C * ...): each number as often as its channel has elements."""
    if node.inputs[0] is not value:
        return _behind_any(node, value, of)
    features, channels = channels_of(node.outputs[0]), channels_of(value)
    if len(shape_of(node.outputs[0])) != 2 or features is None or channels is None or features % channels:
        raise Refused("NOT_PER_CHANNEL", f"{named(node)} reshapes it to something else than one row per image")
    sizes = [size for size in shape_of(value)[1:] if size is not None]
    if len(sizes) < len(shape_of(value)) - 1:
        raise Refused("UNKNOWN_SHAPE", f"{named(node)} reshapes a tensor of unknown size")
    if math.prod(sizes) != features:
        raise Refused("NOT_PER_CHANNEL", f"{named(node)} mixes images")
    scale, shift = (np.repeat(vector, features // channels) for vector in (of.scale, of.shift))
    return plan_into_readers(node.outputs[0], Affine(scale=scale, shift=shift))


def _gather_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    """Channels in another order take their part of the map along."""
    order = channel_order(node)
    if node.inputs[0] is not value or order is None:
        return _behind_any(node, value, of)
    return plan_into_readers(node.outputs[0], Affine(scale=of.scale[order], shift=of.shift[order]))


def _size_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    """Sizes are the same whatever the numbers are."""
    return Plan()


def _sum_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    if not of.only_shifts or node.inputs[0] is node.inputs[1]:
        return _behind_any(node, value, of)
    if broadcasts(*node.inputs):
        raise Refused("UNKNOWN_OPERATOR", f"{named(node)} adds tensors of two shapes")
    return plan_into_readers(node.outputs[0], of)


def _max_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    """max(s * x + t, c) = s * max(x, (c - t) / s) + t for s > 0."""
    _bounded(node)
    if not (of.scale > 0).all():
        raise Refused("NEGATIVE_GAIN", f"a gain that is not positive, before {named(node)}")
    return plan_into_readers(node.outputs[0], of) + Plan(((add_to_bound, node, _undo(of)),))


def _relu_reads(node: ir.Node, value: ir.Value, of: Affine) -> Plan:
    """relu(s * x + t) = s * max(x, -t / s) + t for s > 0, and relu(t) for s = 0."""
    if of.only_scales:
        return _behind_any(node, value, of)
    _require_positive(node, of)
    if not shape_of(value):
        raise Refused("UNKNOWN_SHAPE", f"the number of sizes of {value.name} is not known, before {named(node)}")
    live = of.scale > 0
    if (np.abs(of.shift[live]) > _FARTHEST_BOUND * of.scale[live]).any():
        raise Refused("TINY_GAIN", f"a gain so small that -shift / gain is above {_FARTHEST_BOUND:g}")
    behind = Affine(scale=of.scale, shift=np.where(live, of.shift, np.maximum(of.shift, 0)))
    return plan_into_readers(node.outputs[0], behind) + Plan(((add_to_bound, node, _undo(of)),))


def _undo(of: Affine) -> Affine:
    """Return the inverse map, the identity in channels of scale zero, whose readers get the constant instead."""
    dead = of.scale == 0
    scale = 1 / np.where(dead, 1, of.scale)
    return Affine(scale=scale, shift=np.where(dead, 0, -of.shift * scale))


_READERS: dict[str, Callable[[ir.Node, ir.Value, Affine], Plan]] = {
    "Conv": _conv_reads,
    "ConvTranspose": _conv_reads,
    "Gemm": _product_reads,
    "MatMul": _product_reads,
    "Concat": _concat_reads,
    "Flatten": _flatten_reads,
    "Reshape": _flatten_reads,
    "Gather": _gather_reads,
    "Shape": _size_reads,
    "Size": _size_reads,
    "Add": _sum_reads,
    "Max": _max_reads,
    "Relu": _relu_reads,
}

# What a map passes, on its way to either side: map(node(x)) = node(map(x)) for the one tensor that is not constant.


def _require_passes(node: ir.Node, of: Affine) -> None:
    _PASSES.get(node.op_type, _between)(node, of)


def _between(node: ir.Node, of: Affine) -> None:
    raise Refused("NONLINEAR_BETWEEN", f"{named(node)} stands between it and the convolution")


def _homogeneous(node: ir.Node, of: Affine) -> None:
    _require_positive(node, of)
    if not of.only_scales:
        raise Refused("NONLINEAR_BETWEEN", f"{named(node)} stands between its shift and the next convolution")


def _largest(node: ir.Node, of: Affine) -> None:
    _require_positive(node, of)
    if len(node.outputs) > 1:
        _between(node, of)


def _mean(node: ir.Node, of: Affine) -> None:
    if not keeps_channels(node):
        _between(node, of)
    if not of.only_scales and not keeps_constants(node):
        raise Refused("PADDED_BORDER", f"{named(node)} averages the zeros of its padding in")


def _cut(node: ir.Node, of: Affine) -> None:
    if not keeps_channels(node):
        _between(node, of)


def _resized(node: ir.Node, of: Affine) -> None:
    if not interpolates(node):
        _between(node, of)


_PASSES: dict[str, Callable[[ir.Node, Affine], None]] = {
    "Relu": _homogeneous,
    "LeakyRelu": _homogeneous,
    "PRelu": _homogeneous,
    "MaxPool": _largest,
    "AveragePool": _mean,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    "Slice": _cut,
    "Resize": _resized,
    "Upsample": _resized,
}


def _require_positive(node: ir.Node, of: Affine) -> None:
    if (of.scale < 0).any():
        count = int((of.scale < 0).sum())
        raise Refused("NEGATIVE_GAIN", f"{count} of its {len(of.scale)} gains are negative, before {named(node)}")


def _bounded(node: ir.Node) -> ir.Value:
    """Return the tensor that a Max bounds from below by a constant per channel. Raises Refused if it does not."""
    constants = [constant(value) for value in node.inputs]
    value, bound = node.inputs[0], constants[-1]
    if len(constants) == 2 and constants[0] is None and bound is not None and value is not None:
        channels, rank = channels_of(value), len(shape_of(value))
        if channels and bound.shape == (channels, *[1] * (rank - 2)):
            return value
    raise Refused("NONLINEAR_BETWEEN", f"{named(node)} stands between it and the convolution")


def _is_layer(node: ir.Node, value: ir.Value) -> bool:
    """Whether a product has a constant weight, and a row per image of `value`, one of its tensors."""
    return constant(node.inputs[1]) is not None and len(shape_of(value)) == 2


def _require_constants(node: ir.Node, *indices: int) -> None:
    for index in indices:
        if index < len(node.inputs) and node.inputs[index] is not None and constant(node.inputs[index]) is None:
            raise Refused("COMPUTED_WEIGHT", f"the weights of {named(node)} are computed from the input")
