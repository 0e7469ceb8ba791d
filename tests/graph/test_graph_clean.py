"""Constants are computed where that helps, and never where it would fill the file or change what it says."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.graph.clean import clean

SHAPE = (2, 3, 4, 4)


def _model(*nodes: NodeProto, opset: int = 17, rank: int = 4, **arrays: Any) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def _cleaned(model: ModelProto) -> tuple[ModelProto, list[str]]:
    graph = ir.from_proto(model)
    clean(graph)
    result = ir.to_proto(graph)
    onnx.checker.check_model(result, full_check=True)
    assert b"onnxscript" not in result.SerializeToString()
    return result, [node.op_type for node in result.graph.node]


def _flatten_by_hand() -> ModelProto:
    """Reshape to (N, -1) as torch's older exporter wrote it: sizes of the input, taken apart and put together."""
    return _model(
        _node("Shape", "x", "sizes"),
        _node("Gather", "sizes first", "batch"),
        _node("Unsqueeze", "batch axis", "batches"),
        _node("Concat", "batches rest", "shape", axis=0),
        _node("Reshape", "x shape", "y"),
        rank=2,
        first=np.int64(0),
        axis=np.array([0]),
        rest=np.array([-1]),
    )


def test_a_chain_of_sizes_is_gone_as_it_is_after_onnxsim(run: Callable[..., Any]) -> None:
    import onnxsim

    model = _flatten_by_hand()
    result, kinds = _cleaned(model)
    assert kinds == ["Reshape"] == [node.op_type for node in onnxsim.simplify(model)[0].graph.node]
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(run(result, x)["y"], x.reshape(2, -1))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert "Reshape" in _cleaned(model)[1]
    assert len(_cleaned(model)[1]) > 1  # with an open batch there is something to compute


HUGE = {
    "Expand": [_node("Expand", "one sizes", "big")],
    "Tile": [_node("Unsqueeze", "one axes", "ones"), _node("Tile", "ones sizes", "big")],
    "ConstantOfShape": [_node("ConstantOfShape", "sizes", "big")],
    "Range": [
        _node("ReduceProd", "sizes", "end", keepdims=0),
        _node("Cast", "end", "stop", to=TensorProto.FLOAT),
        _node("Range", "one stop one", "big"),
    ],
    "Pad": [_node("Unsqueeze", "one axes", "ones"), _node("Pad", "ones pads", "big")],
    "OneHot": [_node("OneHot", "many depth values", "big")],
}


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("kind", HUGE)
def test_a_constant_of_a_gigabyte_is_not_even_computed(kind: str, claimed: bool) -> None:
    """claimed: the file says that it has one element, which nobody checks where the sizes are computed."""
    side = 1 << 14  # squared: 1 GiB of float32
    model = _model(
        _node("Add", "half half", "sizes"),
        *HUGE[kind],
        _node("ReduceSum", "big", "sum", keepdims=0),
        _node("Add", "x sum", "y"),
        half=np.array([side // 2, side // 2]),
        one=np.float32(1),
        axes=np.array([0, 1]),
        pads=np.array([0, 0, side, side]),
        many=np.zeros(side, np.int64),
        depth=np.int64(side),
        values=np.array([0, 1], np.float32),
    )
    if claimed:
        model.graph.value_info.append(helper.make_tensor_value_info("big", TensorProto.FLOAT, (1,)))
    tracemalloc.start()
    try:
        graph = ir.from_proto(model)
        clean(graph)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [node.op_type for node in graph.graph][-3:] == [kind, "ReduceSum", "Add"]
    assert ir.to_proto(graph).ByteSize() < 1 << 18
    assert peak < 1 << 25


def test_many_constants_together_do_not_make_a_file_much_larger() -> None:
    parts = 100
    nodes = [_node("Expand", "one sizes", f"big{at}") for at in range(parts)]
    sums = [_node("Mul", f"{f'y{at}' if at else 'x'} big{at}", f"y{at + 1}") for at in range(parts)]
    model = _model(
        *nodes,
        *sums,
        _node("Identity", f"y{parts}", "y"),
        one=np.float32(2),
        rank=5,
        sizes=np.array([4096, 1, 1, 4, 4]),
    )
    result, kinds = _cleaned(model)
    assert 0 < kinds.count("Expand") < parts
    assert 8 << 20 < result.ByteSize() <= 17 << 20


def test_what_is_made_smaller_or_stays_as_large_is_computed_whatever_its_size() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 1 << 21)).astype(np.float32)
    nodes = [_node("Transpose", "w", "t"), _node("Neg", "t", "n"), _node("ReduceSum", "n axes", "s")]
    result, kinds = _cleaned(_model(*nodes, _node("Mul", "x s", "y"), w=weight, axes=np.array([0])))
    assert kinds == ["Mul"]
    assert result.ByteSize() < 1000


