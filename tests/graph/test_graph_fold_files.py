"""Graphs of other tools: norms in their spelling, and what has to be left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from fold_nets import C
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.graph.certificate import certify
from msn_deploy.graph.evaluate import run_float64
from msn_deploy.graph.fold import fold_graph
from msn_deploy.model.opset import to_opset


def _model(nodes: list[NodeProto], given: list[int], made: list[int] | None, **arrays: Any) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, made)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _normal(*sizes: int) -> Any:
    return np.random.default_rng(sum(sizes)).standard_normal(sizes).astype(np.float32)


def _held(model: ModelProto, *given: int) -> Any:
    """Fold a graph, and hold it against itself unfolded."""
    folded = fold_graph(model)
    x = np.random.default_rng(3).standard_normal(given)
    np.testing.assert_allclose(run_float64(folded.model, x), run_float64(model, x), atol=1e-5)
    return folded


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(), (6,), (1, 6), (3, 6), (3, 1)])
def test_alpha_and_beta_and_every_shape_of_bias(transposed: int, bias: tuple[int, ...]) -> None:
    weight = _normal(6, C) if transposed else _normal(C, 6)
    nodes = [
        helper.make_node("Mul", ["input", "before"], ["x"]),
        helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], alpha=0.5, beta=2.0, transB=transposed),
        helper.make_node("Sub", ["y", "mean"], ["logits"]),
    ]
    arrays = {"before": _normal(C), "weight": weight, "bias": _normal(*bias), "mean": _normal(6)}
    folded = _held(_model(nodes, [3, C], [3, 6], **arrays), 3, C)
    assert [node.op_type for node in folded.model.graph.node] == ["Gemm"]


def test_a_product_that_reads_its_input_transposed_takes_no_norm() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["input"], ["s"]),
        _norm("s", "norm", "x"),
        helper.make_node("Gemm", ["x", "weight"], ["logits"], transA=1),
    ]
    folded = _held(_model(nodes, [C, C], [C, 6], weight=_normal(C, 6), **_parameters("norm")), C, C)
    assert [fold.code for fold in folded.folds] == ["NOT_PER_CHANNEL"]


def test_a_number_repeated_many_times_stays_an_operator() -> None:
    """Else a file of a kilobyte would become one of gigabytes."""
    nodes = [
        helper.make_node("Expand", ["one", "sizes"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Add", ["input", "sum"], ["logits"]),
    ]
    arrays = {"one": np.float32(1), "sizes": np.array([5000, 5000], np.int64)}
    folded = fold_graph(_model(nodes, [1, C], [1, C], **arrays))
    assert [node.op_type for node in folded.model.graph.node] == ["Expand", "ReduceSum", "Add"]
    assert folded.model.ByteSize() < 1000
    small = fold_graph(_model(nodes, [1, C], [1, C], **{**arrays, "sizes": np.array([50, 50], np.int64)}))
    assert [node.op_type for node in small.model.graph.node] == ["Add"]


def test_an_older_opset_is_another_graph_of_the_same_values(exported: Callable[..., Any]) -> None:
    model = fold_graph(exported("vgg7", "bn", folded=False).graph).model
    x = np.random.default_rng(4).standard_normal((1, 1, 32, 32))
    older = to_opset(fold_graph(model).model, 16)
    onnx.checker.check_model(older, full_check=True)
    assert [entry.version for entry in older.opset_import] == [16]
    np.testing.assert_allclose(run_float64(older, x), run_float64(model, x), atol=1e-12)
    with pytest.raises(InputError, match=r"opset 11 at least, not in 9.\nTry `--opset 11`"):
        to_opset(fold_graph(model).model, 9)


def test_the_norms_of_others_files_fold_too() -> None:
    """MSN as operators: a weight divided by a computed sigma, a mean taken off, a shift added."""
    rng = np.random.default_rng(5)
    arrays = {
        "raw": rng.standard_normal((6, C, 3, 3)).astype(np.float32),
        "sigma": np.float32(2.5),
        "mean": rng.standard_normal((1, 6, 1, 1)).astype(np.float32),
        "shift": rng.standard_normal((6, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Div", ["raw", "sigma"], ["w"]),
        helper.make_node("Conv", ["input", "w"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Sub", ["y", "mean"], ["centred"]),
        helper.make_node("Identity", ["centred"], ["same"]),
        helper.make_node("Add", ["shift", "same"], ["z"]),
        helper.make_node("Dropout", ["z"], ["dropped"]),
        helper.make_node("Relu", ["dropped"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, C, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 6, 8, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folded = fold_graph(model)
    onnx.checker.check_model(folded.model, full_check=True)
    assert [node.op_type for node in folded.model.graph.node] == ["Conv", "Relu"]
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in folded.model.graph.initializer)
    x = rng.standard_normal((1, C, 8, 8))
    np.testing.assert_allclose(run_float64(folded.model, x), run_float64(model, x), atol=1e-6)
    assert _sum(model) == _sum(_untouched(model))


def _untouched(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    fold_graph(copied)
    return copied


def _sum(model: ModelProto) -> bytes:
    found: bytes = model.SerializeToString(deterministic=True)
    return found


@pytest.mark.parametrize("where", ["initializer", "attribute"])
@pytest.mark.parametrize("read", ["input", "scale", "nothing"])
def test_graphs_of_two_precisions_are_left_alone(exported: Callable[..., Any], where: str, read: str) -> None:
    """A constant that is only cast, or that nothing reads, is none of a second precision."""
    model = exported("cnn3", "bn", folded=False).graph
    half = numpy_helper.from_array(np.full(1, 0.5, np.float16), "half")
    if where == "initializer":
        model.graph.initializer.append(half)
    else:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["half"], value=half))
    if read == "input":
        model.graph.node.append(helper.make_node("Cast", ["logits"], ["low"], to=TensorProto.FLOAT16))
        model.graph.node.append(helper.make_node("Mul", ["low", "half"], ["more"]))
        model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT16, [1, 10]))
    elif read == "scale":
        norm = next(at for at, node in enumerate(model.graph.node) if node.op_type == "BatchNormalization")
        behind = model.graph.node[norm].output[0]
        model.graph.node[norm].output[0] = "unscaled"
        model.graph.node.insert(norm + 1, helper.make_node("Cast", ["half"], ["cast"], to=TensorProto.FLOAT))
        model.graph.node.insert(norm + 2, helper.make_node("Mul", ["unscaled", "cast"], [behind]))
    folds = fold_graph(model).folds
    assert {fold.code for fold in folds} == ({"MIXED_PRECISION"} if read == "input" else {""})
    assert len(folds) == 3 + (read == "scale")


def test_a_graph_in_half_precision_keeps_its_norms_and_its_precision() -> None:
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["y"]),
        helper.make_node("BatchNormalization", ["y", *"gbmv"], ["z"]),
    ]
    arrays = {"w": _normal(C, C, 1, 1), **{name: abs(_normal(C)) for name in "gbmv"}}
    casts = [helper.make_node("Cast", ["z"], ["logits"], to=TensorProto.FLOAT16)]
    model = _model(nodes + casts, [1, C, 4, 4], [1, C, 4, 4], **{k: a.astype(np.float16) for k, a in arrays.items()})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    folded = fold_graph(model)
    assert [fold.code for fold in folded.folds] == ["HALF_PRECISION"]
    assert {tensor.data_type for tensor in folded.model.graph.initializer} == {TensorProto.FLOAT16}


def test_a_variance_below_zero_is_kept_and_told(exported: Callable[..., Any]) -> None:
    model = exported("cnn3", "bn", folded=False).graph
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    var = next(tensor for tensor in model.graph.initializer if tensor.name == norm.input[4])
    var.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(var) - 100, var.name))
    assert [fold.code for fold in fold_graph(model).folds] == ["NOT_FINITE", "", ""]


def _norm(reads: str, name: str, makes: str) -> NodeProto:
    """A BatchNormalization of parameters name.0 to name.3; see `_parameters`."""
    return helper.make_node("BatchNormalization", [reads, *(f"{name}.{at}" for at in range(4))], [makes], epsilon=1e-3)


def _parameters(name: str, channels: int = C) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    gain, bias, mean = (rng.standard_normal(channels).astype(np.float32) for _ in range(3))
    var = rng.random(channels).astype(np.float32) + 0.2
    return dict(zip((f"{name}.{at}" for at in range(4)), (abs(gain) + 0.1, bias, mean, var), strict=True))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("kind", ["Resize", "Upsample"])
def test_norms_around_a_resize_by_scales_fold_and_nothing_is_said_of_shapes_before(kind: str, mode: str) -> None:
    """Its scales are float32 by its schema, in a graph of doubles too."""
    reads = ["r", "", "scales"] if kind == "Resize" else ["r", "scales"]
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], pads=[1, 1, 1, 1]),
        _norm("c", "first", "n"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node(kind, reads, ["up"], mode=mode),
        helper.make_node("Conv", ["up", "v"], ["d"]),
        helper.make_node(kind, ["d", *reads[1:]], ["more"], mode=mode),
        _norm("more", "second", "logits"),
    ]
    arrays = {"w": _normal(C, C, 3, 3), "v": _normal(C, C, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}
    model = _model(nodes, [1, C, 6, 6], None, **arrays, **_parameters("first"), **_parameters("second"))
    if kind == "Upsample":
        model.opset_import[0].version = 9
    folded = fold_graph(model)
    assert {fold.norm: fold.rule for fold in folded.folds} == {"first": "into-producer", "second": "into-producer"}
    assert [node.op_type for node in folded.model.graph.node] == ["Conv", "Relu", kind, "Conv", kind]
    assert certify(folded).is_exact


@pytest.mark.parametrize(
    ("behind", "code"), [("Conv", ""), ("Relu", "UNKNOWN_SHAPE"), ("Concat", "UNKNOWN_SHAPE"), ("Max", "UNKNOWN_SHAPE")]
)
def test_a_norm_of_a_tensor_of_unknown_shape_folds_or_says_so(behind: str, code: str) -> None:
    """It is reshaped to sizes that are computed from the input, of which even the number is not known."""
    nodes = [
        helper.make_node("Greater", ["input", "huge"], ["never"]),
        helper.make_node("Cast", ["never"], ["zeros"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["zero", "mask"], ["marked"]),
        helper.make_node("NonZero", ["marked"], ["places"]),
        helper.make_node("Squeeze", ["places", "axis"], ["sizes"]),
        helper.make_node("Reshape", ["input", "sizes"], ["x"]),
        _norm("x", "norm", "n"),
        helper.make_node("Conv", ["n" if behind == "Conv" else "b", "w"], ["logits"]),
    ]
    inner = {"Relu": ["n"], "Concat": ["n", "n"], "Max": ["n", "bound"]}.get(behind)
    if inner:
        nodes.insert(-1, helper.make_node(behind, inner, ["b"], **({"axis": 1} if behind == "Concat" else {})))
    weight = _normal(2, 6 if behind == "Concat" else 3, 1, 1)
    arrays = {"huge": np.float32(1e30), "mask": np.array([0, 1, 0, 1, 1, 1], np.float32), "axis": np.array([0])}
    arrays |= {"w": weight, "bound": _normal(3, 1, 1), **_parameters("norm", 3)}
    folded = _held(_model(nodes, [1, 3, 20], None, **arrays), 1, 3, 20)
    assert [(fold.norm, fold.code) for fold in folded.folds] == [("norm", code)]


def test_statistics_that_are_computed_are_told_from_a_shape_that_is_not_known() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[0, 2, 3], keepdims=0),
        helper.make_node("BatchNormalization", ["input", "norm.0", "norm.1", "mean", "norm.3"], ["logits"]),
    ]
    folded = fold_graph(_model(nodes, [1, C, 4, 4], None, **_parameters("norm")))
    assert [fold.code for fold in folded.folds] == ["COMPUTED_WEIGHT"]


ARITHMETIC = {
    "GELU": [
        helper.make_node("Div", ["c", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "half"], ["f"]),
        helper.make_node("Mul", ["c", "f"], ["g"]),
        helper.make_node("Mul", ["g", "half"], ["logits"]),
    ],
    "anchors": [
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["s", "root"], ["m"]),
        helper.make_node("Sub", ["m", "half"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["q"]),
        helper.make_node("Mul", ["q", "strides"], ["logits"]),
    ],
    "attention": [
        helper.make_node("MatMul", ["c", "c"], ["p"]),
        helper.make_node("Mul", ["p", "half"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["logits"]),
    ],
}


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_arithmetic_that_stays_is_no_norm_that_is_kept(kind: str) -> None:
    nodes = [helper.make_node("Conv", ["input", "w"], ["b"]), _norm("b", "norm", "c"), *ARITHMETIC[kind]]
    arrays = {"root": np.float32(2**0.5), "half": np.float32(0.5), "strides": _normal(1, C, 1, 1)}
    folded = _held(
        _model(nodes, [1, C, 4, 4], None, w=_normal(C, C, 1, 1), **arrays, **_parameters("norm")), 1, C, 4, 4
    )
    assert [(fold.norm, fold.rule) for fold in folded.folds] == [("norm", "into-producer")]
    assert certify(folded).kept == []
    kinds = sorted(node.op_type.replace("Sub", "Add") for node in folded.model.graph.node)
    assert kinds == sorted(["Conv", *(node.op_type.replace("Sub", "Add") for node in ARITHMETIC[kind])])


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_norm_in_arithmetic_that_stays_is_kept(where: str) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["input"], ["s"]),
        _norm("s", "norm", "n") if where == "before" else helper.make_node("Mul", ["s", "gain"], ["n"]),
        helper.make_node("Mul", ["n", "gain"], ["m"]) if where == "before" else _norm("n", "norm", "m"),
        helper.make_node("Softmax", ["m"], ["logits"]),
    ]
    folded = _held(_model(nodes, [1, C, 4, 4], None, gain=_normal(C, 1, 1), **_parameters("norm")), 1, C, 4, 4)
    assert [node.op_type for node in folded.model.graph.node] == ["Sigmoid", "BatchNormalization", "Softmax"]
    assert sorted(fold.rule for fold in folded.folds)[-1] == "kept"
    assert sum(fold.rule == "kept" for fold in folded.folds) == 1
