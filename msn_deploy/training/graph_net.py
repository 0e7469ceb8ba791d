"""A folded ONNX graph as a network in torch, whose constants learn: what is trained is what is deployed.

Q/DQ pairs in it round as in the file, and their scales learn as well. So there is one placement: that of the file which
`quant/` makes, whose constants `to_onnx` sets to what they have become.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

from msn_deploy.core.errors import InputError, first_line
from msn_deploy.graph.kernels import Call
from msn_deploy.model.checks import check_model
from msn_deploy.model.graphs import attributes_of, constants_of, drop_unread_constants
from msn_deploy.model.opened import inputs_of
from msn_deploy.model.opset import opset_of
from msn_deploy.model.reading import refuse_external
from msn_deploy.quant.placement import place
from msn_deploy.quant.quantize import quantize
from msn_deploy.training.alike import scales_of_averaged, spelled_out, with_biases_apart
from msn_deploy.training.fake_quant import Activation, Learned, Weight, fine_unit, on_grid
from msn_deploy.training.operators import OPERATORS

GRAPH = "graph"
"""The name of a network's own file in its state dict."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Which inputs of a node learn, if they are constants; of arithmetic those with more than one number.
_LEARNED = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "PRelu"), (1, 2)),
    **dict.fromkeys((f"{kind}Normalization" for kind in ("Batch", "Layer", "Instance", "Group")), (1, 2)),
    **dict.fromkeys(("MatMul", "Add", "Sub", "Mul", "Div", "Max", "Min"), (0, 1)),
}

_SUMMED = ("Add", "Sub", "Max", "Min")  # what they make may be averaged, and is as fine as their constants


@dataclass(frozen=True, slots=True)
class _Node:
    """One node, ready to be run."""

    call: Call
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    module: str = ""
    """The key of what rounds: of an Activation, or of a Weight."""
    done: tuple[str, ...] = ()
    """What nothing behind it reads."""


