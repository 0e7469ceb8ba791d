"""What a rule that rewrites a node may ask of the model around it, and what it builds its nodes with."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from msn_deploy.model.checks import small_constant
from msn_deploy.model.graphs import (
    all_graphs,
    attribute_of,
    constants_of,
    free_name,
    inner_graphs,
    names_of,
    without_weights,
)

Array = NDArray[Any]


class NotSaid(Exception):
    """An older opset lacks what a node uses: the reason, as the second half of a sentence; it may be empty."""


class Scope:
    """What a rule may ask of the model around a node, and where it puts constants."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.made: list[TensorProto] = []

    @cached_property
    def _constants(self) -> dict[str, TensorProto]:
        return {name: tensor for graph in all_graphs(self.model) for name, tensor in constants_of(graph).items()}

    @cached_property
    def _types(self) -> dict[str, TypeProto]:
        found = {}
        for name, tensor in self._constants.items():
            found[name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        try:
            inferred = onnx.shape_inference.infer_shapes(without_weights(self.model), data_prop=True)
        except Exception:  # of a graph that inference does not follow: then types and shapes are not known
            inferred = self.model
        for graph in all_graphs(inferred):
            for value in (*graph.value_info, *graph.output, *graph.input):
                found.setdefault(value.name, value.type)
        return found

    @cached_property
    def _names(self) -> set[str]:
        return names_of(self.model)

    @cached_property
    def _makers(self) -> dict[str, NodeProto]:
        return {name: node for graph in all_graphs(self.model) for node in graph.node for name in node.output}

    def constant(self, name: str) -> Array | None:
        """Return the values of a constant, also of one that other constants make; None where the input has a part."""
        if name in self._constants:
            return numpy_helper.to_array(self._constants[name])
        node = self._makers.get(name)
        if node is None or any(inner_graphs(node)):
            return None
        if node.op_type in ("Shape", "Size"):
            return self._size_of(node)
        known: dict[str, Array] = {}
        for each in filter(None, node.input):
            value = self.constant(each)
            if value is None:
                return None
            known[each] = value
        return small_constant(node, known, {entry.domain: entry.version for entry in self.model.opset_import})

    def _size_of(self, node: NodeProto) -> Array | None:
        try:
            shape = [size for size in self.shape(node.input[0]) if size is not None]
        except NotSaid:
            return None
        if len(shape) != len(self.shape(node.input[0])):
            return None
        part = slice(attribute_of(node, "start", 0), attribute_of(node, "end"))
        return np.asarray(math.prod(shape) if node.op_type == "Size" else shape[part], np.int64)

    def type_of(self, name: str) -> TypeProto | None:
        """Return the type of a tensor, None where it is not known."""
        return self._types.get(name)

    def element_type(self, name: str) -> int:
        """Return the element type of a tensor. Raises NotSaid where it is not known."""
        found = self.type_of(name)
        if found is None or not found.tensor_type.elem_type:
            raise NotSaid(f"the type of {name!r} is not known")
        return found.tensor_type.elem_type

    def shape(self, name: str) -> list[int | None]:
        """Return the sizes of a tensor, None for an open one. Raises NotSaid where not even the rank is known."""
        found = self.type_of(name)
        if found is None or not found.tensor_type.HasField("shape"):
            raise NotSaid(f"the rank of {name!r} is not known")
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in found.tensor_type.shape.dim]

    def fresh(self, like: str) -> str:
        """Return a name that no tensor and no node has."""
        return free_name(like, self._names)

    def put(self, values: object, like: str, *, dtype: Any = np.int64) -> str:
        """Store a constant in the outermost graph, which every graph sees, and return its name."""
        tensor = numpy_helper.from_array(np.asarray(values, dtype), self.fresh(like))
        self.made.append(tensor)
        return tensor.name


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set an attribute, or with None take it away."""
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])


class Chain:
    """Nodes in place of one, each named after it."""

    def __init__(self, node: NodeProto, scope: Scope) -> None:
        self.of, self.scope, self.nodes = node, scope, list[NodeProto]()

    def add(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Append a node; out: the name of its output, if it is one that others read."""
        name = out or self.scope.fresh(f"{self.of.output[0]}_{operator.lower()}")
        label = self.scope.fresh(f"{self.of.name or self.of.output[0]}_{operator.lower()}")
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=label, **attributes))
        return name
