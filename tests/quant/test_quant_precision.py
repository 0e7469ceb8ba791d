"""FP16: close where it can be, refused where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from text_graphs import graph

from msn_deploy.core.errors import InputError
from msn_deploy.model.graphs import activations
from msn_deploy.quant.fp32_nodes import needs_fp32
from msn_deploy.quant.placement import place
from msn_deploy.quant.precision import in_fp16, to_fp16
from msn_deploy.quant.quantize import quantize


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
@pytest.mark.parametrize(("value", "shown"), [(65505.0, r"6\.55e\+04"), (-1e6, r"1e\+06"), (float("nan"), "nan")])
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


def _net(weight: float = 0.25) -> ModelProto:
    """x (1, 2, 8, 8): a convolution, its ReLU, the mean of 64 values, a matrix product."""
    text = """g (float[1,2,8,8] x) => (float[1,3] y) {
        c = Conv(x, w)  r = Relu(c)  m = GlobalAveragePool(r)  f = Flatten(m)  y = Gemm(f, v) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, value in (("w", np.full((4, 2, 1, 1), weight)), ("v", np.linspace(-1, 1, 12).reshape(4, 3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    return model


def test_a_value_that_comes_near_the_end_of_fp16_is_named_with_its_node() -> None:
    model = _net()
    assert activations(model) == ["x", "c", "r", "m", "f", "y"]
    calm = {"x": 4.0, "c": 9.0, "r": 9.0, "m": 3.0, "f": 3.0, "y": 2.0}
    assert needs_fp32(model, calm) == {}
    assert needs_fp32(model, calm | {"y": 40_000.0}) == {"y": "y reaches 4e+04"}
    assert set(needs_fp32(model, calm | {"c": 33_000.0})) == {"c", "r"}
    assert needs_fp32(model, calm | {"c": 32_000.0}) == {}


def test_a_mean_is_judged_by_its_sum() -> None:
    model = _net()
    maxima = {"x": 4.0, "c": 900.0, "r": 900.0, "m": 600.0, "f": 600.0, "y": 2.0}
    assert needs_fp32(model, maxima) == {"m": "the sum of 64 values reaches 3.84e+04"}
    pooled = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,8,8] x) => (float[1,2,4,4] y) { y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) }""")
    assert needs_fp32(pooled, {"x": 9.0, "y": 9000.0}) == {"y": "the sum of 4 values reaches 3.6e+04"}


@pytest.mark.parametrize("weight", [1e6, float("nan")])
def test_a_weight_beyond_fp16_keeps_its_node_in_fp32(
    tensors: Callable[..., Any], run: Callable[..., Any], weight: float
) -> None:
    model = _net(weight)
    found = needs_fp32(model, {})
    assert list(found) == ["c"]
    assert found["c"].startswith("its weight w reaches")
    half = to_fp16(model, keep_fp32=found)
    values = tensors(half)
    assert (values["w"].dtype, values["v"].dtype) == (np.float32, np.float16)
    if weight == 1e6:
        x = np.full((1, 2, 8, 8), 1e-3, np.float32)  # 2 * 1e-3 * 1e6 fits again
        np.testing.assert_allclose(run(half, x)["y"], run(model, x)["y"], rtol=2e-3, atol=1)


def test_kept_nodes_compute_in_fp32_and_the_others_do_not(
    exported: Callable[..., Any], tensors: Callable[..., Any], digits: Callable[..., Any], run: Callable[..., Any]
) -> None:
    made = exported("cnn3", "msn")
    second = [node for node in made.graph.graph.node if node.op_type == "Conv"][1]
    half = to_fp16(made.graph, keep_fp32=[second.name])
    kinds = {name: value.dtype for name, value in tensors(half).items() if value.dtype.kind == "f"}
    assert {name for name, kind in kinds.items() if kind == np.float32} == set(second.input[1:])
    batch = digits(4)
    np.testing.assert_allclose(run(half, batch)["logits"], made.logits(batch), rtol=2e-2, atol=2e-2)


def test_layers_that_int8_leaves_out_work_in_fp16_between_casts(
    exported: Callable[..., Any], tensors: Callable[..., Any], digits: Callable[..., Any], run: Callable[..., Any]
) -> None:
    made = exported("cnn3", "msn")
    before = made.graph.SerializeToString()
    convs = [node.name for node in made.graph.graph.node if node.op_type == "Conv"]
    int8 = quantize(made.graph, dict.fromkeys(place(made.graph).tensors, 4.0), leave_out=convs[1:])
    mixed = in_fp16(int8, convs[1:])
    assert made.graph.SerializeToString() == before
    assert mixed.opset_import[0].version == 17
    by_output = {name: node for node in mixed.graph.node for name in node.output}
    values = tensors(mixed)
    for node in mixed.graph.node:
        if node.name in convs[1:]:
            assert by_output[node.input[0]].op_type == "Cast"
            assert {values[name].dtype for name in node.input[1:]} == {np.dtype(np.float16)}
        elif node.op_type == "Conv":
            assert by_output[node.input[0]].op_type == "DequantizeLinear"
    halves = [value for value in values.values() if value.dtype == np.float16]
    assert len(halves) == 4  # two weights, two biases, and their FP32 originals are gone
    batch = digits(4)
    expected = run(int8, batch)["logits"]
    difference = np.abs(run(mixed, batch)["logits"] - expected).max()
    assert 0 < difference < 1e-2 * np.abs(expected).max()


def _parsed(text: str, **weights: Any) -> ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model


def test_a_weight_that_a_kept_node_reads_too_is_there_in_both_forms(
    tensors: Callable[..., Any], run: Callable[..., Any]
) -> None:
    weight = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
    model = _parsed("g (float[2,3] x) => (float[2,3] y) { a = MatMul(x, w)  y = MatMul(a, w) }", w=weight)
    half = to_fp16(model, keep_fp32=["y"])
    values = tensors(half)
    assert (values["w"].dtype, values["w_fp16"].dtype) == (np.float32, np.float16)
    x = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    np.testing.assert_allclose(run(half, x)["y"], x @ weight @ weight, rtol=1e-2, atol=1e-2)


def test_what_the_standard_wants_in_fp32_stays_so(run: Callable[..., Any]) -> None:
    """The scales of a Resize, and what a Cast says that it makes."""
    scales = np.array([1, 1, 2, 2], np.float32)
    model = _parsed(
        """g (float[1,1,2,2] x) => (float[1,1,4,4] y) {
            r = Resize<mode="nearest">(x, , s)  i = Cast<to=6>(r)  f = Cast<to=1>(i)  y = Add(f, r) }""",
        s=scales,
    )
    half = to_fp16(model)
    assert next(node for node in half.graph.node if node.op_type == "Resize").input[2] == "s"
    assert [each.data_type for each in half.graph.initializer] == [TensorProto.FLOAT]
    x = np.array([[[[1.5, 2.25], [-3.5, 4.0]]]], np.float32)
    np.testing.assert_array_equal(run(half, x)["y"], run(model, x)["y"])


def test_max_is_cast_like_any_other(run: Callable[..., Any]) -> None:
    """Of a folded DenseNet every norm is one; casts around each would cost more than it does."""
    model = _parsed("g (float[1,2] x) => (float[1,2] y) { m = Max(x, c)  y = Mul(m, c) }", c=np.float32([0.5, -1.5]))
    half = to_fp16(model)
    assert [node.op_type for node in half.graph.node] == ["Cast", "Max", "Mul", "Cast"]
    x = np.array([[0.25, 3.0]], np.float32)
    np.testing.assert_allclose(run(half, x)["y"], [[0.25, -4.5]])


def test_names_that_a_file_has_already_are_left_to_it(
    squat: Callable[..., ModelProto], run: Callable[..., Any]
) -> None:
    model = graph("a = conv(x, w, b)  c = conv(a, w, b)  y = Add(c, z)")
    made = to_fp16(model)
    x = np.random.default_rng(1).uniform(-1, 1, (1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(to_fp16(squat(model, made)), x)["y"], run(made, x)["y"])
