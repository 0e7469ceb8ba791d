"""Where does INT8 go for ONNX Runtime on a CPU: what is read, and what is made, through a Q/DQ pair?

ONNX Runtime replaces an operator between DequantizeLinear nodes and a QuantizeLinear, and those nodes with it, by one
kernel in INT8, if it has one (QLinearConv, QGemm, QLinearAdd, ...; core/optimizer/qdq_transformer in its source).
Where one of them is missing it computes in floats, and the pairs cost time on top. So, other than for TensorRT:

- what a convolution makes is quantised, behind its ReLU, which the rounding then does;
- what stands between two layers is in INT8 as well, if there is a kernel for it;
- a matrix product whose result nobody reads in INT8 makes floats: the logits are not rounded;
- a transposed convolution stays in floats: there is no kernel for it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from msn_deploy.model.graphs import activations, attributes_of, constants_of
from msn_deploy.quant.placement import Groups, Placement, Read, check_leave_out, name_of

_PRODUCTS = ("Gemm", "MatMul")  # they can make floats of what they read in INT8
_LAYERS = ("Conv", *_PRODUCTS)
# They move bytes and change none, so what they make has the scale of what they read.
_MOVES = ("Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_ALL_INPUTS = ("Add", "Concat", "Mul")
_COMPUTES = (*_ALL_INPUTS, "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
_KEEPS_SIGN = (*_MOVES, *_ALL_INPUTS, "AveragePool", "GlobalAveragePool")


def place_for_ort(model: ModelProto, *, leave_out: Collection[str] = ()) -> Placement:
    """Decide where the pairs go; leave_out: names of layers that stay float. Raises InputError for an unknown one."""
    return _Placer(model, leave_out).placement()


@dataclass(frozen=True, slots=True)
class _Step:
    """A node with a kernel in INT8: which of its inputs it takes in INT8, and what it makes, behind its ReLU."""

    node: NodeProto
    reads: tuple[int, ...]
    makes: tuple[str, ...]


class _Placer:
    def __init__(self, model: ModelProto, leave_out: Collection[str]) -> None:
        self.graph, self.constants = model.graph, constants_of(model.graph)
        self.floats = set(activations(model))
        self.kept = {value.name for value in self.graph.output}
        self.readers: dict[str, list[Read]] = {}
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node.output[0], index))
        self.by_output = {node.output[0]: node for node in self.graph.node}
        layers = {node.output[0]: name_of(node) for node in self.graph.node if self._is_layer(node)}
        check_leave_out(leave_out, layers.values())
        self.layers = {output: name for output, name in layers.items() if name not in leave_out}
        self.steps = {
            node.output[0]: step
            for node in self.graph.node
            if (node.output[0] in self.layers or node.op_type in (*_MOVES, *_COMPUTES))
            and (step := self._step(node)) is not None
        }

    def placement(self) -> Placement:
        steps = self._in_int8()
        made = self._made(steps)
        groups = Groups()
        nonnegative = self._nonnegative()
        reads: set[Read] = set()
        for output in steps:
            step = self.steps[output]
            names = [step.node.input[index] for index in step.reads]
            reads |= {(output, index) for index in step.reads}
            signs = {name in nonnegative for name in (*names, *step.makes)}
            # A ReLU is done by the rounding only where zero is the least number of the scale.
            if step.node.op_type in _MOVES or (step.node.op_type == "Concat" and len(signs) == 1):
                for name in (*names, *step.makes):
                    groups.join(name, names[0])
        tensors = {self.by_output[output].input[index] for output, index in reads} | made
        return Placement(
            layers=tuple(self.layers.values()),
            reads=frozenset(reads),
            scale_of={name: groups.find(name) for name in tensors},
            made=frozenset(made),
        )

    def _in_int8(self) -> set[str]:
        """Return the steps taken in INT8: the layers, and what lies between them, as far as that reaches."""
        found, before = set(self.layers), 0
        while before < len(found):
            before = len(found)
            for output, step in reversed(self.steps.items()):  # what reads a tensor stands behind what makes it
                if any(self._is_read(name, found) for name in step.makes):
                    found.add(output)
            made = self._made(found)
            for output, step in self.steps.items():
                if self._follows(step, made):
                    found.add(output)
                    made.update(step.makes)
        return found

    def _follows(self, step: _Step, made: Collection[str]) -> bool:
        """Tell whether a step is in INT8 for what it reads alone, whoever reads what it makes.

        The sum of two convolutions is, as they are: in floats it would read two tensors that are four times as large.
        """
        kinds = _MOVES if self.kept.intersection(step.makes) else (*_MOVES, "Add")
        return step.node.op_type in kinds and all(step.node.input[at] in made for at in step.reads)

    def _made(self, found: Collection[str]) -> set[str]:
        """Return the tensors that are quantised where they are made."""
        return {
            name
            for output in found
            for name in self.steps[output].makes
            if self.steps[output].node.op_type not in _PRODUCTS or self._is_read(name, found)
        }

    def _is_read(self, name: str, found: Collection[str]) -> bool:
        return any(
            output in found and index in self.steps[output].reads for output, index in self.readers.get(name, ())
        )

    def _is_layer(self, node: NodeProto) -> bool:
        if node.op_type not in _LAYERS or node.input[0] in self.constants or node.input[0] not in self.floats:
            return False
        weight = self.constants.get(node.input[1])
        if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2:
            return False
        given = attributes_of(node)
        if node.op_type == "MatMul":
            return len(weight.dims) == 2
        scaled = {given.get("alpha", 1.0), given.get("beta", 1.0)} != {1.0}
        if node.op_type == "Gemm" and (scaled or given.get("transA", 0)):
            return False
        outputs = weight.dims[0 if node.op_type == "Conv" or given.get("transB", 0) else 1]
        bias = node.input[2] if len(node.input) > 2 else ""
        return not bias or (bias in self.constants and list(self.constants[bias].dims) == [outputs])

    def _step(self, node: NodeProto) -> _Step | None:
        """Return what a node reads and makes in INT8; None where it has no such kernel."""
        reads = tuple(range(len(node.input))) if node.op_type in _ALL_INPUTS else (0,)
        if any(node.input[at] in self.constants or node.input[at] not in self.floats for at in reads):
            return None
        if any(name not in self.floats for name in node.output) or (len(node.output) > 1 and node.op_type != "Split"):
            return None
        given = attributes_of(node)
        if node.op_type == "Resize" and given.get("mode", b"nearest") != b"nearest":
            return None  # in between, ONNX Runtime cuts the fractions of bytes off
        if node.op_type in _MOVES:
            return _Step(node, reads, tuple(node.output))
        return _Step(node, reads, (self._behind_relu(node.output[0]),))

    def _behind_relu(self, made: str) -> str:
        """Return the tensor behind the ReLU that alone reads this one; else this one."""
        readers = self.readers.get(made, [])
        if made in self.kept or len(readers) != 1:
            return made
        node = self.by_output[readers[0][0]]
        return node.output[0] if self._ends_at_zero(node) and node.input[0] == made else made

    def _ends_at_zero(self, node: NodeProto) -> bool:
        if node.op_type != "Clip":
            return node.op_type == "Relu"
        least = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        return least is not None and float(numpy_helper.to_array(least)) == 0

    def _nonnegative(self) -> set[str]:
        """Return the tensors that are never below zero, whatever the input is."""
        found: set[str] = set()
        for node in self.graph.node:
            read = node.input if node.op_type in _ALL_INPUTS else node.input[:1]
            keeps = node.op_type in _KEEPS_SIGN and found.issuperset(read)
            if keeps or node.op_type == "Sigmoid" or self._ends_at_zero(node):
                found.update(node.output)
        return found
