"""ONNX's own tests of operators and models through `export` with folding on: `make backend-tests`.

The package onnx has a file, inputs and expected outputs for every operator, and some for models. Each file goes through
`export`, and what is written has to give the expected outputs in ONNX Runtime, or `export` has to say why not. A file
that ONNX Runtime itself does not run, or computes otherwise, is counted apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests

from msn_deploy.core.errors import MsnDeployError
from msn_deploy.core.optional import version_of
from msn_deploy.pipeline.export import export_onnx

ROOT = Path(__file__).resolve().parent.parent
_STORED = ("simple", "pytorch-converted", "pytorch-operator")  # kinds whose files ship with the package
State = Literal["equal", "refused", "wrong", "error", "not of ONNX Runtime"]


@dataclass(frozen=True, slots=True)
class Case:
    """One test of ONNX's: a model, arrays for its inputs, and arrays that it has to give."""

    name: str
    model: ModelProto
    given: Mapping[str, Any]
    expected: tuple[Any, ...]
    rtol: float
    atol: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it, and for all but "equal" why."""

    state: State
    why: str = ""


def cases() -> Iterator[Case]:
    """Yield every test that comes with data, in order of its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases()
    for kind in _STORED:
        found += load_model_tests(kind=kind)
    for case in sorted(found, key=lambda each: each.name):
        model = case.model or onnx.load(str(Path(case.model_dir) / "model.onnx"))
        if case.data_sets is None:
            folder = Path(case.model_dir) / "test_data_set_0"
            given, expected = (_stored(folder, kind) for kind in ("input", "output"))
        else:
            given, expected = case.data_sets[0]
        names = [value.name for value in model.graph.input]
        yield Case(
            name=case.name,
            model=model,
            given={
                name: np.asarray(each) if np.isscalar(each) else each for name, each in zip(names, given, strict=False)
            },
            expected=tuple(expected),
            rtol=max(case.rtol, 1e-3),
            atol=max(case.atol, 1e-5),
        )


def _stored(folder: Path, kind: str) -> list[Any]:
    """Return the arrays that lie beside a model that ships with ONNX."""
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.partition("_")[2]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]


def outcome(case: Case, folder: Path) -> Outcome:
    """Take one case through `export`, and hold its file against what ONNX expects."""
    before = _difference(case.model.SerializeToString(), case)
    if before:
        return Outcome("not of ONNX Runtime", before)
    source, out, data = folder / "before.onnx", folder / "after.onnx", folder / "data.npz"
    source.write_bytes(case.model.SerializeToString())
    arrays = {name: each for name, each in case.given.items() if isinstance(each, np.ndarray)}
    options: dict[str, Any] = {}
    if len(arrays) == len(case.given) and arrays:
        np.savez(data, **{name: _as_sample(case.model, name, each) for name, each in arrays.items()})
        options["data"] = str(data)
    try:
        export_onnx(str(source), out, simplify=False, **options)
    except MsnDeployError as cause:
        return Outcome("refused", " ".join(str(cause).split())[:240])
    except Exception as cause:  # a fault of ours, which is what is looked for
        return Outcome("error", f"{type(cause).__name__}: {cause}"[:240])
    after = _difference(out.read_bytes(), case)
    return Outcome("wrong", after) if after else Outcome("equal")


def _as_sample(model: ModelProto, name: str, array: Any) -> Any:
    """Return an array as one sample of feeds: behind a first axis of one, unless its own first size is one."""
    dims = next(value for value in model.graph.input if value.name == name).type.tensor_type.shape.dim
    return array if dims and dims[0].dim_value == 1 else array[np.newaxis]


def _difference(content: bytes, case: Case) -> str:
    """Return how a file's outputs differ from those expected, or why ONNX Runtime does not run it; "" if they agree."""
    try:
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        made = session.run(None, {value.name: case.given[value.name] for value in session.get_inputs()})
    except Exception as cause:  # ONNX Runtime's classes share no base below Exception
        return f"{type(cause).__name__}: {cause}"[:160]
    for want, got in zip(case.expected, made, strict=False):
        if not _alike(want, got, case):
            return "other outputs"
    return ""


def _alike(want: Any, got: Any, case: Case) -> bool:
    if isinstance(want, (list, tuple)):
        return len(want) == len(got) and all(_alike(a, b, case) for a, b in zip(want, got, strict=True))
    if want is None or got is None:
        return want is None and got is None
    a, b = np.asarray(want), np.asarray(got)
    if a.dtype.kind not in "fiub":
        return a.shape == b.shape and bool((a == b).all())
    return a.shape == b.shape and bool(
        np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=case.rtol, atol=case.atol, equal_nan=True)
    )


def main() -> None:
    """Run every case and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "xeon-2-cores" / "backend-tests.json"
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    ort.set_default_logger_severity(4)
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases():
            if options.only in case.name:
                found[case.name] = outcome(case, Path(name))
                if found[case.name].state in ("wrong", "error"):
                    print(case.name, found[case.name], flush=True)
    counts = Counter(each.state for each in found.values())
    print(dict(counts))
    result = {
        "versions": {each: version_of(each) for each in ("onnx", "onnxruntime")},
        "counts": dict(sorted(counts.items())),
        "others": {name: [each.state, each.why] for name, each in found.items() if each.state != "equal"},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
