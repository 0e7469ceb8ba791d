"""Which nodes stay in FP32: one network of each kind, run in both precisions on values where FP16 alone would fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.quant.fp32_nodes import fold_constants, needs_fp32
from msn_deploy.quant.precision import to_fp16

F = np.float32
CAUSAL = np.where(np.tri(2, 8) > 0, 0, -3.4e38).astype(F)


def parsed(text: str, opset: int = 17, **constants: Any) -> ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def row(nodes: str, opset: int = 17, **constants: Any) -> ModelProto:
    """From x to y."""
    return parsed(f"(float[2,8] x) => (float[2,8] y) {{ {nodes} }}", opset, **constants)


def fed(model: ModelProto, scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    made = {}
    for spec in run_on_one_thread(model).inputs:
        shape = [size or 2 for size in spec.shape or ()]
        floats = spec.dtype == "float32"
        made[spec.name] = (rng.standard_normal(shape) * scale if floats else rng.integers(0, 2, shape)).astype(
            spec.dtype
        )
    return made


def in_both(model: ModelProto, why: Mapping[str, str], scale: float) -> list[tuple[np.ndarray, np.ndarray]]:
    half = to_fp16(model, keep_fp32=why)
    onnx.checker.check_model(half, full_check=True)
    feeds = fed(model, scale)
    expected, got = (run_on_one_thread(each).run(feeds) for each in (model, half))
    return [(expected[name], got[name]) for name in expected]


# Name: the network, and the nodes that have to stay.
EPSILONS = {
    "F.normalize": (
        row("n = ReduceL2<axes=[1]>(x) c = Max(n, e) s = Expand(c, k) y = Div(x, s)",
               e=F(1e-12), k=np.array([2, 8])),
        {"n", "c", "s", "y"},
    ),
    "normalised by a clip": (
        row("n = ReduceL2<axes=[1]>(x) c = Clip(n, e) y = Div(x, c)", e=F(1e-12)),
        {"n", "c", "y"},
    ),
    "PixelNorm": (
        row("""p = Mul(x, x) m = ReduceMean<axes=[1]>(p) a = Add(m, e) s = Sqrt(a)
            r = Reciprocal(s) y = Mul(x, r)""", e=F(1e-8)),
        {"p", "m", "a", "s", "r", "y"},
    ),
    "LayerNorm written out": (
        row("""m = ReduceMean<axes=[1]>(x) d = Sub(x, m) p = Pow(d, two)
            v = ReduceMean<axes=[1]>(p) a = Add(v, e) s = Sqrt(a) y = Div(d, s)""", e=F(1e-12), two=F(2)),
        {"p", "v", "a", "s", "y"},
    ),
    "InstanceNormalization": (
        parsed("(float[2,8,4] x) => (float[2,8,4] y) { y = InstanceNormalization<epsilon=1e-12>(x, s, b) }",
               s=np.full(8, 1.5, F), b=np.full(8, 0.25, F)),
        {"y"},
    ),
    "an epsilon computed from constants": (
        row("e = Mul(a, a) v = Abs(x) w = Add(v, e) y = Div(x, w)", a=F(1e-6)),
        {"v", "w", "y"},
    ),
    "one small divisor of several": (
        parsed("(float[2,2] x) => (float[2,2] y) { r = Relu(x) y = Div(r, d) }", d=np.array([2, 1e-9], F)),
        {"y"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("kind", EPSILONS)
def test_a_small_constant_stays_in_fp32_with_what_it_guards(kind: str, scale: float) -> None:
    model, kept = EPSILONS[kind]
    model = fold_constants(model, load=run_on_one_thread)
    why = needs_fp32(model, {})
    assert set(why) == kept
    assert any("FP16 makes 0 of its" in each for each in why.values())
    for expected, got in in_both(model, why, scale):
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-6)


def test_a_resize_reads_its_region_and_its_scales_in_fp32() -> None:
    half = to_fp16(TYPES["the region and the scales of a Resize"][0])
    assert [tensor.data_type for tensor in half.graph.initializer] == [onnx.TensorProto.FLOAT] * 2


def test_without_that_there_are_numbers_that_are_none() -> None:
    model, _ = EPSILONS["F.normalize"]
    ((expected, got),) = in_both(model, {}, 0.0)
    assert np.isfinite(expected).all()
    assert not np.isfinite(got).any()


def test_an_epsilon_that_fp16_holds_and_a_norm_that_computes_inside_in_fp32_are_cast() -> None:
    model = row("v = Abs(x) w = Add(v, e) y = Div(x, w)", e=F(1e-5))
    assert needs_fp32(model, {}) == {}
    model = parsed(
        "(float[2,8] x) => (float[2,8] y) { y = LayerNormalization<epsilon=1e-12>(x, s) }", s=np.full(8, 1.5, F)
    )
    assert needs_fp32(model, {}) == {}


def test_positions_of_boxes_stay_in_fp32_around_their_suppression() -> None:
    """FP16 has no 1000.3. What an activation makes of them, and scores, are cast."""
    model = parsed(
        """(float[1,4,9] x, float[1,1,9] z) => (float[1,9,4] y, int64[k,3] kept) {
        c = Relu(x) t = Transpose<perm=[0, 2, 1]>(c) s = Mul(t, stride) b = Add(s, origin)
        g = Sigmoid(z) kept = NonMaxSuppression(b, g, n) y = Concat<axis=1>(b) }""",
        n=np.array(3), stride=F(8), origin=F(1000),
    )  # fmt: skip
    why = needs_fp32(model, {})
    assert set(why) == {"t", "s", "b", "kept", "y"}
    assert why["b"] == "it computes where boxes are, in pixels"
    for kept, lost in ((why, False), ({"kept": why["kept"]}, True)):
        expected, got = in_both(model, kept, 1.0)[0]
        assert (np.abs(got - expected).max() > 0.1) == lost


# Name: the network, the nodes that have to stay, and a word of the reason.
TYPES = {
    "NonMaxSuppression": (
        parsed("(float[1,8,4] x, float[1,1,8] z) => (int64[k,3] y)"
               " { b = Abs(x) s = Sigmoid(z) y = NonMaxSuppression(b, s, n) }",
               n=np.array(3)),
        {"y": "no FP16 in opset 17"},
    ),
    "CumSum below 14": (
        row("a = Relu(x) b = CumSum(a, i) y = Mul(b, h)", 11, h=F(0.5), i=np.int32(1)),
        {"b": "no FP16 in opset 11"},
    ),
    "CumSum": (
        row("a = Relu(x) b = CumSum(a, i) y = Mul(b, h)", 14, h=F(0.5), i=np.int32(1)),
        {},
    ),
    "Range": (
        parsed("(float[8] x, float limit) => (float[8] y) { r = Range(o, limit, s) t = ReduceSum(r) y = Add(x, t) }",
               o=F(0), s=F(1)),
        {"r": "no FP16 in opset 17"},
    ),
    "ConstantOfShape": (
        parsed("(float[n,8] x) => (float[n,8] y)"
               " { s = Shape(x) c = ConstantOfShape<value=float[1] {0.5}>(s) y = Add(x, c) }"),
        {},
    ),
    "the region and the scales of a Resize": (
        parsed("""(float[1,1,2,2] x) => (float[1,1,4,4] y) { a = Relu(x)
            y = Resize<mode="nearest", coordinate_transformation_mode="tf_crop_and_resize">(a, r, s) }""",
               r=np.array([0, 0, 0.1, 0.1, 1, 1, 0.8, 0.8], F), s=np.array([1, 1, 2, 2], F)),
        {},
    ),
    "EyeLike": (parsed("(float[8,8] x) => (float[8,8] y) { e = EyeLike<dtype=1>(x) y = MatMul(e, x) }"), {}),
    "random numbers": (
        parsed("(float[8,8] x) => (float[8,8] y)"
               " { r = RandomNormalLike<seed=1.0>(x) z = Mul(r, s) y = Add(z, x) }", s=F(1e-3)),
        {},
    ),
    "sequences": (
        parsed("(float[8,8] x) => (float[8,4] y)"
               " { a = Relu(x) s = SplitToSequence<axis=1>(a, n) t = SequenceAt(s, i) y = Mul(t, h) }",
               n=np.array([4, 4]), i=np.int64(1), h=F(0.5)),
        {"s": "sequences"},
    ),
    "If, with what its branches read from outside": (
        parsed("""(float[2,8] x, bool c) => (float[2,8] y) { a = Relu(x) b = Neg(a) w = If(c)<
            then_branch = t () => (float[2,8] o) { o = Add(a, b) },
            else_branch = e () => (float[2,8] o) { o = Sub(a, h) }> y = Mul(w, h) }""", h=F(0.5)),
        {},
    ),
    "bytes, two inputs, an output read inside, an index": (
        parsed("""(uint8[1,4,4,3] x, float[1,3,4,4] z) => (float[1,3,4,4] y, int64[1,4,4] i, float[1,3,4,4] u) {
            c = Cast<to=1>(x) t = Transpose<perm=[0,3,1,2]>(c) d = Div(t, k) y = Add(d, z)
            i = ArgMax<axis=1, keepdims=0>(y) u = Relu(y) }""", k=F(255)),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_the_standard_decides_which_operators_have_fp16(kind: str) -> None:
    model, kept = TYPES[kind]
    why = needs_fp32(model, {})
    assert set(why) == set(kept)
    assert all(word in why[name] for name, word in kept.items())
    half = to_fp16(model, keep_fp32=why)
    assert any(node.op_type == "Cast" for node in half.graph.node)
    for expected, got in in_both(model, why, 1.0):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=5e-3)


MASKS = {
    "Where": (
        parsed("(float[2,8] x, bool[2,8] k) => (float[2,8] y)"
               " { s = Mul(x, c) w = Where(k, b, s) y = Softmax<axis=-1>(w) }",
               b=F(-3.4e38), c=F(0.5)),
        set(),
    ),
    "Add": (
        row("s = Mul(x, c) w = Add(s, b) y = Softmax<axis=-1>(w)", b=CAUSAL, c=F(0.5)),
        set(),
    ),
    "Add, a row of nothing else": (
        row("s = Mul(x, c) w = Add(s, b) y = Softmax<axis=-1>(w)",
               b=np.stack([np.full(8, -3.4e38), np.zeros(8)]).astype(F), c=F(0.5)),
        {"w", "y"},
    ),
    "Add before a Softmax along another axis": (
        row("s = Mul(x, c) w = Add(s, b) y = Softmax<axis=0>(w)", b=CAUSAL, c=F(0.5)),
        {"w", "y"},
    ),
    "a mask that is given out": (
        parsed("(float[2,8] x) => (float[2,8] y, float[2,8] w) { s = Mul(x, c) w = Add(s, b) y = Softmax<axis=-1>(w) }",
               b=CAUSAL, c=F(0.5)),
        {"w", "y"},
    ),
    "bounds of no bound": (
        row("a = Clip(x, o, b) c = Min(a, b) y = Max(c, n)",
               o=F(0.25), b=F(3.4e38), n=F(-3.4e38)),
        set(),
    ),
    "a bound that counts": (
        row("a = Relu(x) y = Max(a, b)", b=F(1e5)),
        {"y"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MASKS)
def test_a_constant_beyond_fp16_is_its_end_where_that_is_exact(kind: str) -> None:
    model, kept = MASKS[kind]
    maxima = {"x": 4.0, "s": 2.0, **({} if kept else {"w": 3.4e38})}
    why = needs_fp32(model, maxima)
    assert set(why) == kept
    for expected, got in in_both(model, why, 1.0):
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "maxima", "why"),
    [
        ("y = ReduceL2<axes=[1], keepdims=0>(x)", {"x": 200.0, "y": 300.0}, "the sum of squares reaches 9e+04"),
        ("y = LpNormalization<axis=1>(x)", {"x": 200.0, "y": 1.0}, "a square inside reaches 4e+04"),
    ],
)
def test_a_sum_inside_an_operator_is_judged(text: str, maxima: dict[str, float], why: str) -> None:
    model = parsed(f"(float[2,8] x) => (float y) {{ {text} }}")
    assert needs_fp32(model, maxima) == {"y": why}
    assert needs_fp32(model, {name: size / 2 for name, size in maxima.items()}) == {}


def test_an_operator_of_others_stays_with_what_has_its_type() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[2,8] x) => (float[2,8] y) { a = Relu(x) b = own.Act(a) y = Add(b, a) }""")
    why = needs_fp32(model, {})
    assert why["b"] == "Act is not an operator of the standard"
    assert why["y"] == "the type of b is not known"
    half = to_fp16(model, keep_fp32=why)
    assert [node.op_type for node in half.graph.node] == ["Cast", "Relu", "Cast", "Act", "Add"]


def test_constants_are_computed_once_and_only_those() -> None:
    model = parsed("(float[2,8] x) => (float[2,8] y, float[8] z)"
                   " { t = Transpose(w) m = MatMul(x, t) u = Neg(b) y = Add(m, u) z = Abs(b) }",
                   w=np.linspace(-1, 1, 64, dtype=F).reshape(8, 8), b=np.linspace(1, 2, 8, dtype=F))  # fmt: skip
    folded = fold_constants(model, load=run_on_one_thread)
    assert [node.op_type for node in folded.graph.node] == ["MatMul", "Add", "Abs"]  # an output stays one of a node
    assert {tensor.name for tensor in folded.graph.initializer} == {"t", "u", "b"}
    feeds = fed(model, 1.0)
    expected, got = (run_on_one_thread(each).run(feeds) for each in (model, folded))
    np.testing.assert_array_equal(got["y"], expected["y"])
    assert fold_constants(folded, load=run_on_one_thread) is folded
    large = parsed(
        "(float[1] x) => (float[4096,2048] y) { e = Expand(o, k) y = Add(x, e) }", o=F(1), k=np.array([4096, 2048])
    )
    assert fold_constants(large, load=run_on_one_thread) is large
