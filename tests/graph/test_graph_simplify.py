"""onnxsim may help, and must not be able to harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxsim
import pytest
from onnx import ModelProto

from msn_deploy.graph import simplify


def test_outputs_stay_and_dead_weight_goes(
    exported: Callable[..., Any], run: Callable[..., Any], digits: Callable[..., Any]
) -> None:
    made = exported("cnn3", "bn", folded=False)
    simplified = simplify(made.graph)
    kinds = [node.op_type for node in simplified.graph.node]
    assert len(kinds) < len(made.graph.graph.node)
    assert not {"Constant", "Concat"} & set(kinds)
    batch = digits(5)
    expected = made.logits(batch)
    np.testing.assert_allclose(run(simplified, batch)["logits"], expected, atol=1e-5 * np.abs(expected).max())


def test_a_simplifier_that_fails_leaves_the_graph_as_it_is(
    tiny: Callable[..., ModelProto], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("segmentation in spirit")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    graph = tiny()
    assert simplify(graph) is graph
    assert "kept the unsimplified graph: onnxsim failed (RuntimeError: segmentation in spirit)" in caplog.text


def _without_output(graph: ModelProto) -> None:
    graph.graph.node[-1].output[0] = "elsewhere"


def _with_another_input(graph: ModelProto) -> None:
    graph.graph.input[0].name = graph.graph.node[0].input[0] = "image"


@pytest.mark.parametrize(
    ("harm", "why"), [(_without_output, "onnxsim failed"), (_with_another_input, "onnxsim changed the input")]
)
def test_a_simplifier_that_harms_leaves_the_graph_as_it_is(
    tiny: Callable[..., ModelProto],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[ModelProto], None],
    why: str,
) -> None:
    def harmful(model: ModelProto) -> tuple[ModelProto, bool]:
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        harm(copied)
        return copied, True

    monkeypatch.setattr(onnxsim, "simplify", harmful)
    graph = tiny()
    before = graph.SerializeToString()
    assert simplify(graph) is graph
    assert graph.SerializeToString() == before
    assert why in caplog.text
