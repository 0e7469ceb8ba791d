"""Which opsets can a graph be written in? Down to an older one exactly, operator by operator; up by onnx's converter.

torch's exporter writes opset 18 and more, TensorRT 8 reads 17 or 13 and no more, files of others have 7 to 25. What
counts is what a graph uses, not the versions of its operators: most have changed in types or options that it lacks.

From opset to opset an operator that changed is written by its rule (model/opset_rules.py), or the two schemas are
compared for the inputs, attributes and types that the node has, or it becomes what ONNX's own function for it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, TypeProto, helper
from onnx.defs import OpSchema

from msn_deploy.core.errors import InputError, first_line, shorten
from msn_deploy.model.checks import check_valid
from msn_deploy.model.graphs import all_graphs, attribute_of, inner_graphs, nodes_of_model
from msn_deploy.model.opset_rules import RULES, drop_idle_ceil
from msn_deploy.model.opset_scope import NotSaid, Scope, set_attribute

DEFAULT_OPSET = 17  # what TensorRT 8.6 still reads
LOWEST = 11  # below, an axis counted from the back means nothing to many operators
_ONNX = ("", onnx.defs.ONNX_DOMAIN)
_ONES = ("dilations",)  # attributes that are all ones where they are absent
_REDEFINED = {  # the opset since which the same words mean something else
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), 13),
    **{"RoiAlign": 16, "GridSample": 20, "GroupNormalization": 21},
}


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why a graph is not written in an older opset: one of its nodes."""

    operator: str
    node: str
    needs: int
    """The opset that has what the node uses."""
    why: str

    def __str__(self) -> str:
        """Such as "GridSample 'sample' needs opset 20 (its input has more than two spatial axes)"."""
        return f"{self.operator} {self.node!r} needs opset {self.needs}" + (f" ({self.why})" if self.why else "")


class OpsetError(InputError):
    """A graph cannot be written in the opset that was asked for."""

    def __init__(self, message: str, blocked: Blocked | None = None) -> None:
        super().__init__(message)
        self.blocked = blocked


def opset_of(model: ModelProto) -> int:
    """Return the opset that a model is written in."""
    return max(int(entry.version) for entry in model.opset_import if entry.domain in _ONNX)


def first_lacked(model: ModelProto, opset: int) -> NodeProto | None:
    """Return the first node whose operator does not exist in an opset; None where all do."""
    nodes = (node for node in nodes_of_model(model) if node.domain in _ONNX)
    return next((node for node in nodes if _schema(node.op_type, opset) is None), None)


def to_opset(model: ModelProto, opset: int) -> ModelProto:
    """Return the model in another opset, checked; it may be changed in place.

    Raises:
        OpsetError: It cannot be written in that opset; the error names the operator and the opset that has it.
    """
    written = opset_of(model)
    if written == opset:
        return model
    if opset > written:
        return _raised(model, opset)
    if opset < LOWEST:
        raise OpsetError(f"a graph is written in opset {LOWEST} at least, not in {opset}.\nTry `--opset {LOWEST}`.")
    model, blocked = lowered(model, opset)
    if blocked is not None:
        raise OpsetError(
            f"the graph cannot be written in opset {opset}: {blocked}.\nTry `--opset {blocked.needs}`.", blocked
        )
    return model


def lowered(model: ModelProto, opset: int) -> tuple[ModelProto, Blocked | None]:
    """Return the model in `opset`, or in the lowest above it that has all it uses and what kept it there.

    It may be changed in place, and is checked.
    """
    written, blocked = opset_of(model), None
    if model.functions and written > opset:
        model = onnx.inliner.inline_local_functions(model)
    drop_idle_ceil(model)
    for version in range(written, opset, -1):
        blocked = _lower_by_one(model, version)
        if blocked is not None:
            break
    if opset_of(model) != written:
        check_valid(model, source=f"the graph in opset {opset_of(model)}")
    return model, blocked


def _lower_by_one(model: ModelProto, version: int) -> Blocked | None:
    """Rewrite a model of opset `version` in place in the one below; where that fails, leave it and return the node."""
    lowering = _Lowering(Scope(model), version)
    plans, once_read = [], set[str]()
    for graph in all_graphs(model):
        nodes, changed = list[NodeProto](), False
        for node in graph.node:
            try:
                written = lowering.nodes_of(node)
            except NotSaid as cause:
                return Blocked(node.op_type, node.name or node.output[0], version, str(cause))
            if len(written) != 1 or written[0] is not node:
                once_read.update(node.input)
                changed = True
            nodes += written
        if changed:
            plans.append((graph, nodes))
    for graph, nodes in reversed(plans):  # inner graphs first: a node is copied with them
        del graph.node[:]
        graph.node.extend(nodes)
    model.graph.initializer.extend(lowering.scope.made)
    _drop(model, once_read)
    for entry in model.opset_import:
        if entry.domain in _ONNX:
            entry.version = version - 1
    return None


