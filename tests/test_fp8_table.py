"""The benchmark of FP8 counts weights in FP8 apart from convolutions in FP8, and its table is that of its result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from msn_deploy.quant.layout import Layout
from msn_deploy.quant.quantize import quantize

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def fp8() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import fp8
    finally:
        sys.path.remove(str(BENCHMARKS))
    return fp8


def test_the_control_has_its_weights_in_fp8_and_no_activation(fp8: Any) -> None:
    text = "c = Conv(x, w)  y = Conv(c, v)"
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> g (float[1,4,8,8] x) => (float[1,4,4,4] y) {{ {text} }}'
    )
    for name in "wv":
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), name))
    made = quantize(model, {"x": 1.0, "c": 2.0}, layout=Layout(precision="fp8"))
    alone = fp8.weights_alone(made)
    assert fp8.in_the_file(model) == (2, 0)
    assert fp8.in_the_file(made) == fp8.in_the_file(alone) == (2, 2)
    assert [node.op_type for node in made.graph.node].count("QuantizeLinear") == 2
    assert [node.op_type for node in alone.graph.node].count("QuantizeLinear") == 0


def test_every_convolution_of_four_networks_is_in_fp8_and_none_of_the_control(fp8: Any) -> None:
    value = json.loads(fp8.RESULT.read_text(encoding="utf-8"))
    for name in fp8.NETWORKS:
        for target in fp8.TARGETS:
            seen = value["networks"][name]["engines"][target]
            assert 0 < seen["fp8"] == seen["listed"] == seen["convolutions"]
            assert seen["only_weights"] == 0
    assert all(seen["fp8"] == 0 < seen["only_weights"] for seen in value["control"].values())
    assert "0 of 3 convolutions count" in fp8.text()
