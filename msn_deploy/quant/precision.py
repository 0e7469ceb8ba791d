"""FP16 as casts in the graph: weights and arithmetic in half precision, inputs and outputs still float32.

What half precision is not enough for stays in FP32 (fp32_nodes.py says which, and why). The rest of the graph is FP16
all the same, and between two nodes that stay there is no cast (onnxruntime's converter puts two there, and the value
overflows between them; it also keeps every Max, of which a folded DenseNet has one per layer, in FP32).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model.checks import check_valid
from msn_deploy.model.graphs import all_nodes, constants_of, drop_unread_constants, free_name, inner_graphs, names_of
from msn_deploy.quant.fp32_nodes import FP16_MAX, Standard
from msn_deploy.quant.placement import name_of


def to_fp16(model: ModelProto, *, keep_fp32: Collection[str] = ()) -> ModelProto:
    """Return a copy of an FP32 graph with FP16 weights and arithmetic; input and output stay float32.

    keep_fp32: names of nodes that are not cast, from `needs_fp32`. Raises InputError for a graph that is not FP32,
    and for a weight that FP16 can't hold in a node that is cast.

    Examples:
        >>> import msn_deploy, onnx
        >>> half = msn_deploy.to_fp16(onnx.load("runs/cnn3_msn.onnx"))
        >>> {weight.data_type for weight in half.graph.initializer} & {onnx.TensorProto.FLOAT16}
        {10}
    """
    for name, tensor in constants_of(model.graph).items():
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.INT8):
            raise InputError(f"{name} is already {TensorProto.DataType.Name(tensor.data_type)}; FP16 starts from FP32.")
    return in_fp16(model, {name_of(node) for node in model.graph.node} - set(keep_fp32))


def in_fp16(model: ModelProto, names: Collection[str]) -> ModelProto:
    """Return a copy in which the named nodes work in FP16 as far as the standard has it, between casts.

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
        self.graph, self.standard = model.graph, Standard(model)
        self.constants = {
            name: tensor for name, tensor in self.standard.constants.items() if name in self.standard.floats
        }
        nothing = frozenset[int](), frozenset[int]()
        self.casts = [self.standard.halves(node) if name_of(node) in names else nothing for node in self.graph.node]
        self.nodes: list[NodeProto] = []
        self.taken = names_of(model)
        self.half: dict[str, str] = {}  # the name of a tensor's FP16 form
        self.only_half: set[str] = set()

    def run(self) -> None:
        pairs = list(zip(self.graph.node, self.casts, strict=True))
        # A weight that no other node reads in FP32 keeps its name.
        self.shared = {name for node, (reads, _) in pairs for at, name in enumerate(node.input) if at not in reads} | {
            name for node in self.graph.node for name in _captured(node)
        }
        for node, (reads, makes) in pairs:
            for index, name in enumerate(node.input):
                if index in reads:
                    node.input[index] = self._as_half(node, index)
                elif name in self.only_half:
                    self._as_full(name)
            for name in self.only_half.intersection(_captured(node)):
                self._as_full(name)
            for index in sorted(makes):
                name = node.output[index]
                node.output[index] = self.half[name] = free_name(f"{name}_fp16", self.taken)
                self.only_half.add(name)
            self.nodes.append(node)
        for value in self.graph.output:
            if value.name in self.only_half:
                self._as_full(value.name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        drop_unread_constants(self.graph)

    def _as_half(self, node: NodeProto, index: int) -> str:
        """Return the FP16 form of what a node reads."""
        name = node.input[index]
        tensor = self.constants.get(name)
        if tensor is None:
            if name not in self.half:
                self.half[name] = free_name(f"{name}_fp16", self.taken)
                self._cast(name, self.half[name], TensorProto.FLOAT16)
            return self.half[name]
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:  # it is not in its half form yet, or is read in both
            largest = float(np.abs(values[~np.isinf(values)]).max(initial=0))  # FP16 has infinities as well
            if not largest <= FP16_MAX and not self.standard.saturates(node, index, values):
                raise InputError(f"{name} holds {largest:.4g}; FP16 ends at {FP16_MAX:.0f}.\nStay with FP32 or INT8.")
        if name not in self.half:
            self.half[name] = free_name(f"{name}_fp16", self.taken) if name in self.shared else name
            values = np.where(np.isinf(values), values, values.clip(-FP16_MAX, FP16_MAX)).astype(np.float16)
            half = numpy_helper.from_array(values, self.half[name])
            if name in self.shared:
                self.graph.initializer.append(half)
            else:
                tensor.CopyFrom(half)
        return self.half[name]

    def _as_full(self, name: str) -> None:
        self._cast(self.half[name], name, TensorProto.FLOAT)
        self.only_half.discard(name)

    def _cast(self, given: str, made: str, kind: int) -> None:
        label = free_name(f"{made}_cast", self.taken)
        self.nodes.append(helper.make_node("Cast", [given], [made], name=label, to=kind))


def _captured(node: NodeProto) -> set[str]:
    """Return what the graphs inside a node read, from inside or outside."""
    found: set[str] = set()
    for graph in inner_graphs(node):
        found |= {name for each in all_nodes(graph) for name in each.input} | {value.name for value in graph.output}
    return found
