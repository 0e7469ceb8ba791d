"""Splits are written without sequences, which TensorRT does not have; other sequences stay, and load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from msn_deploy.graph.clean import clean
from msn_deploy.graph.export import to_onnx
from msn_deploy.graph.fold import fold_graph

SHAPE = (2, 7, 4)
COMPUTED = [
    helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
    helper.make_node("Cast", ["largest"], ["number"], to=TensorProto.INT64),
    helper.make_node("Sub", ["number", "number"], ["zero"]),
]


def _model(nodes: list[Any], *, opset: int = 17, sizes: Any = SHAPE, **arrays: Any) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _cleaned(model: ModelProto) -> tuple[ModelProto, list[str]]:
    graph = ir.from_proto(model)
    clean(graph)
    result = ir.to_proto(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, [node.op_type for node in result.graph.node]


def _x() -> Any:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


# the split, axis, position, whether an axis stays that is 1 long, and what is left
FORMS = {
    "even": (np.int64(7), 1, 0, 1, ["Split"]),
    "uneven": (np.int64(3), 1, 2, 1, ["Split"]),
    "uneven, in 32 bits": (np.int32(3), 1, 1, 1, ["Split"]),
    "by sizes": (np.array([2, 4, 1]), -2, 1, 1, ["Split"]),
    "by sizes, which keep the axis": (np.array([6, 1]), 1, 1, 0, ["Split"]),
    "from the end": (np.int64(2), -1, -2, 1, ["Split"]),
    "into ones": (None, 1, 3, 1, ["Split"]),
    "into ones without the axis": (None, 2, -1, 0, ["Split", "Squeeze"]),
}


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("form", FORMS)
def test_a_constant_position_of_a_split_is_a_tensor(run: Callable[..., Any], form: str, opset: int) -> None:
    split, axis, position, keeps, kinds = FORMS[form]
    nodes = [
        helper.make_node(
            "SplitToSequence", ["x", "split"][: 1 + (split is not None)], ["s"], axis=axis, keepdims=keeps
        ),
        helper.make_node("SequenceAt", ["s", "at"], ["y"]),
    ]
    arrays = {"at": np.int64(position)} | ({} if split is None else {"split": split})
    model = _model(nodes, opset=opset, **arrays)
    result, found = _cleaned(model)
    assert found == kinds
    x = _x()
    np.testing.assert_array_equal(run(result, x)["y"], run(model, x)["y"])


@pytest.mark.parametrize(
    ("size", "axis", "position", "keeps"),
    [(3, 1, 1, 1), (2, 2, 0, 1), (None, 1, 2, 1), (None, 1, -1, 1), (None, 2, -2, 0)],
)
def test_an_open_size_is_sliced(
    run: Callable[..., Any], size: int | None, axis: int, position: int, keeps: int
) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "size"][: 1 + (size is not None)], ["s"], axis=axis, keepdims=keeps),
        helper.make_node("SequenceAt", ["s", "at"], ["y"]),
    ]
    arrays = {"at": np.int64(position)} | ({} if size is None else {"size": np.int64(size)})
    model = _model(nodes, sizes=("n", "c", "w"), **arrays)
    result, found = _cleaned(model)
    assert found == ["Slice"] or (keeps, found) == (0, ["Gather"])
    x = _x()
    np.testing.assert_array_equal(run(result, x)["y"], run(model, x)["y"])


def test_a_computed_size_is_sliced_and_what_follows_is_still_computed_once(run: Callable[..., Any]) -> None:
    nodes = [
        *COMPUTED,
        helper.make_node("Add", ["zero", "three"], ["size"]),
        helper.make_node("SplitToSequence", ["x", "size"], ["s"], axis=1),
        helper.make_node("SequenceAt", ["s", "last"], ["part"]),
        helper.make_node("Add", ["half", "half"], ["one"]),
        helper.make_node("Mul", ["part", "one"], ["y"]),
    ]
    model = _model(nodes, three=np.int64(3), last=np.int64(2), half=np.float32(0.75))
    result, found = _cleaned(model)
    assert not {"SplitToSequence", "SequenceAt"} & set(found)
    assert found.count("Add") == 1
    x = _x()
    np.testing.assert_array_equal(run(result, x)["y"], run(model, x)["y"])


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("kind", ["position", "loop", "branch", "insert"])
def test_other_sequences_stay_and_load(run: Callable[..., Any], kind: str, typed: bool) -> None:
    """typed: the file says the types of its tensors, as few exporters do for sequences."""
    nodes = [*COMPUTED, helper.make_node("SplitToSequence", ["x", "three"], ["s"], axis=1)]
    a_sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    flag = helper.make_tensor_value_info("keep", TensorProto.BOOL, [])
    copies = helper.make_node("Identity", ["s"], ["copied"])
    out = helper.make_value_info("copied", a_sequence)
    if kind == "position":
        nodes += [helper.make_node("Identity", ["s"], ["t"])]
    elif kind == "insert":
        nodes += [helper.make_node("SequenceInsert", ["s", "x", "zero"], ["t"])]
    elif kind == "branch":
        body = helper.make_graph([copies], "branch", [], [out])
        nodes += [
            helper.make_node("Cast", ["zero"], ["no"], to=TensorProto.BOOL),
            helper.make_node("If", ["no"], ["t"], then_branch=body, else_branch=body),
        ]
    else:
        step = helper.make_tensor_value_info("step", TensorProto.INT64, [])
        grown = [helper.make_node("SequenceInsert", ["given", "x"], ["copied"])]
        same = helper.make_node("Identity", ["keep"], ["on"])
        body = helper.make_graph(
            [*grown, same],
            "body",
            [step, flag, helper.make_value_info("given", a_sequence)],
            [helper.make_tensor_value_info("on", TensorProto.BOOL, []), out],
        )
        nodes += [helper.make_node("Loop", ["three", "", "s"], ["t"], body=body)]
    nodes += [helper.make_node("SequenceAt", ["t", "zero"], ["y"])]
    model = _model(nodes, three=np.int64(3))
    if typed:
        model = onnx.shape_inference.infer_shapes(model)
    result, found = _cleaned(model)
    assert "SequenceAt" in found
    x = _x()
    np.testing.assert_array_equal(run(result, x)["y"], run(model, x)["y"])
    np.testing.assert_array_equal(run(fold_graph(model).model, x)["y"], run(model, x)["y"])


def test_the_sizes_of_a_split_are_said_so_that_opset_17_can_read_it(run: Callable[..., Any]) -> None:
    model = _model([helper.make_node("Split", ["x"], ["a", "b", "y"], axis=1, num_outputs=3)], opset=18)
    result, _ = _cleaned(model)
    assert [list(numpy_helper.to_array(each)) for each in result.graph.initializer] == [[3, 3, 1]]
    x = _x()
    np.testing.assert_array_equal(run(_called_17(result), x)["y"], x[:, 6:])


def _called_17(model: ModelProto) -> ModelProto:
    model.opset_import[0].version = 17
    onnx.checker.check_model(model, full_check=True)
    return model


class Splits(nn.Module):
    """What torch has for it, joined again in another order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        ways = [
            y.chunk(2, 1),
            y.chunk(3, -3),
            y.split([2, 6], 1),
            y.split(3, 1),
            y.tensor_split(3, 1),
            y.tensor_split([2, 5], 1),
            y.split_with_sizes([1, 7], 1),
            tuple(each.unsqueeze(1) for each in y.unbind(1)),
        ]
        high = torch.cat(y.split(4, -2)[::-1], 2) + torch.cat(y.chunk(2, 3)[::-1], 3)
        return sum((torch.cat(parts[::-1], 1) for parts in ways), high)


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_way_of_torch_to_split_is_exported_without_sequences(run: Callable[..., Any], dynamic: bool) -> None:
    net = Splits().eval()
    made = to_onnx(net, input_shape=(2, 3, 9, 9), opset=18, optimize=False, dynamic_batch=dynamic)
    model = _called_17(fold_graph(made).model)
    kinds = {node.op_type for node in model.graph.node}
    assert "Split" in kinds
    assert not {kind for kind in kinds if "Sequence" in kind}
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(x).numpy()
    np.testing.assert_allclose(run(model, x.numpy())["logits"], expected, atol=1e-5)
