"""FP8: E4M3 against all of its 256 numbers, computed from the format's definition, and the scales of tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from text_graphs import graph

from msn_deploy.quant.layout import Layout

FP8 = Layout(precision="fp8")


def e4m3_numbers() -> NDArray[np.float64]:
    """All numbers of E4M3 from zero up: a bias of 7, no infinities, and S.1111.111 is not a number (OCP OFP8)."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def nearest(value: float) -> float:
    """The nearest of them, of two that are equally near the one with an even code; beyond the largest, the largest."""
    numbers = e4m3_numbers()
    apart = np.abs(numbers - abs(value))
    codes = np.flatnonzero(apart == apart.min())
    return float(np.copysign(numbers[min(codes, key=lambda code: code % 2)], value))


@given(st.floats(-1000, 1000, width=32))
def test_numbers_become_the_nearest_of_e4m3(value: float) -> None:
    assert float(FP8.rounded(np.asarray([value], np.float32))[0]) == nearest(value)


def test_every_number_of_e4m3_is_kept_and_every_tie_goes_to_the_even_code() -> None:
    numbers = e4m3_numbers()
    assert (numbers[-1], FP8.largest) == (448, 448)
    ties = (numbers[1:] + numbers[:-1]) / 2
    for values in (numbers, ties):
        found = FP8.rounded(values.astype(np.float32)).astype(np.float64)
        assert list(found) == [nearest(each) for each in values]


def test_the_scale_of_a_tensor_is_its_range_over_448() -> None:
    model = graph("a = conv(x, w)  r = Relu(a)  y = conv(r, v)")
    grids = FP8.grids(FP8.place(model), {"x": 2.0, "r": 0.0})
    assert float(grids["x"].scale) == pytest.approx(2 / 448)
    assert float(grids["r"].scale) == pytest.approx(1 / 448)  # zero on all samples
    assert onnx.helper.np_dtype_to_tensor_dtype(grids["x"].zero.dtype) == onnx.TensorProto.FLOAT8E4M3FN
