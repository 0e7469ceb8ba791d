"""The committed comparison of the float64 evaluator, and a fast part of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
RESULT = REPO / "benchmarks" / "results" / "xeon-2-cores" / "operators.json"
# One form of each operator that onnx's reference gets wrong in some opset, or that is computed by other means.
FAST = (
    *(
        f"own_BatchNormalization_{given}@{opset}"
        for given, opset in (("", 8), ("", 13), ("momentum=0.3", 13), ("", 25))
    ),
    "own_BatchNormalization_spatial=0@8",
    "own_GridSample_mode=bilinear_padding_mode=reflection_align_corners=0@19",
    "own_GridSample_mode=cubic_padding_mode=zeros_align_corners=1@25",
    "own_Resize_coordinate_transformation_mode=half_pixel_mode=nearest_nearest_mode=floor@17#2",
    "own_Resize_coordinate_transformation_mode=tf_crop_and_resize_mode=linear@12",
    "own_Resize_coordinate_transformation_mode=half_pixel_mode=cubic_exclude_outside=1_antialias=1@25#2",
    "own_Resize_mode=linear@10",
    "own_Upsample_mode=nearest@9",
    "own_Upsample_scales=[1.0, 1.0, 2.0, 3.0]_mode=linear@8",
    "own_GRU_direction=bidirectional_hidden_size=4_clip=0.5_linear_before_reset=1@21#2",
    "own_LSTM_direction=reverse_hidden_size=4_input_forget=1@13#2",
    "own_RNN_direction=bidirectional_hidden_size=4_activations=['Relu', 'Relu']@21",
    "own_RoiAlign_output_height=2_output_width=3_sampling_ratio=2_spatial_scale=0.9_mode=avg@15",
    "own_Softmax_axis=1@12",
    "own_Hardmax_axis=1@10",
    "own_MeanVarianceNormalization_@25",
    "own_NonMaxSuppression_center_point_box=1@25",
    "own_Celu_alpha=0.3@25",
)


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("operators", REPO / "benchmarks" / "operators.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["operators"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operators_equal_onnx_runtime() -> None:
    script = _script()
    every = {case.name: case for case in script.own_cases()}
    assert sorted(set(FAST) - set(every)) == []
    found = {name: script.outcome(every[name]) for name in FAST}
    assert {name: each for name, each in found.items() if each.result != "equal"} == {}
    assert {each.operator for each in found.values() if each.in_float32} == {
        *("GRU", "LSTM", "RNN"),  # ONNX Runtime's, in float32
        *("NonMaxSuppression", "Celu"),  # no float64 in their schema
    }


def test_every_difference_that_was_measured_is_explained() -> None:
    result = json.loads(RESULT.read_text())
    assert result["unexplained"] == []
    assert result["counts"]["equal"] > 6500
    left = {each["operator"] for each in result["differing"].values()}
    assert left.isdisjoint({"BatchNormalization", "Conv", "MaxPool", "AveragePool", "GridSample", "Softmax", "MatMul"})
    assert all(each["reason"] for each in result["differing"].values())
