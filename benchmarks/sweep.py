"""Every case of sweep_cases.py through `export` and through torch's own exporter: who says what of which network?

    python benchmarks/sweep.py [--out FILE] [--only REGEX] [--failed] [--again]

A case counts if torch's exporter (dynamo, optimised, default opset) writes a file that ONNX Runtime runs. It is passed
if `export` (default opset) writes one as well, whose outputs are those of torch in float64. FILE is written after each
case, and a second run goes on where it stops; a case that crashes or hangs is one that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import logging
import multiprocessing
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from sweep_cases import cases, uncovered
from sweep_nets import Case
from sweep_text import ALLOWED, counts
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.utils import _pytree

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.errors import MsnDeployError, root_line, shorten
from msn_deploy.core.optional import version_of
from msn_deploy.engine.build_options import BuildOptions
from msn_deploy.engine.proxy import check_with_rtx
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.export import export_onnx

SCHEMA = "msn-deploy-sweep/1"
OUT = Path(__file__).resolve().parent / "results" / "xeon-2-cores" / "sweep.json"
_SECONDS = 180
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "tensorrt-rtx-cu13")

Row = dict[str, Any]
_table = functools.cache(ONNXRegistry.from_torchlib)


def measured(case: Case, folder: Path, *, peer: bool = True, simplify: bool = True, rtx: bool = True) -> Row:
    """Return what became of a case. peer: whether torch's own exporter is asked too; rtx: whether TensorRT-RTX is."""
    x = input_of(case)
    truth = truth_of(case.net(), x)
    row: Row = {"kind": case.kind}
    ours, theirs = folder / "ours.onnx", folder / "torch.onnx"
    for path in (ours, theirs):
        path.unlink(missing_ok=True)
    if peer:
        row["torch"] = _by_torch(case, x, truth, theirs)
    row |= _by_us(case, x, truth, ours, simplify=simplify)
    if rtx and row["state"] == "equal":
        row["rtx"] = _read_by_rtx(ours)
    elif rtx and theirs.exists():
        row["rtx_of_torch"] = _read_by_rtx(theirs)
    return row


def input_of(case: Case) -> torch.Tensor:
    """Return what every case of this shape is compared on."""
    return torch.randn(case.shape, generator=torch.Generator().manual_seed(1))


def truth_of(net: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    """Return the outputs in float64, or in float32 where the network does not run in it."""
    for dtype in (torch.float64, torch.float32):
        try:
            with torch.no_grad(), quiet():
                found = copy.deepcopy(net).to(dtype)(x.to(dtype, copy=True))
        except RuntimeError:
            if dtype == torch.float32:
                raise
        else:
            break
    return [each.numpy() for each in _pytree.tree_leaves(found) if isinstance(each, torch.Tensor)]


def worst_difference(truth: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """Return the largest difference, relative to the largest value of its output; infinite where it can't be told."""
    if len(truth) != len(outputs) or any(a.shape != b.shape for a, b in zip(truth, outputs, strict=True)):
        return float("inf")
    worst = 0.0
    for wanted, got in zip(truth, outputs, strict=True):
        a, b = wanted.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
            return float("inf")
        if finite.any():
            worst = max(worst, np.abs(a - b)[finite].max() / max(np.abs(a[finite]).max(), 1e-3))
    return float(worst)


def in_ort(path: Path, x: torch.Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return found


def _by_torch(case: Case, x: torch.Tensor, truth: list[np.ndarray], out: Path) -> Row:
    try:
        with quiet():
            torch.onnx.export(
                case.net(), (x.clone(),), str(out), dynamo=True, optimize=True, external_data=False, verbose=False
            )
        worst = worst_difference(truth, in_ort(out, x))
    except Exception as cause:  # of torch's exporter or of ONNX Runtime
        out.unlink(missing_ok=True)
        return {"runs": False, "why": f"{type(cause).__name__}: {root_line(cause)}"}
    return {"runs": True, "worst": worst}


def _by_us(case: Case, x: torch.Tensor, truth: list[np.ndarray], out: Path, *, simplify: bool) -> Row:
    try:
        with quiet():
            export_onnx(case.net(), out, input_shape=case.shape, simplify=simplify)
        worst = worst_difference(truth, in_ort(out, x))
    except MsnDeployError as cause:
        return {"state": "refused", "exit": cause.exit_code, "error": type(cause).__name__, "message": str(cause)}
    except Exception as cause:  # a fault of ours
        return {"state": "crashed", "error": type(cause).__name__, "message": shorten(cause)}
    opsets = {each.domain: each.version for each in onnx.load(str(out)).opset_import}
    return {"state": "equal" if worst <= ALLOWED else "differs", "worst": worst, "opset": opsets[""]}


def _read_by_rtx(path: Path) -> str | None:
    """Return nothing if TensorRT-RTX parses and builds the file, what it says if not, None if it is not there."""
    try:
        with quiet():
            found = check_with_rtx(open_model(path, step="sweep"), options=BuildOptions())
    except MsnDeployError as cause:
        return str(cause).splitlines()[0].replace(str(path), "the file")
    return None if found is None else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters, and let torch's build its table of operators once: it takes longer than a small network."""
    logging.disable(logging.CRITICAL)
    try:
        with (
            mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(_table)),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _work(pipe: Connection) -> None:
    torch.set_num_threads(1)
    known = {case.name: case for case in cases()}
    # An error of the pipe: whoever asked is gone.
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(measured(known[pipe.recv()], Path(folder)))


class _Worker:
    """A process that measures one case after another, and is replaced when one of them brings it down."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_work, args=(far,))
        self.process.start()
        far.close()

    def row(self, case: Case) -> Row:
        self.pipe.send(case.name)
        state = "hangs"
        try:
            if self.pipe.poll(_SECONDS):
                row: Row = self.pipe.recv()
                return row
        except EOFError:
            state = "dies"
        self.stop()
        message = f"its process {state}"
        return {
            "kind": case.kind,
            "torch": {"runs": True, "worst": 0.0},
            "state": "crashed",
            "error": "",
            "message": message,
        }

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default=".", help="regular expression of names")
    parser.add_argument("--failed", action="store_true", help="measure again what did not pass")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    options = parser.parse_args()
    rows: dict[str, Row] = {}
    if options.out.is_file():
        rows = json.loads(options.out.read_text(encoding="utf-8"))["cases"]
    every = cases()
    wanted = [
        case
        for case in every
        if re.search(options.only, case.name)
        and (options.again or case.name not in rows or (options.failed and rows[case.name]["state"] != "equal"))
    ]
    worker = _Worker()
    for at, case in enumerate(wanted):
        if not worker.process.is_alive():
            worker = _Worker()
        row = rows[case.name] = worker.row(case)
        said = row.get("message", "").partition("\n")[0]
        print(f"{at + 1}/{len(wanted)} {case.name}: {row['state']} {said}", file=sys.stderr, flush=True)
        value = {
            "schema": SCHEMA,
            "versions": {name: version_of(name) for name in _VERSIONS},
            "without": uncovered(),
            "cases": {each.name: rows[each.name] for each in every if each.name in rows},
        }
        write_json(options.out, value)
    worker.stop()
    done = [row for row in rows.values() if counts(row)]
    print(f"{sum(row['state'] == 'equal' for row in done)} of {len(done)} cases that torch's exporter can do")


if __name__ == "__main__":
    main()
