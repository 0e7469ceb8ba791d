"""Two graphs have one structural hash exactly if only weights, names and order differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from msn_deploy.graph.fold import fold_graph
from msn_deploy.model.identity import structural_hash


@pytest.fixture
def graph(exported: Callable[..., Any]) -> ModelProto:
    found: ModelProto = exported("vgg7", "msn").graph
    return found


@pytest.mark.parametrize("net", ["cnn3", "vgg7"])
def test_folded_twins_are_one_graph(exported: Callable[..., Any], net: str) -> None:
    twins = [exported(net, norm).graph for norm in ("msn", "sn", "msn-affine")]
    twins.append(fold_graph(exported(net, "bn", folded=False).graph).model)
    twins[:3] = [fold_graph(each).model for each in twins[:3]]
    assert len({structural_hash(each) for each in twins}) == 1
    assert structural_hash(exported(net, "bn", folded=False).graph) != structural_hash(twins[0])
    assert len({each.SerializeToString() for each in twins}) == len(twins)


def test_names_order_weights_and_defaults_do_not_count(graph: ModelProto) -> None:
    expected = structural_hash(graph)
    for node in graph.graph.node:
        node.name = f"other {node.name}"
        node.input[:] = [f"_{name}" for name in node.input]
        node.output[:] = [f"_{name}" for name in node.output]
    for entry in (*graph.graph.initializer, *graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        entry.name = f"_{entry.name}"
    first = graph.graph.initializer[0]
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * 3 + 1, first.name))
    weights = list(graph.graph.initializer)
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(reversed(weights))
    conv = next(node for node in graph.graph.node if node.op_type == "Conv")
    kept = [each for each in conv.attribute if each.name != "group"]  # 1, which is what it is anyway
    assert len(kept) < len(conv.attribute)
    del conv.attribute[:]
    conv.attribute.extend(reversed(kept))
    assert structural_hash(graph) == expected


def _conv(graph: ModelProto) -> onnx.NodeProto:
    return next(node for node in graph.graph.node if node.op_type == "Conv")


def _other_stride(graph: ModelProto) -> None:
    next(each for each in _conv(graph).attribute if each.name == "strides").ints[:] = [2, 2]


def _other_operator(graph: ModelProto) -> None:
    next(node for node in graph.graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def _other_width(graph: ModelProto) -> None:
    weight = next(each for each in graph.graph.initializer if each.name == _conv(graph).input[1])
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.concatenate([array, array]), weight.name))


def _other_type(graph: ModelProto) -> None:
    weight = next(each for each in graph.graph.initializer if each.name == _conv(graph).input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))


def _other_input(graph: ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7


def _other_constant(graph: ModelProto) -> None:
    sizes = next(each for each in graph.graph.initializer if each.data_type == onnx.TensorProto.INT64)
    sizes.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(sizes) + 1, sizes.name))


def _other_topology(graph: ModelProto) -> None:
    relus = [node for node in graph.graph.node if node.op_type == "Relu"]
    relus[1].input[0] = relus[0].output[0]


def _one_node_more(graph: ModelProto) -> None:
    graph.graph.node.append(helper.make_node("Relu", [graph.graph.output[0].name], ["unread"]))


@pytest.mark.parametrize(
    "change",
    [
        *(_other_stride, _other_operator, _other_width, _other_type, _other_input, _other_constant),
        *(_other_topology, _one_node_more),
    ],
)
def test_everything_else_counts(graph: ModelProto, change: Callable[[ModelProto], None]) -> None:
    before = structural_hash(graph)
    change(graph)
    assert structural_hash(graph) != before


def test_weights_and_opsets_count_where_they_are_asked_for(graph: ModelProto) -> None:
    expected = structural_hash(graph, weights=True)
    assert expected != structural_hash(graph)
    for entry in (*graph.graph.node, graph.graph):
        entry.name = f"other {entry.name}"
    twin = graph.graph.initializer[0]  # kept as a list of floats, not as bytes
    numbers = numpy_helper.to_array(twin).ravel().tolist()
    twin.ClearField("raw_data")
    twin.float_data.extend(numbers)
    assert structural_hash(graph, weights=True) == expected
    graph.opset_import[0].version += 1
    assert structural_hash(graph, weights=True) != expected
    graph.opset_import[0].version -= 1
    twin.float_data[-1] = np.nextafter(np.float32(twin.float_data[-1]), np.float32(9))
    assert structural_hash(graph, weights=True) != expected
