"""The float64 evaluator of the certificate against ONNX Runtime and onnx's stored outputs, operator by operator.

Every node test of `onnx.backend.test` is run as it is, and once more for every older or newer definition of its
operator from opset 7 to 25 that can say it, its inputs and attributes moved to where that definition has them.

    python benchmarks/operators.py --out operators.json     # resumes where it was stopped
"""

from __future__ import annotations

import argparse
import itertools
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
import torch
from onnx import ModelProto, TensorProto, defs, helper, numpy_helper

from msn_deploy.core.artifacts import write_json
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
    yield from own_cases()


def own_cases() -> Iterator[Case]:
    """Yield forms that onnx's tests leave out, in every opset that has them; other inputs to the same get a number."""
    seen: Counter[str] = Counter()
    for case in _own():
        seen[case.name] += 1
        yield case._replace(name=f"{case.name}#{seen[case.name]}") if seen[case.name] > 1 else case


def _own() -> Iterator[Case]:
    rng = np.random.default_rng(3)

    def normal(*sizes: int) -> Any:
        return rng.standard_normal(sizes).astype(np.float32)

    def forms(operator: str, inputs: Sequence[Any], outputs: int = 1, **choices: Sequence[Any]) -> Iterator[Case]:
        for chosen in itertools.product(*choices.values()):
            given = {name: value for name, value in zip(choices, chosen, strict=True) if value is not None}
            name = f"own_{operator}_" + "_".join(f"{name}={value}" for name, value in given.items())
            yield from _in_opsets(name, operator, inputs, outputs, given)

    for each in ({}, {"spatial": 0}, {"momentum": 0.3}, {"is_test": 1}, {"epsilon": 0.1}):
        size = (3, 4, 5) if each.get("spatial") == 0 else (3,)
        terms = [normal(*size), normal(*size), normal(*size), np.abs(normal(*size)) + 0.2]
        yield from forms("BatchNormalization", [normal(2, 3, 4, 5), *terms], **{name: [each[name]] for name in each})
    directions, layouts = ("forward", "reverse", "bidirectional"), (None, 1)
    for operator, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        for direction in directions:
            n = 2 if direction == "bidirectional" else 1
            weights = [normal(n, gates * 4, 3), normal(n, gates * 4, 4), normal(n, 2 * gates * 4)]
            chosen = {"RNN": ["Relu"], "GRU": ["HardSigmoid", "Softsign"], "LSTM": ["HardSigmoid", "Relu", "Tanh"]}[
                operator
            ]
            states = [normal(n, 2, 4), *([normal(n, 2, 4), normal(n, 12)] if operator == "LSTM" else [])]
            for extra in ([], [np.int32([5, 3]), *states]):
                yield from forms(
                    operator,
                    [normal(5, 2, 3), *weights, *extra],
                    2 if operator != "LSTM" else 3,
                    direction=[direction],
                    hidden_size=[4],
                    activations=[None, chosen * n],
                    clip=[None, 0.5],
                    **({"linear_before_reset": [0, 1]} if operator == "GRU" else {}),
                    **({"input_forget": [0, 1]} if operator == "LSTM" else {}),
                )
            moved = [normal(2, n, 4), *([normal(2, n, 4)] if operator == "LSTM" else [])]
            yield from forms(
                operator,
                [normal(2, 5, 3), *weights, None, *moved],
                2 if operator != "LSTM" else 3,
                direction=[direction],
                hidden_size=[4],
                layout=layouts[1:],
            )
    image, grid = normal(2, 3, 6, 5), normal(2, 4, 7, 2) * 0.9
    modes = ("bilinear", "nearest", "bicubic", "linear", "cubic")
    pads = ("zeros", "border", "reflection")
    yield from forms("GridSample", [image, grid], mode=modes, padding_mode=pads, align_corners=[0, 1])
    volume, places = normal(1, 2, 4, 5, 3), normal(1, 3, 2, 4, 3) * 0.9
    yield from forms(
        "GridSample", [volume, places], mode=["linear", "nearest"], padding_mode=pads, align_corners=[0, 1]
    )
    coordinates = (
        *("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners", "half_pixel_symmetric"),
        *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
    )
    roi = np.float32([0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9])
    nearest = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    for scales, sizes in (
        ([1, 1, 2, 3], None),
        ([1, 1, 0.6, 0.7], None),
        ([1, 1, 1.5, 0.4], None),
        (None, [2, 3, 9, 2]),
    ):
        given = [image, roi, None if scales is None else np.float32(scales)]
        given += [] if sizes is None else [np.int64(sizes)]
        yield from forms(
            "Resize", given, coordinate_transformation_mode=coordinates, mode=["nearest"], nearest_mode=nearest
        )
        for mode in ("linear", "cubic"):
            yield from forms(
                "Resize",
                given,
                coordinate_transformation_mode=coordinates,
                mode=[mode],
                exclude_outside=[0, 1] if mode == "cubic" else [None],
                antialias=[None, 1],
                cubic_coeff_a=[None, -0.5] if mode == "cubic" else [None],
            )
    for scales in ([1, 1, 2, 3], [1, 1, 2, 2]):
        yield from forms("Resize", [image, np.float32(scales)], mode=["nearest", "linear"])
        yield from forms("Upsample", [image, np.float32(scales)], mode=["nearest", "linear"])
        yield from forms("Upsample", [image], scales=[[float(each) for each in scales]], mode=["nearest", "linear"])
    padding = (None, [0, 1, 1, 2], [1, 1, 1, 1])
    autos = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    strides, dilations = ([1, 1], [2, 3]), ([1, 1], [2, 1])
    deep = normal(2, 16, 9, 8)
    for groups, weight in (
        (1, normal(6, 16, 3, 2)),
        (2, normal(6, 8, 3, 2)),
        (16, normal(32, 1, 3, 2)),
        (4, normal(8, 4, 3, 2)),
    ):
        every = {"strides": strides, "dilations": dilations, "group": [groups]}
        yield from forms("Conv", [deep, weight, normal(len(weight))], pads=padding, **every)
        yield from forms("Conv", [deep, weight], auto_pad=autos[1:], **every)
    for groups, weight in ((1, normal(16, 6, 3, 2)), (4, normal(16, 2, 3, 2))):
        every = {"strides": strides, "dilations": dilations, "group": [groups]}
        made = weight.shape[1] * groups
        yield from forms(
            "ConvTranspose", [deep, weight, normal(made)], pads=padding, output_padding=[None, [0, 1]], **every
        )
        yield from forms("ConvTranspose", [deep, weight], auto_pad=autos[1:], **every)
        yield from forms(
            "ConvTranspose", [deep, weight], output_shape=[[20, 25], [17, 22]], auto_pad=autos[:3], **every
        )
    for operator in ("MaxPool", "AveragePool", "LpPool"):
        every = {"kernel_shape": [[3, 2]], "strides": strides, "ceil_mode": [None, 1]}
        every |= {"count_include_pad": [0, 1]} if operator == "AveragePool" else {}
        every |= {"p": [1, 3]} if operator == "LpPool" else {}
        yield from forms(operator, [image], pads=padding, dilations=[None, [2, 1]], **every)
        yield from forms(operator, [image], auto_pad=autos[1:], **every)
    yield from forms("MaxPool", [image], 2, kernel_shape=[[3, 2]], strides=strides, pads=padding, storage_order=[0, 1])
    for operator, taken in (
        *((each, {"axis": [None, 0, 1, 2, -1]}) for each in ("Softmax", "LogSoftmax", "Hardmax")),
        ("LpNormalization", {"axis": [0, 1, -1], "p": [1, 2]}),
        ("LRN", {"size": [1, 3, 4], "alpha": [0.2], "bias": [0.5]}),
        ("Gelu", {"approximate": ["none", "tanh"]}),
        ("DepthToSpace", {"blocksize": [2], "mode": [None, "DCR", "CRD"]}),
        ("MeanVarianceNormalization", {"axes": [None, [1], [2, 3]]}),
        ("GlobalLpPool", {"p": [1, 2]}),
        *(
            (each, {"alpha": [None, 0.3]})
            for each in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Selu", "HardSigmoid")
        ),
        *(
            (each, {})
            for each in ("HardSwish", "Mish", "Softplus", "Softsign", "Erf", "Sigmoid", "Tanh", "Relu", "Exp")
        ),
    ):
        yield from forms(operator, [normal(2, 4, 6, 5) * 3], **taken)
    yield from forms("InstanceNormalization", [image, normal(3), normal(3)], epsilon=[None, 0.2])
    yield from forms("LayerNormalization", [image, normal(6, 5), normal(6, 5)], 3, axis=[2, -2], epsilon=[None, 0.2])
    yield from forms(
        "GroupNormalization", [normal(2, 4, 3, 3), normal(4), normal(4)], num_groups=[2], epsilon=[None, 0.2]
    )
    yield from forms("GroupNormalization", [normal(2, 4, 3, 3), normal(2), normal(2)], num_groups=[2])
    for slope in (normal(3, 1, 1), normal(1), normal(5), normal(6, 5), normal(2, 3, 6, 5)):
        yield from forms("PRelu", [image, slope])
    ends = np.int64([0, 0, 1, 2, 0, 0, 2, 1])
    yield from forms("Pad", [image, ends], mode=[None, "constant", "reflect", "edge", "wrap"])
    yield from forms("Pad", [image, ends, np.float32(0.7)], mode=["constant"])
    yield from forms("Pad", [image], pads=[ends.tolist()], mode=[None, "reflect", "edge"], value=[0.7])
    boxes = np.float32([[0, 0, 3, 4], [1, 1, 4.5, 4.5], [0.5, 2, 2, 5]])
    yield from forms(
        "RoiAlign",
        [image, boxes, np.int64([0, 1, 1])],
        coordinate_transformation_mode=[None, "half_pixel", "output_half_pixel"],
        output_height=[2],
        output_width=[3],
        sampling_ratio=[0, 2],
        spatial_scale=[0.9],
        mode=["avg", "max"],
    )
    at = rng.integers(0, 2, (2, 3, 6, 5))
    yield from forms(
        "ScatterElements", [image, at, normal(2, 3, 6, 5)], axis=[0, 1], reduction=[None, "add", "mul", "max", "min"]
    )
    yield from forms(
        "ScatterND", [image, np.int64([[0], [1]]), normal(2, 3, 6, 5)], reduction=[None, "add", "mul", "max", "min"]
    )
    yield from forms("GatherElements", [image, at], axis=[0, 1])
    for axis in (0, -1):
        yield from forms("CumSum", [image, np.int64(axis)], exclusive=[0, 1], reverse=[0, 1])
    yield from forms("TopK", [image, np.int64([2])], 2, axis=[1, -1], largest=[0, 1])
    for equation in ("nchw,ncwk->nchk", "nchw,ncwk", "...hw,...wk->...kh", "nchw,ncwk->n"):
        yield from forms("Einsum", [image, normal(2, 3, 5, 4)], equation=[equation])
    yield from forms("Einsum", [normal(4, 4)], equation=["ii->i", "ii", "ij->ji"])
    for a, b in (((4, 3), (4, 5)), ((3, 4), (5, 4))):
        taken = {"transA": [int(a[0] == 4)], "transB": [int(b[1] == 4)], "alpha": [0.5], "beta": [2.0]}
        yield from forms("Gemm", [normal(*a), normal(*b), normal(5)], **taken)
    scores, candidates = np.abs(normal(1, 2, 9)), np.abs(normal(1, 9, 4)).cumsum(-1)
    limits = [np.int64([3]), np.float32([0.4]), np.float32([0.1])]
    yield from forms("NonMaxSuppression", [candidates, scores, *limits], center_point_box=[0, 1])


