"""FP16 as casts in the graph: weights and arithmetic in half precision, inputs and outputs still float32.

What does not fit into half precision stays in FP32 and is named: a weight beyond 65504, and on real images a value, or
the sum behind a mean, that comes near it. The rest of the graph is FP16 all the same, and between two nodes that stay
there is no cast (onnxruntime's converter puts two there, and the value overflows between them; it also keeps every Max,
of which a folded DenseNet has one per layer, in FP32).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model.checks import check_valid
from msn_deploy.model.graphs import activations, constants_of, drop_unread_constants
from msn_deploy.quant.placement import name_of

FP16_MAX = 65504.0
_HEADROOM = 2.0  # images that were not looked at may reach higher
_MEANS = ("GlobalAveragePool", "AveragePool", "ReduceMean")
_TYPED = ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear")  # they say themselves what they make
_SCALED = ("Resize", "Upsample")  # all inputs but the first are float32 by the standard


def to_fp16(model: ModelProto, *, keep_fp32: Collection[str] = ()) -> ModelProto:
    """Return a copy of an FP32 graph with FP16 weights and arithmetic; input and output stay float32.

    keep_fp32: names of nodes that are not cast, from `fp16_overflows`. Raises InputError for a graph that is not FP32,
    and for a weight that FP16 can't hold in a node that is cast.
    """
    for name, tensor in constants_of(model.graph).items():
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.INT8):
            raise InputError(f"{name} is already {TensorProto.DataType.Name(tensor.data_type)}; FP16 starts from FP32.")
    nodes = [name_of(node) for node in model.graph.node if node.op_type not in (*_TYPED, "Constant")]
    return in_fp16(model, [name for name in nodes if name not in keep_fp32])


def in_fp16(model: ModelProto, names: Collection[str]) -> ModelProto:
    """Return a copy in which the named nodes work in FP16, with casts where FP16 begins and ends.

    Opset and all else stay: so also TensorRT 8, which can't read FP16 scales, takes an INT8 file with layers in FP16.
    Raises InputError for a weight that FP16 can't hold.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    _Caster(result, set(names)).run()
    check_valid(result, source="the FP16 graph")
    return result


class _Caster:
    """Rewrites one graph in place. Of every float tensor there is an FP32 form, an FP16 form, or both."""

    def __init__(self, model: ModelProto, names: Collection[str]) -> None:
        self.graph, self.names = model.graph, names
        self.constants = {
            name: tensor for name, tensor in constants_of(model.graph).items() if tensor.data_type == TensorProto.FLOAT
        }
        self.floats = {*activations(model), *self.constants}
        self.nodes: list[NodeProto] = []
        self.half: dict[str, str] = {}  # the name of a tensor's FP16 form
        self.only_half: set[str] = set()

    def run(self) -> None:
        # A weight that no other node reads in FP32 keeps its name.
        self.shared = {
            name for node in self.graph.node for index, name in enumerate(node.input) if not self._is_cast(node, index)
        }
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                if self._is_cast(node, index):
                    node.input[index] = self._as_half(name)
                elif name in self.only_half:
                    self._as_full(name)
            if name_of(node) in self.names:
                for index, name in enumerate(node.output):
                    if name in self.floats:
                        node.output[index] = self.half[name] = f"{name}_fp16"
                        self.only_half.add(name)
            self.nodes.append(node)
        for value in self.graph.output:
            if value.name in self.only_half:
                self._as_full(value.name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        drop_unread_constants(self.graph)

    def _is_cast(self, node: NodeProto, index: int) -> bool:
        """Whether a node reads this input in FP16."""
        is_scale = node.op_type in _SCALED and index > 0
        return name_of(node) in self.names and node.input[index] in self.floats and not is_scale

    def _as_half(self, name: str) -> str:
        if name not in self.half:
            tensor = self.constants.get(name)
            if tensor is None:
                self.half[name] = f"{name}_fp16"
                self.nodes.append(_cast(name, self.half[name], TensorProto.FLOAT16))
            else:
                if not (largest := _largest(tensor)) <= FP16_MAX:
                    raise InputError(
                        f"{name} holds {largest:.4g}; FP16 ends at {FP16_MAX:.0f}.\nStay with FP32 or INT8."
                    )
                self.half[name] = f"{name}_fp16" if name in self.shared else name
                half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), self.half[name])
                if name in self.shared:
                    self.graph.initializer.append(half)
                else:
                    tensor.CopyFrom(half)
        return self.half[name]

    def _as_full(self, name: str) -> None:
        self.nodes.append(_cast(self.half[name], name, TensorProto.FLOAT))
        self.only_half.discard(name)


def fp16_overflows(model: ModelProto, maxima: Mapping[str, float]) -> dict[str, str]:
    """Return the nodes that half precision is not enough for, by name, each with the number that says so.

    maxima: the largest magnitude of the `activations` on real images. A mean is judged by the sum that it divides,
    which hardware may keep in half precision.
    """
    sizes = {name: _largest(tensor) for name, tensor in constants_of(model.graph).items()}
    counts = _averaged(model)
    found = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        weights = [(sizes[name], f"its weight {name}") for name in node.input if not sizes.get(name, 0.0) <= FP16_MAX]
        values = [(maxima[name], name) for name in (*node.input, *node.output) if name in maxima]
        if node.op_type in _MEANS and node.output[0] in maxima:
            count = counts.get(node.output[0], 1)
            values.append((maxima[node.output[0]] * count, f"the sum of {count} values"))
        beyond = [*weights, *((size, what) for size, what in values if size * _HEADROOM > FP16_MAX)]
        if beyond:
            size, what = max(beyond)
            found[name_of(node)] = f"{what} reaches {size:.4g}"
    return found


def _cast(name: str, made: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [name], [made], name=f"{made}_cast", to=kind)


def _largest(tensor: TensorProto) -> float:
    if tensor.data_type != TensorProto.FLOAT:
        return 0.0
    return float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))


def _averaged(model: ModelProto) -> dict[str, int]:
    """Return how many values each mean is of, by the tensor that it makes; 1 where shapes do not tell."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: float(np.prod([dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]))
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    counts = {}
    for node in model.graph.node:
        if node.op_type == "AveragePool":
            kernel = next((list(each.ints) for each in node.attribute if each.name == "kernel_shape"), [1])
            counts[node.output[0]] = int(np.prod(kernel))
        elif node.op_type in _MEANS:
            counts[node.output[0]] = int(sizes.get(node.input[0], 1) / max(sizes.get(node.output[0], 1), 1)) or 1
    return counts
