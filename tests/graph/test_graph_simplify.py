"""onnxsim may help, and must not be able to harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn

from msn_deploy.graph.export import to_onnx
from msn_deploy.graph.fold import fold_graph
from msn_deploy.graph.simplify import simplify

_COPY = """
def simplify(model, **options):
    copied = type(model)()
    copied.CopyFrom(model)
    {change}
    return copied, True
"""


def _kept(graph: ModelProto, **options: Any) -> str:
    """Hold that the very graph comes back, as it was, and return why."""
    before = graph.SerializeToString()
    result = simplify(graph, **options)
    assert result.model is graph
    assert graph.SerializeToString() == before
    assert result.kept_because is not None
    return result.kept_because


def test_outputs_stay_and_dead_weight_goes(
    exported: Callable[..., Any], run: Callable[..., Any], digits: Callable[..., Any]
) -> None:
    made = exported("cnn3", "bn", folded=False)
    result = simplify(made.graph)
    assert result.kept_because is None
    kinds = [node.op_type for node in result.model.graph.node]
    assert len(kinds) < len(made.graph.graph.node)
    assert not {"Constant", "Concat"} & set(kinds)
    batch = digits(5)
    expected = made.logits(batch)
    np.testing.assert_allclose(run(result.model, batch)["logits"], expected, atol=1e-5 * np.abs(expected).max())


def test_an_open_batch_stays_open(exported: Callable[..., Any]) -> None:
    result = simplify(exported("cnn3", "msn", dynamic=True).graph)
    assert result.kept_because is None
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def _conv(channels: int, *behind: onnx.NodeProto) -> ModelProto:
    """A convolution with a large weight and a small bias, and what stands behind it, reading y and writing z."""
    rng = np.random.default_rng(3)
    arrays = {"w": rng.standard_normal((channels, 3, 3, 3)), "b": rng.standard_normal(channels)}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv"), *behind],
        "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 3, 6, 6))],
        [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, (1, channels, 4, 4))],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_weights_come_back_to_the_bit(run: Callable[..., Any]) -> None:
    graph = _conv(
        64, *(onnx.helper.make_node(kind, [a], [b]) for kind, a, b in (("Identity", "y", "i"), ("Relu", "i", "z")))
    )
    before = graph.SerializeToString()
    result = simplify(graph)
    assert (result.kept_because, result.unchanged) == (None, False)
    assert graph.SerializeToString() == before
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu"]
    assert [value.name for value in result.model.graph.input] == ["x"]
    old, new = (
        {each.name: onnx.numpy_helper.to_array(each).tobytes() for each in model.graph.initializer}
        for model in (graph, result.model)
    )
    assert old == new
    batch = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(result.model, batch)["z"], run(graph, batch)["z"])


@pytest.mark.parametrize("change", ["", "copied.graph.node[0].name = 'other'"])
def test_a_graph_in_which_nothing_is_left_to_do_comes_back_itself(fake: Callable[[str], Path], change: str) -> None:
    fake(_COPY.format(change=change))
    graph = _conv(64, onnx.helper.make_node("Relu", ["y"], ["z"]))
    result = simplify(graph)
    assert (result.kept_because, result.unchanged) == (None, True)
    assert result.model is graph


@pytest.mark.parametrize("change", [
    "weight = copied.graph.initializer[0]; weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]",
    "copied.graph.node[1].op_type = 'Sigmoid'",
])  # fmt: skip
def test_the_least_change_is_seen(fake: Callable[[str], Path], change: str) -> None:
    fake(_COPY.format(change=change))
    result = simplify(_conv(64, onnx.helper.make_node("Relu", ["y"], ["z"])))
    assert (result.kept_because, result.unchanged) == (None, False)
    assert len(result.model.graph.initializer) == 2


def test_weights_that_are_equal_are_kept_once() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [onnx.helper.make_node("MatMul", [a, b], [c]) for a, b, c in (("x", "v", "p"), ("r", "w", "y"))]
    graph = onnx.helper.make_graph(
        [nodes[0], onnx.helper.make_node("Relu", ["p"], ["r"]), nodes[1]],
        "twice",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2, 64))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 64))],
        [onnx.numpy_helper.from_array(weight, name) for name in "vw"],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    result = simplify(model)
    assert not result.unchanged
    assert len(result.model.graph.initializer) == 1


def test_small_biases_that_are_equal_are_no_reason_to_change_a_file() -> None:
    """Untrained networks are full of them, and another graph has to be run once more."""
    model = _conv(64, onnx.helper.make_node("Conv", ["y", "v", "c"], ["z"]))
    rng, bias = np.random.default_rng(4), onnx.numpy_helper.to_array(model.graph.initializer[1])
    for name, array in (("v", rng.standard_normal((64, 64, 3, 3)).astype(np.float32)), ("c", bias)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 2
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 2
    result = simplify(model)
    assert result.unchanged
    assert result.model is model


def test_weights_that_are_listed_as_inputs_do_not_count_as_such(tiny: Callable[..., ModelProto]) -> None:
    graph = tiny("MatMul")
    graph.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (3, 4)))
    assert simplify(graph).kept_because is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "def simplify(model, **options):\n    raise RuntimeError('segmentation\\nin spirit')",
            "(RuntimeError: segmentation in spirit)",
        ),
        ("import os\ndef simplify(model, **options):\n    os.abort()", "onnxsim failed (killed by SIGABRT)"),
        (
            "import os\ndef simplify(model, **options):\n    os._exit(0)",
            "onnxsim failed (its file cannot be read: FileNotFound",
        ),
        (
            "import os\ndef simplify(model, **options):\n    open('after.onnx', 'w').write('half'); os._exit(0)",
            "onnxsim failed (its file cannot be read: DecodeError)",
        ),
        ("import os\ndef simplify(model, **options):\n    os._exit(3)", "onnxsim failed (exit code 3)"),
        ("def simplify(model, **options):\n    return bytearray(8 << 30), True", "(MemoryError"),
        (_COPY.format(change="copied.graph.node[-1].output[0] = 'elsewhere'"), "onnxsim failed (its graph is not"),
        (
            _COPY.format(change="copied.graph.input[0].name = copied.graph.node[0].input[0] = 'image'"),
            "onnxsim changed the inputs from x (float 1x2x3x3) to image (float 1x2x3x3)",
        ),
        (
            _COPY.format(change="copied.graph.output[0].name = copied.graph.node[-1].output[0] = 'z'"),
            "onnxsim changed the outputs from y (float 1x2x3x3) to z (float 1x2x3x3)",
        ),
        (
            _COPY.format(change="copied.graph.input[0].type.tensor_type.shape.dim[0].dim_param = 'n'"),
            "onnxsim changed the inputs from x (float 1x2x3x3) to x (float nx2x3x3)",
        ),
        (
            _COPY.format(change="[v.type.tensor_type.__setattr__('elem_type', 11) for v in copied.graph.input]"),
            "onnxsim failed (its graph is not valid ONNX",
        ),
        (
            _COPY.format(
                change="copied.graph.node[0].op_type, copied.graph.node[0].domain = 'Gelu', 'com.microsoft'; "
                "copied.opset_import.add(domain='com.microsoft', version=1)"
            ),
            "onnxsim wrote operators of the domain com.microsoft",
        ),
        (
            _COPY.format(change="copied.graph.output.append(copied.graph.input[0])"),
            "onnxsim changed the outputs from y (float 1x2x3x3) to y (float 1x2x3x3), x (float 1x2x3x3)",
        ),
    ],
)
def test_a_simplifier_that_fails_or_harms_leaves_the_graph_as_it_is(
    tiny: Callable[..., ModelProto], fake: Callable[[str], Path], caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    fake(text)
    graph = tiny("Relu")
    graph.graph.output[0].CopyFrom(graph.graph.input[0])
    graph.graph.output[0].name = "y"
    reason = _kept(graph)
    assert why in reason
    assert f"kept the unsimplified graph: {reason}" in caplog.text


def _net_of_open_sizes(output: list[Any] | None, *given: Any) -> ModelProto:
    """Two Relus with their sizes told in between, and whatever is said of the output's."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["a"]), onnx.helper.make_node("Flatten", ["a"], ["y"])],
        "net",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, given)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, output)],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


