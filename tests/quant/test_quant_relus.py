"""A Max that the fold left becomes the ReLU that it was, where the layer behind it can take the bound as a bias."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.quant.relus import with_relus

X = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
TAKEN = {
    "a convolution": "y = Conv(m, w)",
    "one with a bias": "y = Conv(m, w, b)",
    "pooled": "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(m) y = Conv(p, w, b)",
    "a mean": "p = ReduceMean<axes=[-1,2], keepdims=0>(m) y = Gemm<transB=1>(p, g, b)",
    "a global pooling": "p = GlobalAveragePool(m) f = Flatten(p) y = Gemm(f, h, b)",
}
KEPT = {
    "a border of zeros": "y = Conv<pads=[1,1,1,1]>(m, w)",
    "a border of the pooling": "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(m) y = Conv(p, w)",
    "the largest of the bounds": "p = MaxPool<kernel_shape=[2,2]>(m) s = Sigmoid(p) y = Conv(s, w)",
    "two readers": "z = Conv(m, w) s = ReduceMax<keepdims=1>(m) y = Add(z, s)",
    "a mean over channels": "p = ReduceMean<axes=[1,2], keepdims=0>(m) y = Gemm(p, e)",
    "groups": "y = Conv<group=2>(m, d)",
}


def _model(text: str, bound: tuple[int, ...] = (4, 1, 1)) -> ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,8,8] x) => (float y) {{ m = Max(x, t) {text} }}'
    )
    draw = np.random.default_rng(1).normal
    shapes = {"t": bound, "w": (5, 4, 2, 2), "b": (5,), "g": (5, 4), "h": (4, 5), "d": (6, 2, 2, 2), "e": (8, 3)}
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in shapes.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(draw(size=shape).astype(np.float32), name))
    return model


def _kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("kind", TAKEN)
def test_a_bound_becomes_a_relu_and_a_bias(kind: str) -> None:
    model = _model(TAKEN[kind])
    made = with_relus(model)
    assert _kinds(made) == ["Add", "Relu", *_kinds(model)[1:]]
    assert _kinds(model)[0] == "Max"
    before, after = (run_on_one_thread(each).run({"x": X})["y"] for each in (model, made))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KEPT)
def test_a_bound_that_is_more_than_a_bias_behind_it_stays(kind: str) -> None:
    model = _model(KEPT[kind])
    assert with_relus(model) is model


@pytest.mark.parametrize("bound", [(8,), (4, 8, 1), ()])
def test_what_is_not_a_bound_per_channel_stays(bound: tuple[int, ...]) -> None:
    model = _model(TAKEN["a convolution"], bound)
    assert with_relus(model) is model
