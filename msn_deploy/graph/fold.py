"""Folding per-channel affine maps (what every norm is in evaluation) into the operators around them, exactly.

Each norm is tried into what computes its input, then into what reads its output; what neither takes stays, with the
reason. The arithmetic is done in float64 and rounded once, so that a chain of folds costs no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx import ModelProto, NodeProto, TensorProto

from msn_deploy.graph.affine import Affine, Mapped, affine_of, constant, present
from msn_deploy.graph.branches import merge_branches
from msn_deploy.graph.clean import clean
from msn_deploy.graph.edits import graph_of, map_inputs, rewrite_affine, spell_out
from msn_deploy.graph.evaluate import to_double, to_single
from msn_deploy.graph.reorder import cast_bytes_first, order_into_convs, pool_before_concat, pool_before_pointwise
from msn_deploy.graph.rules import Code, Plan, Refused, plan_into_producers, plan_into_readers, plan_scale_into_readers

_NORMS_OF_THEIR_INPUT = ("InstanceNormalization", "LayerNormalization", "GroupNormalization", "LpNormalization")

_IS_NORM = "is norm"  # key in the meta of nodes that are, or hold, a norm

Rule = Literal["into-producer", "into-readers", "scale-into-readers", "into-branch", "into-weight", "kept", "output"]
_VAGUE: tuple[Code, ...] = ("NONLINEAR_BETWEEN", "READ_ELSEWHERE", "GRAPH_INPUT")  # the vaguest last


@dataclass(frozen=True, slots=True, kw_only=True)
class NormFold:
    """What became of one norm of a graph, or of arithmetic with constants per channel that was folded like one.

    Arithmetic that stays (GELU's constants, the scale of an attention) is not a norm, and not told. scale-into-readers:
    its shift stays. code and why are empty where it was folded.
    """

    norm: str
    """Its name."""
    operator: str
    """Of the node that it was."""
    rule: Rule
    code: Code = ""
    why: str = ""
    same: tuple[str, ...] = ()
    """Names of tensors that hold the same before and after the fold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedGraph:
    """A folded graph in the precision of its source, and what the folds are proved with."""

    model: ModelProto
    before: ir.Model
    """The unfolded graph in float64."""
    after: ir.Model
    """The folded one, not yet rounded."""
    folds: tuple[NormFold, ...]
    pooled_first: tuple[str, ...] = ()
    """Names of the tensors for which an average pooling was moved before its 1x1 convolution."""


def fold_graph(model: ModelProto) -> FoldedGraph:
    """Fold what can be folded exactly; the input is left alone.

    Norms of graphs that are not of one floating precision, or that branch on their input, are kept with a reason.
    """
    graph = ir.from_proto(model)
    cast_bytes_first(graph.graph)
    if len(_float_types(model)) > 1:  # of constants that are cast, perhaps, which are computed once
        clean(graph)
        model = ir.to_proto(graph)
    single = _float_types(model) == {TensorProto.FLOAT}
    if single:
        to_double(graph)
    clean(graph)
    before = graph.clone()
    refusal, moved = _why_none(model), {}
    if refusal is not None:
        norms = (*_NORMS_OF_THEIR_INPUT, "BatchNormalization")
        folds = [_kept(node, refusal) for node in graph.graph if node.op_type in norms]
    else:
        folder = _Folder(graph.graph)
        folder.run()
        moved = pool_before_pointwise(graph.graph)
        known = {str(value.name) for node in before.graph for value in node.outputs}
        folder.shown_by |= {gone: (pooled,) for gone, pooled in moved.items()}
        folder.shown_by |= pool_before_concat(graph.graph, known)
        folds = folder.found()
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


def _why_none(model: ModelProto) -> Refused | None:
    found = _float_types(model)
    if len(found) > 1:
        return Refused("MIXED_PRECISION", "the graph computes in more than one floating precision")
    if found & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return Refused("HALF_PRECISION", "the graph computes in half precision; fold it before it is made so")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        return Refused("QUANTISED", "the graph is quantised, and a fold would move its scales")
    if any(entry.HasField("g") or entry.graphs for node in model.graph.node for entry in node.attribute):
        return Refused("CONTROL_FLOW", "the graph branches or loops")
    return None


def _float_types(model: ModelProto) -> set[int]:
    """Return the floating types that a graph computes in; the scales of a Resize, always float32, don't count."""
    floats = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    read_as = [(name, _scales(node) == at) for node in model.graph.node for at, name in enumerate(node.input)]
    scales = {name for name, is_scales in read_as if is_scales} - {name for name, is_scales in read_as if not is_scales}
    found = {tensor.data_type for tensor in model.graph.initializer if tensor.name not in scales}
    found |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        if not scales.issuperset(node.output):
            found |= {entry.t.data_type for entry in node.attribute if entry.HasField("t")}
        if node.op_type == "Cast":
            found |= {entry.i for entry in node.attribute if entry.name == "to"}
    return found & floats


def _scales(node: NodeProto) -> int | None:
    """Return which input holds the scales of an operator that resizes."""
    if node.op_type == "Upsample":
        return 1
    return (1 if len(node.input) < 3 else 2) if node.op_type == "Resize" else None


@dataclass(slots=True)
class _Folder:
    """One pass over a graph, until nothing moves any more."""

    graph: ir.Graph
    folded: dict[int, NormFold] = field(default_factory=dict)
    """By the id of the node that is gone."""
    kept: dict[int, NormFold] = field(default_factory=dict)
    """By the id of the node, as the last round found it."""
    shown_by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of tensors that are gone or hold something else now, and of those behind them that show the same."""
    order: dict[int, int] = field(default_factory=dict)
    """Where each node stood."""

    def run(self) -> None:
        """Fold what can be folded."""
        for node in self.graph:
            if node.op_type == "BatchNormalization":
                node.meta[_IS_NORM] = True
            if affine_of(node) is not None:
                node.meta["norm"] = norm_name(node)
        _join_arithmetic(self.graph)
        self.order = {id(node): at for at, node in enumerate(self.graph)}
        moved = True
        while moved:
            before = len(self.folded)
            self.kept = {}
            for node in list(self.graph):
                self._try(node)
            moved = len(self.folded) > before or self._merge_branches()
        for node in list(self.graph):
            if node.op_type == "BatchNormalization" and _IS_NORM not in node.meta:
                self._spell_out(node)
        self.shown_by |= order_into_convs(self.graph)

    def _spell_out(self, node: ir.Node) -> None:
        """Make arithmetic a sum alone where what reads it takes its gain, else a product and a sum."""
        of, operator = present(affine_of(node)).of, node.op_type
        try:
            plan = plan_scale_into_readers(node.outputs[0], of)
        except Refused:
            spell_out(node)
            return
        _carry_out(plan, node)
        rewrite_affine(node, Affine(scale=np.ones_like(of.scale), shift=of.shift / of.scale))
        same = tuple(dict.fromkeys(plan.same))
        self.folded[id(node)] = NormFold(norm=norm_name(node), operator=operator, rule="scale-into-readers", same=same)
        self.shown_by |= dict.fromkeys(plan.changed, same)

    def _try(self, node: ir.Node) -> None:
        own = affine_of(node)
        if own is None:
            refusal = _why_no_affine(node)
            if refusal is not None:
                self.kept[id(node)] = _kept(node, refusal)
            return
        result, changed = _fold_one(node, own)
        if result.rule == "kept":
            if _IS_NORM in node.meta:
                self.kept[id(node)] = result
            return
        self.folded[id(node)] = result
        self.shown_by |= dict.fromkeys(changed, result.same)

    def _merge_branches(self) -> bool:
        merged = merge_branches(self.graph)
        for each in merged:
            self.shown_by |= dict.fromkeys(each.gone, (each.made,))
            for node in each.maps:
                self.folded[id(node)] = NormFold(
                    norm=norm_name(node), operator=node.op_type, rule="into-branch", same=(each.made,)
                )
        return bool(merged)

    def found(self) -> list[NormFold]:
        """Return what became of each norm, in graph order, told by tensors that are left."""
        found = {**self.kept, **self.folded}
        ordered = sorted(found, key=lambda key: self.order.get(key, len(self.order)))
        return [self._in_tensors_left(found[key]) for key in ordered]

    def _in_tensors_left(self, result: NormFold) -> NormFold:
        same: list[str] = []
        left = list(result.same)
        while left:
            name = left.pop(0)
            left = [*self.shown_by.get(name, ()), *left]
            same += [] if name in self.shown_by else [name]
        return replace(result, same=tuple(dict.fromkeys(same)))


def _join_arithmetic(graph: ir.Graph) -> None:
    """Make one node of a gain and a shift that are written as operators one behind the other: they are one norm."""
    for node in list(graph):
        own, output = affine_of(node), node.outputs[0]
        if own is None or node.op_type == "BatchNormalization" or len(output.uses()) != 1 or output.is_graph_output():
            continue
        ((reader, _),) = output.uses()
        other = affine_of(reader)
        if other is None or other.value is not output or reader.op_type == "BatchNormalization":
            continue
        names = [norm_name(node), norm_name(reader)]
        reader.meta["norm"] = next((name for name in names if "." in name), names[1])
        map_inputs(reader, own.of)
        reader.replace_input_with(0, own.value)
        graph.remove(node, safe=True)


def _fold_one(node: ir.Node, own: Mapped) -> tuple[NormFold, tuple[str, ...]]:
    """Fold one norm, or return why it is kept, and the names of the tensors that the fold changes."""
    output = node.outputs[0]
    if not own.of.is_finite:
        bad = Refused("NOT_FINITE", "its scale or shift is not finite (a variance below zero, or NaN)")
        return _kept(node, bad), ()
    folded = NormFold(norm=norm_name(node), operator=node.op_type, rule="into-producer", same=(str(output.name),))
    try:
        if output.is_graph_output() and own.value.producer() is None:
            raise Refused("GRAPH_INPUT", "it reads the input of the network")
        plan = plan_into_producers(own.value, own.of)
    except Refused as refused:
        by_producers = refused
    else:
        _carry_out(plan, node)
        name = output.name
        output.replace_all_uses_with(own.value, replace_graph_outputs=True)
        graph_of(node).remove(node, safe=True)
        own.value.name = name
        return folded, plan.changed
    try:
        plan = plan_into_readers(output, own.of)
    except Refused as by_readers:
        # Of the two sides that refused, the one that says more about the norm itself is the reason.
        main, other = sorted(
            (by_producers, by_readers), key=lambda each: _VAGUE.index(each.code) if each.code in _VAGUE else -1
        )
        return replace(_kept(node, main), why=f"{main.why}; {other.why}"), ()
    _carry_out(plan, node)
    output.replace_all_uses_with(own.value)
    graph_of(node).remove(node, safe=True)
    return replace(folded, rule="into-readers", same=tuple(dict.fromkeys(plan.same))), plan.changed


def _carry_out(plan: Plan, norm: ir.Node) -> None:
    plan.carry_out()
    for _, node, _ in plan.edits if _IS_NORM in norm.meta else ():
        node.meta[_IS_NORM] = True  # of a Mul that a norm went into, and which is kept


def _kept(node: ir.Node, refusal: Refused) -> NormFold:
    return NormFold(norm=norm_name(node), operator=node.op_type, rule="kept", code=refusal.code, why=refusal.why)


def _why_no_affine(node: ir.Node) -> Refused | None:
    """Return why a norm is not an affine map; None for a node that is not a norm."""
    if node.op_type in _NORMS_OF_THEIR_INPUT and not node.domain:
        return Refused("INPUT_DEPENDENT", "it normalises by statistics of its own input")
    if node.op_type != "BatchNormalization":
        return None
    if node.attributes.get_int("training_mode", 0):
        return Refused("TRAIN_MODE", "it normalises by the batch, as in training")
    if any(constant(value) is None for value in node.inputs[1:5]):
        return Refused("COMPUTED_WEIGHT", "its statistics are computed from the input")
    return Refused("UNKNOWN_SHAPE", "its parameters are not one number per channel of what it reads")


def norm_name(node: ir.Node) -> str:
    """Return the name of the module that a norm comes from, as its parameters tell it, else that of the node."""
    if "norm" in node.meta:
        return str(node.meta["norm"])
    for value in node.inputs:
        if value is not None and value.is_initializer() and "." in str(value.name):
            return str(value.name).rpartition(".")[0]
    return node.name or str(node.outputs[0].name)
