"""Large weights apart from their graph, and with it again: none is lost, none is hidden that a tool has to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from msn_deploy.graph.weights import with_weights, without_weights

SHAPE = (40, 40)  # of the weights: 6,400 bytes


def _model(
    *nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), inputs: tuple[str, ...] = (), alike: bool = False
) -> ModelProto:
    rng = np.random.default_rng(1)
    arrays = {name: rng.standard_normal(SHAPE).astype(np.float32) for name in "uvw"}
    weights = [numpy_helper.from_array(arrays["v" if alike and name == "w" else name], name) for name in "uvw"]
    small = numpy_helper.from_array(rng.standard_normal(SHAPE[1:]).astype(np.float32), "b")
    graph = helper.make_graph(
        list(nodes),
        "weights",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", *inputs)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in outputs],
        [*weights, small],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _norm() -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", ["p", "b", "b", "b", "b"], ["y"])


def _mul(a: str, b: str, out: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [a, b], [out])


CHAIN = (_mul("x", "u", "p"), _mul("p", "v", "q"), _mul("q", "w", "r"), helper.make_node("Add", ["r", "b"], ["y"]))


@pytest.mark.parametrize(
    ("model", "moved"),
    [
        (_model(*CHAIN), "uvw"),
        (_model(_mul("x", "u", "p"), _mul("v", "w", "q"), helper.make_node("Add", ["p", "q"], ["y"])), "u"),
        # One reader of v computes a constant, the other does not; nobody reads w.
        (
            _model(
                _mul("x", "u", "o"), _mul("o", "v", "p"), helper.make_node("Neg", ["v"], ["q"]), _mul("p", "q", "y")
            ),
            "u",
        ),
        (_model(*CHAIN, outputs=("y", "w")), "uv"),
        (_model(*CHAIN, inputs=("w",)), "uv"),  # an input with a default value, which the caller may replace
        (_model(_mul("x", "u", "p"), _norm()), ""),  # which a tool may fuse into u
        (_model(*CHAIN, alike=True), "u"),  # a tool may merge v and w
        # No weight of a layer: a tool may find that it is a bias.
        (_model(_mul("x", "u", "p"), helper.make_node("Add", ["p", "v"], ["y"])), "u"),
    ],
    ids=["chain", "constants", "two readers", "output", "default", "norm", "alike", "sum"],
)
def test_what_is_read_beside_the_input_alone_goes_and_comes_back(
    model: ModelProto, moved: str, run: Callable[..., Any]
) -> None:
    before = model.SerializeToString()
    bare, weights = without_weights(model)
    assert model.SerializeToString() == before
    assert "".join(sorted(weights)) == moved
    assert {tensor.name for tensor in bare.graph.initializer} == {"u", "v", "w", "b"} - set(moved)
    onnx.checker.check_model(bare, full_check=True)
    whole = with_weights(bare, weights)
    assert [value.name for value in whole.graph.input] == [value.name for value in model.graph.input]
    assert {t.name: numpy_helper.to_array(t).tobytes() for t in whole.graph.initializer} == {
        t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer
    }
    assert [node.SerializeToString() for node in whole.graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]
    assert set(weights) <= {value.name for value in bare.graph.input}