@pytest.mark.parametrize(
    "kind", ["QuantizeLinear", "DequantizeLinear", "RandomUniformLike", "Bernoulli", "Multinomial"]
)
def test_quantisation_and_dice_stay(kind: str) -> None:
    """They say which scales an engine is to use, and what is thrown anew in each run."""
    array = np.ones((2, 3), np.int8 if kind == "DequantizeLinear" else np.float32)
    scale = " scale" if "Quantize" in kind or kind == "DequantizeLinear" else ""
    nodes = [_node(kind, f"w{scale}", "v"), _node("Cast", "v", "f", to=1), _node("ReduceSum", "f", "s", keepdims=0)]
    model = _model(*nodes, _node("Add", "x s", "y"), w=array, scale=np.float32(0.5))
    assert kind in _cleaned(model)[1]


@pytest.mark.parametrize("kind", ["Reshape", "Unsqueeze", "Squeeze"])
def test_a_parameter_in_another_shape_keeps_the_name_that_people_know(kind: str) -> None:
    weight = np.arange(3, dtype=np.float32).reshape((3, 1, 1, 1) if kind == "Squeeze" else (3,))
    sizes = {"Reshape": [3, 1, 1], "Unsqueeze": [1, 2], "Squeeze": [1]}[kind]
    model = _model(_node(kind, "layer.bias sizes", "val_3"), _node("Add", "x val_3", "y"), sizes=np.array(sizes))
    model.graph.initializer.append(numpy_helper.from_array(weight, "layer.bias"))
    result, kinds = _cleaned(model)
    assert kinds == ["Add"]
    assert [tensor.name for tensor in result.graph.initializer] == ["layer.bias"]
    assert list(result.graph.node[0].input) == ["x", "layer.bias"]


def test_a_parameter_that_is_also_read_as_it_is_keeps_its_name_to_itself() -> None:
    nodes = [_node("Reshape", "b sizes", "val_3"), _node("Add", "x val_3", "z"), _node("Mul", "z b", "y")]
    result, _ = _cleaned(_model(*nodes, b=np.ones(4, np.float32), sizes=np.array([1, 1, 4])))
    assert {tensor.name: tuple(tensor.dims) for tensor in result.graph.initializer} == {"b": (4,), "val_3": (1, 1, 4)}


@pytest.mark.parametrize(("source", "kinds"), [("c", ["Add"]), ("x", ["Cast", "Cast", "Add"])])
def test_cast_like_is_a_cast_or_nothing(source: str, kinds: list[str]) -> None:
    nodes = [_node("Cast", source, "d", to=11), _node("CastLike", "d x", "f"), _node("Add", "x f", "y")]
    assert _cleaned(_model(*nodes, c=np.float16(2)))[1] == kinds


@pytest.mark.parametrize("opset", [9, 17])
def test_a_dropout_is_gone_and_an_output_stays(opset: int) -> None:
    assert _cleaned(_model(_node("Dropout", "x", "d"), _node("Relu", "d", "y"), opset=opset))[1] == ["Relu"]
    assert _cleaned(_model(_node("Neg", "w", "y"), rank=1, w=np.ones(2, np.float32)))[1] == ["Neg"]


def test_what_cannot_be_computed_or_contradicts_itself_stays_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = [_node("Add", "v w", "s"), helper.make_node("Split", ["w"], ["a", "b"]), _node("Mul", "x s", "y")]
    model = _model(*nodes, v=np.ones(3, np.float32), w=np.ones(4, np.float32))
    level = logging.getLogger("onnxscript.optimizer").level
    graph = ir.from_proto(model)
    with caplog.at_level(logging.INFO):
        clean(graph)
    assert [node.op_type for node in graph.graph] == ["Add", "Mul"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("onnxscript.optimizer").level == level


def test_an_operator_that_the_library_fails_on_stays() -> None:
    """onnxscript 0.7.2 knows SplitToSequence, but not by a size that is computed."""
    nodes = [
        _node("Shape", "x", "sizes"),
        _node("ReduceMax", "x", "largest", keepdims=0),
        _node("Cast", "largest", "size", to=TensorProto.INT64),
        _node("SplitToSequence", "x size", "parts", axis=1),
        _node("SequenceAt", "parts size", "y"),
    ]
    assert _cleaned(_model(*nodes))[1] == ["ReduceMax", "Cast", "SplitToSequence", "SequenceAt"]


def test_what_a_range_reads_as_a_list_of_one_becomes_a_number(run: Callable[..., Any]) -> None:
    nodes = [_node("ReduceMin", "x", "least", keepdims=0), _node("Range", "least most step", "y")]
    model = _model(*nodes, rank=1, most=np.array([9], np.float32), step=np.array([0.75], np.float32))
    graph = ir.from_proto(model)
    clean(graph)
    x = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
    (y,) = run(ir.to_proto(graph), x).values()
    np.testing.assert_allclose(y, np.arange(x.min(), 9, 0.75), rtol=1e-6)
    assert graph.graph.initializers["step"].shape == ()
