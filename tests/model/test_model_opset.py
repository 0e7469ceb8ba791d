"""Every rule that takes an operator to an older opset, and what older opsets lack; up by onnx's converter."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.model.opset import OpsetError, lowered, opset_of, to_opset

RNG = np.random.default_rng(18)
SHAPE = (2, 4, 6, 5)
INT = np.int64


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node(operator, inputs="x", outputs="y", **attributes):
    return helper.make_node(operator, inputs.split(), outputs.split(), name=f"the_{operator}", **attributes)


def with_gaps(operator, *inputs, **attributes):
    """Make a node some of whose inputs are left out."""
    return helper.make_node(operator, list(inputs), ["y"], name=f"the_{operator}", **attributes)


def model_of(nodes, opset, constants=None, *, shape=SHAPE, dtype=TensorProto.FLOAT, as_nodes=False):
    nodes = list(nodes) if isinstance(nodes, (list, tuple)) else [nodes]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    made = [helper.make_node("Constant", [], [each.name], value=each) for each in tensors] if as_nodes else []
    graph = helper.make_graph(
        [*made, *nodes],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [onnx.ValueInfoProto(name="y")],
        [] if as_nodes else tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output[0].type
    if not inferred.tensor_type.HasField("shape"):
        inferred = helper.make_tensor_type_proto(TensorProto.FLOAT, [None] * 4)
    model.graph.output[0].type.CopyFrom(inferred)
    return model


def outputs_of(model, batch):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})


def operators(model):
    return [each.op_type for each in model.graph.node if each.op_type != "Constant"]


SPAN = {"s": numbers(4, 6, 5), "b": numbers(4, 6, 5)}
# name: opset, opset to go to, nodes, constants, operators that are left
LOWERED = {
    "axes of a mean": (18, 17, node("ReduceMean", "x a", keepdims=0), {"a": INT([1, -1])}, ["ReduceMean"]),
    "axes of a norm": (18, 17, node("ReduceL2", "x a"), {"a": INT([1])}, ["ReduceL2"]),
    "all axes": (18, 17, node("ReduceProd", noop_with_empty_axes=0), {}, ["ReduceProd"]),
    "empty axes": (18, 17, node("ReduceMax", "x a", noop_with_empty_axes=0), {"a": INT([])}, ["ReduceMax"]),
    "no axes": (18, 17, node("ReduceMin", "x a", noop_with_empty_axes=1), {"a": INT([])}, ["Identity"]),
    "axes of a sum": (18, 12, node("ReduceSum", "x a"), {"a": INT([2])}, ["ReduceSum"]),
    "computed axes": (
        18,
        17,
        [node("Concat", "p q", "a", axis=0), node("ReduceMean", "x a")],
        {"p": INT([2]), "q": INT([3])},
        ["ReduceMean"],
    ),
    "pads of all axes": (
        18,
        17,
        node("Pad", "x p v"),
        {"p": INT([0, 1, 2, 0, 0, 0, 1, 3]), "v": np.float32(0.7)},
        ["Pad"],
    ),
    "pads of some axes": (
        18,
        17,
        node("Pad", "x p v a"),
        {"p": INT([1, 2, 0, 3]), "v": np.float32(-0.7), "a": INT([-1, 1])},
        ["Pad"],
    ),
    "reflecting pads of an axis": (
        18,
        11,
        with_gaps("Pad", "x", "p", "", "a", mode="reflect"),
        {"p": INT([2, 1]), "a": INT([2])},
        ["Pad"],
    ),
    "wrapping pads": (
        19,
        17,
        node("Pad", "x p", mode="wrap"),
        {"p": INT([0, 0, 2, 1, 0, 0, 0, 3])},
        ["Slice", "Concat", "Slice", "Slice", "Concat", "Identity"],
    ),
    "Resize by scales": (
        19,
        17,
        with_gaps("Resize", "x", "", "s", mode="linear", coordinate_transformation_mode="half_pixel"),
        {"s": np.float32([1, 1, 1.5, 2.3])},
        ["Resize"],
    ),
    "Resize by sizes of some axes": (
        18,
        17,
        with_gaps("Resize", "x", "", "", "s", mode="cubic", axes=[3, 2], cubic_coeff_a=-0.6),
        {"s": INT([8, 9])},
        ["Resize"],
    ),
    "Resize by scales of some axes": (
        18,
        11,
        with_gaps("Resize", "x", "", "s", mode="nearest", axes=[3, 2], nearest_mode="floor"),
        {"s": np.float32([2, 1.5])},
        ["Resize"],
    ),
    "Resize of a region": (
        18,
        17,
        with_gaps(
            "Resize",
            "x",
            "r",
            "",
            "s",
            mode="linear",
            axes=[3, 2],
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=0.3,
        ),
        {"s": INT([4, 3]), "r": np.float32([0.2, 0.1, 0.7, 1.2])},
        ["Resize"],
    ),
    "Resize without options": (
        18,
        11,
        with_gaps("Resize", "x", "", "", "s", antialias=0),
        {"s": INT([2, 4, 9, 7])},
        ["Resize"],
    ),
    "Split into equal parts": (18, 17, node("Split", "x", "a y", axis=1, num_outputs=2), {}, ["Split"]),
    "Split with a rest": (18, 12, node("Split", "x", "a b y", axis=-1, num_outputs=3), {}, ["Split"]),
    "Split by sizes": (18, 11, node("Split", "x s", "a y", axis=2), {"s": INT([1, 5])}, ["Split"]),
    "scattered sums": (
        18,
        17,
        node("ScatterElements", "x i u", axis=1, reduction="add"),
        {"i": INT([[[[2]]]]), "u": np.float32([[[[0.7]]]])},
        ["ScatterElements"],
    ),
    "scattered values": (
        18,
        11,
        node("ScatterND", "x i u", reduction="none"),
        {"i": INT([[1, 2]]), "u": numbers(1, 6, 5)},
        ["ScatterND"],
    ),
    "Mish": (18, 17, node("Mish"), {}, ["Softplus", "Tanh", "Mul"]),
    "HardSwish": (18, 13, node("HardSwish"), {}, ["HardSigmoid", "Mul"]),
    "GELU": (20, 17, node("Gelu"), {}, None),
    "GELU by tanh": (20, 13, node("Gelu", approximate="tanh"), {}, None),
    "Swish": (24, 13, node("Swish", alpha=1.3), {}, None),
    "CELU": (18, 11, node("Celu", alpha=0.7), {}, None),
    "GridSample": (
        20,
        17,
        node("GridSample", "x g", mode="linear", align_corners=1),
        {"g": np.clip(numbers(2, 3, 3, 2), -1, 1)},
        ["GridSample"],
    ),
    "GridSample by default": (20, 16, node("GridSample", "x g"), {"g": numbers(2, 3, 3, 2)}, ["GridSample"]),
    "GridSample of cubes": (
        22,
        16,
        node("GridSample", "x g", mode="cubic", padding_mode="border"),
        {"g": numbers(2, 3, 3, 2)},
        ["GridSample"],
    ),
    "AveragePool": (
        19,
        17,
        node(
            "AveragePool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], dilations=[1, 1], count_include_pad=1
        ),
        {},
        ["AveragePool"],
    ),
    "LayerNormalization": (17, 16, node("LayerNormalization", "x s b", axis=1, epsilon=0.01), SPAN, None),
    "LayerNormalization of the last axis": (17, 13, node("LayerNormalization", "x s"), {"s": numbers(5)}, None),
    "RMSNormalization": (23, 13, node("RMSNormalization", "x s", axis=-2, epsilon=0.02), {"s": numbers(6, 5)}, None),
    "GroupNormalization": (
        21,
        17,
        node("GroupNormalization", "x s b", num_groups=2, epsilon=0.01),
        {"s": numbers(4), "b": numbers(4)},
        None,
    ),
    "part of a shape": (
        15,
        13,
        [node("Shape", "x", "s", start=1, end=-1), node("Cast", "s", "y", to=TensorProto.FLOAT)],
        {},
        ["Shape", "Slice", "Cast"],
    ),
    "Reshape that allows zeros": (14, 13, node("Reshape", "x s", allowzero=1), {"s": INT([2, -1, 3])}, ["Reshape"]),
    "Softmax of the channels": (13, 11, node("Softmax", axis=1), {}, ["Transpose", "Softmax", "Transpose"]),
    "Softmax of the last axis": (13, 11, node("LogSoftmax", axis=3), {}, ["LogSoftmax"]),
    "Softmax by default": (13, 12, node("Softmax"), {}, ["Softmax"]),
    "Squeeze": (
        13,
        11,
        [node("Unsqueeze", "x a", "t"), node("Squeeze", "t b")],
        {"a": INT([1, -1]), "b": INT([1])},
        ["Unsqueeze", "Squeeze"],
    ),
    "Q and DQ": (
        19,
        12,
        [node("QuantizeLinear", "x s z", "t", axis=1), node("DequantizeLinear", "t s z", axis=1)],
        {"s": np.float32(0.07), "z": np.int8(3)},
        ["QuantizeLinear", "DequantizeLinear"],
    ),
    "Dropout": (13, 11, node("Dropout", "x r"), {"r": np.float32(0.3)}, ["Dropout"]),
    "BatchNormalization": (
        15,
        11,
        node("BatchNormalization", "x s b m v", epsilon=0.01, training_mode=0),
        {"s": numbers(4), "b": numbers(4), "m": numbers(4), "v": numbers(4) ** 2 + 0.1},
        ["BatchNormalization"],
    ),
    "CastLike": (
        19,
        13,
        [node("Cast", "x", "h", to=TensorProto.DOUBLE), node("CastLike", "h x", "y")],
        {},
        ["Cast", "Cast"],
    ),
    "pool whose last window is padding": (
        22,
        17,
        node("MaxPool", kernel_shape=[2, 2], strides=[3, 3], pads=[0, 0, 1, 1], ceil_mode=1),
        {},
        ["MaxPool"],
    ),
}


@pytest.mark.parametrize("as_nodes", [False, True], ids=["initializers", "constants"])
@pytest.mark.parametrize("name", LOWERED)
def test_it_computes_the_same_in_the_older_opset(name, as_nodes):
    opset, to, nodes, constants, left = LOWERED[name]
    batch = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
    model = model_of(nodes, opset, constants, as_nodes=as_nodes)
    expected = outputs_of(model, batch)
    made, blocked = lowered(model, to)
    assert (opset_of(made), blocked) == (to, None)
    if left is not None:
        assert operators(made) == left
    for found, wanted in zip(outputs_of(made, batch), expected, strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    read = {each for one in made.graph.node for each in one.input}
    assert {each.name for each in made.graph.initializer} <= read, "constants that nothing reads any more are gone"


PLAIN = {"s": np.float32([1, 1, 1.5, 2])}
# name: opset, opset asked for, nodes, constants, operator that is named, opset that it needs
REFUSED = {
    "axes from the input": (
        18,
        17,
        [
            node("ReduceMax", "x", "m", keepdims=0),
            node("Cast", "m", "a", to=TensorProto.INT64),
            node("ReduceMean", "x a"),
        ],
        {},
        "ReduceMean",
        18,
    ),
    "dilated average": (19, 17, node("AveragePool", kernel_shape=[2, 2], dilations=[2, 2]), {}, "AveragePool", 19),
    "scattered maxima": (
        18,
        17,
        node("ScatterElements", "x i u", axis=1, reduction="max"),
        {"i": INT([[[[2]]]]), "u": np.float32([[[[0.7]]]])},
        "ScatterElements",
        18,
    ),
    "scattered sums": (
        18,
        13,
        node("ScatterElements", "x i u", axis=1, reduction="add"),
        {"i": INT([[[[2]]]]), "u": np.float32([[[[0.7]]]])},
        "ScatterElements",
        16,
    ),
    "antialias": (18, 17, with_gaps("Resize", "x", "", "s", mode="linear", antialias=1), PLAIN, "Resize", 18),
    "aspect": (
        18,
        17,
        with_gaps("Resize", "x", "", "", "s", axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
        {"s": INT([7, 7])},
        "Resize",
        18,
    ),
    "symmetric": (
        19,
        17,
        with_gaps("Resize", "x", "", "s", mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
        PLAIN,
        "Resize",
        19,
    ),
    "Trilu": (18, 13, node("Trilu"), {}, "Trilu", 14),
    "GridSample below 16": (18, 13, node("GridSample", "x g"), {"g": numbers(2, 3, 3, 2)}, "GridSample", 16),
    "scales of channels": (
        13,
        12,
        [node("QuantizeLinear", "x s z", "t"), node("DequantizeLinear", "t s z")],
        {"s": np.float32([0.1, 0.2, 0.3, 0.4]), "z": np.int8([0, 0, 0, 0])},
        "QuantizeLinear",
        13,
    ),
    "mixed types": (
        13,
        11,
        [node("Pow", "x p")],
        {"p": INT(2)},
        "Pow",
        12,
    ),
    "a type": (
        14,
        12,
        [
            node("Cast", "x", "i", to=TensorProto.INT8),
            node("Add", "i i", "j"),
            helper.make_node("Cast", ["j"], ["y"], to=1),
        ],
        {},
        "Add",
        14,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_older_opset_lacks_is_named_with_the_opset_that_has_it(name):
    opset, to, nodes, constants, operator, needs = REFUSED[name]
    with pytest.raises(OpsetError) as caught:
        to_opset(model_of(nodes, opset, constants), to)
    blocked = caught.value.blocked
    assert (blocked.operator, blocked.node, blocked.needs) == (operator, f"the_{operator}", needs)
    assert f"--opset {needs}" in str(caught.value)
    made, _ = lowered(model_of(nodes, opset, constants), to)
    assert opset_of(made) == needs, "it stops at the lowest that has all"
    batch = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
    if name != "axes from the input":
        expected = outputs_of(model_of(nodes, opset, constants), batch)
        np.testing.assert_allclose(outputs_of(made, batch)[0], expected[0], rtol=1e-5, atol=1e-6)


def test_col2im_and_bitwise_operators_have_no_older_form():
    shapes = {"h": INT([5, 5]), "k": INT([3, 3])}
    folded = model_of(node("Col2Im", "x h k"), 18, shapes, shape=(1, 18, 9))
    masked = model_of(node("BitwiseAnd", "x m"), 18, {"m": np.int32([3])}, dtype=TensorProto.INT32)
    for model, operator in ((folded, "Col2Im"), (masked, "BitwiseAnd")):
        assert lowered(model, 17)[1].operator == operator
        assert opset_of(model) == 18


def test_a_grid_sample_of_volumes_needs_20():
    model = model_of(node("GridSample", "x g"), 20, {"g": numbers(1, 3, 3, 3, 3)}, shape=(1, 2, 4, 5, 6))
    assert lowered(model, 17)[1].needs == 20


def test_an_open_size_is_no_reason_unless_it_is_needed():
    pooled = model_of(node("ReduceMean", "x a"), 18, {"a": INT([2, 3])}, shape=("n", 4, "h", "w"))
    assert opset_of(lowered(pooled, 17)[0]) == 17
    parts = model_of(node("Split", "x", "y z", axis=2, num_outputs=2), 18, shape=("n", 4, "h", "w"))
    assert lowered(parts, 17)[1].operator == "Split"


def test_branches_are_rewritten_too():
    """A branch reads a constant of the graph around it, and has one of its own."""

    def branch(name, nodes):
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [None] * 4)
        return helper.make_graph(nodes, name, [], [value])

    mean = [helper.make_node("ReduceMean", ["x", "a"], ["t_y"], name="inner")]
    chunk = [
        helper.make_node("Constant", [], ["p"], value=numpy_helper.from_array(INT([2, 1, 0, 1]))),
        helper.make_node("Constant", [], ["q"], value=numpy_helper.from_array(INT([2, 3]))),
        helper.make_node("Pad", ["x", "p", "", "q"], ["padded"]),
        helper.make_node("Mish", ["padded"], ["e_y"]),
    ]
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("t", mean), else_branch=branch("e", chunk)),
    ]
    model = model_of(nodes, 18, {"a": INT([1]), "zero": np.float32(0.1)})
    batches = [np.full(SHAPE, 0.3, np.float32), -np.abs(numbers(*SHAPE))]
    expected = [outputs_of(model, batch)[0] for batch in batches]
    made, blocked = lowered(model, 13)
    assert (opset_of(made), blocked) == (13, None)
    for batch, wanted in zip(batches, expected, strict=True):
        np.testing.assert_allclose(outputs_of(made, batch)[0], wanted, rtol=1e-5, atol=1e-6)


def test_functions_of_a_file_are_rewritten_too():
    body = [helper.make_node("ReduceMean", ["a", "axes"], ["m"]), helper.make_node("Mish", ["m"], ["b"])]
    function = helper.make_function("mine", "Pooled", ["a", "axes"], ["b"], body, [helper.make_opsetid("", 18)])
    one = helper.make_node("Pooled", ["x", "a"], ["y"], domain="mine")
    graph = helper.make_graph(
        [one],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(INT([2, 3]), "a")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=[function])
    batch = numbers(*SHAPE)
    expected = outputs_of(model, batch)[0]
    made, blocked = lowered(model, 17)
    assert (opset_of(made), blocked) == (17, None)
    np.testing.assert_allclose(outputs_of(made, batch)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_constant_that_others_read_too_stays():
    nodes = [node("ReduceMean", "x a", "m"), node("Unsqueeze", "m a", "y")]
    made = to_opset(model_of(nodes, 18, {"a": INT([1])}), 17)
    assert [each.name for each in made.graph.initializer] == ["a"]


def test_operators_of_other_domains_are_left_alone():
    model = model_of(node("Gelu"), 20)
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert operators(to_opset(model, 17)) == ["Gelu"]


@pytest.mark.parametrize("asked", [9, 10])
def test_nothing_is_written_below_the_lowest(asked):
    with pytest.raises(OpsetError, match="--opset 11"):
        to_opset(model_of(node("Relu"), 17), asked)


RAISED = {
    "Upsample": (9, node("Upsample", "x s", mode="linear"), {"s": np.float32([1, 1, 2, 3])}),
    "nearest Upsample": (9, node("Upsample", "x s"), {"s": np.float32([1, 1, 1.7, 1.5])}),
    "Resize": (10, node("Resize", "x s", mode="linear"), {"s": np.float32([1, 1, 1.5, 0.7])}),
    "Clip": (9, node("Clip", min=-0.3, max=0.4), {}),
    "Pad": (9, node("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.7), {}),
    "Slice": (9, node("Slice", starts=[1, 0], ends=[3, -1], axes=[1, 2]), {}),
    "Softmax": (11, node("Softmax", axis=1), {}),
    "axes": (11, [node("ReduceSum", "x", "t", axes=[1]), node("Squeeze", "t", "y", axes=[1])], {}),
    "sizes": (11, node("Split", "x", "a y", axis=1, split=[1, 3]), {}),
    "BatchNormalization": (
        9,
        node("BatchNormalization", "x s b m v"),
        {"s": numbers(4), "b": numbers(4), "m": numbers(4), "v": numbers(4) ** 2 + 0.1},
    ),
}


@pytest.mark.parametrize("to", [13, 17])
@pytest.mark.parametrize("name", RAISED)
def test_older_files_are_raised(name, to):
    opset, nodes, constants = RAISED[name]
    model = model_of(nodes, opset, constants)
    model.metadata_props.add(key="kept", value="yes")
    batch = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
    expected = outputs_of(model, batch)
    made = to_opset(model, to)
    assert (opset_of(made), made.metadata_props[0].value) == (to, "yes")
    for found, wanted in zip(outputs_of(made, batch), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "nodes", "constants"),
    [
        (11, node("Hardmax", axis=1), {}),
        (10, node("Resize", "x s", mode="nearest"), {"s": np.float32([1, 1, 1.5, 0.7])}),
    ],
    ids=["Hardmax", "Resize"],
)
def test_what_the_converter_would_change_is_refused(opset, nodes, constants):
    with pytest.raises(InputError, match=f"the_{nodes.op_type}.*\n.*--opset {opset}"):
        to_opset(model_of(nodes, opset, constants), 17)


def branching(opset, **squeeze):
    """Make a graph whose branches squeeze, by an attribute or not, and add a constant."""

    def branch(name, shift):
        nodes = [
            helper.make_node("Constant", [], [f"{name}_c"], value=numpy_helper.from_array(np.float32(shift))),
            helper.make_node("Squeeze", ["x"], [f"{name}_s"], name="inner", **squeeze),
            helper.make_node("Add", [f"{name}_s", f"{name}_c"], [f"{name}_y"]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [None])])

    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("t", 0.3), else_branch=branch("e", -0.7)),
    ]
    model = model_of(nodes, opset, {"zero": np.float32(0.1)}, shape=(1, 4))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [None]))
    return model


def test_a_branch_is_passed_on_as_it_is_or_refused():
    with pytest.raises(OpsetError, match="inner"):
        to_opset(branching(11, axes=[0]), 13)
    batch = np.float32([[0.4, -0.2, 1.3, 0.9]])
    for opset in (13, 21):
        made = to_opset(branching(11), opset)
        for one in (batch, -batch):
            np.testing.assert_array_equal(outputs_of(made, one)[0], outputs_of(branching(11), one)[0])


@st.composite
def paddings(draw):
    rank = draw(st.integers(1, 4))
    shape = [draw(st.integers(3, 5)) for _ in range(rank)]
    axes = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True))
    pads = [draw(st.integers(-1, 2)) for _ in range(2 * len(axes))]
    return shape, [draw(st.sampled_from((axis, axis - rank))) for axis in axes], pads


@settings(max_examples=40, derandomize=True, deadline=None)
@given(paddings(), st.sampled_from(("constant", "edge", "reflect", "wrap")))
def test_any_pads_of_any_axes(drawn, mode):
    shape, axes, pads = drawn
    if mode in ("reflect", "wrap"):
        pads = [abs(pad) for pad in pads]
    one = with_gaps("Pad", "x", "p", "v" if mode == "constant" else "", "a", mode=mode)
    constants = {"p": INT(pads), "a": INT(axes)} | ({"v": np.float32(0.7)} if mode == "constant" else {})
    model = model_of(one, 19, constants, shape=shape)
    batch = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    expected = outputs_of(model, batch)[0]
    made, blocked = lowered(model, 13)
    assert blocked is None
    np.testing.assert_array_equal(outputs_of(made, batch)[0], expected)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_any_reduction_of_any_axes(data):
    kinds = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    operator = f"Reduce{data.draw(st.sampled_from(kinds))}"
    axes = data.draw(st.lists(st.integers(0, 3), max_size=4, unique=True))
    options = {"keepdims": data.draw(st.integers(0, 1)), "noop_with_empty_axes": data.draw(st.integers(0, 1))}
    listed = data.draw(st.booleans()) or bool(axes)
    constants = {"a": INT([axis - 4 * data.draw(st.integers(0, 1)) for axis in axes])} if listed else {}
    nodes = helper.make_node(operator, ["x", *constants], ["y"], name="reduce", **options)
    model = model_of(nodes, 18, constants)
    batch = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    made, blocked = lowered(copy.deepcopy(model), 12)
    if blocked is not None:
        assert (axes, options["noop_with_empty_axes"]) == ([], 1), "an operator that reduces nothing may have no twin"
        return
    np.testing.assert_allclose(outputs_of(made, batch)[0], outputs_of(model, batch)[0], rtol=1e-6, atol=1e-6)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_any_resize_of_any_axes(data):
    axes = data.draw(st.lists(st.integers(2, 3), min_size=1, max_size=2, unique=True))
    by_sizes = data.draw(st.booleans())
    values = st.integers(2, 11) if by_sizes else st.sampled_from((0.5, 1.3, 2.0, 2.6))
    new = [data.draw(values) for _ in axes]
    mode = data.draw(st.sampled_from(("nearest", "linear", "cubic")))
    grids = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    options = {"mode": mode, "coordinate_transformation_mode": data.draw(st.sampled_from(grids)), "axes": axes}
    given_as = ["x", "", "", "s"] if by_sizes else ["x", "", "s"]
    constants = {"s": INT(new) if by_sizes else np.float32(new)}
    model = model_of(with_gaps("Resize", *given_as, **options), 19, constants)
    batch = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    expected = outputs_of(model, batch)[0]
    made, blocked = lowered(model, 11)
    assert blocked is None
    np.testing.assert_allclose(outputs_of(made, batch)[0], expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.integers(1, 11), st.integers(1, 5), st.sampled_from((0, -1)))
def test_any_number_of_parts(size, parts, axis):
    shape = (size, 2) if axis == 0 else (2, size)
    if -(-size // parts) * (parts - 1) >= size:  # a part would have nothing in it
        return
    names = [f"p{at}" for at in range(parts - 1)]
    nodes = helper.make_node("Split", ["x"], [*names, "y"], axis=axis, num_outputs=parts)
    model = model_of(nodes, 18, shape=shape)
    batch = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    expected = outputs_of(model, batch)[0]
    np.testing.assert_array_equal(outputs_of(to_opset(model, 11), batch)[0], expected)
