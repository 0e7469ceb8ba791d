"""Which operators can take a per-channel affine map into themselves, and which let one pass?

Two questions, answered by data flow, each with a plan of edits or a refusal:

`plan_into_producers`: value := map(value), by changing what computes the value.
`plan_into_readers`:   every reader sees x where it saw map(x), by changing the readers.

The rules are exact in real numbers: a scale passes what is linear and, where it is not negative, what is positively
homogeneous (ReLU, LeakyReLU, PReLU, max pooling); a shift passes what keeps constants (pooling that covers its input
evenly, interpolation). relu(s * x + t) = s * max(x, -t / s) + t for s > 0, so a shift passes ReLU as a Max. A shift
before zero padding is no constant behind it: refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from msn_deploy.graph.affine import Affine, affine_of, attribute, channels_of, constant
from msn_deploy.graph.edits import (
    add_to_bound,
    rewrite_affine,
    scale_conv_inputs,
    scale_conv_outputs,
    scale_matmul_inputs,
    scale_matmul_outputs,
)
from msn_deploy.graph.operators import (
    broadcasts,
    interpolates,
    is_channel_axis,
    keeps_channels,
    keeps_constants,
    named,
    rank_of,
    sees_no_border,
)

Plan = list[Callable[[], None]]
_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu")
_FARTHEST_BOUND = 1e4  # -t / s of a Max; beyond it, rounding it to float32 or float16 would be felt


class Refused(Exception):
    """A map cannot go where it should: a code for machines, a reason for people."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code, self.why = code, why


def plan_into_producers(value: ir.Value, of: Affine) -> Plan:
    """Plan to make a value `of(value)`. Raises Refused. All readers of the value get the new one."""
    node = value.producer()
    if node is None:
        raise Refused("GRAPH_INPUT", "it reads the input of the network")
    if len(value.uses()) + value.is_graph_output() > 1:
        raise Refused("READ_ELSEWHERE", f"what it reads, the output of {named(node)}, is also read without it")
    kind, first = node.op_type, node.inputs[0]
    assert first is not None
    if node.domain:
        raise Refused("UNKNOWN_OPERATOR", f"{named(node)} of the domain {node.domain} stands before it")
    if kind in ("Conv", "ConvTranspose"):
        _require_constants(node, 1, 2)
        return [lambda: scale_conv_outputs(node, of)]
    if kind in ("Gemm", "MatMul") and constant(node.inputs[1]) is not None and rank_of(value) == 2:
        _require_constants(node, 2)
        return [lambda: scale_matmul_outputs(node, of)]
    if (own := affine_of(node)) is not None:
        return [lambda: rewrite_affine(node, of.after(own[1]))]
    if kind == "Concat" and is_channel_axis(node, value):
        plan: Plan = []
        for each, part in _parts(node, of):
            plan += plan_into_producers(each, part)
        return plan
    if kind == "Add":
        left, right = node.inputs
        assert left is not None
        assert right is not None
        if left is right or broadcasts(left, right):
            raise Refused("UNKNOWN_OPERATOR", f"{named(node)} adds tensors of two shapes, or one to itself")
        scaled = Affine(scale=of.scale, shift=np.zeros_like(of.shift))
        return [*plan_into_producers(left, of), *plan_into_producers(right, scaled)]
    _require_passes(node, of)
    if kind == "Max":
        return [*plan_into_producers(_unbounded(node), of), lambda: add_to_bound(node, of)]
    return plan_into_producers(first, of)


def plan_into_readers(value: ir.Value, of: Affine, plan: Plan) -> list[str]:
    """Plan to let every reader of a value see x where it saw `of(x)`. Raises Refused.

    Appends to `plan` and returns the names of the tensors that stay what they are, where the map has been taken in.
    """
    if value.is_graph_output():
        raise Refused("GRAPH_OUTPUT", "its output is the output of the network")
    kept: list[str] = []
    seen: set[int] = set()
    for node, index in value.uses():
        if id(node) not in seen:
            kept += _into_reader(node, index, value, of, plan)
        seen.add(id(node))
    return kept


def _into_reader(node: ir.Node, index: int, value: ir.Value, of: Affine, plan: Plan) -> list[str]:
    kind, output = node.op_type, node.outputs[0]
    if node.domain:
        raise Refused("UNKNOWN_OPERATOR", f"{named(node)} of the domain {node.domain} reads it")
    if kind in ("Conv", "ConvTranspose") and index == 0:
        _require_constants(node, 1, 2)
        if not of.only_scales and not sees_no_border(node):
            raise Refused("PADDED_BORDER", f"{named(node)} pads with zeros, which its shift would have to change")
        plan.append(lambda: scale_conv_inputs(node, of))
        return [str(output.name)]
    if kind in ("Gemm", "MatMul") and index == 0 and constant(node.inputs[1]) is not None and rank_of(value) == 2:
        _require_constants(node, 2)
        if attribute(node, "transA", 0):
            raise Refused("NOT_PER_CHANNEL", f"{named(node)} reads it transposed")
        plan.append(lambda: scale_matmul_inputs(node, of))
        return [str(output.name)]
    if (own := affine_of(node)) is not None and own[0] == index:
        plan.append(lambda: rewrite_affine(node, _current(node).after(of)))
        return [str(output.name)]
    if kind == "Concat" and is_channel_axis(node, output):
        return plan_into_readers(output, _whole(node, value, of), plan)
    if kind in ("Flatten", "Reshape") and index == 0:
        return plan_into_readers(output, _per_feature(node, value, of), plan)
    if kind == "Add" and bool((of.scale == 1).all()) and node.inputs[0] is not node.inputs[1]:
        if broadcasts(*node.inputs):
            raise Refused("UNKNOWN_OPERATOR", f"{named(node)} adds tensors of two shapes")
        return plan_into_readers(output, of, plan)
    if kind == "Max" or (kind == "Relu" and not of.only_scales):
        kept = plan_into_readers(output, _behind_max(node, of) if kind == "Max" else _behind_relu(node, of), plan)
        plan.append(lambda: add_to_bound(node, _undo(of)))
        return kept
    _require_passes(node, of)
    return plan_into_readers(output, of, plan)