_SIZED = "for d, size in zip(copied.graph.output[0].type.tensor_type.shape.dim, {sizes}): d.{field} = size"


@pytest.mark.parametrize(
    ("given", "said", "sizes", "field", "then"),
    [
        ((1, 3, 4, 4), ["n", "floor(h*w)"], [1, 48], "dim_value", [1, 48]),
        ((1, 3, 4, 4), [None, None], [1, 48], "dim_value", [1, 48]),
        (("n", 3, 4, 4), ["n", "features"], ["n", "unk__0"], "dim_param", ["n", "features"]),
        (("n", 3, 4, 4), ["n", "features"], ["batch", "m"], "dim_param", ["n", "features"]),
    ],
)
def test_sizes_that_follow_from_the_input_may_be_told_and_names_of_others_stay(
    fake: Callable[[str], Path], given: Any, said: Any, sizes: Any, field: str, then: list[Any]
) -> None:
    graph = _net_of_open_sizes(said, *given)
    fake(_COPY.format(change=_SIZED.format(sizes=sizes, field=field) + "; copied.graph.node[0].op_type = 'Sigmoid'"))
    result = simplify(graph)
    assert result.kept_because is None
    found = result.model.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in found] == then


def test_a_number_that_follows_beside_an_open_batch_may_be_told(fake: Callable[[str], Path]) -> None:
    graph = _net_of_open_sizes(["n", "features"], "n", 3, 4, 4)
    fake(_COPY.format(change="copied.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 48"))
    assert simplify(graph).kept_because is None


