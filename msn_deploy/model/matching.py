"""Which tensor of one graph is which of another: an FP32 file and its INT8 twin, or two versions of a network.

A node is the other's where it is of one operator and reads what is already paired; of several such nodes, the one that
gives its output the same name, else the one with the nearest weights, else the first in order. Where the chain breaks
(a file that was simplified in another way), equal names, and then stretches of equal operators, take it up again. What
only stores or carries numbers (Q/DQ, casts) is looked through, so neither precision nor layout matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from msn_deploy.model.graphs import constants_of, values_of

_CARRIES = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A tensor that a node of the reference makes, and the same of the model.

    layer, operator: of that node of the reference. by: how it was found, "name" if both are called the same.
    """

    reference: str
    model: str
    layer: str
    operator: str
    by: Literal["name", "position"]


def match(model: ModelProto, reference: ModelProto) -> list[Pair]:
    """Return what is the same in both graphs, in the order of the reference; the inputs do not count."""
    return _Matcher(_Side(model), _Side(reference)).run()


class _Side:
    """One of the two graphs, as its nodes that compute."""

    def __init__(self, model: ModelProto) -> None:
        self.graph, self.constants = model.graph, constants_of(model.graph)
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in model.graph.output]
        self._carried: dict[str, str] = {}  # a tensor, and what it is the rounded form of
        self._stored: dict[str, NodeProto] = {}  # what is dequantised from constants alone
        self.nodes: list[NodeProto] = []
        for node in model.graph.node:
            if node.op_type in _CARRIES and node.input[0] in self.constants:
                self._stored[node.output[0]] = node
            elif node.op_type in _CARRIES:
                self._carried[node.output[0]] = self.source(node.input[0])
            elif node.op_type != "Constant":
                self.nodes.append(node)

    def source(self, name: str) -> str:
        """Return the tensor that a name is the rounded form of; itself where it is none."""
        return self._carried.get(name, name)

    def shown(self, name: str) -> str:
        """Return the output of the graph that carries a tensor, else the tensor itself."""
        return next((each for each in self.outputs if self.source(each) == name), name)

    def reads(self, node: NodeProto) -> list[str | None]:
        """Return what a node reads; None for a constant."""
        return [None if self.is_constant(name) else self.source(name) for name in node.input]

    def is_constant(self, name: str) -> bool:
        return not name or name in self.constants or name in self._stored

    def weights(self, node: NodeProto) -> Iterator[NDArray[np.float64]]:
        for name in node.input:
            if name in self._stored:
                yield self._dequantised(self._stored[name])
            elif name in self.constants and (values := values_of(self.constants[name])) is not None:
                yield values.astype(np.float64)

    def _dequantised(self, node: NodeProto) -> NDArray[np.float64]:
        parts = [numpy_helper.to_array(self.constants[name]).astype(np.float64) for name in node.input if name]
        if node.op_type != "DequantizeLinear":
            return parts[0]
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        sizes = [1] * parts[0].ndim
        if parts[1].ndim:
            sizes[axis] = -1
        zero = parts[2].reshape(sizes) if len(parts) > 2 else 0.0
        return np.asarray((parts[0] - zero) * parts[1].reshape(sizes))