def _current(node: ir.Node) -> Affine:
    """Return what an affine node is at the time when a plan is carried out."""
    own = affine_of(node)
    assert own is not None
    return own[1]


def _undo(of: Affine) -> Affine:
    """Return the inverse map, the identity in channels of scale zero, whose readers get the constant instead."""
    dead = of.scale == 0
    scale = 1 / np.where(dead, 1, of.scale)
    return Affine(scale=scale, shift=np.where(dead, 0, -of.shift * scale))


def _require_positive(node: ir.Node, of: Affine) -> None:
    if (of.scale < 0).any():
        count = int((of.scale < 0).sum())
        raise Refused("NEGATIVE_GAIN", f"{count} of its {len(of.scale)} gains are negative, before {named(node)}")


def _behind_relu(node: ir.Node, of: Affine) -> Affine:
    """relu(s * x + t) = s * max(x, -t / s) + t for s > 0, and relu(t) for s = 0."""
    _require_positive(node, of)
    live = of.scale > 0
    if (np.abs(of.shift[live]) > _FARTHEST_BOUND * of.scale[live]).any():
        raise Refused("TINY_GAIN", f"a gain so small that -shift / gain is above {_FARTHEST_BOUND:g}")
    return Affine(scale=of.scale, shift=np.where(live, of.shift, np.maximum(of.shift, 0)))


def _behind_max(node: ir.Node, of: Affine) -> Affine:
    """max(s * x + t, c) = s * max(x, (c - t) / s) + t for s > 0."""
    _unbounded(node)
    if not (of.scale > 0).all():
        raise Refused("NEGATIVE_GAIN", f"a gain that is not positive, before {named(node)}")
    return of


def _require_passes(node: ir.Node, of: Affine) -> None:
    """Raise Refused unless map(node(x)) = node(map(x)) for a node with one tensor that is not constant."""
    kind = node.op_type
    if kind in _HOMOGENEOUS or kind == "MaxPool" or (kind == "Max" and _unbounded(node) is not None):
        _require_positive(node, of)
        if kind in _HOMOGENEOUS and not of.only_scales:
            raise Refused("NONLINEAR_BETWEEN", f"{named(node)} stands between its shift and the next convolution")
        if len(node.outputs) == 1:
            return
    if kind in ("AveragePool", "GlobalAveragePool", "ReduceMean") and keeps_channels(node):
        if of.only_scales or keeps_constants(node):
            return
        raise Refused("PADDED_BORDER", f"{named(node)} averages the zeros of its padding in")
    if kind == "Resize" and interpolates(node):
        return
    raise Refused("NONLINEAR_BETWEEN", f"{named(node)} stands between it and the convolution")


def _unbounded(node: ir.Node) -> ir.Value:
    """Return the tensor that a Max bounds from below by a constant per channel. Raises Refused if it does not."""
    constants = [constant(value) for value in node.inputs]
    if len(constants) == 2 and constants[0] is None and constants[1] is not None:
        value, bound = node.inputs[0], constants[1]
        channels, rank = channels_of(value), rank_of(value)
        if channels and bound.shape == (channels, *[1] * (rank - 2)):
            assert value is not None
            return value
    raise Refused("NONLINEAR_BETWEEN", f"{named(node)} stands between it and the convolution")


def _require_constants(node: ir.Node, *indices: int) -> None:
    for index in indices:
        if index < len(node.inputs) and node.inputs[index] is not None and constant(node.inputs[index]) is None:
            raise Refused("COMPUTED_WEIGHT", f"the weights of {named(node)} are computed from the input")


def _parts(node: ir.Node, of: Affine) -> list[tuple[ir.Value, Affine]]:
    """Return each input of a concatenation with its channels of the map."""
    parts, start = [], 0
    for each in node.inputs:
        size = channels_of(each)
        assert each is not None
        assert size is not None
        parts.append((each, of.part(start, start + size)))
        start += size
    return parts


def _whole(node: ir.Node, value: ir.Value, of: Affine) -> Affine:
    """Return the map of a whole concatenation, of which `value` is mapped and all else is not."""
    scales, shifts = [], []
    for each in node.inputs:
        size = channels_of(each)
        assert size is not None
        scales.append(of.scale if each is value else np.ones(size))
        shifts.append(of.shift if each is value else np.zeros(size))
    return Affine(scale=np.concatenate(scales), shift=np.concatenate(shifts))


def _per_feature(node: ir.Node, value: ir.Value, of: Affine) -> Affine:
    """Return the map behind a flattening of (N, C, ...) to (N, C * ...)."""
    features, channels = channels_of(node.outputs[0]), channels_of(value)
    if rank_of(node.outputs[0]) != 2 or features is None or channels is None or features % channels:
        raise Refused("NOT_PER_CHANNEL", f"{named(node)} reshapes it to something else than one row per image")
    assert value.shape is not None
    if len(value.shape) < 2 or not all(isinstance(size, int) for size in value.shape[1:]):
        raise Refused("NOT_PER_CHANNEL", f"{named(node)} reshapes a tensor of unknown size")
    if int(np.prod([int(size) for size in value.shape[1:]])) != features:  # type: ignore[arg-type]
        raise Refused("NOT_PER_CHANNEL", f"{named(node)} mixes images")
    return Affine(scale=np.repeat(of.scale, features // channels), shift=np.repeat(of.shift, features // channels))
