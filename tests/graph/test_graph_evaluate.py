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
from msn_deploy.graph import evaluate
from msn_deploy.graph.doubles import to_double, to_single
from msn_deploy.graph.evaluate import apart, run_float64, values_float64

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
    torch.set_num_threads(3)  # not 1, which it is meanwhile
    found = list(values_float64([graph, other], [{"x": batch} for batch in batches], {"y", "z"}))
    assert torch.get_num_threads() == 3
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


def _chain(kinds: str, *, opset: int = 17, **attributes: Any) -> ModelProto:
    """Return x -> the operators one behind the other -> y, with a 1x1 convolution by w in front."""
    names = ["c", *(f"t{at}" for at in range(len(kinds.split()) - 1)), "y"]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv")]
    for at, kind in enumerate(kinds.split()):
        domain, _, operator = kind.rpartition("::")
        nodes.append(
            helper.make_node(operator, [names[at]], [names[at + 1]], domain=domain, name=f"n{at}", **attributes)
        )
    rng = np.random.default_rng(4)
    weights = {"w": rng.standard_normal((3, 2, 1, 1)), "b": rng.standard_normal(3)}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def _moved(graph: ir.Model, by: float) -> ir.Model:
    """Return a copy whose weight is other by `by`."""
    other = graph.clone()
    weight = other.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * (1 + by))
    return other


X = {"x": np.random.default_rng(5).standard_normal((1, 2, 5, 4))}


def test_a_tensor_is_gone_after_its_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    do = evaluate._Run._do
    monkeypatch.setattr(evaluate._Run, "_do", lambda run, step: (do(run, step), held.append(len(run.values))))
    graph = _double(_chain("Relu Neg Tanh Neg Relu Neg Tanh Neg Exp Sin"))
    wanted = {"c", "t3", "t7", "y"}
    found = list(values_float64([graph, _moved(graph, 1e-3)], [X], wanted))
    assert {each.name for each in found if each.values} == wanted
    assert len(held) == 22
    assert max(held) <= 4  # what is read and what is made, in each graph, and the input


def test_what_both_graphs_compute_alike_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = evaluate._Step.run
    monkeypatch.setattr(
        evaluate._Step, "run", lambda step, *given: (ran.append(step.node.op_type), run(step, *given))[1]
    )
    graph = _double(_chain("Tanh Sin Exp"))
    other = graph.clone()
    other.graph.node(2).op_type = "Cos"
    (found,) = values_float64([graph, other], [X], {"y"})
    assert sorted(ran) == ["Conv", "Cos", "Exp", "Exp", "Sin", "Tanh"]
    assert apart(*found.values)[0] > 0.1
    ran.clear()
    (same,) = values_float64([graph, graph.clone()], [X], {"y"})
    assert (same.values, ran) == ((), [])


def test_what_jumps_is_taken_over_where_its_input_is_the_same_up_to_rounding() -> None:
    graph = _double(_chain("Round"))
    weight = graph.graph.initializers["w"]
    weight.const_value = ir.tensor(np.full((3, 2, 1, 1), 0.5))
    graph.graph.initializers["b"].const_value = ir.tensor(np.zeros(3))
    halves = {"x": np.full((1, 2, 5, 4), 0.5)}  # 0.5, which a trace of rounding makes 1
    for by, expected in ((1e-13, 0.0), (1e-6, 1.0)):
        (found,) = values_float64([graph, _moved(graph, by)], [halves], {"y"})
        assert apart(*found.values)[0] == expected


def test_an_operator_without_float64_is_computed_in_float32_and_named() -> None:
    graph = _double(_chain("Tanh com.microsoft::Gelu Neg"))
    (alone,) = values_float64([graph], [X], {"y"})
    assert (alone.in_float32, alone.coarse) == ({"n1"}, False)
    y = run_float64(_chain("Tanh"), X["x"])
    gelu = torch.nn.functional.gelu(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(alone.values[0], -gelu, rtol=0, atol=1e-6)
    (same,) = values_float64([graph, _moved(graph, 1e-12)], [X], {"y"})
    assert (same.in_float32, same.coarse) == ({"n1"}, False)  # the same operator on the same input: taken over
    assert apart(*same.values)[0] == 0
    (other,) = values_float64([graph, _moved(graph, 1e-3)], [X], {"y"})
    assert (other.in_float32, other.coarse) == ({"n1"}, True)
    assert 1e-5 < apart(*other.values)[0] < 1e-2


def test_a_function_of_the_file_is_run_as_what_it_is_made_of() -> None:
    model = _chain("Tanh local::Twice")
    body = [helper.make_node("Add", ["a", "a"], ["r"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["r"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    np.testing.assert_allclose(run_float64(model, X["x"]), 2 * run_float64(_chain("Tanh"), X["x"]), rtol=1e-14)


def test_a_celu_is_float32_in_its_definition_and_named_after_itself() -> None:
    (found,) = values_float64([_double(_chain("Celu", alpha=0.6))], [X], {"y"})
    assert found.in_float32 == {"n0"}
    assert found.values[0].dtype == np.float64


def test_what_is_not_finite_differs_only_where_one_alone_is() -> None:
    one, other = np.array([1.0, np.inf, np.nan, -3.0]), np.array([1.5, np.inf, np.nan, -3.0])
    assert apart(one, other) == (0.5, 3.0)
    assert apart(one, np.array([1.0, np.inf, 2.0, -3.0])) == (np.inf, 3.0)
    assert apart([one, one], [one, other]) == (0.5, 3.0)
    assert apart(np.array([True, False]), np.array([True, True])) == (1.0, 1.0)
    assert apart(one, one[:2])[0] == np.inf


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_graphs_in_nodes_are_run_node_by_node(opset: int) -> None:
    """A loop that adds up what is outside of it, in a branch."""
    info = helper.make_tensor_value_info
    inner = helper.make_graph(
        [helper.make_node("Add", ["state", "x"], ["next"]), helper.make_node("Identity", ["go"], ["on"]),
         helper.make_node("Mul", ["next", "next"], ["row"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, [2])],
        [info("on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, [2]), info("row", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("last", "rows")]
    loop = helper.make_node("Loop", ["count", "", "zero"], ["last", "rows"], body=inner)
    then = helper.make_graph([loop], "then", [], results)
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["last2"]), helper.make_node("Neg", ["x"], ["rows2"])], "else", [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("last2", "rows2")],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["which"], ["a", "b"], then_branch=then, else_branch=other)],
        "outer",
        [info("x", TensorProto.FLOAT, [2]), info("which", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "ab"],
        [numpy_helper.from_array(np.array(3), "count"), numpy_helper.from_array(np.float32([0.5, -1]), "zero")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    x = np.array([0.25, 1.5])
    for which in (True, False):
        feed = {"x": x, "which": np.array(which)}
        found = {each.name: each.values[0] for each in values_float64([_double(model)], [feed], {"a", "b"})}
        steps = np.array([[0.5, -1]]) + x * np.arange(1, 4)[:, None]
        np.testing.assert_allclose(found["a"], steps[-1] if which else -x, rtol=1e-14)
        np.testing.assert_allclose(found["b"], steps**2 if which else -x, rtol=1e-14)
