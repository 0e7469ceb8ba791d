"""What is unusual in an ONNX file and no harm is let through; tests/cli/test_cli_hostile_onnx.py has what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.engine import load_runner, run_images
from msn_deploy.model.opened import open_model

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def runs(tmp_path):
    """Write a network from x (1, 3, 8, 8) to y, and run it."""

    def run(nodes, *, opset=17, functions=(), domains=(), out=(None,) * 4, **inits):
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in inits.items()],
        )
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(each, 1) for each in domains)]
        model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
        path = tmp_path / "net.onnx"
        path.write_bytes(model.SerializeToString())
        return run_images(load_runner(path, threads=1), IMAGE)

    return run


def _node(op, inputs, output, **options):
    return helper.make_node(op, inputs, [output], **options)


def test_weights_of_nothing_but_zeros(runs):
    assert not runs([_node("Conv", ["x", "w"], "y")], w=np.zeros((4, 3, 3, 3), np.float32)).any()


def test_infinity_where_it_is_meant(runs):
    made = runs([_node("Clip", ["x", "low", "high"], "y")], low=np.float32(0), high=np.float32(np.inf))
    np.testing.assert_array_equal(made, IMAGE.clip(0))


def test_nodes_in_another_order(runs):
    np.testing.assert_array_equal(runs([_node("Relu", ["n"], "y"), _node("Neg", ["x"], "n")]), (-IMAGE).clip(0))


@pytest.mark.parametrize("opset", [9, 22])
def test_old_and_new_opsets(runs, opset):
    np.testing.assert_array_equal(runs([_node("Relu", ["x"], "y")], opset=opset), IMAGE.clip(0))


def test_functions_and_branches(runs):
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "f", ["a"], ["b"], [_node("Relu", ["a"], "b")], opsets)
    made = runs([_node("f", ["x"], "y", domain="mine")], functions=[function], domains=["mine"])
    np.testing.assert_array_equal(made, IMAGE.clip(0))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)  # of the same name inside and outside
    branch = helper.make_graph([_node("Neg", ["x"], "y")], "inner", [], [output])
    made = runs([_node("If", ["flag"], "y", then_branch=branch, else_branch=branch)], flag=np.array(True))
    np.testing.assert_array_equal(made, -IMAGE)


def test_operators_of_onnx_runtime(runs):
    assert runs([_node("FusedConv", ["x", "w"], "y", domain="com.microsoft", activation="Relu")],
                domains=["com.microsoft"], w=np.ones((4, 3, 3, 3), np.float32)).shape == (1, 4, 6, 6)  # fmt: skip


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.bool_])
def test_tensors_of_every_kind_hold_what_they_claim(runs, kind):
    made = runs([_node("Cast", ["k"], "f", to=TensorProto.FLOAT), _node("Add", ["x", "f"], "y")], k=np.ones(8, kind))
    np.testing.assert_array_equal(made, IMAGE + 1)


@pytest.mark.parametrize(
    ("kind", "values", "fields"),
    [
        (TensorProto.FLOAT16, [1.0, 2.0, 3.0], "int32_data"),
        (TensorProto.BFLOAT16, [1.0, 2.0, 3.0], "int32_data"),
        (TensorProto.INT4, [1, 2, 3], "int32_data"),
        (TensorProto.COMPLEX64, [1j, 2j, 3j], "float_data"),
        (TensorProto.UINT32, [1, 2, 3], "uint64_data"),
        (TensorProto.STRING, ["a", "b", "c"], "string_data"),
    ],
)
def test_tensors_of_rare_kinds_hold_what_they_claim(save, kind, values, fields):
    tensor = helper.make_tensor("rare", kind, [3], values)
    assert len(getattr(tensor, fields))
    path = save()
    model = onnx.load(path)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    open_model(path, step="test")
    model.graph.initializer[-1].dims[0] = 9
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="'rare' claims 9"):
        open_model(path, step="test")


def test_a_shape_that_is_computed_as_exporters_do(runs):
    one = numpy_helper.from_array(np.ones(1, np.int64))
    nodes = [
        _node("ConstantOfShape", ["rank"], "ones", value=one),
        _node("Mul", ["ones", "minus"], "keep"),
        _node("Equal", ["s", "keep"], "kept"),
        _node("Where", ["kept", "ones", "s"], "t"),
        _node("Expand", ["k", "t"], "g"),
        _node("Add", ["x", "g"], "y"),
    ]
    made = runs(nodes, rank=[4], minus=-1, s=[1, -1, 8, 8], k=np.ones((1, 3, 1, 1), np.float32))
    np.testing.assert_array_equal(made, IMAGE + 1)


@pytest.mark.parametrize("open_size", [-1, "batch", None])
def test_an_open_batch_however_it_is_written(save, batch, open_size):
    path = save(batch=2)
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        if open_size == -1:
            dim.dim_value = -1
        elif open_size:
            dim.dim_param = open_size
    path.write_bytes(model.SerializeToString())
    assert run_images(load_runner(path, threads=1), batch(3)).shape == (3, 5)


def test_large_weights_do_not_go_through_shape_inference(runs, monkeypatch):
    infer, seen = onnx.shape_inference.infer_shapes, []
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda m, **o: seen.append(m.ByteSize()) or infer(m, **o))
    large = numpy_helper.from_array(np.ones((3, 1 << 16, 1, 1), np.float32).reshape(1 << 16, 3, 1, 1))
    nodes = [
        _node("Constant", [], "k", value=large),
        _node("Conv", ["x", "k"], "c"),
        _node("Conv", ["c", "w"], "y"),
    ]
    assert runs(nodes, w=np.zeros((1, 1 << 16, 1, 1), np.float32)).shape == (1, 1, 8, 8)
    assert max(seen) < 10_000


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("axes", [(0,), (0, 2, 3)])
def test_sizes_that_older_exporters_leave_open_as_zero_or_minus_one_are_open(
    tmp_path: Path, size: int, axes: tuple[int, ...]
) -> None:
    given = [size if axis in axes else (1, 3, 8, 8)[axis] for axis in range(4)]
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, 4, *(2 * [6 if len(axes) == 1 else size])])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "open.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)
    assert open_model(path, step="export").inputs[0].shape == tuple(
        None if axis in axes else (1, 3, 8, 8)[axis] for axis in range(4)
    )
