"""Folding per-channel affine maps (what every norm is in evaluation) into the operators around them, exactly.

Each norm is tried into what computes its input, then into what reads its output; what neither takes stays, with the
reason. The arithmetic is done in float64 and rounded once, so that a chain of folds costs no accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx import ModelProto, TensorProto

from msn_deploy.graph.affine import Affine, affine_of, attribute
from msn_deploy.graph.clean import clean
from msn_deploy.graph.edits import rewrite_affine
from msn_deploy.graph.evaluate import to_double, to_single
from msn_deploy.graph.reorder import pool_before_concat, pool_before_pointwise
from msn_deploy.graph.rules import Plan, Refused, plan_into_producers, plan_into_readers

_NORMS_OF_THEIR_INPUT = ("InstanceNormalization", "LayerNormalization", "GroupNormalization", "LpNormalization")

_VAGUE = ("NONLINEAR_BETWEEN", "READ_ELSEWHERE", "GRAPH_INPUT")  # the vaguest last


@dataclass(frozen=True, slots=True, kw_only=True)
class NormFold:
    """What became of one norm (or of any other per-channel affine map) of a graph.

    norm: its name. operator: of the node that it was. rule: "into-producer", "into-readers" or "kept". code, why: why
    it was kept; empty where it was folded. same: names of tensors that hold the same before and after the fold.
    """

    norm: str
    operator: str
    rule: str
    code: str = ""
    why: str = ""
    same: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedGraph:
    """A folded graph in the precision of its source, and what the folds are proved with.

    before: the unfolded graph in float64. after: the folded one, not yet rounded. pooled_first: names of the tensors
    for which an average pooling was moved before its 1x1 convolution.
    """

    model: ModelProto
    before: ir.Model
    after: ir.Model
    folds: tuple[NormFold, ...]
    pooled_first: tuple[str, ...] = ()


def fold_graph(model: ModelProto) -> FoldedGraph:
    """Fold what can be folded exactly; the input is left alone.

    Norms of graphs that are not of one floating precision, or that branch on their input, are kept with a reason.
    """
    graph = ir.from_proto(model)
    single = _float_types(model) == {TensorProto.FLOAT}
    if single:
        to_double(graph)
    clean(graph)
    before = graph.clone()
    refusal = _why_none(model)
    if refusal:
        folds, moved, split = _keep_all(graph.graph, *refusal), {}, {}
    else:
        folds = _fold(graph.graph)
        moved = pool_before_pointwise(graph.graph)
        split = pool_before_concat(graph.graph, {str(value.name) for node in before.graph for value in node.outputs})
    now = {**{gone: (pooled,) for gone, pooled in moved.items()}, **split}
    folds = [_renamed(told, now) for told in folds]
    clean(graph)
    rounded = graph.clone()
    if single:
        to_single(rounded)
    return FoldedGraph(
        model=ir.to_proto(rounded),
        before=before,
        after=graph,
        folds=tuple(folds),
        pooled_first=tuple(moved.values()),
    )


def _why_none(model: ModelProto) -> tuple[str, str] | None:
    if len(_float_types(model)) > 1:
        return "MIXED_PRECISION", "the graph computes in more than one floating precision"
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        return "QUANTISED", "the graph is quantised, and a fold would move its scales"
    if any(entry.HasField("g") or entry.graphs for node in model.graph.node for entry in node.attribute):
        return "CONTROL_FLOW", "the graph branches or loops"
    return None


def _float_types(model: ModelProto) -> set[int]:
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    found = {tensor.data_type for tensor in model.graph.initializer}
    found |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        found |= {entry.t.data_type for entry in node.attribute if entry.HasField("t")}
        if node.op_type == "Cast":
            found |= {entry.i for entry in node.attribute if entry.name == "to"}
    return found & set(floats)


def _fold(graph: ir.Graph) -> list[NormFold]:
    """Fold until nothing moves any more; return what became of each norm, in graph order."""
    _join_arithmetic(graph)
    order = {id(node): at for at, node in enumerate(graph)}
    done: dict[int, NormFold] = {}
    now: dict[str, tuple[str, ...]] = {}  # of a tensor that a later fold did away with: what shows the same instead
    kept: dict[int, NormFold] = {}
    moved = True
    while moved:
        moved = False
        kept = {}
        for node in list(graph):
            if node.op_type in _NORMS_OF_THEIR_INPUT and not node.domain:
                why = "it normalises by statistics of its own input"
                kept[id(node)] = _told(node, rule="kept", code="INPUT_DEPENDENT", why=why)
            elif node.op_type == "BatchNormalization" and affine_of(node) is None:
                kept[id(node)] = _told(node, rule="kept", **_why_no_affine(node))
            elif (own := affine_of(node)) is not None:
                read = str(node.inputs[own[0]].name)  # type: ignore[union-attr]
                result = _fold_one(node, *own)
                if result.rule != "kept":
                    now[read if result.rule == "into-producer" else str(node.outputs[0].name)] = result.same
                moved |= result.rule != "kept"
                (kept if result.rule == "kept" else done)[id(node)] = result
    found = {**kept, **done}
    return [_renamed(found[key], now) for key in sorted(found, key=lambda key: order.get(key, len(order)))]


def _renamed(told: NormFold, now: Mapping[str, tuple[str, ...]]) -> NormFold:
    """Follow the tensors of a fold through the folds after it."""
    same: list[str] = []
    left = list(told.same)
    while left:
        name = left.pop(0)
        left = [*now[name], *left] if name in now else left
        same += [] if name in now else [name]
    return replace(told, same=tuple(dict.fromkeys(same)))


def _join_arithmetic(graph: ir.Graph) -> None:
    """Make one node of a gain and a shift that are written as operators one behind the other: they are one norm."""
    for node in list(graph):
        own, output = affine_of(node), node.outputs[0]
        if own is None or node.op_type == "BatchNormalization" or len(output.uses()) != 1 or output.is_graph_output():
            continue
        ((reader, index),) = output.uses()
        other = affine_of(reader)
        if other is None or other[0] != index or reader.op_type == "BatchNormalization":
            continue
        names = [norm_name(node), norm_name(reader)]
        reader.meta["norm"] = next((name for name in names if "." in name), names[1])
        first = node.inputs[own[0]]
        assert first is not None
        rewrite_affine(reader, other[1].after(own[1]))
        reader.replace_input_with(0, first)
        _remove(node)


def _fold_one(node: ir.Node, mapped: int, own: Affine) -> NormFold:
    value, output = node.inputs[mapped], node.outputs[0]
    assert value is not None
    told = _told(node, rule="kept")
    if not own.is_finite:
        return replace(told, code="NOT_FINITE", why="its scale or shift is not finite (a variance below zero, or NaN)")
    refusals: list[Refused] = []
    try:
        if output.is_graph_output() and value.producer() is None:
            raise Refused("GRAPH_INPUT", "it reads the input of the network")
        plan = plan_into_producers(value, own)
    except Refused as refused:
        refusals.append(refused)
    else:
        _carry_out(plan)
        name = output.name
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        _remove(node)
        value.name = name
        return replace(told, rule="into-producer", same=(str(name),))
    try:
        plan = []
        same = plan_into_readers(output, own, plan)
    except Refused as refused:
        refusals.append(refused)
    else:
        _carry_out(plan)
        output.replace_all_uses_with(value)
        _remove(node)
        return replace(told, rule="into-readers", same=tuple(dict.fromkeys(same)))
    # Of the two sides that refused, the one that says more about the norm itself is the reason.
    main, other = sorted(refusals, key=lambda refused: _VAGUE.index(refused.code) if refused.code in _VAGUE else -1)
    return replace(told, code=main.code, why=f"{main.why}; {other.why}")


def _carry_out(plan: Plan) -> None:
    for edit in plan:
        edit()


def _remove(node: ir.Node) -> None:
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)


def _told(node: ir.Node, *, rule: str, code: str = "", why: str = "") -> NormFold:
    return NormFold(norm=norm_name(node), operator=node.op_type, rule=rule, code=code, why=why)


def _why_no_affine(node: ir.Node) -> dict[str, str]:
    if attribute(node, "training_mode", 0):
        return {"code": "TRAIN_MODE", "why": "it normalises by the batch, as in training"}
    return {"code": "COMPUTED_WEIGHT", "why": "its statistics are computed from the input"}


def _keep_all(graph: ir.Graph, code: str, why: str) -> list[NormFold]:
    norms = (*_NORMS_OF_THEIR_INPUT, "BatchNormalization")
    return [_told(node, rule="kept", code=code, why=why) for node in graph if node.op_type in norms]


def norm_name(node: ir.Node) -> str:
    """Return the name of the module that a norm comes from, as its parameters tell it, else that of the node."""
    if "norm" in node.meta:
        return str(node.meta["norm"])
    for value in node.inputs:
        if value is not None and value.is_initializer() and "." in str(value.name):
            return str(value.name).rpartition(".")[0]
    return node.name or str(node.outputs[0].name)
