"""FP16: close where it can be, refused where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from msn_deploy.core.errors import InputError
from msn_deploy.graph import to_fp16


@pytest.mark.parametrize(("net", "norm"), [("cnn3", "msn"), ("vgg7", "bn")])
def test_fp16_is_close_and_half_the_size(
    exported: Callable[..., Any],
    run: Callable[..., Any],
    tensors: Callable[..., Any],
    digits: Callable[..., Any],
    net: str,
    norm: str,
) -> None:
    made = exported(net, norm)
    before = made.graph.SerializeToString()
    half = to_fp16(made.graph)
    assert made.graph.SerializeToString() == before
    onnx.checker.check_model(half, full_check=True)
    weights = tensors(made.graph)
    halves = tensors(half)
    assert {name for name, value in halves.items() if value.dtype == np.float16} == {
        name for name, value in weights.items() if value.dtype == np.float32
    }
    for name, value in weights.items():
        np.testing.assert_allclose(halves[name], value, rtol=1e-3, atol=1e-6)
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    batch = digits(8, made.input_shape[-1])
    expected = made.logits(batch)
    got = run(half, batch)["logits"]
    scale = np.abs(expected).max()
    assert 1e-6 * scale < np.abs(got - expected).max() < 1e-2 * scale  # it is another precision, and a near one


@pytest.mark.parametrize("constant", [False, True], ids=["initializer", "constant-node"])
@pytest.mark.parametrize(
    ("value", "shown"), [(65505.0, r"6\.55e\+04"), (-1e6, r"1e\+06"), (float("inf"), "inf"), (float("nan"), "nan")]
)
def test_a_weight_beyond_fp16_is_refused(
    tiny: Callable[..., ModelProto], value: float, shown: str, constant: bool
) -> None:
    with pytest.raises(InputError, match=rf"holds {shown}; FP16 ends at 65504"):
        to_fp16(tiny(weight=np.float32(value), constant=constant))


def test_the_largest_and_the_smallest_weight(
    tiny: Callable[..., ModelProto], tensors: Callable[..., Any], run: Callable[..., Any]
) -> None:
    assert (tensors(to_fp16(tiny(weight=np.float32(65504))))["w"] == 65504).all()
    tensors(to_fp16(tiny(weight=np.float32(1e-9))))  # a warning of the converter is not passed on
    x = np.ones((1, 2, 3, 3), dtype=np.float32)
    np.testing.assert_allclose(run(to_fp16(tiny(weight=np.float32(0.25))), x)["y"], 0.5)


def test_what_is_no_fp32_is_refused(tiny: Callable[..., ModelProto]) -> None:
    with pytest.raises(InputError, match="w is already FLOAT16"):
        to_fp16(to_fp16(tiny()))
    graph = tiny()
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, dtype=np.int8), "quantised"))
    with pytest.raises(InputError, match="quantised is already INT8"):
        to_fp16(graph)
