"""An input of bytes is cast before it is moved, as TensorRT wants it, and stays as it is where that is not the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from msn_deploy.engine import OrtRunner
from msn_deploy.graph.fold import fold_graph
from msn_deploy.graph.reorder import cast_bytes_first
from msn_deploy.model.opened import made_model

HEAD = '<ir_version: 8, opset_import: ["": 17]> g (uint8[2,4,6,3] x) => '
TURNED = "t = Transpose<perm = [0, 3, 1, 2]>(x)"
MOVED = {
    "turned": f"(float y) {{ {TURNED} c = Cast<to = 1>(t) y = Relu(c) }}",
    "to halves": f"(float16 y) {{ {TURNED} c = Cast<to = 10>(t) y = Neg(c) }}",
    "colours exchanged": "(float y) <int64[3] at = {2, 1, 0}> "
    "{ s = Gather<axis = 3>(x, at) c = Cast<to = 1>(s) y = Neg(c) }",
    "cut and reshaped": "(float y) <int64[1] a = {1}, int64[1] b = {3}, int64[2] to = {4, -1}> "
    "{ s = Slice(x, a, b, a) r = Reshape(s, to) c = Cast<to = 1>(r) y = Neg(c) }",
    "split in two": "(float y) { a, b = Split<axis = 0>(x) c = Cast<to = 1>(a) d = Cast<to = 1>(b) y = Sub(c, d) }",
    "read beside it": f"(float y) {{ {TURNED} c = Cast<to = 1>(t) d = Cast<to = 1>(x) e = ReduceMax<keepdims = 0>(d) "
    "y = Mul(c, e) }",
}
KEPT = {
    "to the output": f"(float y) {{ {TURNED} y = Cast<to = 1>(t) }}",
    "cast at once": "(float y) { c = Cast<to = 1>(x) t = Transpose<perm = [0, 3, 1, 2]>(c) y = Neg(t) }",
    "moved to an output": f"(uint8 t, float y) {{ {TURNED} c = Cast<to = 1>(t) y = Neg(c) }}",
    "of two types": f"(float y, float16 z) {{ {TURNED} c = Cast<to = 1>(t) y = Neg(c) "
    "d = Cast<to = 10>(t) z = Neg(d) }",
    "cast to integers": f"(int32 y) {{ {TURNED} c = Cast<to = 6>(t) y = Neg(c) }}",
    "computed with": f"(uint8 y) {{ {TURNED} y = Max(t, t) }}",
}


def parsed(text):
    """Return a model; the text says nothing of its outputs' shapes."""
    model = onnx.parser.parse_model(HEAD + text)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def both(text):
    before = parsed(text)
    graph = ir.from_proto(before)
    cast_bytes_first(graph.graph)
    return before, ir.to_proto(graph)


def run(model):
    proto = onnx.shape_inference.infer_shapes(model)
    runner = OrtRunner(made_model(Path("m.onnx"), proto, proto.SerializeToString()), threads=1)
    return runner.run({"x": np.random.default_rng(5).integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)})


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("case", MOVED)
def test_bytes_that_are_only_moved_are_cast_first(case):
    before, after = both(MOVED[case])
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(after, strict_mode=True), full_check=True)
    assert [node.op_type for node in after.graph.node].count("Cast") == 1
    (cast,) = (node for node in after.graph.node if "x" in node.input)
    assert cast.op_type == "Cast"
    same(run(before), run(after))


@pytest.mark.parametrize("case", KEPT)
def test_everything_else_stays_as_it_is(case):
    before, after = both(KEPT[case])
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
    same(run(before), run(after))


def test_an_export_does_it():
    before = parsed(MOVED["turned"])
    after = fold_graph(before).model
    assert [node.op_type for node in after.graph.node] == ["Cast", "Transpose", "Relu"]
    same(run(before), run(after))
