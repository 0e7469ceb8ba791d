"""Where pairs go: one small graph for each rule, and that rounding twice with one scale is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper
from text_graphs import graph

from msn_deploy.core.errors import InputError
from msn_deploy.quant.placement import place, without_fp8
from msn_deploy.quant.quantize import quantize


def reads(model: ModelProto, **options: Any) -> dict[str, str]:
    """Which node reads what through a pair, as "node's output:index" -> tensor."""
    placement = place(model, **options)
    return {
        f"{node.output[0]}:{index}": name
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if (node.output[0], index) in placement.reads
    }


def one_scale(model: ModelProto, **options: Any) -> set[frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for name, group in place(model, **options).scale_of.items():
        groups.setdefault(group, set()).add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def test_a_layer_reads_its_input_and_its_weight_in_int8_and_nothing_else() -> None:
    model = graph("a = conv(x, w, b)  r = LeakyRelu(a)  y = conv(r, v)")
    assert reads(model) == {"a:0": "x", "y:0": "r"}
    assert place(model).layers == ("a", "y")
    int8 = quantize(model, {"x": 2.0, "r": 3.0})
    left = {tensor.name for tensor in int8.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    assert left == {"b", "x_scale", "r_scale", "w_scale", "v_scale"}


@pytest.mark.parametrize("order", ["s = Add(c, x)", "s = Add(x, c)"])
def test_a_residual_add_reads_its_shortcut_in_int8_and_not_the_convolution_it_is_fused_into(order: str) -> None:
    index = 1 if order.endswith("x)") else 0
    assert reads(graph(f"a = conv(x, w)  c = conv(a, v)  {order}  y = Relu(s)")) == {
        **{"a:0": "x", "c:0": "a"},
        f"s:{index}": "x",
    }


def test_where_both_sides_are_convolutions_the_deeper_is_the_main_branch() -> None:
    model = graph("d = Conv(x, v)  a = conv(x, w)  c = conv(a, v)  s = Add(d, c)  y = Relu(s)")
    assert reads(model) == {"d:0": "x", "a:0": "x", "c:0": "a", "s:0": "d"}


def test_an_add_of_no_convolution_of_one_read_twice_or_of_a_constant_stays_float() -> None:
    assert "s:0" not in reads(graph("a = Relu(x)  t = Sigmoid(x)  s = Add(a, t)  y = conv(s, w)"))
    twice = reads(graph("c = conv(x, w)  s = Add(c, x)  t = Relu(c)  y = Add(s, t)"))
    assert set(twice) == {"c:0"}
    assert set(reads(graph("c = conv(x, w)  y = Add(c, k)"))) == {"c:0"}


def test_an_add_whose_convolution_is_left_out_stays_float() -> None:
    model = graph("d = Conv(x, v)  a = conv(x, w)  c = conv(a, v)  s = Add(d, c)  y = Relu(s)")
    assert reads(model, leave_out=["c"]) == {"d:0": "x", "a:0": "x"}


def test_a_concat_gives_all_that_it_joins_one_scale() -> None:
    model = graph("a = conv(x, w)  r = Relu(a)  j = Concat<axis=1>(x, r)  y = Conv(j, wide)")
    assert reads(model) == {"a:0": "x", "j:0": "x", "j:1": "r", "y:0": "j"}
    assert one_scale(model) == {frozenset({"x", "r", "j"})}
    assert place(model).shared({"x": 1.0, "r": 5.0, "j": 5.0}) == {"x": 5.0, "r": 5.0, "j": 5.0}


def test_chained_concats_and_pools_are_one_group() -> None:
    body = "r = Relu(x)  p = pool(r)  q = Relu(p)  j = Concat<axis=1>(p, q)  y = Conv(j, wide)"
    model = graph(body)
    assert reads(model) == {"j:0": "p", "j:1": "q", "y:0": "j"}  # q's ReLU reads p in float: the pool stays float
    through = graph("r = Relu(x)  p = pool(r)  j = Concat<axis=1>(p, p)  y = Conv(j, wide)")
    assert reads(through) == {"p:0": "r", "j:0": "p", "j:1": "p", "y:0": "j"}
    assert one_scale(through) == {frozenset({"r", "p", "j"})}


@pytest.mark.parametrize(
    "body",
    [
        "p = pool(x)  a = conv(p, w)  t = Relu(p)  y = Add(a, t)",  # another reads floats
        "y = pool(x)  a = conv(y, w)",  # it is an output
        "p = AveragePool<kernel_shape=[2,2]>(x)  y = conv(p, w)",  # a mean is no copy
        "j = Concat<axis=1>(x, z)  y = Conv(j, wide)",  # of a constant
    ],
    ids=["read-elsewhere", "output", "average", "constant"],
)
def test_what_is_not_passed_through(body: str) -> None:
    model = graph(body)
    assert not one_scale(model)
    assert "x" not in reads(model).values()


def test_a_layer_left_out_reads_floats_also_through_a_pool() -> None:
    model = graph("a = conv(x, w)  p = pool(a)  c = conv(p, v)  d = conv(p, w)  y = Mul(c, d)")
    assert reads(model) == {"a:0": "x", "p:0": "a", "c:0": "p", "d:0": "p"}
    assert reads(model, leave_out=["d"]) == {"a:0": "x", "c:0": "p"}
    assert place(model, leave_out=["d"]).layers == ("a", "c")


def test_what_has_no_constant_weight_is_no_layer() -> None:
    model = graph("f = Flatten(x)  t = Transpose<perm=[1,0]>(f)  y = MatMul(f, t)")
    assert place(model).layers == ()
    with pytest.raises(InputError, match="nothing to quantise"):
        quantize(model, {})


def test_an_unknown_layer_and_a_missing_range_are_named() -> None:
    model = graph("a = conv(x, w)  y = conv(a, v)")
    with pytest.raises(InputError, match=r"no layer 'z' to leave out\.\nThe layers are a, y\."):
        place(model, leave_out=["z"])
    with pytest.raises(InputError, match="range of a is missing"):
        quantize(model, {"x": 1.0})
    with pytest.raises(InputError, match=r"a has the range -2\.0"):
        quantize(model, {"x": 1.0, "a": -2.0})
    with pytest.raises(InputError, match="that is not left out: nothing to quantise"):
        quantize(model, {}, leave_out=["a", "y"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), scales=st.tuples(*[st.floats(0.3, 3.0)] * 3))
def test_pairs_before_a_concat_or_a_pool_change_no_value(run: Callable[..., Any], seed: int, scales: Any) -> None:
    """Against one rounding by hand, of the joined and pooled values."""
    model = graph("r = Relu(x)  p = pool(r)  j = Concat<axis=1>(p, p)  y = Conv(j, wide)")
    ranges = dict(zip(("r", "p", "j"), scales, strict=True))
    int8 = quantize(model, ranges)
    x = np.random.default_rng(seed).standard_normal((1, 4, 8, 8)).astype(np.float32)
    step = max(ranges.values()) / 127
    by_hand = np.maximum(x, 0).reshape(1, 4, 4, 2, 4, 2).max(axis=(3, 5))
    by_hand = np.clip(np.rint(by_hand / np.float32(step)), -127, 127).astype(np.float32) * np.float32(step)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    kernel = weights["wide_quantized"] * weights["wide_scale"].reshape(-1, 1, 1, 1)
    wanted = np.einsum("oc,nchw->nohw", kernel[:, :, 0, 0], np.concatenate([by_hand, by_hand], axis=1))
    np.testing.assert_allclose(run(int8, x)["y"], wanted, atol=1e-4)


@pytest.mark.parametrize(
    "body", ["a = conv(x, w)  p = pool(a)  y = conv(p, v)", "c = Concat<axis=1>(x, x)  y = Conv(c, wide)"]
)
def test_fp8_has_no_pairs_around_what_moves_bytes(body: str) -> None:
    model = graph(body)
    int8, fp8 = (place(model, precision=precision) for precision in ("int8", "fp8"))
    assert fp8.layers == int8.layers
    assert fp8.reads == {(layer, 0) for layer in fp8.layers} < int8.reads


@pytest.mark.parametrize(("sizes", "refused"), [((4, 8), False), ((6, 6), True), ((3, 11), True), ((7, 7), True)])
def test_a_convolution_of_more_than_32_taps_stays_out_of_fp8(sizes: tuple[int, int], refused: bool) -> None:
    model = graph("a = conv(x, w)  y = Conv(a, large)")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4, *sizes), np.float32), "large"))
    assert list(without_fp8(model)) == ["y"] * refused
    assert place(model, precision="fp8").layers == ("a", "y")[: 2 - refused]
    assert place(model).layers == ("a", "y")


def test_a_transposed_convolution_stays_out_of_fp8() -> None:
    model = graph("a = conv(x, w)  y = ConvTranspose(a, up)")
    assert list(without_fp8(model)) == ["y"]
    assert place(model, precision="fp8").reads == {("a", 0)}
