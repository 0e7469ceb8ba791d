"""One network through everything, in a process of its own: `row.py NAME FOLDER` writes FOLDER/NAME.json.

Each step says "ok" and its numbers, "refused" with code and message, or "error", which is a fault of msn-deploy.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import zoo
from torch import nn

from msn_deploy import calibrate
from msn_deploy.bench import MeasureOptions
from msn_deploy.cli.options import parse_input, parse_shape
from msn_deploy.core.errors import InvalidMeasurement, MsnDeployError
from msn_deploy.engine import BuildOptions
from msn_deploy.graph.calls import Call, named_tensors
from msn_deploy.graph.simplify import simplify
from msn_deploy.machine.targets import find_target
from msn_deploy.model.feeds import example_of, fixed_input
from msn_deploy.msn.plain import copied
from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.build import build_engine
from msn_deploy.pipeline.export import export_onnx

TARGET = "rtx-sm86"
SAMPLES = 16  # of random feeds, to calibrate on
SECONDS, SECONDS_OF_SLOW = 2.0, 20.0


def main() -> None:
    """Run the row that the command line names."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    row = _Row(zoo.BY_NAME[name], folder)
    row.run()
    row.result["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    (folder / f"{name}.json").write_text(json.dumps(row.result, indent=1) + "\n", encoding="utf-8")


class _Row:
    """The steps, each on the file of the one before."""

    def __init__(self, network: zoo.Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.file = folder / f"{network.name}.onnx"
        self.data = folder / f"{network.name}.npz"
        self.result: dict[str, Any] = {"name": network.name, "family": network.family, "inputs": list(network.inputs)}
        if network.why_not:
            self.result["why_not"] = network.why_not

    def run(self) -> None:
        """Take every step that the network has; a step that fails leaves out those that need its file."""
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "export": self.export,
            "calibrate": self.calibrate,
            "fp16": lambda: self.build("fp16"),
            "int8": lambda: self.build("int8"),
            "bench": self.bench,
        }
        for step, act in steps.items():
            if step not in self.network.steps:
                continue
            if step != "export" and self.result["export"]["state"] != "ok":
                self.result[step] = {"state": "left out"}
                continue
            self.result[step] = _state(act)
        if self.result["export"]["state"] == "ok":
            self.result["peers"] = _state(self.peers)

    def export(self) -> dict[str, Any]:
        """Export, with folds; tell what is left of norms and how exact the file is."""
        options: dict[str, Any] = {"inputs": tuple(parse_input(each) for each in self.network.inputs if "=" in each)}
        if not options["inputs"]:
            options = {"input_shape": parse_shape(self.network.inputs[0])}
        self.feeds = [zoo.feeds_of(self.network, seed=seed) for seed in range(SAMPLES)]
        np.savez(self.data, **{name: np.concatenate(self._samples(name)) for name in self.feeds[0]})
        if self.network.values:
            options = {"data": str(self.data)}
        made = self.network.make() if self.network.family == "ONNX file" else zoo.built(self.network.name)
        source = made if isinstance(made, nn.Module) else str(made)
        report = export_onnx(source, self.file, **options)
        norms = report.certificate.norms if report.certificate else ()
        return {
            "nodes": sum(report.operators.values()),
            "opset": onnx.load(str(self.file)).opset_import[0].version,
            "norms": len(norms),
            "left": dict(Counter(norm.code for norm in norms if norm.rule == "kept")),
            "worst_fold": 0.0 if report.certificate is None else report.certificate.worst.difference,
            "unsimplified_because": report.unsimplified_because,
            "exact": self._error(self.file, made) if isinstance(made, nn.Module) else None,
            "parity": report.ladder[-1].worst if report.ladder else None,
        }

    def _samples(self, name: str) -> list[Any]:
        """Return each sample with a first axis of one, which an array of one row has already."""
        return [each[name] if each[name].shape[:1] == (1,) else each[name][np.newaxis] for each in self.feeds]

    def _error(self, path: Path, net: nn.Module) -> float:
        """Return the largest error of a file, relative to the largest value of that output of torch in float64."""
        feeds = zoo.feeds_of(self.network, seed=99)
        truth = _truth(net, feeds)
        session = ort.InferenceSession(path.read_bytes())
        given = {spec.name: array for spec, array in zip(session.get_inputs(), feeds.values(), strict=True)}
        errors = []
        for want, got in zip(truth.values(), session.run(None, given), strict=True):
            expected = want.numpy().astype(np.float64)
            errors.append(float(np.abs(expected - got).max() / max(1e-30, np.abs(expected).max())))
        return max(errors)

    def calibrate(self) -> dict[str, Any]:
        """Make the INT8 file on random feeds."""
        report = calibrate(self.file, self.file.with_suffix(".cal.onnx"), data=str(self.data))
        parity = report.parity
        return {"scales": report.scales, "sqnr_db": None if parity is None else min(parity.sqnr_db, 999.0)}

    def build(self, precision: str) -> dict[str, Any]:
        """Build an engine by TensorRT-RTX, for a GPU that is not here."""
        options = BuildOptions(backend="tensorrt-rtx", target=find_target(TARGET))
        out = self.file.with_suffix(f".{precision}.engine")
        report = build_engine(self.file, out, precision=precision, options=options, data=str(self.data))
        assert report.engine is not None
        in_fp32 = report.typed.in_fp32 if report.typed else None
        return {"int8_convs": report.engine.int8_convs, "in_fp32": len(in_fp32 or ())}

    def bench(self) -> dict[str, Any]:
        """Time the file against itself unsimplified by nobody: one arm, for a moment."""
        for seconds in (SECONDS, SECONDS_OF_SLOW):
            try:
                result = bench([self.file], data=str(self.data), options=MeasureOptions(seconds=seconds))
            except InvalidMeasurement:  # too few rounds in that time, or a busy machine
                if seconds == SECONDS_OF_SLOW:
                    raise
            else:
                return {"p50_ms": result.arms[0].median_ms}
        raise AssertionError

    def peers(self) -> dict[str, Any]:
        """Count the nodes of torch's own export, behind onnxsim and behind onnxslim, and tell how exact it is."""
        if self.network.family == "ONNX file":
            proto = onnx.load(str(self.network.make()))
            return {"raw": len(proto.graph.node)}
        net = zoo.built(self.network.name)
        given = (
            [example_of(parse_input(each)) for each in self.network.inputs]
            if "=" in self.network.inputs[0]
            else [fixed_input("input", "float32", parse_shape(self.network.inputs[0]))]
        )
        args, kwargs = Call(net, given).arguments(zoo.feeds_of(self.network, seed=1))
        path = self.file.with_suffix(".torch.onnx")
        torch.onnx.export(net, args, path, kwargs=kwargs, dynamo=True, external_data=False, verbose=False)
        found: dict[str, Any] = {"torch": len(onnx.load(str(path)).graph.node), "exact": self._error(path, net)}
        found["onnxsim"] = len(simplify(onnx.load(str(path))).model.graph.node)
        import onnxslim

        slim = onnxslim.slim(onnx.load(str(path)))
        found["onnxslim"] = len(slim.graph.node)
        return found


def _truth(net: nn.Module, feeds: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return a network's outputs in float64, or in float32 where it makes float32 tensors of its own."""
    for dtype, twin in ((np.float64, copied(net).double()), (np.float32, net)):
        arrays = [torch.from_numpy(each.astype(dtype) if each.dtype.kind == "f" else each) for each in feeds.values()]
        try:
            with torch.inference_mode():
                return named_tensors(twin(*arrays))
        except RuntimeError:
            if dtype is np.float32:
                raise
    raise AssertionError


def _state(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        found = {"state": "ok", **act()}
    except MsnDeployError as cause:
        found = {"state": "refused", "code": cause.exit_code, "message": str(cause)}
    except Exception as cause:  # whatever it is, it is what the table has to show
        found = {
            "state": "error",
            "message": f"{type(cause).__name__}: {cause}"[:400],
            "trace": traceback.format_exc()[-1500:],
        }
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


if __name__ == "__main__":
    main()