def _in_opsets(
    name: str, operator: str, inputs: Sequence[Any], outputs: int, given: Mapping[str, Any]
) -> Iterator[Case]:
    last: dict[int, int] = {}
    for version in OPSETS:
        try:
            last[defs.get_schema(operator, version, "").since_version] = version
        except defs.SchemaError:
            continue
    for version in last.values():
        schema = defs.get_schema(operator, version, "")
        named = {f"x{at}": value for at, value in enumerate(inputs) if value is not None}
        names = [f"x{at}" if value is not None else "" for at, value in enumerate(inputs)]
        variadic = schema.max_input
        if not set(given) <= set(schema.attributes) or not schema.min_input <= len(names) <= variadic:
            continue
        made = [f"y{at}" for at in range(outputs)]
        node = helper.make_node(operator, names, made, **given)
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(each, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for each, value in ((each, np.asarray(value)) for each, value in named.items())
            ],
            [helper.make_value_info(each, onnx.TypeProto()) for each in made],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
        yield Case(f"{name}@{version}", model, {each: np.asarray(value) for each, value in named.items()}, None)


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


# Why a case may differ, or cannot be evaluated: operator, what its name or its difference has, and the reason.
EXPLAINED = (
    ("Adagrad", "", "an optimiser's step; no network has it"),
    ("Adam", "", "an optimiser's step; no network has it"),
    ("Momentum", "", "an optimiser's step; no network has it"),
    ("FlexAttention", "", "a preview that ONNX Runtime has not got either"),
    ("Scan", "test_scan_sum", "opset 8, which had another Scan; ONNX Runtime has not got it either"),
    *((each, "batchwise", "layout=1, which ONNX Runtime has not got") for each in ("RNN", "GRU", "LSTM")),
    *((each, "bernoulli", "random") for each in ("Bernoulli", "several")),
    ("Dropout", "training_dropout", "random"),
    *((each, "fp16", "FP16 that is rounded at other places") for each in ("Attention", "several")),
    ("Attention", "of 3.4e+38", "ONNX Runtime: what is masked is the lowest number, not minus infinity"),
    ("Cast", "FLOAT8E4M3FN", "ONNX Runtime: returns bytes, not numbers"),
    ("ConvTranspose", "auto_pad=SAME", "ONNX Runtime: not the size that is defined, input times stride"),
    ("MaxUnpool", "output_shape", "ONNX Runtime: places are counted in another size"),
    ("Resize", "align_corners", "ONNX Runtime: takes the rounded size for input times scale"),
)


