"""The float64 truth agrees with ONNX Runtime, which shares no code with it, on every window that there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.graph.evaluate import run_float64, to_double, to_single, values_float64

SIZES = {1: (9,), 2: (9, 8), 3: (7, 6, 5)}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    *(("Conv", sides, {"pads": [1] * 2 * sides, "strides": [2] * sides}) for sides in (1, 2, 3)),
    ("Conv", 2, {"pads": [0, 1, 2, 1], "dilations": [2, 1]}),
    ("Conv", 2, {"group": 2, "strides": [1, 2]}),
    *(("Conv", 2, {"auto_pad": auto, "strides": [2, 3]}) for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    *(("ConvTranspose", sides, {"strides": [2] * sides}) for sides in (1, 2, 3)),
    ("ConvTranspose", 2, {"group": 2, "pads": [0, 1, 2, 0], "strides": [2, 3], "output_padding": [1, 0]}),
    ("ConvTranspose", 2, {"dilations": [2, 1]}),
    *(("Conv", sides, {"group": 4, "strides": [2] * sides, "pads": [0, 2, 1][:sides] * 2}) for sides in (1, 2, 3)),
    ("Conv", 2, {"group": 4, "dilations": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", 2, {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    *((kind, sides, {"strides": [2] * sides}) for kind in ("MaxPool", "AveragePool") for sides in (1, 2, 3)),
    *((kind, 2, {"pads": [1, 1, 1, 1], "ceil_mode": 1}) for kind in ("MaxPool", "AveragePool")),
    *((kind, 2, {"auto_pad": "SAME_LOWER"}) for kind in ("MaxPool",)),
    ("MaxPool", 2, {"pads": [0, 1, 1, 0], "dilations": [1, 2]}),
    ("AveragePool", 2, {"pads": [0, 1, 1, 0], "count_include_pad": 1}),
    *(("AveragePool", 2, {"pads": [1, 1, 1, 1], "count_include_pad": each, "strides": [2, 2]}) for each in (0, 1)),
    ("AveragePool", 2, {"pads": [0, 1, 1, 0], "count_include_pad": 0, "ceil_mode": 1, "strides": [2, 3]}),
    ("MaxPool", 2, {"pads": [0, 1, 1, 0], "ceil_mode": 1, "strides": [2, 3]}),
    *(("ConvTranspose", 2, {"auto_pad": auto, "strides": [2, 2]}) for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    *(("ConvTranspose", 2, {"output_shape": [19, size], "strides": [2, 2]}) for size in (15, 16, 17)),
]


def _graph(kind: str, sides: int, attributes: dict[str, Any]) -> ModelProto:
    rng = np.random.default_rng(1)
    group, shape = attributes.get("group", 1), [2, 4, *SIZES[sides]]
    arrays = {}
    if kind.startswith("Conv"):
        made = 8 if group == 4 else 6
        channels = (made, 4 // group) if kind == "Conv" else (4, made // group)
        arrays = {"w": rng.standard_normal((*channels, *[3] * sides)), "b": rng.standard_normal(made)}
    else:
        attributes = {"kernel_shape": [3] * sides, **attributes}
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *arrays], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _double(model: ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    to_double(graph)
    return graph


@pytest.mark.parametrize(("kind", "sides", "attributes"), CASES)
def test_windows_are_those_of_onnx_runtime(kind: str, sides: int, attributes: dict[str, Any]) -> None:
    model = _graph(kind, sides, attributes)
    x = np.random.default_rng(2).standard_normal((2, 4, *SIZES[sides])).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    got = run_float64(model, x)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_an_operator_that_nobody_knows_is_refused_with_a_way_out() -> None:
    model = _graph("MaxPool", 2, {})
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(InputError, match=r"y \(MaxPool\) could not be computed[\s\S]*`--no-fold` exports"):
        run_float64(model, np.zeros((2, 4, 9, 8)))


def test_to_double_and_back_is_the_same_file() -> None:
    model = _graph("Conv", 2, {})
    model.graph.node.append(helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([2.5]))))
    before = model.SerializeToString()
    graph = ir.from_proto(model)
    to_double(graph)
    double = ir.to_proto(graph)
    assert {tensor.data_type for tensor in double.graph.initializer} == {TensorProto.DOUBLE}
    assert {v.type.tensor_type.elem_type for v in (*double.graph.input, *double.graph.output)} == {TensorProto.DOUBLE}
    assert double.graph.node[1].attribute[0].i == TensorProto.DOUBLE
    assert double.graph.node[2].attribute[0].t.data_type == TensorProto.DOUBLE
    to_single(graph)
    assert ir.to_proto(graph).SerializeToString() == ir.to_proto(ir.from_proto(model)).SerializeToString()
    assert model.SerializeToString() == before


def test_tensors_between_are_told_per_graph_and_feed() -> None:
    model = _graph("Conv", 2, {})
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    graph = _double(model)
    other = _double(model)
    other.graph.node(1).op_type = "Neg"
    batches = list(np.random.default_rng(0).standard_normal((3, 2, 4, 9, 8)))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)  # not 1, which it is meanwhile
    found = list(values_float64([graph, other], [{"x": batch} for batch in batches], {"y", "z"}))
    after_it = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert after_it == 3
    assert sorted((each.feed, each.name) for each in found) == [(at, name) for at in range(3) for name in "yz"]
    values = {(each.feed, each.name): each.values for each in found}
    for at, batch in enumerate(batches):
        y = run_float64(_graph("Conv", 2, {}), batch)
        assert values[at, "y"] == ()  # both make it of the same
        np.testing.assert_allclose(values[at, "z"][0], np.maximum(y, 0), rtol=0, atol=1e-13)
        np.testing.assert_allclose(values[at, "z"][1], -y, rtol=0, atol=1e-13)


def test_weights_are_copied_once_and_not_for_every_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "from_numpy", lambda array: seen.append(array) or torch.as_tensor(array))
    list(values_float64([_double(_graph("Conv", 2, {}))], [{"x": np.zeros((2, 4, 9, 8))}] * 2, {"y"}))
    weights = [array.__array_interface__["data"][0] for array in seen if array.shape == (6, 4, 3, 3)]
    assert len(weights) == 2
    assert len(set(weights)) == 1