class GraphNet(nn.Module):
    """A graph, float or INT8. Call it with a tensor for each input; it returns its output, or a tuple of them."""

    def __init__(self, model: ModelProto, weights: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        """Take over a graph.

        Args:
            model: Of float32, folded, perhaps with Q/DQ nodes as `quant.quantize` places them; it is not changed.
            weights: The float weights by the names of their INT8 constants; None starts from the rounded ones.

        Raises:
            InputError: It has an operator that nothing here trains, or Q/DQ nodes of another kind.
        """
        super().__init__()
        model = _with_initializers(model)
        self.graph: Tensor
        self.register_buffer(GRAPH, torch.frombuffer(bytearray(model.SerializeToString()), dtype=torch.uint8))
        self.activations, self.weights, self.learned = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self._inputs = tuple(spec.name for spec in inputs_of(model))
        self._outputs = tuple(value.name for value in model.graph.output)
        self._constants = {name: numpy_helper.to_array(each) for name, each in constants_of(model.graph).items()}
        self._fixed: dict[str, Tensor] = {}  # sizes and indices
        self._grids: dict[str, tuple[str, str]] = {}  # of a bias: what rounds its layer's input and its weight
        self._fine: set[str] = set()
        self._averaged = scales_of_averaged(model)
        self._nodes: list[_Node] = []
        self._version, self._makers = opset_of(model), {out: node for node in model.graph.node for out in node.output}
        readers = Counter(name for node in model.graph.node for name in node.input)
        for node in model.graph.node:
            self._add(node, weights or {}, readers)
        self._nodes = _freed(self._nodes, self._outputs)
        del self._makers, self._constants, self._averaged

    @property
    def is_quantised(self) -> bool:
        """Whether the graph has Q/DQ pairs."""
        return bool(self.activations)

    def _add(self, node: NodeProto, weights: Mapping[str, NDArray[np.float32]], readers: Counter[str]) -> None:
        kind, name = node.op_type, node.name or node.output[0]
        if node.domain not in ("", "ai.onnx") or kind not in (*OPERATORS, "QuantizeLinear", "DequantizeLinear"):
            raise InputError(f"{name} is a {kind}, which is not trained here.\nLeave it out of the graph.")
        call = Call(
            kind, self._version, {key: _plain(value) for key, value in attributes_of(node).items()}, len(node.output)
        )
        reads, makes = tuple(node.input), tuple(node.output)
        if kind in ("QuantizeLinear", "DequantizeLinear"):
            module = self._rounding(node, weights)
            self._nodes.append(_Node(call, () if module in self.weights else reads[:1], makes, module))
            return
        for at, each in enumerate(reads):
            if each in self._constants:
                self._constant(each, learns=self._learns(kind, at, self._constants[each]))
                if kind in _SUMMED:
                    self._fine.add(each)
        self._nodes.append(_Node(call, reads, makes))
        if kind in _LAYERS and len(reads) > 2 and readers[reads[2]] == 1 and _key(reads[2]) in self.learned:
            before = [self._makers[each] for each in reads[:2] if each in self._makers]
            if [each.op_type for each in before] == ["DequantizeLinear"] * 2 and call.get("alpha", 1.0) == 1:
                weight = _key(before[1].input[0])
                if weight in self.weights:
                    self._grids[reads[2]] = (_key(before[0].input[1]), weight)

    def _rounding(self, node: NodeProto, weights: Mapping[str, NDArray[np.float32]]) -> str:
        """Make what a Q or DQ node needs, and return its key; nothing for the second node of a pair."""
        scale = self._constants.get(node.input[1])
        zero = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        if scale is None or zero is None or zero.dtype != np.int8 or zero.any():
            raise InputError(f"{node.name or node.output[0]} is not of symmetric INT8 with a constant scale.")
        name = node.input[0]
        if name not in self._constants:
            key = _key(node.input[1])
            if scale.size != 1:
                raise InputError(f"{node.name or node.output[0]} has {scale.size} scales; activations have one.")
            if node.op_type == "DequantizeLinear":
                return ""
            if key not in self.activations:
                averaged = node.input[1] in self._averaged
                self.activations[key] = Activation(torch.tensor(float(scale)), averaged=averaged)
            return key
        key, kept = _key(name), self._constants[name]
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        wide = scale.reshape([-1 if at == axis else 1 for at in range(kept.ndim)]) if scale.ndim else scale
        exact = weights[name] if name in weights else kept * wide
        self.weights[key] = Weight(torch.from_numpy(np.array(exact, np.float32)), torch.from_numpy(np.array(wide)))
        return key

    def _learns(self, kind: str, at: int, value: NDArray[Any]) -> bool:
        layer = kind in (*_LAYERS, "PRelu") or kind.endswith("Normalization")
        if value.dtype != np.float32 or at not in _LEARNED.get(kind, ()):
            return False
        return layer or (value.size > 1 and bool(value.any()))

    def _constant(self, name: str, *, learns: bool) -> None:
        value = torch.from_numpy(np.array(self._constants[name]))
        if learns and _key(name) not in self.learned:
            self.learned[_key(name)] = Learned(value)
        elif not learns and value.is_floating_point() and value.dim():
            self.register_buffer(f"constant {_key(name)}", value, persistent=False)
        elif not learns:
            self._fixed[name] = value

    def forward(self, *inputs: Tensor) -> Any:
        """Compute the outputs; in training and in evaluation they are the same."""
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        for node in self._nodes:
            made = self._run(node, values)
            values.update(zip(node.makes, made if isinstance(made, tuple) else (made,), strict=False))
            for name in node.done:
                values.pop(name, None)
        outputs = tuple(values[name] for name in self._outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def _run(self, node: _Node, values: Mapping[str, Any]) -> Any:
        if node.module in self.weights:
            return self.weights[node.module]()
        read = [self._value(name, values) for name in node.reads]
        if node.module:
            return self.activations[node.module](*read)
        if node.call.operator == "DequantizeLinear":
            return read[0]
        try:
            return OPERATORS[node.call.operator](node.call, *read)
        except NotImplementedError as cause:
            raise InputError(f"{node.makes[0]} is {cause}, which is not trained here.") from cause

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if _key(name) in self.learned:
            unit = self._unit(name)
            value = self.learned[_key(name)]()
            return value if unit is None else on_grid(value, unit)
        if name in self._fixed:
            return self._fixed[name]
        return getattr(self, f"constant {_key(name)}")

    @torch.no_grad()
    def _unit(self, name: str) -> Tensor | None:
        """Return what a constant that learns is a multiple of, (C,) or a single number; None for any number."""
        if name in self._grids:
            activation, weight = self._grids[name]
            scales: Tensor = self._weight(weight).step() * self._step(activation)
            return scales.reshape(-1) if scales.dim() else scales
        if name in self._fine and self.is_quantised:
            learned = self.learned[_key(name)]
            assert isinstance(learned, Learned)
            return fine_unit(learned.size)
        return None

    def _weight(self, key: str) -> Weight:
        made = self.weights[key]
        assert isinstance(made, Weight)
        return made

    def _step(self, key: str) -> Tensor:
        """Return the step of an activation."""
        made = self.activations[key]
        assert isinstance(made, Activation)
        step: Tensor = made.step()
        return step

    @torch.no_grad()
    def to_onnx(self) -> ModelProto:
        """Return the graph with what its constants have become: weights as INT8, scales, biases."""
        model = onnx.load_model_from_string(self.graph.cpu().numpy().tobytes())
        made = {}
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                made[node.input[1]] = self._step(_key(node.input[1]))
            elif node.op_type == "DequantizeLinear" and _key(node.input[0]) in self.weights:
                weight = self._weight(_key(node.input[0]))
                made[node.input[0]], made[node.input[1]] = weight.stored(), weight.step()
        for tensor in model.graph.initializer:
            value = made.get(tensor.name)
            if value is None and _key(tensor.name) in self.learned:
                value = self._value(tensor.name, {})
            if value is not None:
                tensor.CopyFrom(numpy_helper.from_array(value.cpu().numpy().reshape(tuple(tensor.dims)), tensor.name))
        return model


def quantised_net(model: ModelProto, ranges: Mapping[str, float], *, per_channel: bool = True) -> GraphNet:
    """Return the network of a float graph with Q/DQ pairs, as `quantize` makes it of the same ranges.

    Tensors that have to share one scale read one constant; what `alike` rewrites is rewritten. Raises InputError as
    `quantize` and GraphNet.
    """
    model = spelled_out(model)
    int8 = quantize(model, ranges, per_channel=per_channel)
    scales: dict[str, tuple[str, ...]] = {}  # of the pairs, by group
    scale_of = place(model).scale_of
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            scales.setdefault(scale_of[node.input[0]], tuple(node.input[1:]))
    groups = {node.output[0]: scale_of[node.input[0]] for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    for node in int8.graph.node:
        group = groups.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0] if node.input else "")
        if group is not None:
            node.input[1:] = scales[group]
    drop_unread_constants(int8.graph)
    before, weights = {node.output[0]: node for node in model.graph.node}, {}
    floats, makers = constants_of(model.graph), {node.output[0]: node for node in int8.graph.node}
    for node in int8.graph.node:
        for at, name in enumerate(node.input):
            maker = makers.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] not in groups:
                weights[maker.input[0]] = numpy_helper.to_array(floats[before[node.output[0]].input[at]])
    return GraphNet(with_biases_apart(int8), weights)


