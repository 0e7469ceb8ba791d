"""A graph of float32 as one of float64, and back: the graph that folds are computed and proved in.

What an operator's schema allows in float32 only stays float32: a constant is left as it is, and a computed tensor is
cast on its way in or out, by nodes that go again on the way back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx import defs
from onnx_ir.passes import common

from msn_deploy.model.graphs import free_name

_FLOAT, _DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE
_LARGE = 1 << 16  # numbers of a constant, above which its doubles are not kept
# Attributes that name the type of an output, and whether that is float32 where they are left out.
_TYPED = {
    "Cast": ("to", False),
    "Bernoulli": ("dtype", False),
    "EyeLike": ("dtype", False),
    "RandomNormalLike": ("dtype", False),
    "RandomUniformLike": ("dtype", False),
    "RandomNormal": ("dtype", True),
    "RandomUniform": ("dtype", True),
    "SequenceEmpty": ("dtype", True),
    "BlackmanWindow": ("output_datatype", True),
    "HammingWindow": ("output_datatype", True),
    "HannWindow": ("output_datatype", True),
    "MelWeightMatrix": ("output_datatype", True),
}
_NUMBERS = ("value_float", "value_floats")  # of a Constant, which are float32


def to_double(model: ir.Model) -> None:
    """Make the float32 tensors, casts and types of a graph float64, in place, but where an operator has no float64."""
    stays = {value for value in _constants(model) if _is_read_as_float32(value, model)}
    types = _types(model)
    for graph in model.graphs():
        for node in list(graph):
            _spell_out(node)
    _convert(model, _FLOAT, _DOUBLE, stays)
    taken = {str(value.name) for value in _values(model)}
    for graph in model.graphs():
        for node in list(graph):
            _cast_around(graph, node, model, stays, types, taken)


def to_single(model: ir.Model) -> None:
    """Make the float64 tensors, casts and types of a graph float32, in place, each number rounded once."""
    for graph in model.graphs():
        for node in list(graph):
            if node.op_type == "Cast" and not node.domain:
                _uncast(graph, node)
    _convert(model, _DOUBLE, _FLOAT, set())


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.initializers.values())
        for node in graph:
            yield from node.outputs


def _is_read_as_float32(value: ir.Value, model: ir.Model) -> bool:
    """Whether every operator that reads a constant has no float64 there."""
    uses = value.uses()
    return bool(uses) and not value.is_graph_output() and all(at in _only_float32(node, model)[0] for node, at in uses)


def _only_float32(node: ir.Node, model: ir.Model) -> tuple[frozenset[int], frozenset[int]]:
    """Return which inputs and outputs of a node may be float32 and not float64."""
    version = model.opset_imports.get(node.domain, 1)
    return _of_schema(node.op_type, node.domain, version, len(node.inputs), len(node.outputs))


@functools.lru_cache(maxsize=4096)
def _of_schema(
    operator: str, domain: str, version: int, inputs: int, outputs: int
) -> tuple[frozenset[int], frozenset[int]]:
    try:
        schema = defs.get_schema(operator, version, domain)
    except defs.SchemaError:  # an operator of somebody else's
        return frozenset(), frozenset()

    def narrow(parameters: Iterable[defs.OpSchema.FormalParameter], count: int) -> frozenset[int]:
        formal = list(parameters)
        each = [formal[min(at, len(formal) - 1)].types for at in range(count) if formal]
        return frozenset(
            at for at, types in enumerate(each) if "tensor(float)" in types and "tensor(double)" not in types
        )

    return narrow(schema.inputs, inputs), narrow(schema.outputs, outputs)


def _types(model: ir.Model) -> Mapping[ir.Value, ir.DataType | None]:
    """Return the types of values where they are asked for, as far as a file or onnx tells them."""
    asked = [
        value
        for graph in model.graphs()
        for node in graph
        for values, narrow in zip((node.inputs, node.outputs), _only_float32(node, model), strict=True)
        for at, value in enumerate(values)
        if at in narrow and value is not None
    ]
    if all(value.dtype is not None for value in asked):
        return {value: value.dtype for value in asked}
    other = model.clone()
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(other)
    told = {str(value.name): value.dtype for value in _values(other)}
    return {value: value.dtype or told.get(str(value.name)) for value in asked}


def _spell_out(node: ir.Node) -> None:
    """Say what a node takes for granted: that what it makes is float32."""
    if node.domain:
        return
    name, is_float = _TYPED.get(node.op_type, ("", False))
    if is_float and name not in node.attributes:
        node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float32)))
    for number in _NUMBERS if node.op_type == "Constant" else ():
        attribute = node.attributes.get(number)
        if attribute is not None and not attribute.is_ref():
            del node.attributes[number]
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.asarray(attribute.value, np.float32)))


def _convert(model: ir.Model, old: ir.DataType, new: ir.DataType, but: set[ir.Value]) -> None:
    """Replace one floating type by another; float32 and float64 are meant."""
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            if value in but:
                continue
            if value.type is not None:
                value.type = _retyped(value.type, old, new)
            if value.const_value is not None:
                value.const_value = _converted(value.const_value, old, new)
        for node in graph:
            for each in list(node.attributes.values()):
                if each.type == ir.AttributeType.TENSOR and not each.is_ref():
                    node.attributes[each.name] = ir.AttrTensor(each.name, _converted(each.as_tensor(), old, new))
            name = _TYPED.get(node.op_type, ("", False))[0]
            if not node.domain and name in node.attributes and node.attributes[name].value == old:
                node.attributes[name] = ir.AttrInt64(name, int(new))


def _retyped(of: ir.TypeProtocol, old: ir.DataType, new: ir.DataType) -> ir.TypeProtocol:
    if isinstance(of, ir.SequenceType | ir.OptionalType):
        return type(of)(_retyped(of.elem_type, old, new), denotation=of.denotation)
    if isinstance(of, ir.TensorType | ir.SparseTensorType) and of.dtype == old:
        return type(of)(new, denotation=of.denotation)
    return of


class _Widened(ir.LazyTensor):
    """Numbers of float32 that are read as float64: made anew by each reader, as no fold changes most of them."""

    def __init__(self, single: ir.TensorProtocol) -> None:
        sizes = ir.Shape(single.shape.numpy())
        super().__init__(lambda: ir.tensor(single.numpy().astype(np.float64)), _DOUBLE, sizes, name=single.name)
        self.single = single


def _converted(tensor: ir.TensorProtocol, old: ir.DataType, new: ir.DataType) -> ir.TensorProtocol:
    if tensor.dtype != old:
        return tensor
    if new == _DOUBLE and tensor.size > _LARGE:
        return _Widened(tensor)
    if isinstance(tensor, _Widened):
        return tensor.single
    return ir.tensor(tensor.numpy().astype(new.numpy()), name=tensor.name)


def _cast_around(
    graph: ir.Graph | ir.Function,
    node: ir.Node,
    model: ir.Model,
    stays: set[ir.Value],
    types: Mapping[ir.Value, ir.DataType | None],
    taken: set[str],
) -> None:
    """Cast what a node reads and makes, where it has no float64."""
    reads, makes = _only_float32(node, model)
    name = node.name or node.outputs[0].name
    for at in sorted(reads):
        value = node.inputs[at]
        if value is None or value in stays or types.get(value, _FLOAT) not in (_FLOAT, None):
            continue
        cast = _cast(value, _FLOAT, free_name(f"{name}_in{at}", taken))
        graph.insert_before(node, cast)
        node.replace_input_with(at, cast.outputs[0])
    for at in sorted(makes):
        value = node.outputs[at]
        if not value.name or types.get(value, _FLOAT) not in (_FLOAT, None):
            continue
        old, value.name = value.name, free_name(f"{value.name}_float32", taken)
        cast = _cast(value, _DOUBLE, free_name(f"{name}_out{at}", taken))
        wide = cast.outputs[0]
        wide.name, wide.shape = old, value.shape
        value.replace_all_uses_with(wide, replace_graph_outputs=True)
        cast.replace_input_with(0, value)
        value.dtype = _FLOAT
        graph.insert_after(node, cast)


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to))
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], outputs=[output], name=name)


def _uncast(graph: ir.Graph | ir.Function, node: ir.Node) -> None:
    """Remove a cast that `to_double` made: those to float32, and back from it; its own file's say float64 by now."""
    value, output, to = node.inputs[0], node.outputs[0], node.attributes["to"].value
    if value is None or to not in (_FLOAT, _DOUBLE) or (to == _DOUBLE and value.dtype != _FLOAT):
        return
    if to == _FLOAT and value.dtype not in (_DOUBLE, None):
        return
    name = output.name
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if to == _DOUBLE:
        value.name = name
