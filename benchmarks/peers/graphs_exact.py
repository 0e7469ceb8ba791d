"""How far is a graph from the network it was made of? Exports by torch and the truth in float64, each made once."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graphs_nets import Case, inputs
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from msn_deploy.engine import OrtRunner, run_images
from msn_deploy.graph.export import _quiet
from msn_deploy.model.opened import open_model
from msn_deploy.msn import fold

OPSET = 18  # the lowest that torch's exporter writes without converting
_EXACT = {"float64": 1e-9, "float32": 1e-5}
_ROUNDING = 4  # float32 may be this many times as far off as torch itself is in float32


def run_float64(graph: ModelProto, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Run a graph of standard operators in float64."""
    from msn_deploy.graph.evaluate import run_float64 as run

    return run(graph, x)


def run_float32(graph: ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with runner_of(graph, threads=1) as runner:
        return run_images(runner, x)


@contextlib.contextmanager
def runner_of(graph: ModelProto, *, threads: int) -> Iterator[OrtRunner]:
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(graph.SerializeToString())
        runner = OrtRunner(open_model(path, step="the benchmark"), threads=threads)
        yield runner
        runner.close()


class Network:
    """A network with one seed, float32 and float64, with its exports and true outputs, each made once."""

    def __init__(self, case: Case, *, seed: int, negative: float) -> None:
        self.case, self.seed = case, seed
        self.model = case.make(seed=seed, negative=negative)
        self._exports: dict[tuple[Any, ...], dict[str, ModelProto]] = {}
        self._truths: dict[int, NDArray[np.float64]] = {}

    def given(self, how: str, *, double: bool) -> nn.Module:
        """Return the network "as is" or "folded first"; in float64 the fold is in float64 too."""
        model = copy.deepcopy(self.model).double() if double else self.model
        return model if how == "as is" else fold(model, strict=False)

    def exports(self, how: str, batch: int, *, double: bool) -> dict[str, ModelProto]:
        """Return torch's graphs by name, "torch" (optimised) and "unoptimised"."""
        key = (how, batch, double)
        if key not in self._exports:
            self._exports[key] = torch_exports(self.given(how, double=double), (batch, *self.case.shape), double=double)
        return self._exports[key]

    def x(self, batch: int) -> NDArray[np.float32]:
        return inputs(self.case.shape, batch, seed=self.seed + 100).numpy()

    def truth(self, batch: int) -> NDArray[np.float64]:
        if batch not in self._truths:
            with torch.no_grad():
                made = self.given("as is", double=True)(torch.from_numpy(self.x(batch)).double())
            self._truths[batch] = made.numpy()
        return self._truths[batch]

    def tolerance(self, batch: int) -> dict[str, float]:
        """Return by element type how far off a graph may be that is called exact."""
        with torch.no_grad():
            own = self.off(self.model(torch.from_numpy(self.x(batch))).numpy(), batch)
        return {**_EXACT, "float32": max(_EXACT["float32"], _ROUNDING * own)}

    def off(self, made: NDArray[Any], batch: int) -> float:
        """Return the largest difference to the truth divided by the largest output; NaN counts as infinite."""
        truth = self.truth(batch)
        if made.shape != truth.shape or not np.isfinite(made).all():
            return float("inf")
        return float(np.abs(made - truth).max() / np.abs(truth).max())


def torch_exports(model: nn.Module, shape: tuple[int, ...], *, double: bool) -> dict[str, ModelProto]:
    """Export by torch alone, with and without its optimiser."""
    example = torch.zeros(shape, dtype=torch.float64 if double else torch.float32)
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        plain = copy.deepcopy(program.model_proto)
        program.optimize()  # what optimize=True, the default, does after the export
    return {"torch": program.model_proto, "unoptimised": plain}


def verdict(doubles: list[float], singles: list[float], tolerance: dict[str, float]) -> dict[str, Any]:
    """Return how exact an arm is; the float32 graph, which is the one that runs, must be right in any case."""
    worst = {"float64": max(doubles, default=None), "float32": max(singles)}
    kind = "float64" if doubles and worst["float32"] <= tolerance["float32"] else "float32"
    return {
        "exact": worst[kind],
        "exact_in": kind,
        "is_exact": worst[kind] <= tolerance[kind],
        "off_float64": doubles,
        "off_float32": singles,
        "tolerance": tolerance[kind],
    }