def _drop(model: ModelProto, names: set[str]) -> None:
    """Take out, in place, the constants among those names that nothing reads any more, and what alone makes them."""
    graphs = list(all_graphs(model))
    kept = {value.name for graph in graphs for value in graph.output}
    while names:
        gone = names - kept - {name for graph in graphs for node in graph.node for name in node.input}
        names = set()
        for graph in graphs:
            stored = gone & {tensor.name for tensor in graph.initializer}
            unread = [at for at, node in enumerate(graph.node) if gone.issuperset(node.output)]
            names.update(name for at in unread for name in graph.node[at].input)
            for held in (graph.initializer, graph.input):
                _take_out(held, [at for at, each in enumerate(held) if each.name in stored])
            _take_out(graph.node, unread)


def _take_out(held: Any, places: list[int]) -> None:
    for at in reversed(places):
        del held[at]


@dataclass(frozen=True, slots=True)
class _Lowering:
    """From one opset to the one below, node by node."""

    scope: Scope
    version: int

    def nodes_of(self, node: NodeProto) -> list[NodeProto]:
        """Return what a node is in the opset below: itself where nothing changes. Raises NotSaid."""
        new = _schema(node.op_type, self.version) if node.domain in _ONNX else None
        if new is None or new.since_version != self.version:
            return [node]
        old = _schema(node.op_type, self.version - 1)
        rule = RULES.get((node.op_type, self.version))
        if old is None:
            if rule is None:
                return self._spelled_out(node, new)
            return rule(_copied(node), self.scope)
        if any(inner_graphs(node)):  # of branches and loops only the types have grown
            self._check_types(node, old)
            return [node]
        copy = _copied(node)
        made = [copy] if rule is None else rule(copy, self.scope)
        for each in made:
            if each.op_type == node.op_type:
                self._fit(each, new, old)
        return [node] if made == [node] else made

    def _fit(self, node: NodeProto, new: OpSchema, old: OpSchema) -> None:
        """Take away, in place, what says the same by its absence. Raises NotSaid for what the older schema lacks."""
        for names, formal, later in ((node.input, old.inputs, new.inputs), (node.output, old.outputs, new.outputs)):
            while names and not names[-1]:
                del names[-1]
            for at, each in enumerate(formal):
                if each.option == each.option.Single and (at >= len(names) or not names[at]):
                    raise NotSaid(f"it lacks {each.name!r}")
            if len(names) > len(formal) and (not formal or formal[-1].option != formal[-1].option.Variadic):
                raise NotSaid(f"it has {later[len(names) - 1].name!r}")
        for name in [each.name for each in node.attribute if each.name not in old.attributes]:
            value = attribute_of(node, name)
            if not (value == _default(new, name) or (name in _ONES and set(value) == {1})):
                raise NotSaid(f"its {name} is {value.decode() if isinstance(value, bytes) else value}")
            set_attribute(node, name, None)
        for name in old.attributes:
            default = _default(new, name)
            if default != _default(old, name) and default is not None and attribute_of(node, name) is None:
                set_attribute(node, name, default)
        self._check_types(node, old)

    def _check_types(self, node: NodeProto, old: OpSchema) -> None:
        """Raise NotSaid if the older schema lacks a type that the node has; types that are not known pass."""
        bound: dict[str, str] = {}
        for names, formal in ((node.input, old.inputs), (node.output, old.outputs)):
            for at, name in enumerate(names):
                each = formal[min(at, len(formal) - 1)]
                found = _type_text(self.scope.type_of(name))
                if not found:
                    continue
                if found not in each.types:
                    raise NotSaid(f"{each.name!r} is a {found}")
                if each.is_homogeneous and bound.setdefault(each.type_str, found) != found:
                    raise NotSaid(f"it mixes {bound[each.type_str]} and {found}")

    def _spelled_out(self, node: NodeProto, schema: OpSchema) -> list[NodeProto]:
        """Write an operator that the opset below lacks as ONNX defines it: by others, in as many nodes."""
        body = _body_of(node, schema, self.version, self.scope)
        if body is None or any(any(inner_graphs(each)) for each in body.node):
            raise NotSaid("")
        names = dict(zip(body.input, (*node.input, *[""] * len(body.input)), strict=False)) | {"": ""}
        names |= {inner: outer for inner, outer in zip(body.output, node.output, strict=False) if outer}
        made = []
        for each in body.node:
            for name in each.output:
                names.setdefault(name, self.scope.fresh(f"{node.output[0]}_{name}"))
            copy = NodeProto(op_type=each.op_type, domain=each.domain)
            copy.name = self.scope.fresh(f"{node.name or node.output[0]}_{each.op_type.lower()}")
            copy.input.extend(names[name] for name in each.input)
            copy.output.extend(names[name] for name in each.output)
            for attribute in each.attribute:
                if not attribute.ref_attr_name:
                    copy.attribute.append(attribute)
                    continue
                value = attribute_of(node, attribute.ref_attr_name, _default(schema, attribute.ref_attr_name))
                set_attribute(copy, attribute.name, value)
            made += self.nodes_of(copy)
        return made


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _body_of(node: NodeProto, schema: Any, version: int, scope: Scope) -> FunctionProto | None:
    """Return the function that ONNX gives for an operator, None where it has none for such a node."""
    body = FunctionProto()
    plain = [each for each in schema.function_opset_versions if each <= version]
    if plain:
        body.ParseFromString(schema.get_function_with_opset_version(max(plain)))
        return body
    depending = [each for each in schema.context_dependent_function_opset_versions if each <= version]
    types = [scope.type_of(name) if name else TypeProto() for name in node.input]
    if not depending or None in types:
        return None
    told = [each.SerializeToString() for each in types if each is not None]
    made = schema.get_context_dependent_function_with_opset_version(max(depending), node.SerializeToString(), told)
    body.ParseFromString(made)
    return body if body.node else None