def net_of_state(tensors: Mapping[str, Tensor], source: str) -> GraphNet:
    """Build the network whose state dict that is, without its values. Raises InputError that names the source."""
    graph = tensors.get(GRAPH)
    if graph is None or graph.dtype != torch.uint8 or graph.dim() != 1:
        raise InputError(f"{source} says that it is INT8, and holds no graph.\nTrain it again, or copy it again.")
    try:
        model = onnx.load_model_from_string(graph.numpy().tobytes())
    except Exception as cause:  # protobuf's DecodeError; its class differs between protobuf implementations
        raise InputError(f"the graph in {source} is not ONNX.\nTrain it again, or copy it again.") from cause
    refuse_external(Path(source), model)
    check_model(model, source=f"the graph in {source}")
    try:
        return GraphNet(model)
    except (
        LookupError,
        ValueError,
        TypeError,
        RuntimeError,
        ArithmeticError,
    ) as cause:  # nodes that are not as quant/ places them
        raise InputError(f"the graph in {source} is not of an INT8 network here: {first_line(cause)}.") from cause


def _with_initializers(model: ModelProto) -> ModelProto:
    """Return a copy in which no constant is a node."""
    copied = ModelProto()
    copied.CopyFrom(model)
    constants = constants_of(model.graph)
    for at in reversed(range(len(copied.graph.node))):
        node = copied.graph.node[at]
        if node.op_type == "Constant":
            tensor = copied.graph.initializer.add()
            tensor.CopyFrom(constants[node.output[0]])
            tensor.name = node.output[0]
            del copied.graph.node[at]
    return copied


def _freed(nodes: list[_Node], outputs: tuple[str, ...]) -> list[_Node]:
    """Return the nodes, each with the tensors that it is the last to read."""
    seen, found = set(outputs), []
    for node in reversed(nodes):
        done = tuple({name for name in node.reads if name} - seen)
        seen.update(done)
        found.append(_Node(node.call, node.reads, node.makes, node.module, done))
    return found[::-1]


def _plain(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def _key(name: str) -> str:
    """Return a tensor's name as the key of a module: without a dot, and not that of an attribute."""
    return "/" + name.replace(".", "/")
