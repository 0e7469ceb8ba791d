"""Channels of very different size get one, and the network stays the same bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from msn_deploy.data.feeds import ImageSamples
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.graphs import with_outputs
from msn_deploy.quant.equalize import equalize

X = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
CONV = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c)"
NEXT: dict[str, tuple[str, tuple[int, ...]]] = {
    "a convolution": ("p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, v)", (5, 8, 3, 3)),
    "a depthwise one": ("y = Conv<group=8>(r, v)", (16, 1, 3, 3)),
    "pixels, flattened": (
        "p = AveragePool<kernel_shape=[4,4], strides=[4,4]>(r) f = Flatten(p) y = Gemm(f, v)",
        (32, 5),
    ),
    "pooled, transposed": ("p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v)", (5, 8)),
}
BY_A_MUL: dict[str, tuple[str, tuple[int, ...]]] = {
    "an upper bound": ("p = Clip(r, low, high) y = Conv(p, v)", (5, 8, 3, 3)),
    "a concatenation": ("p = Concat<axis=1>(r, x) y = Conv(p, v)", (5, 11, 3, 3)),
    "a weight read twice": ("z = Conv(r, v) q = Conv<pads=[1,1,1,1]>(x, w) y = Concat<axis=1>(q, q)", (5, 8, 3, 3)),
    "pixels, one by one": ("s = Abs(r) f = Flatten(s) y = Gemm(f, v)", (512, 5)),
}
KEPT: dict[str, tuple[str, tuple[int, ...]]] = {
    "another reader": ("z = Conv(r, v) m = ReduceMax<keepdims=1>(r) y = Add(z, m)", (5, 8, 3, 3)),
    "two readers": ("y = Conv(r, v) out = Identity(r)", (5, 8, 3, 3)),
    "an output": ("out = Identity(r) y = Conv(out, v)", (5, 8, 3, 3)),
    "groups of several": ("y = Conv<group=2>(r, v)", (6, 4, 3, 3)),
}


def _model(text: str, shape: tuple[int, ...], *, factor: float) -> ModelProto:
    """Return a network whose first layer makes a channel `factor` times too large, which the second makes up for."""
    draw = np.random.default_rng(1).normal
    w, b, v = (draw(size=size).astype(np.float32) for size in ((8, 3, 3, 3), (8,), shape))
    w[2] *= factor
    b[2] *= factor
    if shape[0] == 16:  # two outputs of each channel
        v[4:6] /= factor
    elif shape[0] == 32:  # four pixels of each channel
        v[8:12] /= factor
    elif shape[0] == 512:
        v[128:192] /= factor
    elif shape[1] in (8, 11):
        v[:, 2] /= factor
    outs = "float y, float out" if "out =" in text else "float y"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => ({outs}) {{ {CONV} {text} }}'
    )
    values = {"w": w, "b": b, "v": v, "low": np.float32(0), "high": np.float32(6000)}
    read = {name for node in model.graph.node for name in node.input}
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items() if name in read]
    model.graph.initializer.extend(tensors)
    return model


def _runs(model: ModelProto, *names: str) -> dict[str, Any]:
    return run_on_one_thread(with_outputs(model, names) if names else model).run({"x": X})


def _equalized(model: ModelProto) -> tuple[ModelProto, dict[str, int]]:
    return equalize(model, ImageSamples("x", X), load=run_on_one_thread)


@pytest.mark.parametrize("kind", NEXT)
def test_an_outlier_gets_the_size_of_the_others_and_no_output_changes(kind: str) -> None:
    model = _model(*NEXT[kind], factor=1000)
    made, moved = _equalized(model)
    assert list(moved) == ["y"]
    assert len(made.graph.node) == len(model.graph.node)
    largest = [np.abs(_runs(each, "c")["c"]).max((0, 2, 3)) for each in (model, made)]
    assert [float(each[2] / np.median(each)) > 4 for each in largest] == [True, False]
    np.testing.assert_array_equal(_runs(made)["y"], _runs(model)["y"])


@pytest.mark.parametrize("kind", BY_A_MUL)
def test_where_no_layer_can_take_the_factors_a_mul_in_front_of_the_reader_does(kind: str) -> None:
    model = _model(*BY_A_MUL[kind], factor=1000)
    made, moved = _equalized(model)
    assert len(moved) == 1
    (product,) = [node for node in made.graph.node if node.op_type == "Mul"]
    read = [_runs(made, name)[name] for name in (product.input[0], product.output[0])]
    largest = [np.abs(each).max(axis=(0, *range(2, each.ndim))) for each in read]
    assert float(largest[0].max() / np.median(largest[0])) > 100
    assert float(largest[1].max() / np.median(largest[1])) < 10
    for name, value in _runs(model).items():
        np.testing.assert_array_equal(_runs(made)[name], value)


@pytest.mark.parametrize("kind", KEPT)
def test_what_others_read_too_stays(kind: str) -> None:
    model = _model(*KEPT[kind], factor=1000)
    made, moved = _equalized(model)
    assert made is model
    assert not moved


def test_a_factor_that_would_round_a_weight_is_not_taken() -> None:
    model = _model(*NEXT["a convolution"], factor=1e6)
    tensor = next(each for each in model.graph.initializer if each.name == "w")
    value = numpy_helper.to_array(tensor).copy()
    value[2, 0, 0, 0] = 1e-44  # 7 times the least above 0
    tensor.CopyFrom(numpy_helper.from_array(value, "w"))
    assert _equalized(model)[0] is model


def test_usual_channels_stay_and_dead_ones_do_no_harm() -> None:
    usual = _model(*NEXT["a convolution"], factor=2)
    assert _equalized(usual)[0] is usual
    for factor in (0.0, np.inf):
        dead = _model(*NEXT["a convolution"], factor=1)
        for tensor in dead.graph.initializer:
            if (tensor.name, factor) in (("w", 0.0), ("b", 0.0), ("v", np.inf)):
                tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
        assert _equalized(dead)[0] is dead
