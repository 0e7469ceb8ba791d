"""FP16 as casts in the graph: weights and arithmetic in half precision, inputs and outputs still float32.

What does not fit into half precision stays in FP32 and is named: a weight beyond 65504, and on real images a value, or
the sum behind a mean, that comes near it. The rest of the graph is FP16 all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require
from msn_deploy.graph.constants import constants_of, drop_unread_constants
from msn_deploy.graph.files import check
from msn_deploy.graph.placement import name_of

FP16_MAX = 65504.0
_HEADROOM = 2.0  # images that were not looked at may reach higher
_MEANS = ("GlobalAveragePool", "AveragePool", "ReduceMean")


def to_fp16(model: ModelProto, *, keep_fp32: Collection[str] = ()) -> ModelProto:
    """Return a copy of an FP32 graph with FP16 weights and arithmetic; input and output stay float32.

    keep_fp32: names of nodes that are not cast, from `fp16_overflows`. Raises InputError for a graph that is not FP32,
    and for a weight that FP16 can't hold in a node that is cast (the converter would clamp it without a word).
    """
    float16 = require("onnxruntime.transformers.float16", step="build-engine --precision fp16")
    onnx_model = require("onnxruntime.quantization.onnx_model", step="build-engine --precision fp16")
    kept = {name for node in model.graph.node if name_of(node) in keep_fp32 for name in node.input}
    for name, tensor in constants_of(model).items():
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.INT8):
            raise InputError(f"{name} is already {TensorProto.DataType.Name(tensor.data_type)}; FP16 starts from FP32.")
        if not (largest := _largest(tensor)) <= FP16_MAX and name not in kept:
            raise InputError(f"{name} holds {largest:.4g}; FP16 ends at {FP16_MAX:.0f}.\nStay with FP32 or INT8.")
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for node in copied.graph.node:
        node.name = name_of(node)  # the converter tells nodes apart by their names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning per weight below FP16's smallest number: it becomes zero
        converted = onnx_model.ONNXModel(
            float16.convert_float_to_float16(copied, keep_io_types=True, node_block_list=sorted(keep_fp32))
        )
    converted.topological_sort()  # the converter appends its casts, which is not valid ONNX
    result: ModelProto = converted.model
    del result.graph.value_info[:]  # the converter's are those of FP16 also where a node was kept
    check(result, source="the FP16 graph")
    return result


def fp16_overflows(model: ModelProto, maxima: Mapping[str, float]) -> dict[str, str]:
    """Return the nodes that half precision is not enough for, by name, each with the number that says so.

    maxima: the largest magnitude of the `activations` on real images. A mean is judged by the sum that it divides,
    which hardware may keep in half precision.
    """
    sizes = {name: _largest(tensor) for name, tensor in constants_of(model).items()}
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


def layers_to_fp16(model: ModelProto, layers: Collection[str]) -> ModelProto:
    """Return a copy in which the named layers alone work in FP16, between casts: those that INT8 leaves out.

    Opset and all else stay, so that also TensorRT 8 takes the file, which can't read FP16 scales.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = constants_of(result)
    nodes: list[NodeProto] = []
    halves: dict[str, str] = {}
    for node in graph.node:
        if name_of(node) not in layers:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name and name not in halves:
                halves[name] = f"{name}_fp16"
                if name in weights:
                    half = numpy_helper.to_array(weights[name]).astype(np.float16)
                    graph.initializer.append(numpy_helper.from_array(half, halves[name]))
                else:
                    nodes.append(_cast(name, halves[name], TensorProto.FLOAT16))
            node.input[index] = halves.get(name, "")
        made = node.output[0]
        node.output[0] = f"{made}_of_fp16"
        nodes += [node, _cast(node.output[0], made, TensorProto.FLOAT)]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread_constants(graph)
    check(result, source="the graph with layers in FP16")
    return result


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
