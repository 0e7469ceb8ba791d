"""A graph in float64 is valid where operators have no float64, and comes back as it was."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from msn_deploy.graph.doubles import to_double, to_single

DOUBLE, FLOAT = ir.DataType.DOUBLE, ir.DataType.FLOAT


def _graph(
    nodes: list[onnx.NodeProto], outputs: dict[str, int], constants: dict[str, Any], opset: int = 17
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _both_ways(model: ModelProto) -> tuple[ir.Model, ModelProto]:
    """Return the graph in float64, checked, and what comes back."""
    graph = ir.from_proto(model)
    to_double(graph)
    onnx.shape_inference.infer_shapes(ir.to_proto(graph), check_type=True, strict_mode=True, data_prop=True)
    back = graph.clone()
    to_single(back)
    return graph, ir.to_proto(back)


def _nodes(model: ModelProto) -> list[tuple[str, list[str], list[str]]]:
    return [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node]


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 19])
def test_scales_of_a_resize_stay_float32(opset: int) -> None:
    scales = np.float32([1, 1, 2, 1.7])
    inputs = ["x", "s"] if opset == 10 else ["x", "", "s"]
    model = _graph([helper.make_node("Resize", inputs, ["y"])], {"y": TensorProto.FLOAT}, {"s": scales}, opset)
    double, back = _both_ways(model)
    assert double.graph.initializers["s"].dtype == FLOAT
    assert double.graph.outputs[0].dtype == DOUBLE
    assert _nodes(back) == _nodes(model)


def test_scales_that_are_computed_are_cast_and_uncast() -> None:
    nodes = [helper.make_node("Mul", ["a", "b"], ["s"]), helper.make_node("Resize", ["x", "", "s"], ["y"])]
    model = _graph(nodes, {"y": TensorProto.FLOAT}, {"a": np.float32([1, 1, 2, 2]), "b": np.float32([1, 1, 0.5, 1])})
    double, back = _both_ways(model)
    assert [node.op_type for node in double.graph] == ["Mul", "Cast", "Resize"]
    assert _nodes(back) == _nodes(model)


def test_a_constant_that_both_kinds_read_is_float64_with_a_cast() -> None:
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["r"]), helper.make_node("Neg", ["s"], ["n"])]
    model = _graph(nodes, {"r": TensorProto.FLOAT, "n": TensorProto.FLOAT}, {"s": np.float32([1, 1, 2, 0.3])})
    double, back = _both_ways(model)
    assert double.graph.initializers["s"].dtype == DOUBLE
    assert sorted(_nodes(back)) == sorted(_nodes(model))
    np.testing.assert_array_equal(numpy_helper.to_array(back.graph.initializer[0]), np.float32([1, 1, 2, 0.3]))


@pytest.mark.parametrize("annotated", [False, True])
def test_an_operator_without_float64_is_cast_around_and_keeps_its_names(annotated: bool) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Celu", ["s"], ["c"], alpha=0.7),
        helper.make_node("Exp", ["c"], ["y"]),
    ]
    model = _graph(nodes, {"y": TensorProto.FLOAT, "c": TensorProto.FLOAT}, {})
    if annotated:
        model = onnx.shape_inference.infer_shapes(model)
    double, back = _both_ways(model)
    assert [node.op_type for node in double.graph] == ["Sigmoid", "Cast", "Celu", "Cast", "Exp"]
    assert [value.dtype for value in double.graph.outputs] == [DOUBLE, DOUBLE]
    assert [value.name for value in double.graph.outputs] == ["y", "c"]
    assert _nodes(back) == _nodes(model)


def test_what_makes_float32_by_default_makes_float64() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("RandomUniform", [], ["random"], shape=[1], seed=3.0),
        helper.make_node("Sum", ["x", "zeros", "half", "random"], ["y"]),
    ]
    model = _graph(nodes, {"y": TensorProto.FLOAT}, {})
    double, back = _both_ways(model)
    assert all(
        value.dtype in (DOUBLE, None) for node in double.graph for value in node.outputs if value.name != "shape"
    )
    onnx.shape_inference.infer_shapes(back, check_type=True, strict_mode=True)
    assert _nodes(back) == _nodes(model)


def test_sequences_are_of_float64_too() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["y"], axis=2),
    ]
    model = _graph(nodes, {"y": TensorProto.FLOAT}, {})
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    model.graph.value_info.append(parts)
    double, back = _both_ways(model)
    assert double.graph.node(0).outputs[0].type == ir.SequenceType(ir.TensorType(DOUBLE))
    assert back.graph.value_info[0].type == parts.type


def test_doubles_of_large_constants_are_not_kept_and_come_back_themselves() -> None:
    w = np.random.default_rng(3).standard_normal((1 << 9, 1 << 11)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
    graph = ir.from_proto(_graph(nodes, {"y": TensorProto.FLOAT}, {"w": w}))
    before = graph.graph.initializers["w"].const_value
    tracemalloc.start()
    to_double(graph)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < w.nbytes / 8
    wide = graph.graph.initializers["w"]
    assert wide.dtype == DOUBLE
    assert wide.const_value is not None
    assert wide.const_value.dtype == DOUBLE
    np.testing.assert_array_equal(wide.const_value.numpy(), w.astype(np.float64))
    to_single(graph)
    assert graph.graph.initializers["w"].const_value is before


def test_names_that_a_file_has_already_are_left_to_it(squat: Callable[..., ModelProto]) -> None:
    nodes = [helper.make_node("Mul", ["a", "b"], ["s"]), helper.make_node("Resize", ["x", "", "s"], ["y"])]
    model = _graph(nodes, {"y": TensorProto.FLOAT}, {"a": np.float32([1, 1, 2, 2]), "b": np.float32([1, 1, 0.5, 1])})
    squatted = squat(model, ir.to_proto(_both_ways(model)[0]))
    assert _nodes(_both_ways(squatted)[1]) == _nodes(squatted)
