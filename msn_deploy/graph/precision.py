"""FP16 as casts in the graph: weights and arithmetic in half precision, inputs and outputs still float32."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require
from msn_deploy.graph.files import check

FP16_MAX = 65504.0


def to_fp16(model: ModelProto) -> ModelProto:
    """Return a copy of an FP32 graph with FP16 weights and arithmetic; input and output stay float32.

    Raises InputError for a graph that is not FP32, and for weights that FP16 can't hold (the converter would clamp
    them without a word).
    """
    float16 = require("onnxruntime.transformers.float16", step="build-engine --precision fp16")
    onnx_model = require("onnxruntime.quantization.onnx_model", step="build-engine --precision fp16")
    constants = [each.t for node in model.graph.node for each in node.attribute if each.HasField("t")]
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.INT8):
            raise InputError(
                f"{tensor.name} is already {TensorProto.DataType.Name(tensor.data_type)}; FP16 starts from FP32."
            )
        if tensor.data_type != TensorProto.FLOAT:
            continue
        largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
        if not largest <= FP16_MAX:
            raise InputError(
                f"{tensor.name} holds {largest:.4g}; FP16 ends at {FP16_MAX:.0f}.\nStay with FP32 or INT8."
            )
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning per weight below FP16's smallest number: it becomes zero
        converted = onnx_model.ONNXModel(float16.convert_float_to_float16(copied, keep_io_types=True))
    converted.topological_sort()  # the converter appends its casts, which is not valid ONNX
    result: ModelProto = converted.model
    check(result, source="the FP16 graph")
    return result