class _Matcher:
    def __init__(self, model: _Side, reference: _Side) -> None:
        self.model, self.reference = model, reference
        self.same: dict[str, str] = dict(_inputs(model.inputs, reference.inputs))  # reference -> model
        self.free = list(range(len(model.nodes)))
        self.found: dict[int, NodeProto] = {}  # a node of the reference, by its number

    def run(self) -> list[Pair]:
        before = -1
        while before < len(self.found):
            before = len(self.found)
            self._in_step()
            if before == len(self.found):
                self._by_name() or self._by_order()
        return list(self._pairs())

    def _in_step(self) -> None:
        """Pair the nodes that read what is paired already."""
        candidates: dict[tuple[object, ...], list[int]] = {}
        for at in self.free:
            node = self.model.nodes[at]
            candidates.setdefault((node.op_type, *self.model.reads(node)), []).append(at)
        for number, node in enumerate(self.reference.nodes):
            reads = self.reference.reads(node)
            if number in self.found or any(name is not None and name not in self.same for name in reads):
                continue
            key = (node.op_type, *(None if name is None else self.same[name] for name in reads))
            if among := candidates.get(key):
                best = self._best(node, among)
                among.remove(best)
                self._pair(number, best)

    def _best(self, node: NodeProto, among: Sequence[int]) -> int:
        if len(among) == 1:
            return among[0]
        named = [at for at in among if self._called(self.model.nodes[at]) & self._called(node)]
        if named:
            return named[0]
        wanted = list(self.reference.weights(node))
        return min(among, key=lambda at: _distance(wanted, list(self.model.weights(self.model.nodes[at]))))

    def _called(self, node: NodeProto) -> set[str]:
        return {name for name in (node.name, *node.output) if name}

    def _by_name(self) -> bool:
        """Pair one more node, by the name of what it makes; tell whether there was one."""
        by_output = {self.model.shown(self.model.nodes[at].output[0]): at for at in self.free}
        for number, node in enumerate(self.reference.nodes):
            at = by_output.get(self.reference.shown(node.output[0]))
            if number not in self.found and at is not None and self.model.nodes[at].op_type == node.op_type:
                self._pair(number, at)
                return True
        return False

    def _by_order(self) -> bool:
        """Pair one more node, by the longest stretch of nodes alike; tell whether there was one."""
        left = [number for number in range(len(self.reference.nodes)) if number not in self.found]
        one = [self._kind(self.reference, self.reference.nodes[number]) for number in left]
        other = [self._kind(self.model, self.model.nodes[at]) for at in self.free]
        block = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
        if block.size == 0:
            return False
        self._pair(left[block.a], self.free[block.b])
        return True

    def _kind(self, side: _Side, node: NodeProto) -> tuple[object, ...]:
        return node.op_type, *(values.shape for values in side.weights(node))

    def _pair(self, number: int, at: int) -> None:
        self.free.remove(at)
        self.found[number] = self.model.nodes[at]
        for one, other in zip(self.reference.nodes[number].output, self.model.nodes[at].output, strict=False):
            self.same[one] = other

    def _pairs(self) -> Iterator[Pair]:
        for number, node in enumerate(self.reference.nodes):
            other = self.found.get(number)
            for one, twin in zip(node.output, other.output if other is not None else (), strict=False):
                reference, model = self.reference.shown(one), self.model.shown(twin)
                yield Pair(
                    reference=reference,
                    model=model,
                    layer=node.name or node.output[0],
                    operator=node.op_type,
                    by="name" if reference == model else "position",
                )


def _inputs(model: Sequence[str], reference: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Pair the inputs of one name, and the rest in order."""
    both = [name for name in reference if name in model]
    yield from zip(both, both, strict=True)
    yield from zip(
        (name for name in reference if name not in both), (name for name in model if name not in both), strict=False
    )


def _distance(wanted: Sequence[NDArray[np.float64]], given: Sequence[NDArray[np.float64]]) -> float:
    """Return how far the weights of one node are from those of another; infinite for other shapes."""
    if [each.shape for each in wanted] != [each.shape for each in given]:
        return np.inf
    return float(sum(np.square(one - other).sum() for one, other in zip(wanted, given, strict=True)))


def cut_at(model: ModelProto, tensors: Mapping[str, int]) -> ModelProto:
    """Return a copy in which whoever reads one of the tensors is given it: as the input NAME_given, beside the others.

    tensors: which, each with its type. So every stretch between them can be run by itself, all at once.
    """
    copied = ModelProto()
    copied.CopyFrom(model)
    graph, read = copied.graph, dict[str, None]()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in tensors:
                node.input[index] = f"{name}_given"
                read[name] = None
    for name in read:
        given = graph.input.add(name=f"{name}_given")
        given.type.tensor_type.elem_type = tensors[name]
    return copied


def float_types(model: ModelProto) -> dict[str, int]:
    """Return the tensors of floats that nodes make, FP16 ones too, each with its type."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    made = {name for node in model.graph.node for name in node.output}
    return {
        name: kind for name, kind in types.items() if name in made and kind in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }
