"""The layout for ONNX Runtime on a CPU: each rule, by the kernels that ONNX Runtime then runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from text_graphs import graph

from msn_deploy.core.errors import InputError
from msn_deploy.engine.ort import OrtRunner
from msn_deploy.model.identity import runtime_of
from msn_deploy.model.opened import made_model
from msn_deploy.model.parity import rung
from msn_deploy.quant.layout import Layout
from msn_deploy.quant.quantize import quantize

ORT = Layout(runtime="onnxruntime")
_X = np.random.default_rng(11).standard_normal((1, 4, 8, 8)).astype(np.float32)


def inside(model: ModelProto) -> dict[str, np.ndarray]:
    """Every float tensor of a graph that is run on _X."""
    from msn_deploy.model.graphs import activations, with_outputs

    names = [name for name in activations(model) if name != "x"]
    runner = OrtRunner(made_model(Path("g"), (probed := with_outputs(model, names)), probed.SerializeToString()))
    return {"x": _X, **runner.run({"x": _X})}


def laid_out(model: ModelProto, **options: Any) -> ModelProto:
    """The INT8 graph, on the ranges of _X."""
    found = inside(model)
    extremes = {name: (float(value.min()), float(value.max())) for name, value in found.items()}
    ranges = {name: float(np.abs(value).max()) for name, value in found.items()}
    return quantize(model, ranges, layout=Layout(runtime="onnxruntime", extremes=extremes), **options)


def kernels(model: ModelProto, folder: Path) -> Counter[str]:
    """What ONNX Runtime runs in the place of a graph, without the quantising of the input and layouts in memory."""
    path = folder / "run.onnx"
    OrtRunner(made_model(Path("g"), model, model.SerializeToString()), threads=1, optimized_to=path)
    run = [node.op_type for node in onnx.load(path).graph.node]
    return Counter(each for each in run if each != "Transpose")


def outputs(model: ModelProto) -> dict[str, np.ndarray]:
    return OrtRunner(made_model(Path("g"), model, model.SerializeToString()), threads=1).run({"x": _X})


_FLAT = "Reshape|Flatten"
_RULES = {
    "conv, relu": ("a = conv(x, w, b)  y = Relu(a)", {"QLinearConv": 1}),
    "conv alone": ("y = conv(x, w)", {"QLinearConv": 1}),
    "relu6": ("a = conv(x, w, b)  r = Clip(a, zero, six)  y = conv(r, v)", {"QLinearConv": 2}),
    "pool": (
        "a = conv(x, w, b)  r = Relu(a)  p = pool(r)  y = conv(p, v)",
        {"QLinearConv": 2, "MaxPool|NhwcMaxPool": 1},
    ),
    "shortcut": (
        "a = conv(x, w, b)  r = Relu(a)  c = conv(r, v)  s = Add(c, r)  t = Relu(s)  y = conv(t, w)",
        {"QLinearConv": 3, "QLinearAdd": 1},
    ),
    "sum for floats": (
        "a = conv(x, w, b)  c = conv(x, v)  s = Add(a, c)  t = Relu(s)  y = Neg(t)",
        {"QLinearConv": 2, "QLinearAdd": 1, "Neg": 1},
    ),
    "sum for the user": ("a = conv(x, w, b)  c = conv(x, v)  y = Add(a, c)", {"QLinearConv": 2, "Add": 1}),
    "concat": (
        "a = conv(x, w, b)  r = Relu(a)  c = conv(r, v)  q = Relu(c)  j = Concat<axis=1>(r, q)  y = Conv(j, wide)",
        {"QLinearConv": 3, "QLinearConcat": 1},
    ),
    "concat of both signs": (
        "a = conv(x, w, b)  r = Relu(a)  c = conv(r, v)  j = Concat<axis=1>(r, c)  y = Conv(j, wide)",
        {"QLinearConv": 3, "QLinearConcat": 1},
    ),
    "leaky": ("a = conv(x, w, b)  r = LeakyRelu(a)  y = conv(r, v)", {"QLinearConv": 2, "QLinearLeakyRelu": 1}),
    "silu": (
        "a = conv(x, w)  t = Sigmoid(a)  s = Mul(a, t)  y = conv(s, v)",
        {"QLinearConv": 2, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "doubled": (
        'a = conv(x, w)  r = Relu(a)  d = Resize<mode="nearest">(r, , twice)  y = conv(d, v)',
        {"QLinearConv": 2, "Resize": 1},
    ),
    "mean": (
        "a = conv(x, w)  r = Relu(a)  g = GlobalAveragePool(r)  y = Conv(g, k)",
        {"QLinearConv": 2, "QLinearGlobalAveragePool": 1},
    ),
    "gemm": (
        "a = conv(x, w)  r = Relu(a)  f = Flatten(r)  y = Gemm(f, m, d16)",
        {"QLinearConv": 1, "QGemm": 1, _FLAT: 1},
    ),
    "two gemms": ("f = Flatten(x)  h = Gemm(f, m, d16)  r = Relu(h)  y = Gemm(r, n, d16)", {"QGemm": 2, _FLAT: 1}),
    "matmul": (
        "f = Flatten(x)  h = MatMul(f, m)  y = MatMul(h, n)",
        {"QLinearMatMul": 1, "MatMulIntegerToFloat": 1, _FLAT: 1},
    ),
}


def rule(name: str) -> ModelProto:
    body, _ = _RULES[name]
    model = graph(body)
    flat = "Gemm" in body or "MatMul" in body
    if flat:
        del model.graph.output[0].type.tensor_type.shape.dim[2:]
    constants = {"zero": np.float32(0), "six": np.float32(1), "twice": np.array([1, 1, 2, 2], np.float32)}
    for key, value in constants.items():
        if re.search(rf"\b{key}\b", body):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
    return model


@pytest.mark.parametrize("name", _RULES)
def test_onnx_runtime_has_a_kernel_for_all_that_is_laid_out(name: str, tmp_path: Path) -> None:
    model = rule(name)
    int8 = laid_out(model)
    found = kernels(int8, tmp_path)
    wanted = _RULES[name][1]
    for pattern, count in wanted.items():
        assert sum(found.pop(each, 0) for each in pattern.split("|")) == count, found
    assert set(found) <= {"QuantizeLinear", "DequantizeLinear"}
    assert found["QuantizeLinear"] <= 1  # the input
    assert runtime_of(int8) == "onnxruntime"
    assert [value.name for value in int8.graph.output] == ["y"]
    assert rung("int8", outputs(model), outputs(int8)).sqnr_db > 25


def test_logits_are_not_rounded() -> None:
    """A matrix product makes floats of INT8, so more than 256 values; what a convolution makes is rounded."""
    logits = outputs(laid_out(rule("gemm")))["y"]
    assert len(np.unique(logits)) == logits.size
    assert len(np.unique(outputs(laid_out(rule("conv alone")))["y"])) < 256


def test_the_two_ways_of_running_it_agree(tmp_path: Path) -> None:
    """With every tensor an output nothing is fused, and Q/DQ are computed as the standard has them."""
    for name in _RULES:
        int8 = laid_out(rule(name))
        fused, plain = outputs(int8)["y"], inside(int8)["y"]
        assert np.abs(fused - plain).max() <= 0.02 * np.abs(plain).max(), name


@pytest.mark.parametrize("called", [("a", "y"), ("y", "y_DequantizeLinear"), ("x_quantized", "y_quantized")])
def test_a_layer_may_be_called_as_what_it_makes(called: tuple[str, str]) -> None:
    model = graph("a = conv(x, w, b)  y = Relu(a)")
    wanted = outputs(laid_out(model))
    for node, name in zip(model.graph.node, called, strict=True):
        node.name = name
    made = laid_out(model)
    names = [node.name for node in made.graph.node]
    assert len(set(names)) == len(names)
    np.testing.assert_array_equal(outputs(made)["y"], wanted["y"])


def test_a_layer_that_is_left_out_and_a_transposed_one_stay_in_floats(tmp_path: Path) -> None:
    model = graph(
        "a = conv(x, w, b)  r = Relu(a)  c = conv(r, v)  t = ConvTranspose<strides=[2,2]>(c, up)  y = conv(t, w)"
    )
    assert ORT.place(model).layers == ("a", "c", "y")
    found = kernels(laid_out(model), tmp_path)
    assert (found["QLinearConv"], found["ConvTranspose"]) == (3, 1)
    found = kernels(laid_out(model, leave_out=["c"]), tmp_path)
    assert found["QLinearConv"] == 2
    assert sum(found[each] for each in ("Conv", "FusedConv")) == 1
    with pytest.raises(InputError, match="no layer 't' to leave out"):
        ORT.place(model, leave_out=["t"])


@pytest.mark.parametrize(
    "text",
    [
        "y = ConvTranspose<strides=[2,2]>(x, up)",
        "f = Flatten(x)  t = Transpose<perm=[1,0]>(f)  y = Gemm<transA=1>(t, m)",
    ],
)
def test_a_graph_whose_layers_have_no_kernel_in_int8_says_so(text: str) -> None:
    with pytest.raises(InputError, match=r"no Conv, .* that ONNX Runtime has an INT8 kernel for"):
        quantize(graph(text), {}, layout=ORT)


def test_activations_have_the_numbers_of_their_signs(tensors: Callable[..., Any]) -> None:
    values = tensors(laid_out(rule("leaky")))
    found = inside(rule("leaky"))
    for name in ("a", "r"):
        low, high = float(found[name].min()), float(found[name].max())
        assert values[f"{name}_scale"] == pytest.approx((high - low) / 255, rel=1e-5)
        assert values[f"{name}_zero_point"].dtype == np.uint8
        assert int(values[f"{name}_zero_point"]) == round(-low / ((high - low) / 255))
    values = tensors(laid_out(rule("conv, relu")))
    assert int(values["y_zero_point"]) == 0
    assert values["y_scale"] == pytest.approx(float(inside(rule("conv, relu"))["y"].max()) / 255, rel=1e-5)


def test_without_extremes_both_signs_are_possible(tensors: Callable[..., Any]) -> None:
    values = tensors(quantize(graph("y = conv(x, w)"), {"x": 2.0, "y": 0.0}, layout=ORT))
    assert (values["x_scale"], values["x_zero_point"]) == (pytest.approx(4 / 255), 128)
    assert values["y_scale"] > 0  # never anything but 0: any scale will do


def test_biases_are_int32_in_steps_of_the_product(tensors: Callable[..., Any]) -> None:
    model = rule("conv, relu")
    values, floats = tensors(laid_out(model)), tensors(model)
    assert values["b_quantized"].dtype == np.int32
    np.testing.assert_allclose(values["b_scale"], values["x_scale"] * values["w_scale"], rtol=1e-6)
    np.testing.assert_allclose(values["b_quantized"] * values["b_scale"], floats["b"], atol=values["b_scale"].max() / 2)


@pytest.mark.parametrize("weight", [0.0, 1e-12], ids=["dead", "tiny"])
def test_a_channel_of_almost_nothing_keeps_its_bias(weight: float, tensors: Callable[..., Any]) -> None:
    model = rule("conv, relu")
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w":
            value[1] *= weight
        if tensor.name == "b":
            value[1] = 3.0
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    values = tensors(laid_out(model))
    assert abs(int(values["b_quantized"][1])) <= 2**30
    assert values["b_quantized"][1] * np.float64(values["b_scale"][1]) == pytest.approx(3.0, rel=1e-6)
    assert outputs(laid_out(model))["y"][0, 1] == pytest.approx(3.0, rel=0.02)


def test_a_bias_that_two_layers_read_is_stored_for_each(tensors: Callable[..., Any]) -> None:
    values = tensors(laid_out(graph("a = conv(x, w, b)  r = Relu(a)  y = conv(r, v, b)")))
    assert {name for name, value in values.items() if value.dtype == np.int32} == {"b_quantized", "b_quantized_1"}


def test_a_tensor_that_is_read_in_floats_too_is_read_rounded() -> None:
    """Else the convolution would have two readers, and ONNX Runtime no kernel for it."""
    model = graph("a = conv(x, w, b)  r = Relu(a)  e = Exp(r)  c = conv(r, v)  y = Mul(c, e)")
    int8 = laid_out(model)
    reads: Mapping[str, list[str]] = {node.output[0]: list(node.input) for node in int8.graph.node}
    assert reads["e"] == ["r_dequantized"]


@pytest.mark.parametrize(
    ("body", "runtime"),
    [("y = conv(x, w)", "tensorrt"), ("y = Relu(x)", None)],
)
def test_a_graph_tells_what_it_is_laid_out_for(body: str, runtime: str | None) -> None:
    model = graph(body)
    assert runtime_of(quantize(model, {"x": 1.0}) if runtime else model) == runtime