def _raised(model: ModelProto, opset: int) -> ModelProto:
    """Return the model in a later opset, by onnx's converter."""
    written = opset_of(model)
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise OpsetError(f"onnx {onnx.__version__} knows opsets up to {newest}, not {opset}.\nTry `--opset {written}`.")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    kept = next(_not_converted(model, opset), None)
    if kept is not None:
        raise OpsetError(
            f"onnx {onnx.__version__} cannot write the graph of opset {written} in {opset}: {kept}.\n"
            f"Try `--opset {written}`."
        )
    try:
        made = onnx.version_converter.convert_version(model, opset)
        for node in made.graph.node if written < 11 else ():
            if node.op_type == "Resize":  # the converter leaves the defaults of 11, which mean another grid
                set_attribute(node, "coordinate_transformation_mode", "asymmetric")
                set_attribute(node, "nearest_mode", "floor")
        check_valid(made, source=f"its graph of opset {opset}")
    except Exception as cause:  # its C++ converter raises RuntimeError and more
        said = shorten(first_line(cause))
        raise OpsetError(
            f"onnx {onnx.__version__} cannot write the graph of opset {written} in {opset}: {said}.\n"
            f"Try `--opset {written}`."
        ) from cause
    return made


def _not_converted(model: ModelProto, opset: int) -> Iterator[str]:
    """Name the nodes that onnx's converter passes on as they are, though they mean something else there."""
    written = opset_of(model)
    scope = Scope(model)
    for depth, graph in enumerate(all_graphs(model)):
        for node in graph.node:
            label = f"{node.op_type} {node.name or node.output[0]!r}"
            if depth and not _means_the_same(node, written, opset):
                yield f"its converter does not look into the branch or loop with {label}"
            elif node.op_type == "Hardmax" and written < _REDEFINED["Hardmax"] <= opset:
                yield f"{label} has another meaning since {_REDEFINED['Hardmax']}"
            elif node.op_type in ("Resize", "Upsample") and written < 11 <= opset:
                scales = attribute_of(node, "scales") or scope.constant(node.input[1])
                nearest = attribute_of(node, "mode", b"nearest") == b"nearest"
                if nearest and (scales is None or min(scales) < 1):  # which neighbour is nowhere said
                    yield f"{label} makes its input smaller"


def _means_the_same(node: NodeProto, written: int, opset: int) -> bool:
    """Tell whether a node of one opset is one of a later opset, and the same, as it stands."""
    old, new = (_schema(node.op_type, each) if node.domain in _ONNX else None for each in (written, opset))
    if old is None or new is None or old.since_version == new.since_version:
        return True
    redefined = _REDEFINED.get(node.op_type, 0)
    if new.deprecated or written < redefined <= opset or not new.min_input <= len(node.input) <= new.max_input:
        return False
    told = {each.name for each in node.attribute}
    silent = (name for name in old.attributes if name not in told)
    return told <= set(new.attributes) and all(_default(old, name) == _default(new, name) for name in silent)


@cache
def _schema(operator: str, opset: int) -> OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return None


def _default(schema: OpSchema, name: str) -> Any:
    """Return the default of an attribute, None where it has none."""
    attribute = schema.attributes.get(name)
    return helper.get_attribute_value(attribute.default_value) if attribute and attribute.default_value.name else None


def _type_text(value: TypeProto | None) -> str:
    """Return a type as schemas write it, such as "tensor(float)"; empty where it is not known."""
    if value is None:
        return ""
    for kind, inner in (("seq", value.sequence_type), ("optional", value.optional_type)):
        if inner.HasField("elem_type"):
            return f"{kind}({_type_text(inner.elem_type)})"
    if not value.tensor_type.elem_type:
        return ""
    return f"tensor({TensorProto.DataType.Name(value.tensor_type.elem_type).lower()})"