@pytest.mark.parametrize(
    ("given", "said", "sizes"),
    [
        (("n", 3, 4, 4), ["n", 48], [1, 48]),
        (("n", 3, 4, 4), ["n", "features"], [4, 48]),
        (("n", 3, 4, "w"), ["n", "features"], [4, 48]),
        ((2, 3, 4, 4), [2, 48], [3, 48]),
    ],
)
def test_an_open_batch_stays_open_and_a_number_that_number(
    fake: Callable[[str], Path], given: Any, said: Any, sizes: list[int]
) -> None:
    graph = _net_of_open_sizes(said, *given)
    fake(_COPY.format(change=_SIZED.format(sizes=sizes, field="dim_value")))
    reason = _kept(graph)
    assert "changed the outputs" in reason or "not valid" in reason


@pytest.mark.parametrize("rank", [1, 3])
def test_another_number_of_sizes_is_refused(fake: Callable[[str], Path], rank: int) -> None:
    graph = _net_of_open_sizes(["n", "m"], 1, 3, 4, 4)
    graph.graph.node[1].op_type = "Custom"  # of which nobody knows the sizes
    graph.graph.node[1].domain = "elsewhere"
    graph.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    add = "copied.graph.output[0].type.tensor_type.shape.dim.add()"
    drop = "copied.graph.output[0].type.tensor_type.shape.dim.pop()"
    fake(_COPY.format(change=add if rank == 3 else drop))
    assert "changed the outputs" in _kept(graph)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.out = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (layer(x).view(1, 5, 2, 8).transpose(1, 2) for layer in self.projections)
        y = nn.functional.scaled_dot_product_attention(query, key, value)
        made: torch.Tensor = self.out(y.transpose(1, 2).reshape(1, 5, 16))
        return made


def test_attention_stays_in_operators_of_onnx() -> None:
    torch.manual_seed(0)
    model = fold_graph(to_onnx(_Attention().eval(), input_shape=(1, 5, 16), optimize=False)).model
    result = simplify(model)
    assert result.kept_because is None
    assert {node.domain for node in result.model.graph.node} == {""}
    assert "Softmax" in {node.op_type for node in result.model.graph.node}
