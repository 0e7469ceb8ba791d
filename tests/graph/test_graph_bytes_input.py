"""A graph that prepares bytes itself makes of them what the network makes of prepared numbers, in as few operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

from msn_deploy.core.model_info import Preprocess
from msn_deploy.engine import OrtRunner
from msn_deploy.graph.bytes_input import take_bytes
from msn_deploy.graph.certificate import certify
from msn_deploy.graph.evaluate import run_float64
from msn_deploy.graph.fold import fold_graph
from msn_deploy.model.opened import made_model

IMAGENET = Preprocess(
    height_px=8, width_px=6, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), colour="rgb"
)
BGR = replace(IMAGENET, colour="bgr")
SCALED = replace(IMAGENET, mean=(0.0,) * 3, std=(1.0,) * 3)
SHIFTED = replace(IMAGENET, std=(1 / 255,) * 3)
PLAIN = replace(SHIFTED, mean=(0.0,) * 3)
WEIGHTS = {"w": (4, 3, 3, 3), "v": (4, 3, 1, 1), "one": (6, 1, 3, 3), "deep": (4, 12, 3, 3), "g": (144, 5), "b": (4,)}
BODIES = {
    "unpadded": "y = Conv(x, w, b)",
    "padded": "y = Conv<pads = [1, 1, 1, 1]>(x, w)",
    "same": 'y = Conv<auto_pad = "SAME_UPPER">(x, w)',
    "pointwise": "y = Conv(x, v, b)",
    "depthwise": "y = Conv<group = 3>(x, one)",
    "depthwise, padded": "y = Conv<group = 3, pads = [1, 1, 1, 1]>(x, one)",
    "read twice": "a = Conv(x, w, b) c = Conv(x, v, b) d = ReduceMean<axes = [2, 3]>(a) y = Add(c, d)",
    "read as it is, too": "a = Conv<pads = [1, 1, 1, 1]>(x, w, b) c = ReduceMax<axes = [1]>(x) y = Add(a, c)",
    "computed first": "s = Sigmoid(x) y = Conv(s, w)",
    "rows": "f = Flatten(x) y = MatMul(f, g)",
    "focus": "".join(
        f"c{at} = Slice(x, {rows}, end, three, two) s{at} = Slice(c{at}, {columns}, end, four, two) "
        for at, (rows, columns) in enumerate((a, b) for a in ("zero", "first") for b in ("zero", "first"))
    )
    + "all = Concat<axis = 1>(s0, s1, s2, s3) y = Conv<pads = [1, 1, 1, 1]>(all, deep)",
}
CUTS = ["Slice"] * 8
EXPECTED: list[tuple[str, Preprocess, list[str]]] = [
    ("unpadded", IMAGENET, ["Cast", "Conv"]),
    ("unpadded", BGR, ["Cast", "Conv"]),
    ("unpadded", PLAIN, ["Cast", "Conv"]),
    ("padded", IMAGENET, ["Cast", "Add", "Conv"]),
    ("padded", BGR, ["Cast", "Add", "Conv"]),
    ("padded", SCALED, ["Cast", "Conv"]),
    ("padded", SHIFTED, ["Cast", "Sub", "Conv"]),
    ("same", IMAGENET, ["Cast", "Add", "Conv"]),
    ("pointwise", BGR, ["Cast", "Conv"]),
    ("depthwise", IMAGENET, ["Cast", "Conv"]),
    ("depthwise", BGR, ["Cast", "Gather", "Conv"]),
    ("depthwise, padded", IMAGENET, ["Cast", "Add", "Conv"]),
    ("read twice", BGR, ["Cast", "Conv", "Conv", "ReduceMean", "Add"]),
    ("read as it is, too", IMAGENET, ["Cast", "Mul", "Add", "Conv", "ReduceMax", "Add"]),
    ("computed first", BGR, ["Cast", "Mul", "Add", "Gather", "Sigmoid", "Conv"]),
    ("computed first", PLAIN, ["Cast", "Sigmoid", "Conv"]),
    ("rows", IMAGENET, ["Cast", "Flatten", "Gemm"]),
    ("focus", IMAGENET, ["Cast", "Add", *CUTS, "Concat", "Conv"]),
    ("focus", SCALED, ["Cast", *CUTS, "Concat", "Conv"]),
]  # fmt: skip


def parsed(body: str, given: str = "float[2,3,8,6] x", opset: int = 17) -> ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({given}) => (float y) '
        "<int64[1] zero = {0}, int64[1] first = {1}, int64[1] end = {100}, int64[1] two = {2}, int64[1] three = {2}, "
        f"int64[1] four = {{3}}> {{ {body} }}"
    )
    rng = np.random.default_rng(7)
    read = {name for node in model.graph.node for name in node.input}
    for name in [each.name for each in model.graph.initializer if each.name not in read]:
        model.graph.initializer.remove(next(each for each in model.graph.initializer if each.name == name))
    for name, shape in WEIGHTS.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 1, shape).astype(np.float32), name))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def pixels(layout: str = "NCHW") -> np.ndarray:
    x = np.random.default_rng(3).integers(0, 256, (2, 3, 8, 6)).astype(np.uint8)
    x[1] = 0  # black, where the zeros of a padding are something else
    return x if layout == "NCHW" else x.transpose(0, 2, 3, 1)


def truth(model: ModelProto, was: Preprocess, now: Preprocess) -> np.ndarray:
    """Return what the network makes of numbers prepared in float64."""
    x = pixels("NHWC")[..., ::-1] if now.colour != was.colour else pixels("NHWC")
    numbers = (x / 255 - was.mean) / was.std
    return run_float64(model, numbers if was.layout == "NHWC" else numbers.transpose(0, 3, 1, 2))


def in_ort(model: ModelProto, x: np.ndarray) -> np.ndarray:
    proto = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
    runner = OrtRunner(made_model(Path("m.onnx"), proto, proto.SerializeToString()), threads=1)
    return runner.run({"x": np.ascontiguousarray(x)})["y"]


def held(model: ModelProto, was: Preprocess, **changes: Any) -> Any:
    """Fold a network that takes bytes; what it gives is what the network gives, within the rounding of its numbers."""
    now = replace(was, **{"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "colour": "rgb", **changes})
    before = model.SerializeToString()
    taking = take_bytes(model, was, now)
    assert model.SerializeToString() == before
    folded = fold_graph(taking)
    expected, x = truth(model, was, now), pixels(now.layout)
    spread = np.ptp(expected)
    for each in (taking, folded.model):
        assert each.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        np.testing.assert_allclose(run_float64(each, x), expected, rtol=0, atol=1e-6 * spread)
        np.testing.assert_allclose(in_ort(each, x), expected, rtol=0, atol=1e-5 * spread)
    for data in (None, {"x": x}):
        certificate = certify(folded, data=data)
        assert certificate.is_exact
        assert certificate.output.difference is not None
    return folded


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(("body", "was", "wanted"), EXPECTED)
def test_what_the_first_layers_can_take_they_do(body: str, was: Preprocess, wanted: list[str]) -> None:
    assert operators(held(parsed(BODIES[body]), was).model) == wanted


@pytest.mark.parametrize("body", ["unpadded", "padded", "computed first"])
def test_bytes_with_channels_last_are_turned_behind_the_cast(body: str) -> None:
    cast, turn, *others = operators(held(parsed(BODIES[body]), BGR, layout="NHWC").model)
    assert (cast, turn) == ("Cast", "Transpose")
    assert others == operators(held(parsed(BODIES[body]), BGR).model)[1:]


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("body", ["t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(t, w, b)", "y = Sigmoid(x)"])
def test_a_network_with_channels_last(body: str, layout: str, colour: str) -> None:
    folded = held(parsed(body, "float[2,8,6,3] x"), replace(BGR, layout="NHWC"), layout=layout, colour=colour)
    turns = ["Transpose"] * (layout == "NCHW")
    if "Conv" in body:
        assert operators(folded.model) == ["Cast", *turns, "Transpose", "Conv"]
    else:
        order = ["Gather"] * (colour == "rgb")
        assert operators(folded.model) == ["Cast", *turns, "Sub", "Div", *order, "Sigmoid"]


def test_a_network_of_halves_gets_them_rounded_once() -> None:
    model = parsed("y = Cast<to = 1>(x)", "float16[2,3,8,6] x")
    now = replace(IMAGENET, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    taking = take_bytes(model, IMAGENET, now)
    assert operators(taking) == ["Cast", "Sub", "Div", "Cast", "Cast"]
    numbers = (pixels("NHWC") / 255 - IMAGENET.mean) / IMAGENET.std
    np.testing.assert_allclose(in_ort(taking, pixels()), numbers.transpose(0, 3, 1, 2), rtol=2**-11, atol=1e-6)


def test_open_sizes_keep_their_names() -> None:
    model = parsed(BODIES["padded"], "float[N,3,8,6] x")
    made = take_bytes(model, IMAGENET, replace(PLAIN, layout="NHWC"))
    dims = made.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["N", 8, 6, 3]


def test_the_numbers_are_those_of_0_to_255_rounded_once() -> None:
    made = take_bytes(parsed(BODIES["padded"]), BGR, replace(PLAIN, colour="rgb"))
    numbers = {each.name: numpy_helper.to_array(each) for each in made.graph.initializer}
    assert numbers["preparation.mean"].ravel().tolist() == np.float32([103.53, 116.28, 123.675]).tolist()
    assert numbers["preparation.std"].ravel().tolist() == np.float32([57.375, 57.12, 58.395]).tolist()
    assert numbers["preparation.order"].tolist() == [2, 1, 0]
    folded = fold_graph(made).model
    shift = next(numpy_helper.to_array(each) for each in folded.graph.initializer if each.dims == [3, 1, 1])
    np.testing.assert_array_equal(shift.ravel(), -numbers["preparation.mean"].ravel())


def test_names_that_a_file_has_already_are_left_to_it() -> None:
    model = parsed("c = Relu(x) p = Neg(c) y = Add(p, c)")
    taken = {"c": "x.cast", "p": "x.prepared"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [taken.get(name, name) for name in names]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 1, 1), np.float32), "preparation.mean"))
    model.graph.node[2].input[1] = "preparation.mean"
    held(model, IMAGENET)


def test_the_certificate_tells_what_became_of_the_preparation() -> None:
    for body, rule in (("unpadded", "into-readers"), ("padded", "scale-into-readers")):
        (norm,) = certify(held(parsed(BODIES[body]), IMAGENET)).norms
        assert (norm.norm, norm.rule, norm.code) == ("preparation", rule, "")
        assert norm.difference is not None
    assert certify(held(parsed(BODIES["computed first"]), IMAGENET)).norms == ()