def explained(name: str, found: Outcome) -> str:
    """Return why an outcome is what it is, and right; empty if that is not known."""
    for operator, part, reason in EXPLAINED:
        if found.operator == operator and (part in name or part in found.why):
            return reason
    return ""


def _guarded(at: int) -> tuple[str, Outcome]:
    case = _CASES[at]
    return case.name, outcome(case)


_CASES: list[Case] = []


def run(path: Path, limit: float = 60.0) -> dict[str, Outcome]:
    """Run what is not done yet, in a process that may crash or hang; `path`.part holds it until all of it is."""
    part = path.with_suffix(".part")
    held = json.loads(part.read_text()) if part.exists() else {}
    done = {name: Outcome(*each) for name, each in held.items()}
    _CASES[:] = [each for each in cases() if each.name not in done]
    context = multiprocessing.get_context("fork")
    pool = context.Pool(1)
    for at, case in enumerate(_CASES):
        try:
            name, found = pool.apply_async(_guarded, (at,)).get(limit)
        except multiprocessing.TimeoutError:
            pool.terminate()
            pool = context.Pool(1)
            why = f"over {limit:.0f} s, or a crash"
            name, found = case.name, Outcome(case.model.graph.node[0].op_type, 0, "not runnable", why)
        done[name] = found
        if at % 500 == 499:
            part.write_text(json.dumps(done))
    pool.terminate()
    write_json(path, _told(done))
    part.unlink(missing_ok=True)
    return done


def _told(done: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return the counts, and every case that is not equal."""
    per: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    differing: dict[str, Any] = {}
    left: Counter[str] = Counter()
    for name, found in sorted(done.items()):
        per[found.operator][str(found.opset)][found.result] += 1
        if found.result == "not runnable":
            left[f"{found.operator} {found.opset}: {found.why.partition(' : ')[2][:100] or found.why[:100]}"] += 1
        elif found.result != "equal":
            reason = explained(name, found)
            differing[name] = {**found._asdict(), "reason": reason}
    return {
        "schema": "msn-deploy-operators/1",
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "counts": dict(Counter(found.result for found in done.values())),
        "unexplained": sorted(name for name, each in differing.items() if not each["reason"]),
        "in_float32": sorted({found.operator for found in done.values() if found.in_float32}),
        "operators": {
            name: {opset: dict(per[name][opset]) for opset in sorted(per[name], key=int)} for name in sorted(per)
        },
        "differing": differing,
        "not_runnable": dict(sorted(left.items())),
    }


def main() -> None:
    """Run all of it."""
    onnxruntime.set_default_logger_severity(4)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    done = run(parser.parse_args().out)
    print(dict(Counter(each.result for each in done.values())))


if __name__ == "__main__":
    main()
