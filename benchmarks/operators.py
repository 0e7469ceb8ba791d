"""The float64 evaluator of the certificate against ONNX Runtime and onnx's stored outputs, operator by operator.

Every node test of `onnx.backend.test` is run as it is, and once more for every older or newer definition of its
operator from opset 7 to 25 that can say it, its inputs and attributes moved to where that definition has them.

    python benchmarks/operators.py --out operators.json     # resumes where it was stopped
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import ModelProto, TensorProto, defs, helper, numpy_helper

from msn_deploy.core.errors import first_line
from msn_deploy.graph.evaluate import to_double, values_float64

OPSETS = range(7, 26)
_KINDS = {
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.BOOL,
    TensorProto.UINT8,
}
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5  # times the largest value; onnx's own tests allow 1e-3 of each


class Case(NamedTuple):
    """One model with its inputs, and the outputs that onnx stored (None where it is another opset's)."""

    name: str
    model: ModelProto
    feed: Mapping[str, Any]
    stored: Sequence[Any] | None


class Outcome(NamedTuple):
    """What became of a case: `equal`, `differs` (from whom, by how much), or why it was not run."""

    operator: str
    opset: int
    result: str
    why: str = ""
    in_float32: bool = False


def cases() -> Iterator[Case]:
    """Yield every node test, then each in the other opsets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = sorted(collect_testcases(None), key=lambda each: each.name)
    for each in found:
        for inputs, outputs in each.data_sets:
            names = [value.name for value in each.model.graph.input]
            given = [_array(value) for value in inputs]
            own = Case(
                each.name, each.model, dict(zip(names, given, strict=False)), [_array(value) for value in outputs]
            )
            yield own
            yield from _in_other_opsets(own)


def _array(value: Any) -> Any:
    if isinstance(value, list):
        return [_array(each) for each in value]
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return None if value is None else np.asarray(value)


def _in_other_opsets(case: Case) -> Iterator[Case]:
    graph = case.model.graph
    if len(graph.node) != 1 or graph.node[0].domain or graph.initializer:
        return
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    if not kinds <= _KINDS or any(each.HasField("g") for each in graph.node[0].attribute):
        return
    node, opset = graph.node[0], case.model.opset_import[0].version
    schema = defs.get_schema(node.op_type, opset, "")
    last: dict[int, int] = {}
    for version in OPSETS:
        try:
            last[defs.get_schema(node.op_type, version, "").since_version] = version
        except defs.SchemaError:
            continue
    for since, version in last.items():
        if since == schema.since_version:
            continue
        other = _said_by(node, schema, defs.get_schema(node.op_type, version, ""), case.feed)
        if other is None:
            continue
        said, feed = other
        inputs = [value for value in graph.input if value.name in feed]
        made = helper.make_graph([said], "one", inputs, list(graph.output))
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
        yield Case(f"{case.name}@{version}", model, feed, None)


def _said_by(
    node: onnx.NodeProto, schema: defs.OpSchema, other: defs.OpSchema, feed: Mapping[str, Any]
) -> tuple[onnx.NodeProto, dict[str, Any]] | None:
    """Return a node of another version of an operator, inputs made attributes and back, or None if it can't say it."""
    given = {each.name: each for each in node.attribute}
    formal = [parameter.name for parameter in schema.inputs]
    is_variadic = bool(schema.inputs) and schema.inputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic
    if is_variadic:
        if not set(given) <= set(other.attributes):
            return None
        said = helper.make_node(node.op_type, list(node.input), list(node.output))
        said.attribute.extend(node.attribute)
        return said, dict(feed)
    read = {name: value for name, value in zip(formal, node.input, strict=False) if value}
    used: dict[str, Any] = {}
    inputs: list[str] = []
    for parameter in other.inputs:
        if parameter.name in read:
            inputs.append(read.pop(parameter.name))
            used[inputs[-1]] = feed[inputs[-1]]
        elif parameter.name in given:
            name = f"{parameter.name}_"
            value = helper.get_attribute_value(given.pop(parameter.name))
            used[name] = np.asarray(value, dtype=np.float32 if isinstance(value, float) else None)
            inputs.append(name)
        else:
            inputs.append("")
    said = helper.make_node(node.op_type, [], list(node.output)[: len(other.outputs)])
    for name, value in read.items():
        if name not in other.attributes:
            if np.size(feed[value]):
                return None
            continue
        array = np.asarray(feed[value])
        if not array.size:
            continue
        said.attribute.append(helper.make_attribute(name, array.tolist()))
    if not set(given) <= set(other.attributes):
        return None
    said.attribute.extend(given.values())
    while inputs and not inputs[-1]:
        inputs.pop()
    said.input.extend(inputs)
    return said, used


def _with_inputs(case: Case) -> ModelProto:
    """Return the model with every input that a feed has and it does not declare."""
    known = {value.name for value in case.model.graph.input}
    model = ModelProto()
    model.CopyFrom(case.model)
    for name, value in case.feed.items():
        if name not in known:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def outcome(case: Case) -> Outcome:
    """Run a case."""
    node = case.model.graph.node[0] if case.model.graph.node else None
    operator = case.name.removeprefix("test_").partition("@")[0] if node is None else node.op_type
    if len(case.model.graph.node) > 1:
        operator = "several"
    opset = next((each.version for each in case.model.opset_import if not each.domain), 0)
    model = _with_inputs(case)
    feed = {name: value for name, value in case.feed.items() if name in {each.name for each in model.graph.input}}
    try:
        theirs: Sequence[Any] | None = _by_runtime(model, feed)
    except Exception as cause:
        theirs, said = None, f"ONNX Runtime: {first_line(cause)[:160]}"
    if theirs is None and case.stored is None:
        return Outcome(operator, opset, "not runnable", said)
    try:
        ours, narrow = _by_us(model, feed)
    except Exception as cause:
        if theirs is None and case.stored is None:
            return Outcome(operator, opset, "not runnable", said)
        return Outcome(operator, opset, "not evaluated", f"{type(cause).__name__}: {first_line(cause)[:200]}")
    against = {"stored": case.stored, "ONNX Runtime": theirs}
    apart = {name: _difference(ours, given) for name, given in against.items() if given is not None}
    wrong = {name: why for name, why in apart.items() if why}
    if not wrong:
        return Outcome(operator, opset, "equal", in_float32=narrow)
    if len(wrong) < len(apart):
        ((name, why),) = wrong.items()
        return Outcome(operator, opset, f"differs from {name} alone", why, narrow)
    return Outcome(operator, opset, "differs", "; ".join(f"{name}: {why}" for name, why in wrong.items()), narrow)


def _by_runtime(model: ModelProto, feed: Mapping[str, Any]) -> Sequence[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Sequence[Any] = session.run(None, dict(feed))
    return found


def _by_us(model: ModelProto, feed: Mapping[str, Any]) -> tuple[list[Any], bool]:
    graph = ir.from_proto(model)
    to_double(graph)
    names = [str(value.name) for value in graph.graph.outputs]
    found = {each.name: each for each in values_float64([graph], [feed], set(names))}
    return [found[name].values[0] for name in names], any(each.in_float32 for each in found.values())


def _difference(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    """Return by what two lists of outputs differ; empty if they are the same."""
    if len(ours) != len(theirs):
        return f"{len(ours)} outputs, not {len(theirs)}"
    for at, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(other, list) and isinstance(own, list | tuple):
            why = _difference(own, other)
        else:
            why = _apart(own, other)
        if why:
            return f"output {at}: {why}"
    return ""


def _apart(own: Any, other: Any) -> str:
    if own is None or other is None:
        return "" if own is other else "None"
    a, b = np.asarray(own), np.asarray(other)
    if a.shape != b.shape:
        return f"shape {a.shape}, not {b.shape}"
    if a.dtype.kind in "OSUT" or b.dtype.kind in "OSUT":
        return "" if [str(each) for each in a.ravel()] == [str(each) for each in b.ravel()] else "text"
    if (
        a.dtype.kind != b.dtype.kind
        and "f" not in a.dtype.kind + b.dtype.kind
        and "V" not in a.dtype.kind + b.dtype.kind
    ):
        return f"type {a.dtype}, not {b.dtype}"
    if a.dtype.kind == "c" or b.dtype.kind == "c":
        return "" if np.allclose(a, b) else "complex"
    with np.errstate(all="ignore"):
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        fine = (x == y) | (np.isnan(x) & np.isnan(y))
        largest = float(np.abs(y[np.isfinite(y)]).max(initial=0.0))
        gap = np.where(fine, 0.0, np.abs(x - y))
        bad = ~fine & ~(gap <= _ABSOLUTE * max(1.0, largest) + _RELATIVE * np.abs(y))
    if not bad.any():
        return ""
    return f"{int(bad.sum())} of {a.size} numbers, by up to {float(np.nanmax(gap)):.3g} of {largest:.3g}"


def _guarded(at: int) -> tuple[str, Outcome]:
    case = _CASES[at]
    return case.name, outcome(case)


_CASES: list[Case] = []


def run(path: Path, limit: float = 60.0) -> dict[str, list[Any]]:
    """Run what `path` does not hold yet, in a process that may crash or hang, and write it there."""
    done: dict[str, list[Any]] = json.loads(path.read_text())["cases"] if path.exists() else {}
    _CASES[:] = [each for each in cases() if each.name not in done]
    context = multiprocessing.get_context("fork")
    pool = context.Pool(1)
    for at, case in enumerate(_CASES):
        try:
            name, found = pool.apply_async(_guarded, (at,)).get(limit)
        except multiprocessing.TimeoutError:
            pool.terminate()
            pool = context.Pool(1)
            name, found = (
                case.name,
                Outcome(case.model.graph.node[0].op_type, 0, "not runnable", f"over {limit:.0f} s, or a crash"),
            )
        done[name] = list(found)
        if at % 200 == 199:
            write(path, done)
    pool.terminate()
    write(path, done)
    return done


def write(path: Path, done: Mapping[str, list[Any]]) -> None:
    """Write the outcomes, with counts."""
    outcomes = {name: Outcome(*each) for name, each in done.items()}
    per: dict[str, Counter[str]] = defaultdict(Counter)
    for each in outcomes.values():
        per[each.operator][each.result] += 1
    value = {
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "counts": Counter(each.result for each in outcomes.values()),
        "in_float32": sorted({each.operator for each in outcomes.values() if each.in_float32}),
        "operators": {name: per[name] for name in sorted(per)},
        "cases": {name: list(each) for name, each in sorted(outcomes.items())},
    }
    path.write_text(json.dumps(value, indent=0) + "\n")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    done = run(parser.parse_args().out)
    print(Counter(each[2] for each in done.values()))


if __name__ == "__main__":
    main()
