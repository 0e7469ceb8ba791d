"""INT8 as explicit Q/DQ nodes, laid out for every TensorRT from 8.5 on, or for ONNX Runtime on a CPU; FP8 for TensorRT.

Weights are stored as symmetric INT8, one scale per output channel; activations have one scale per tensor. For TensorRT
they are symmetric too, and biases stay float (it rejects INT32 ones). For ONNX Runtime and FP8 see layout.py. Where
pairs go: placement.py and ort_placement.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model.checks import check_valid
from msn_deploy.model.graphs import constants_of, drop_unread_constants, free_name, names_of
from msn_deploy.quant.layout import TENSORRT, Layout
from msn_deploy.quant.placement import WEIGHTED, Placement, name_of, require_layers

_MOST_BIAS = 2**30  # of INT32: the products that are added to it take the other half


def quantize(
    model: ModelProto,
    ranges: Mapping[str, float],
    *,
    leave_out: Collection[str] = (),
    per_channel: bool = True,
    layout: Layout = TENSORRT,
) -> ModelProto:
    """Return an INT8 or FP8 Q/DQ copy of an FP32 graph.

    ranges: largest magnitude per activation tensor, from `calibrate_ranges`; 0 for one that was never anything else,
    which gets the range 1. leave_out: names of layers that stay float, with their inputs. per_channel=False gives each
    weight one scale, for comparison. layout: in what, and for what; its opset is the least that the graph may have.
    Raises InputError if the graph holds nothing to quantise, is quantised already, or a range is missing, negative or
    infinite.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise InputError("the graph is quantised already.\nCalibrate the FP32 file it was made from.")
    placement = layout.place(model, leave_out=leave_out)
    require_layers(placement, runtime=layout.runtime, left_out=bool(leave_out))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Quantiser(result, layout, placement, ranges, per_channel=per_channel).run()
    check_valid(result, source="the quantised graph")
    return result


class _Quantiser:
    """Rewrites one graph in place."""

    def __init__(
        self,
        model: ModelProto,
        layout: Layout,
        placement: Placement,
        ranges: Mapping[str, float],
        *,
        per_channel: bool,
    ) -> None:
        self.graph, self.layout, self.placement = model.graph, layout, placement
        self.per_channel = per_channel and layout.per_channel
        self.grids = layout.grids(placement, ranges)
        self.weights = constants_of(model.graph)
        self.nodes: list[NodeProto] = []
        self.taken = names_of(model)
        self.pairs: dict[str, str] = {}  # a tensor that goes through eight bits, and its dequantised twin
        self.stored: dict[tuple[str, int | None, bytes], str] = {}  # a weight, by axis and scales, likewise

    def run(self) -> None:
        layers, kept = set(self.placement.layers), {value.name for value in self.graph.output}
        for node in self.graph.node:
            source = node.input[0] if node.input else ""
            for index, name in enumerate(node.input):
                if (node.output[0], index) in self.placement.reads or name in self.placement.made:
                    node.input[index] = self._activation(name)
            if node.op_type in WEIGHTED and name_of(node) in layers:
                self._weigh(node, source)
            self.nodes.append(node)
            for index, name in enumerate(node.output):
                if name in self.placement.made & kept:  # the output is what was dequantised
                    node.output[index] = self._free(f"{name}_unquantized")
                    self._pair(name, node.output[index], name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        drop_unread_constants(self.graph)  # the float weights that are quantised now

    def _activation(self, name: str) -> str:
        """Return the tensor that has gone through eight bits; the pair is made before its first reader."""
        return self.pairs.get(name) or self._pair(name, name, self._free(f"{name}_dequantized"))

    def _pair(self, name: str, given: str, made: str) -> str:
        grid = self.grids[name]
        scale, zero = self._scale(name, grid.scale, grid.zero)
        quantised = self._free(f"{name}_quantized")
        self._node("QuantizeLinear", [given, scale, zero], quantised)
        label = self._free(f"{name}_dequantized") if made == name else made  # a layer may be called as what it makes
        self._node("DequantizeLinear", [quantised, scale, zero], made, name=label)
        self.pairs[name] = made
        return made

    def _weigh(self, node: NodeProto, source: str) -> None:
        """Store the weight of a layer that reads `source`, and its bias as INT32 if the layout has it so."""
        name = node.input[1]
        weight = numpy_helper.to_array(self.weights[name])
        axis = _output_axis(node, weight.ndim) if self.per_channel else None
        others = tuple(each for each in range(weight.ndim) if each != axis)
        largest = np.abs(weight).max(axis=None if axis is None else others, keepdims=axis is not None)
        scale = largest / self.layout.largest
        bias = node.input[2] if self.layout.quantises_biases and len(node.input) > 2 else ""
        if bias:
            floats, step = numpy_helper.to_array(self.weights[bias]), self.grids[source].scale
            reach = np.abs(floats) / (np.float64(step) * _MOST_BIAS)  # the least scale in which INT32 holds it
            scale = np.maximum(scale, reach.max(initial=0) if axis is None else reach.reshape(scale.shape))
        # A channel of zeros has no scale of its own; any will do.
        scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
        node.input[1] = self._weight(name, weight, scale, axis)
        if bias:
            node.input[2] = self._bias(bias, floats, step * scale.reshape(-1 if axis is not None else ()))

    def _bias(self, name: str, floats: NDArray[np.float32], scale: NDArray[np.float32]) -> str:
        """Return a bias, stored as INT32, dequantised."""
        key = (name, None, scale.tobytes())
        if key not in self.stored:
            quantised = self._constant(f"{name}_quantized", np.rint(floats / np.float64(scale)).astype(np.int32))
            names = [quantised, self._constant(f"{name}_scale", scale)]
            self.stored[key] = self._dequantised(name, names, 0 if scale.ndim else None)
        return self.stored[key]

    def _weight(self, name: str, weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int | None) -> str:
        """Return a weight, stored in eight bits, dequantised."""
        key = (name, axis, scale.tobytes())
        if key not in self.stored:
            quantised = self._constant(f"{name}_quantized", self.layout.rounded(weight / scale))
            flat = scale.reshape(-1 if axis is not None else ())
            names = [quantised, *self._scale(name, flat, self.layout.rounded(np.zeros_like(flat)))]
            self.stored[key] = self._dequantised(name, names, axis)
        return self.stored[key]

    def _scale(self, name: str, scale: NDArray[np.float32], zero: NDArray[np.generic]) -> tuple[str, str]:
        return self._constant(f"{name}_scale", scale), self._constant(f"{name}_zero_point", zero)

    def _constant(self, like: str, value: NDArray[np.generic]) -> str:
        name = self._free(like)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _dequantised(self, name: str, inputs: list[str], axis: int | None) -> str:
        made = self._free(f"{name}_dequantized")
        self._node("DequantizeLinear", inputs, made, axis=axis)
        return made

    def _node(self, kind: str, inputs: list[str], output: str, *, name: str = "", axis: int | None = None) -> None:
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name or output, **attributes))

    def _free(self, like: str) -> str:
        return free_name(like, self.taken)


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
