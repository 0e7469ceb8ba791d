"""Exported graphs, made once for all tests of this folder, and ways to look at them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import nn

from msn_deploy.graph import simplify
from msn_deploy.graph.export import to_onnx
from msn_deploy.model.graphs import names_of
from msn_deploy.msn import fold

SIDE = {"cnn3": 28, "vgg7": 32}
COLD_SIMPLIFIER = simplify._worker  # before another takes its place


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A torch network, its graph, and the shape that it was exported for."""

    model: nn.Module
    graph: ModelProto
    input_shape: tuple[int, ...]

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.model(torch.from_numpy(batch)).numpy()


@pytest.fixture(scope="session")
def exported(small_net: Callable[..., nn.Module]) -> Callable[..., Exported]:
    """A narrow network of a net and a norm, folded and exported (or as it is, with fold=False)."""

    @functools.cache
    def make(net: str = "cnn3", norm: str = "msn", *, folded: bool = True, dynamic: bool = False) -> Exported:
        model = small_net(net, norm)
        shape = (1, 1, SIDE[net], SIDE[net])
        graph = to_onnx(fold(model) if folded else model, input_shape=shape, dynamic_batch=dynamic, optimize=folded)
        return Exported(model=model, graph=graph, input_shape=shape)

    def copied(*args: Any, **options: Any) -> Exported:
        found = make(*args, **options)
        graph = ModelProto()
        graph.CopyFrom(found.graph)
        return Exported(model=found.model, graph=graph, input_shape=found.input_shape)

    return copied


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Any]) -> Exported:
    """A cnn3 with MSN that knows its digits, folded and exported with a dynamic batch."""
    from msn_deploy.training import load_checkpoint, train

    recipe = small_recipe("cnn3", "msn", width=4, epochs=3)
    result = train(recipe, out=tmp_path_factory.mktemp("trained"), device="cpu")
    model, info = load_checkpoint(result.checkpoint)
    assert info.metrics["test_accuracy"] > 0.9
    graph = to_onnx(fold(model), input_shape=recipe.input_shape, dynamic_batch=True)
    return Exported(model=model, graph=graph, input_shape=recipe.input_shape)


@pytest.fixture(scope="session")
def run() -> Callable[[ModelProto, NDArray[np.float32]], dict[str, NDArray[Any]]]:
    """Run a graph in ONNX Runtime, nothing fused, image by image or in one batch; returns its outputs by name."""

    def outputs(graph: ModelProto, batch: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        size = entry.shape[0] if isinstance(entry.shape[0], int) else len(batch)
        parts = [session.run(None, {entry.name: batch[at : at + size]}) for at in range(0, len(batch), size)]
        names = [output.name for output in session.get_outputs()]
        return {name: np.concatenate([part[at] for part in parts]) for at, name in enumerate(names)}

    return outputs


@pytest.fixture(scope="session")
def tensors() -> Callable[[ModelProto], dict[str, NDArray[Any]]]:
    """The initializers of a graph as arrays."""
    return lambda graph: {entry.name: numpy_helper.to_array(entry) for entry in graph.graph.initializer}


@pytest.fixture
def tiny() -> Callable[..., ModelProto]:
    """A graph of one operator with float weights: x (1, 2, 3, 3) by Conv or MatMul, or through Relu alone."""

    def make(op: str = "Conv", weight: NDArray[np.float32] | None = None, *, constant: bool = False) -> ModelProto:
        inits, nodes = [], []
        if op != "Relu":
            shape = (2, 2, 1, 1) if op == "Conv" else (3, 4)
            value = np.full(shape, 0.5, np.float32) if weight is None else np.broadcast_to(weight, shape).copy()
            tensor = numpy_helper.from_array(value.astype(np.float32), "w")
            if constant:
                nodes.append(onnx.helper.make_node("Constant", [], ["w"], name="constant", value=tensor))
            else:
                inits.append(tensor)
        nodes.append(onnx.helper.make_node(op, ["x"] if op == "Relu" else ["x", "w"], ["y"], name="only"))
        kind = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            nodes,
            "tiny",
            [onnx.helper.make_tensor_value_info("x", kind, (1, 2, 3, 3))],
            [onnx.helper.make_tensor_value_info("y", kind, (1, 2, 3, 4 if op == "MatMul" else 3))],
            inits,
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)

    return make


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[ModelProto], Path]:
    """Write a graph to a file."""

    def write(graph: ModelProto) -> Path:
        path = tmp_path / "net.onnx"
        path.write_bytes(graph.SerializeToString())
        return path

    return write


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a module of that text where onnxsim is imported from, by a process that has not loaded it yet."""
    monkeypatch.setattr(simplify, "_worker", COLD_SIMPLIFIER)
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(text: str) -> Path:
        (folder / "onnxsim.py").write_text(text)
        return folder

    return write


@pytest.fixture(scope="session")
def squat() -> Callable[[ModelProto, ModelProto], ModelProto]:
    """Return a copy of a model in which a chain to one more output has all names that a stage adds to it."""

    def add(model: ModelProto, made: ModelProto) -> ModelProto:
        squatted = ModelProto()
        squatted.CopyFrom(model)
        graph, last = squatted.graph, model.graph.input[0].name
        names = sorted(filter(None, names_of(made) - names_of(model)))
        assert names
        for name in names:
            graph.node.add(op_type="Neg", input=[last], output=[name])
            last = name
        graph.output.add().CopyFrom(graph.input[0])
        graph.output[-1].name = last
        return squatted

    return add
