"""INT8 as explicit Q/DQ nodes that every TensorRT from 8.5 on takes.

Symmetric, zero points 0, scale = range / 127. Weights are stored as INT8, one scale per output channel; activations
have one scale per tensor; biases stay float (TensorRT rejects INT32 ones). Where pairs go: placement.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model.checks import check_valid
from msn_deploy.model.graphs import constants_of, drop_unread_constants
from msn_deploy.quant.placement import WEIGHTED, Placement, name_of, place, require_layers

_LARGEST = 127  # of INT8, on both sides: -128 has no counterpart
_DEAD = 1.0  # the range of a tensor that is 0 on all samples: exact at any scale, and not lost if it wakes up


def quantize(
    model: ModelProto, ranges: Mapping[str, float], *, leave_out: Collection[str] = (), per_channel: bool = True
) -> ModelProto:
    """Return an INT8 Q/DQ copy of an FP32 graph.

    ranges: largest magnitude per activation tensor, from `calibrate_ranges`; 0 for one that was never anything else,
    which gets the range 1. leave_out: names of layers that stay
    float, with their inputs. per_channel=False gives each weight one scale, for comparison. Raises InputError if the
    graph holds nothing to quantise, is quantised already, or a range is missing, negative or infinite.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise InputError("the graph is quantised already.\nCalibrate the FP32 file it was made from.")
    placement = place(model, leave_out=leave_out)
    require_layers(placement, left_out=bool(leave_out))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Quantiser(result, placement, placement.shared(ranges), per_channel=per_channel).run()
    check_valid(result, source="the quantised graph")
    return result


class _Quantiser:
    """Rewrites one graph in place."""

    def __init__(
        self, model: ModelProto, placement: Placement, ranges: Mapping[str, float], *, per_channel: bool
    ) -> None:
        self.graph, self.placement, self.ranges, self.per_channel = model.graph, placement, ranges, per_channel
        self.weights = constants_of(model.graph)
        self.nodes: list[NodeProto] = []
        self.made: dict[tuple[str, int | None], str] = {}  # (tensor or weight, axis): its dequantised twin

    def run(self) -> None:
        layers = set(self.placement.layers)
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                if (node.output[0], index) in self.placement.reads:
                    node.input[index] = self._activation(name)
            if node.op_type in WEIGHTED and name_of(node) in layers:
                node.input[1] = self._weight(node)
            self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        drop_unread_constants(self.graph)  # the float weights that are INT8 now

    def _activation(self, name: str) -> str:
        """Return the tensor that has gone through INT8; the pair is made before its first reader."""
        if (name, None) not in self.made:
            largest = self.ranges[name] or _DEAD
            if not 0 < largest < math.inf:
                raise InputError(f"{name} has the range {largest}: nothing to scale by.")
            scale, zero = self._scale(name, np.asarray(largest / _LARGEST, np.float32))
            self._node("QuantizeLinear", [name, scale, zero], f"{name}_quantized")
            self._node("DequantizeLinear", [f"{name}_quantized", scale, zero], f"{name}_dequantized")
            self.made[name, None] = f"{name}_dequantized"
        return self.made[name, None]

    def _weight(self, node: NodeProto) -> str:
        """Return the weight of a layer, stored as INT8, dequantised."""
        name = node.input[1]
        weight = numpy_helper.to_array(self.weights[name])
        axis = _output_axis(node, weight.ndim) if self.per_channel else None
        key = (name, -1 if axis is None else axis)
        if key not in self.made:
            label = name if not any(each == name for each, _ in self.made) else f"{name}_axis{key[1]}"
            others = tuple(each for each in range(weight.ndim) if each != axis)
            largest = np.abs(weight).max(axis=None if axis is None else others, keepdims=axis is not None)
            # A channel of zeros has no scale of its own; any will do.
            scale = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
            stored = np.clip(np.rint(weight / scale), -_LARGEST, _LARGEST).astype(np.int8)
            self._constant(f"{label}_quantized", stored)
            names = self._scale(label, scale.reshape(-1 if axis is not None else ()))
            self._node("DequantizeLinear", [f"{label}_quantized", *names], f"{label}_dequantized", axis=axis)
            self.made[key] = f"{label}_dequantized"
        return self.made[key]

    def _scale(self, name: str, scale: NDArray[np.float32]) -> tuple[str, str]:
        self._constant(f"{name}_scale", scale)
        self._constant(f"{name}_zero_point", np.zeros(scale.shape, np.int8))
        return f"{name}_scale", f"{name}_zero_point"

    def _constant(self, name: str, value: NDArray[np.generic]) -> None:
        if name in self.weights:
            raise InputError(
                f"the graph has a weight called {name} already.\nCalibrate a file of another exporter run."
            )
        self.weights[name] = tensor = numpy_helper.from_array(np.asarray(value), name)
        self.graph.initializer.append(tensor)

    def _node(self, kind: str, inputs: list[str], output: str, *, axis: int | None = None) -> None:
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))


def _output_axis(node: NodeProto, rank: int) -> int | None:
    """Return the axis of a layer's weight that its outputs lie on; None where the weight has one scale.

    Conv keeps (C_out, C_in / groups, ...), a matrix product (..., C_in, C_out) unless transB. A ConvTranspose has one
    scale: its outputs lie on axis 1, for which TensorRT 8 has no kernels ("We don't support per-output-channel quant
    for ConvTranspose", NVIDIA/TensorRT#2380; wrong results in #1694 and #1699, no engine in #1519).
    """
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else None
    return 0 if given.get("transB", 0) else rank - 1
