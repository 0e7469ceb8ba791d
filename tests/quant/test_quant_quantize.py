"""INT8 as explicit Q/DQ: what every TensorRT takes, small, and hardly another network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from text_graphs import graph

from msn_deploy.core.errors import InputError
from msn_deploy.data import load_split, to_input
from msn_deploy.data.preprocess import measured_preprocess
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.identity import precision_of
from msn_deploy.model.opset import to_opset
from msn_deploy.quant import calibrate
from msn_deploy.quant.layout import TENSORRT, Layout
from msn_deploy.quant.placement import place
from msn_deploy.quant.quantize import quantize

calibrate_ranges = partial(calibrate.calibrate_ranges, load=run_on_one_thread)


@pytest.fixture(scope="module")
def quantised(exported: Callable[..., Any], digits: Callable[..., Any]) -> dict[str, Any]:
    """A random cnn3 with MSN, its ranges, and its INT8 twin."""
    made = exported("cnn3", "msn")
    ranges = calibrate_ranges(made.graph, digits(32), method="minmax")
    return {"made": made, "ranges": ranges, "int8": quantize(made.graph, ranges)}


def test_every_weight_is_int8_and_symmetric_per_output_channel(
    quantised: dict[str, Any], tensors: Callable[..., Any]
) -> None:
    graph = quantised["int8"].graph
    values, originals = tensors(quantised["int8"]), tensors(quantised["made"].graph)
    by_output = {output: node for node in graph.node for output in node.output}
    seen = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        seen += 1
        dequantise = by_output[node.input[1]]
        assert dequantise.op_type == "DequantizeLinear"
        weight, scale, zero = (values[name] for name in dequantise.input)
        assert weight.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert weight.min() >= -127
        original = originals[dequantise.input[0].removesuffix("_quantized")]
        if node.op_type == "Conv":
            assert next(entry.i for entry in dequantise.attribute if entry.name == "axis") == 0
            assert scale.shape == (len(weight),)
            np.testing.assert_allclose(scale, np.abs(original).reshape(len(weight), -1).max(1) / 127, rtol=1e-5)
        restored = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(restored - original).max() <= scale.max() / 2 * 1.001
        assert values[node.input[2]].dtype == np.float32  # the bias
        assert by_output[node.input[0]].op_type == "DequantizeLinear"
    assert seen == 4


def test_activations_are_symmetric_per_tensor_at_the_given_ranges(
    quantised: dict[str, Any], tensors: Callable[..., Any]
) -> None:
    values = tensors(quantised["int8"])
    scales = {}
    for node in quantised["int8"].graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "QuantizeLinear":
            assert values[node.input[1]].shape == ()
            scales[node.input[0]] = float(values[node.input[1]])
    assert scales == pytest.approx({name: largest / 127 for name, largest in quantised["ranges"].items()}, rel=1e-5)


def test_nothing_else_changes(quantised: dict[str, Any]) -> None:
    def plain(graph: ModelProto) -> list[str]:
        return [node.op_type for node in graph.graph.node if "quantize" not in node.op_type.lower()]

    assert plain(quantised["int8"]) == plain(quantised["made"].graph)
    assert quantised["int8"].opset_import[0].version == quantised["made"].graph.opset_import[0].version == 17
    onnx.checker.check_model(quantised["int8"], full_check=True)


def test_a_second_time_gives_the_same_bytes_and_leaves_the_graph_alone(quantised: dict[str, Any]) -> None:
    graph = quantised["made"].graph
    before = graph.SerializeToString(deterministic=True)
    again = quantize(graph, quantised["ranges"])
    assert again.SerializeToString(deterministic=True) == quantised["int8"].SerializeToString(deterministic=True)
    assert graph.SerializeToString(deterministic=True) == before


def test_int8_predicts_what_fp32_predicts(trained: Any, run: Callable[..., Any]) -> None:
    splits = {name: load_split("digits", name, height_px=28, width_px=28, channels=1) for name in ("train", "test")}
    prep = measured_preprocess(splits["train"].images)
    images = to_input(splits["train"].first(128).images, prep)
    test = to_input(splits["test"].images, prep)
    plain = run(trained.graph, test)["logits"]
    for method in ("entropy", "minmax"):
        int8 = run(quantize(trained.graph, calibrate_ranges(trained.graph, images, method=method)), test)["logits"]
        assert (int8.argmax(1) == plain.argmax(1)).mean() > 0.97
        assert 0 < np.abs(int8 - plain).max() < 0.25 * np.abs(plain).max()


def test_wrong_ranges_would_show(trained: Any, run: Callable[..., Any], digits: Callable[..., Any]) -> None:
    """Ranges ten times too small ruin the predictions, so the test above measures something."""
    images = digits(64)
    ranges = calibrate_ranges(trained.graph, images, method="minmax")
    ruined = quantize(trained.graph, {name: largest / 10 for name, largest in ranges.items()})
    plain = run(trained.graph, images)["logits"]
    assert (run(ruined, images)["logits"].argmax(1) == plain.argmax(1)).mean() < 0.9


def test_int8_is_a_third_of_the_size_on_vgg7(small_net: Callable[..., Any]) -> None:
    from msn_deploy.graph.export import to_onnx
    from msn_deploy.msn import fold

    graph = to_onnx(fold(small_net("vgg7", "msn", width=32)), input_shape=(1, 1, 32, 32))
    int8 = quantize(graph, dict.fromkeys(place(graph).tensors, 1.0))
    assert int8.ByteSize() <= 0.35 * graph.ByteSize()


def test_a_quantised_graph_is_refused(quantised: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the graph is quantised already"):
        quantize(quantised["int8"], quantised["ranges"])


def test_a_graph_with_nothing_to_quantise_is_refused(tiny: Callable[..., ModelProto]) -> None:
    with pytest.raises(InputError, match="nothing to quantise"):
        quantize(tiny("Relu"), {"x": 1.0})


def test_a_missing_range_is_named(quantised: dict[str, Any]) -> None:
    ranges = {name: largest for name, largest in quantised["ranges"].items() if name != "input"}
    with pytest.raises(InputError, match="range of input is missing"):
        quantize(quantised["made"].graph, ranges)


_LAYERS = {
    "Conv": ("Conv<pads=[1,1,1,1], group=2>", (6, 2, 3, 3), 0),
    "ConvTranspose": ("ConvTranspose", (4, 6, 3, 3), None),
    "grouped ConvTranspose": ("ConvTranspose<group=2>", (4, 3, 3, 3), None),
    "MatMul": ("MatMul", (8, 5), 1),
    "Gemm": ("Gemm", (256, 5), 1),
    "Gemm, transB": ("Gemm<transB=1>", (5, 256), 0),
}


@pytest.mark.parametrize("kind", _LAYERS)
def test_the_scales_of_a_weight_lie_on_the_axis_of_its_outputs(
    kind: str, tensors: Callable[..., Any], run: Callable[..., Any]
) -> None:
    """One channel a thousand times the others: were the axis another one, it would drown them."""
    operator, shape, axis = _LAYERS[kind]
    flat = "f = Flatten(x)  y = " if "Gemm" in kind else "f = Relu(x)  y = "
    text = f"g (float[1,4,8,8] x) => (float[{'N,C' if 'Gemm' in kind else 'N,C,H,W'}] y) {{ {flat}{operator}(f, w) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    weight = np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)
    loud = [slice(None)] * len(shape)
    loud[1 if axis is None else axis] = slice(1, 2)
    weight[tuple(loud)] *= 1000
    quiet = [slice(None)] * len(shape)
    quiet[1 if axis is None else axis] = slice(2, 3)
    weight[tuple(quiet)] = 0
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.checker.check_model(model)
    x = np.abs(np.random.default_rng(6).standard_normal((1, 4, 8, 8))).astype(np.float32)
    int8 = quantize(model, {"f": float(x.max())})
    values = tensors(int8)
    dequantise = next(node for node in int8.graph.node if node.output[0] == "w_dequantized")
    assert {entry.name: entry.i for entry in dequantise.attribute} == ({} if axis is None else {"axis": axis})
    assert values["w_scale"].shape == (() if axis is None else (shape[axis],))
    assert (values["w_scale"] > 0).all()
    got, wanted = run(int8, x)["y"], run(model, x)["y"]
    outputs = 3 if "MatMul" in kind else 1
    for channel in range(wanted.shape[outputs]):
        one, other = np.take(got, channel, outputs), np.take(wanted, channel, outputs)
        if axis is not None:
            assert np.abs(one - other).max() <= 0.03 * np.abs(other).max()
    one_scale = tensors(quantize(model, {"f": 1.0}, per_channel=False))
    np.testing.assert_allclose(one_scale["w_scale"], np.abs(weight).max() / 127, rtol=1e-6)


def test_a_weight_that_two_layers_read_is_stored_once_for_each_way_they_read_it(tensors: Callable[..., Any]) -> None:
    text = """g (float[4,4] x) => (float[4,4] y) {
        a = Gemm<transB=1>(x, w)  b = Gemm(a, w)  c = Gemm<transB=1>(b, w)  y = Mul(c, w) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    weight = np.random.default_rng(5).uniform(-1, 1, (4, 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    values = tensors(quantize(model, dict.fromkeys("xab", 1.0)))
    assert [name for name, value in values.items() if value.dtype == np.int8 and value.ndim == 2] == [
        "w_quantized",
        "w_quantized_1",
    ]
    np.testing.assert_allclose(values["w_scale_1"], np.abs(weight).max(0) / 127, rtol=1e-6)
    assert "w" in values  # the Mul reads it as it is


def test_a_layer_left_out_keeps_its_weight_and_reads_floats(quantised: dict[str, Any]) -> None:
    graph, ranges = quantised["made"].graph, quantised["ranges"]
    second = place(graph).layers[1]
    int8 = quantize(graph, ranges, leave_out=[second])
    kept = next(node for node in int8.graph.node if node.name == second)
    assert list(kept.input) == list(next(node for node in graph.graph.node if node.name == second).input)
    assert sum(node.op_type == "DequantizeLinear" for node in int8.graph.node) == 6


def test_fp8_has_one_scale_per_weight_and_is_nearly_the_same_network(
    quantised: dict[str, Any], tensors: Callable[..., Any], digits: Callable[..., Any]
) -> None:
    made, layout = quantised["made"], Layout(precision="fp8")
    model = quantize(to_opset(made.graph, layout.opset), quantised["ranges"], layout=layout)
    assert (precision_of(made.graph), precision_of(quantised["int8"]), precision_of(model)) == ("fp32", "int8", "fp8")
    stored = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT8E4M3FN and each.dims]
    assert len(stored) == 4
    values, originals = tensors(model), tensors(made.graph)
    for each in stored:
        scale = values[each.name.replace("_quantized", "_scale")]
        original = originals[each.name.removesuffix("_quantized")]
        assert scale == pytest.approx(np.abs(original).max() / 448)
        restored = values[each.name].astype(np.float32) * scale
        assert (np.abs(restored - original) <= np.maximum(np.abs(original) / 16, scale * 2.0**-10) * 1.001).all()
    images = digits(8)
    truth, found = (run_on_one_thread(each).run({"input": images[:1]})["logits"] for each in (made.graph, model))
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"input": images[:1]})
    assert 20 * np.log10(np.linalg.norm(truth) / np.linalg.norm(found - truth)) > 20
    np.testing.assert_allclose(found, expected, atol=np.abs(truth).max() / 50)


@pytest.mark.parametrize(
    "layout", [TENSORRT, Layout(runtime="onnxruntime"), Layout(precision="fp8")], ids=["int8", "for a CPU", "fp8"]
)
def test_names_that_a_file_has_already_are_left_to_it(
    layout: Layout, squat: Callable[..., ModelProto], run: Callable[..., Any]
) -> None:
    model = to_opset(graph("a = conv(x, w, b)  r = Relu(a)  c = conv(r, w, b)  y = Relu(c)"), 19)
    ranges = dict.fromkeys(layout.place(model).tensors, 2.0)
    made = quantize(model, ranges, layout=layout)
    x = np.random.default_rng(1).uniform(-1, 1, (1, 4, 8, 8)).astype(np.float32)
    found = run(quantize(squat(model, made), ranges, layout=layout), x)
    np.testing.assert_array_equal(found["y"], run(made, x)["y"])
