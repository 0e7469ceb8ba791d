"""How much arithmetic and how much memory traffic does one query need at least? Counted on the ONNX graph.

The operations are those of the graph as it is written. The traffic is that of a runtime which fuses element-wise
operators and quantisation into what makes their input, and keeps nothing else in its caches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto

from msn_deploy.model.graphs import bytes_of, constants_of, sized

_UNARY = {
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "Softplus"),
    *("Neg", "Abs", "Sqrt", "Exp", "Erf", "Gelu"),
}
_BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"}
# What only renames or reinterprets a tensor moves nothing.
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
_SILENT = {"Concat", "Split", "Slice", "Transpose", "Pad", "Gather", "Cast", "Resize", "QuantizeLinear"}  # only move

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one query of `batch` images. flops: floating-point or integer operations, 2 per multiply-accumulate.

    A convolution, a matrix product count their multiply-accumulates alone, pooling one operation per element read, a
    BatchNormalization two and an element-wise operator one per element made. weight_bytes: stored constants, each
    read once. activation_bytes: tensors written and read, in the type they are stored in between layers (one byte
    between QuantizeLinear and DequantizeLinear). uncounted: operators whose operations are not in `flops`.
    """

    batch: int
    flops: int
    weight_bytes: int
    activation_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """What is moved in all."""
        return self.weight_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte moved."""
        return self.flops / self.bytes


def cost_of(model: ModelProto, *, batch: int, shapes: Mapping[str, Sequence[int]] | None = None) -> Cost | None:
    """Count a model for a batch; None where a tensor's size cannot be told before it runs. shapes: of inputs."""
    try:
        graph = sized(model, batch=batch, shapes=shapes)
        return _Graph(graph, outputs=[value.name for value in model.graph.output]).cost(batch)
    except KeyError:  # the size of a tensor is not known
        return None


def macs_of(node: NodeProto, given: Sequence[Shape], made: Shape) -> int:
    """Return the multiply-accumulates of a node with inputs and a first output of these shapes; 0 of other kinds."""
    if node.op_type in ("Conv", "ConvTranspose") and len(given) > 1:
        return math.prod(made if node.op_type == "Conv" else given[0]) * math.prod(given[1][1:])
    if node.op_type in ("Gemm", "MatMul") and given and given[0]:
        transposed = any(each.name == "transA" and each.i for each in node.attribute)
        return math.prod(made) * given[0][-2 if transposed else -1]
    return 0


class _Graph:
    """A graph with the shape and the type of every tensor, and who makes and reads it."""

    def __init__(self, graph: GraphProto, *, outputs: Sequence[str]) -> None:
        self.nodes = [node for node in graph.node if node.op_type != "Constant"]
        self.shapes: dict[str, Shape] = {}
        self.types: dict[str, int] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                self._learn(value.name, [dim.dim_value for dim in dims], value.type.tensor_type.elem_type)
        constants = constants_of(graph)
        self.constants = set(constants)
        for name, tensor in constants.items():
            self._learn(name, tensor.dims, tensor.data_type)
        for node in self.nodes:  # what follows from constants alone is made once, not in each query
            if node.op_type not in (*_VIEWS, "DequantizeLinear") and self.constants.issuperset(
                filter(None, node.input)
            ):
                self.constants.update(node.output)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {name: [] for name in outputs}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = set(outputs)

    def _learn(self, name: str, dims: Sequence[int], kind: int) -> None:
        self.shapes[name], self.types[name] = tuple(dims), kind

    def cost(self, batch: int) -> Cost:
        """Add up all nodes."""
        flops = activations = 0
        weights: set[str] = set()
        uncounted: dict[str, None] = {}
        for node in self.nodes:
            if node.op_type in (*_VIEWS, "DequantizeLinear") or node.output[0] in self.constants:
                continue
            operations = self._flops(node)
            if operations is None:
                uncounted[node.op_type] = None
            flops += operations or 0
            if self._in_place(node):
                continue  # its maker writes what it makes
            # The rest of QuantizeLinear's inputs are scales.
            reads = [
                self._source(name) for name in (node.input[:1] if node.op_type == "QuantizeLinear" else node.input)
            ]
            weights.update(name for name in reads if name in self.constants)
            activations += sum(self._size(name) for name in reads if name and name not in self.constants)
            activations += sum(self._size(self._kept(name)) for name in node.output if name)
        return Cost(
            batch=batch,
            flops=flops,
            weight_bytes=sum(map(self._size, weights)),
            activation_bytes=activations,
            uncounted=tuple(uncounted),
        )

    def _size(self, name: str) -> int:
        return bytes_of(self.types[name], self.shapes[name])

    def _in_place(self, node: NodeProto) -> bool:
        """Whether a node is done where its input is made, which nothing else reads."""
        if node.op_type not in (*_UNARY, "QuantizeLinear"):
            return False
        source = self._source(node.input[0])
        return source in self.maker and len(self.readers[node.input[0]]) == 1 and node.input[0] not in self.outputs

    def _source(self, name: str) -> str:
        """The tensor that is in memory when `name` is read."""
        while (node := self.maker.get(name)) is not None and node.op_type in (*_VIEWS, "DequantizeLinear"):
            name = node.input[0]
        return name

    def _kept(self, name: str) -> str:
        """The tensor that is written when a node makes `name`: what its only reader makes of it in place."""
        while len(readers := self.readers.get(name, [])) == 1 and name not in self.outputs:
            node = readers[0]
            if node.input[0] != name or not (node.op_type in _VIEWS or self._in_place(node)):
                break
            name = node.output[0]
        return name

    def _flops(self, node: NodeProto) -> int | None:
        """Operations of a node, None if this kind of node is not known."""
        kind = node.op_type
        made, given = self.shapes[node.output[0]], [self.shapes[name] for name in node.input[:2] if name]
        if kind in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            return 2 * macs_of(node, given, made)
        if kind in ("MaxPool", "AveragePool"):
            window: Sequence[int] = next(each.ints for each in node.attribute if each.name == "kernel_shape")
            return math.prod(made) * math.prod(window)
        if kind.startswith(("GlobalAverage", "GlobalMax", "Reduce")):
            return math.prod(given[0])
        if kind == "BatchNormalization":
            return 2 * math.prod(made)
        if kind in _UNARY or kind in _BINARY:
            return math.prod(made)
        return 0 if kind in _SILENT else None
