"""INT8 as explicit Q/DQ nodes, placed and scaled so that every TensorRT from 8.5 on takes them.

Symmetric, zero points 0; weights per output channel and stored as INT8; activations per tensor, only on the inputs of
convolutions, matrix products and residual adds; biases stay float (TensorRT rejects INT32 ones).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import require
from msn_deploy.graph.calibrate import QUANTISED_OPS
from msn_deploy.graph.files import check


def quantize(model: ModelProto, ranges: Mapping[str, float]) -> ModelProto:
    """Return an INT8 Q/DQ copy of an FP32 graph.

    ranges: largest magnitude per activation tensor, from `calibrate_ranges`. Raises InputError if the graph holds
    nothing to quantise or a range is missing.
    """
    quantization = require("onnxruntime.quantization", step="calibrate")
    calibration = require("onnxruntime.quantization.calibrate", step="calibrate")
    qdq = require("onnxruntime.quantization.qdq_quantizer", step="calibrate")
    if not any(node.op_type in QUANTISED_OPS for node in model.graph.node):
        raise InputError(f"the graph holds none of {', '.join(QUANTISED_OPS)}: nothing to quantise.")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise InputError("the graph is quantised already.\nCalibrate the FP32 file it was made from.")
    data = {
        name: calibration.TensorData(lowest=np.float32(-largest), highest=np.float32(largest))
        for name, largest in ranges.items()
    }
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    options: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": False,
        "OpTypesToExcludeOutputQuantization": list(QUANTISED_OPS),
        "QDQOpTypePerChannelSupportToAxis": {"Conv": 0, "ConvTranspose": 1},
        "DedicatedQDQPair": False,
        "ForceQuantizeNoInputCheck": True,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        quantizer = qdq.QDQQuantizer(
            copied,
            per_channel=True,
            reduce_range=False,
            weight_qType=quantization.QuantType.QInt8,
            activation_qType=quantization.QuantType.QInt8,
            tensors_range=calibration.TensorsData(quantization.CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=list(QUANTISED_OPS),
            extra_options=options,
        )
        try:
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        except (ValueError, KeyError) as cause:
            raise InputError(f"the graph could not be quantised: {str(cause).splitlines()[0][:200]}") from cause
    result: ModelProto = quantizer.model.model
    check(result, source="the quantised graph")
    return result
