"""What the documented limits of DLA layers say of a network, without any TensorRT."""

from __future__ import annotations

import re

import numpy as np
import pytest
from trt_standin import Release

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from msn_deploy.core.errors import GateError  # noqa: E402
from msn_deploy.engine import (  # noqa: E402
    BuildOptions,
    build_engine_file,
    find_target,
    what_machine,
    write_device_script,
)
from msn_deploy.engine.build import choose_site  # noqa: E402
from msn_deploy.engine.dla import DlaLayer, DlaSite, check_fallback, documented, plan_of  # noqa: E402
from msn_deploy.engine.dla_rules import ROWS  # noqa: E402
from msn_deploy.model.opened import open_model  # noqa: E402

ORIN, XAVIER = DlaSite(2, "10.3.0"), DlaSite(1, "8.5.2")
SITES = {"8.2": DlaSite(1, "8.2.1"), "8.4": DlaSite(2, "8.4.1"), "8.5": DlaSite(2, "8.5.2"), "8.6": DlaSite(2, "8.6.2")}
SITES |= {"xavier": XAVIER, "orin": ORIN}


@pytest.fixture
def judged(tmp_path):
    """Return the only row of a graph of one node; `more` are sizes of further inputs, or lists: what they hold."""

    def judge(
        kind, image, *more, precision="fp16", batch=None, site=ORIN, opset=17, moving=(), outputs=1, **attributes
    ):
        names = [f"w{at}" for at in range(len(more))]
        inputs = ["" if each is None else name for name, each in zip(names, more, strict=True)]
        node = helper.make_node(kind, ["x", *inputs], [f"y{at}" for at in range(outputs)], name="it", **attributes)
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(image))]
            + [helper.make_tensor_value_info(names[at], TensorProto.FLOAT, list(more[at])) for at in moving],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
            [
                tensor_of(name, each)
                for at, (name, each) in enumerate(zip(names, more, strict=True))
                if each is not None and at not in moving
            ],
        )
        path = tmp_path / "one.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
        model = open_model(path, step="test")
        [row] = documented(model, precision=precision, ranges=BuildOptions(batch=batch).ranges(model), site=site)
        return row

    return judge


def tensor_of(name, each):
    if isinstance(each, list):
        return onnx.numpy_helper.from_array(np.array(each, np.int64 if isinstance(each[0], int) else np.float32), name)
    if isinstance(each, float):
        return onnx.numpy_helper.from_array(np.float32(each), name)
    return onnx.numpy_helper.from_array(np.full(each, 0.5, np.float32), name)


CONV = ("Conv", (2, 4, 40, 40))
UP = ("ConvTranspose", (1, 4, 5, 5))
POOL = {"kernel_shape": [3, 3]}
IMAGE = (1, 4, 8, 8)
FLOOR = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
HALF = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


@pytest.mark.parametrize(
    ("case", "says"),
    [
        # general
        (("Relu", (4097, 1, 2, 2)), "a batch of 4097; at most 4096"),
        (("Relu", (1, 1, 8193, 2)), "a size of 8193; at most 8192"),
        (("Relu", (4096, 1, 2, 2)), ""),
        (("Relu", (1, 10)), "2 axes; a DLA takes 4"),
        (("LeakyRelu", (1, 1, 2, 2)), ""),
        (("Exp", IMAGE), "Exp is not one of its layers"),
        # activations
        (("Clip", IMAGE, 0.0, 6.0), ""),
        (("Clip", IMAGE, -1.0, 6.0), "a clip of -1 to 6"),
        (("Clip", IMAGE, 0.0, 200.0), "a clip of 0 to 200"),
        (("Clip", IMAGE, None, 6.0), "a clip of any to 6"),
        (("Clip", IMAGE, {"min": 0.0, "max": 6.0, "opset": 9}), ""),
        (("PRelu", IMAGE, (4, 1, 1)), ""),
        (("PRelu", IMAGE, (1, 4, 1, 1), {"moving": (0,)}), "slope is not a constant"),
        (("PRelu", IMAGE, (4, 1, 1), {"site": "8.2"}), "PRelu is one of its layers from TensorRT 8.4 on"),
        # convolutions
        ((*CONV, (6, 4, 3, 3)), ""),
        ((*CONV, (6, 4, 33, 1)), "a kernel of 33x1; 1 to 32"),
        ((*CONV, (6, 4, 3, 3), {"strides": [9, 1]}), "a stride of 9x1; 1 to 8"),
        (("Conv", (1, 4, 9), (6, 4, 3)), "3 axes; a DLA takes 4"),
        (("Conv", (1, 2, 70, 70), (6, 2, 32, 32), {"pads": [31] * 4}), ""),
        (("Conv", (1, 2, 9, 9), (6, 2, 3, 3), {"pads": [2] * 4}), ""),
        (("Conv", (1, 2, 9, 9), (6, 2, 3, 3), {"pads": [3] * 4}), "padding as large as the kernel"),
        (("Conv", (1, 2, 99, 99), (6, 2, 3, 3), {"pads": [32] * 4, "dilations": [20, 20]}), "padding of 32x32x32x32"),
        (("Conv", (1, 2, 99, 99), (6, 2, 3, 3), {"pads": [4] * 4, "dilations": [4, 4]}), ""),
        (("Conv", (1, 2, 99, 99), (6, 2, 3, 3), {"dilations": [33, 1]}), "a dilation of 33x1; 1 to 32"),
        (("Conv", (1, 4, 9, 9), (4, 1, 3, 3), {"group": 4}), ""),
        (("Conv", (1, 1, 3, 3), (8193, 1, 1, 1)), "a size of 8193"),
        (("Conv", (1, 4, 9, 9), (4, 4, 3, 3), {"moving": (0,)}), "weights are not constants"),
        ((*UP, (4, 6, 2, 2)), ""),
        ((*UP, (4, 6, 2, 2), {"pads": [1, 1, 1, 1]}), "transposed convolution with padding"),
        ((*UP, (4, 6, 2, 2), {"auto_pad": "SAME_UPPER"}), "transposed convolution with padding"),
        ((*UP, (4, 3, 2, 2), {"group": 2}), "with groups or dilation"),
        ((*UP, (4, 3, 2, 2), {"dilations": [2, 2]}), "with groups or dilation"),
        ((*UP, (4, 1, 64, 1), {"strides": [32, 1]}), ""),
        ((*UP, (4, 1, 64, 2)), "a kernel of 64x2; 1 to 32"),
        ((*UP, (4, 1, 2, 2), {"strides": [33, 1]}), "a stride of 33x1; 1 to 32"),
        # pooling
        (("MaxPool", (1, 4, 32, 32), {"kernel_shape": [8, 8]}), ""),
        (("MaxPool", (1, 4, 32, 32), {"kernel_shape": [9, 1]}), "a window of 9x1; 1 to 8"),
        (("AveragePool", (1, 4, 64, 64), {"kernel_shape": [2, 2], "strides": [17, 1]}), "a stride of 17x1; 1 to 16"),
        (("MaxPool", IMAGE, {"kernel_shape": [8, 8], "pads": [7, 7, 7, 7]}), ""),
        (("MaxPool", (1, 4, 16, 16), {"kernel_shape": [8, 8], "pads": [8] * 4}), "padding of 8x8x8x8; 0 to 7"),
        (("AveragePool", IMAGE, {**POOL, "pads": [1] * 4}), ""),
        (("AveragePool", IMAGE, {**POOL, "pads": [1] * 4, "site": "xavier"}), "an average without the padding"),
        (("AveragePool", IMAGE, {**POOL, "pads": [1] * 4, "count_include_pad": 1, "site": "xavier"}), ""),
        (("MaxPool", IMAGE, {**POOL, "pads": [1] * 4, "site": "xavier"}), ""),
        # reductions
        (("GlobalAveragePool", IMAGE), "GlobalAveragePool becomes a Reduce of TensorRT; that of MAX alone"),
        (("GlobalAveragePool", (1, 4, 2, 2), {"site": "xavier"}), "becomes a Reduce"),
        (("ReduceMean", IMAGE, {"axes": [2, 3]}), "becomes a Reduce"),
        (("GlobalMaxPool", (1, 4, 99, 99)), ""),
        (("GlobalMaxPool", IMAGE, {"site": "8.6"}), "GlobalMaxPool is one of its layers from TensorRT 10 on"),
        (("GlobalMaxPool", IMAGE, {"site": "xavier"}), "a layer of DLA 2 (Orin) alone"),
        (("ReduceMax", IMAGE, {"axes": [1]}), ""),
        (("ReduceMax", IMAGE, [-1], {"opset": 20}), ""),
        (("ReduceMax", IMAGE, {"axes": [0]}), "it reduces the batch"),
        (("ReduceMax", IMAGE, {"axes": [2, 3], "keepdims": 0}), "2 axes"),
        # element-wise
        (("Mul", IMAGE, (1, 4, 1, 1), {"moving": (0,)}), ""),
        (("Mul", IMAGE, (1, 1, 8, 8), {"moving": (0,)}), "1x1x8x8 is spread over 1x4x8x8; NC11 and N111"),
        (("Add", IMAGE, (1, 1, 8, 8)), ""),  # a constant
        (("Div", IMAGE, IMAGE, {"moving": (0,)}), ""),
        (("Div", IMAGE, IMAGE, {"moving": (0,), "site": "8.6"}), "Div is one of its layers from TensorRT 10 on"),
        (("Greater", IMAGE, IMAGE, {"moving": (0,)}), "Greater runs there in INT8 only"),
        (("Greater", IMAGE, IMAGE, {"moving": (0,), "precision": "int8"}), ""),
        (("Abs", IMAGE, {"site": "xavier"}), ""),
        (("Sin", IMAGE), ""),
        (("LRN", IMAGE, {"size": 5}), ""),
        (("LRN", IMAGE, {"size": 4}), "a window of 4; 3, 5, 7 and 9"),
        # moving data
        (("Concat", IMAGE, (1, 2, 8, 8), {"axis": 1, "moving": (0,)}), ""),
        (("Concat", IMAGE, (1, 2, 8, 8), {"axis": -3, "moving": (0,)}), ""),
        (("Concat", IMAGE, IMAGE, {"axis": 2, "moving": (0,)}), "it joins along axis 2"),
        (("Slice", IMAGE, [0, 2], [2, 4], [1, 2]), ""),
        (("Slice", IMAGE, [0, 2], [2, 4], [1, 2], {"site": "8.2"}), "Slice is one of its layers from TensorRT 8.4 on"),
        (("Slice", IMAGE, [0], [8], [2], [2]), "steps of 2; 1 runs there"),
        (("Slice", (4, 4, 8, 8), [1], [2], [0]), "it cuts the batch"),
        (("Split", IMAGE, {"axis": 1, "outputs": 2}), ""),
        (("Split", (2, 4, 8, 8), {"axis": 0, "outputs": 2}), "it splits the batch"),
        (("Reshape", IMAGE, [1, 2, 2, 64]), ""),
        (("Reshape", IMAGE, [1, -1]), "2 axes"),
        (("Reshape", IMAGE, [2, 2, 8, 8]), "it changes the batch"),
        (("Reshape", IMAGE, [1, 2, 2, 64], {"site": "8.4"}), "Reshape is one of its layers from TensorRT 8.5 on"),
        (("Transpose", IMAGE, {"perm": [0, 2, 3, 1]}), ""),
        (("Transpose", IMAGE, {"perm": [1, 0, 2, 3]}), "it moves the batch"),
        (("Flatten", (1, 1, 2, 2)), "Flatten is not one of its layers"),
        (("Resize", IMAGE, None, [1.0, 1.0, 2.0, 2.0], FLOOR), ""),
        (("Resize", IMAGE, None, [1.0, 1.0, 2.0, 2.0], {**FLOOR, "site": "8.2"}), ""),
        (("Resize", IMAGE, None, [1.0, 1.0, 1.5, 2.0], FLOOR), "scales of 1x1x1.5x2"),
        (("Resize", IMAGE, None, None, [1, 4, 16, 16], FLOOR), "it has a size"),
        (("Resize", IMAGE, None, [1.0, 1.0, 4.0, 4.0], HALF), ""),
        (("Resize", IMAGE, None, [1.0, 1.0, 5.0, 5.0], HALF), "1x1 and whole ones of 1 to 4"),
        (("Resize", IMAGE, None, [1.0, 1.0, 4.0, 4.0], {**HALF, "site": "8.2"}), "mode linear; nearest run"),
        (("Resize", IMAGE, None, [1.0, 1.0, 2.0, 2.0], {"nearest_mode": "round_prefer_ceil"}), ""),
        (("Resize", IMAGE, None, [1.0, 1.0, 2.0, 2.0], {"mode": "cubic"}), "mode cubic; nearest and linear run"),
        (("Resize", IMAGE, None, [1.0, 1.0, 2.0, 2.0], {**FLOOR, "nearest_mode": "ceil"}), "asymmetric with ceil"),
        (("Upsample", IMAGE, [1.0, 1.0, 2.0, 2.0], {"opset": 9, "mode": "nearest"}), ""),
        (("Softmax", (1, 1000, 1, 1), {"axis": 1}), ""),
        (("Softmax", (1, 1025, 2, 1), {"axis": 1}), "an axis of 1025; 1 to 1024"),
        (("Softmax", (1, 100, 1, 1), {"axis": 1, "site": "xavier"}), "Softmax is a layer of DLA 2 (Orin) alone"),
        # products: FullyConnected up to 8.3, a matrix product since
        (("Gemm", (1, 64), (64, 10), {"site": "8.2"}), ""),
        (("Gemm", (1, 64), (64, 10), {"site": "8.4"}), "a matrix product in TensorRT 8.4 and later"),
        (("MatMul", (1, 64), (64, 10), {"site": "xavier"}), "a matrix product in TensorRT 8.4 and later"),
        (("MatMul", (1, 64), (64, 10)), ""),
        (("MatMul", (1, 64), (64, 10), {"moving": (0,)}), "a product of two tensors"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else None,
)  # fmt: skip
def test_every_row_of_the_table(judged, case, says):
    attributes = dict(case[-1]) if isinstance(case[-1], dict) else {}
    site = SITES[attributes.pop("site", "orin")]
    row = judged(*(part for part in case if not isinstance(part, dict)), site=site, **attributes)
    assert says in row.reason
    assert bool(row.reason) == bool(says)


def test_every_row_has_a_source():
    for kind, row in ROWS.items():
        assert re.match("(HEADER|PAGE|OPERATORS|PARSER)[ ,;]", row.source + " "), kind
        assert set(row.dla) <= {1, 2}


def test_in_fp32_nothing_runs_there(judged):
    assert judged(*CONV, (6, 4, 3, 3), precision="fp32").reason == "a DLA computes in FP16 and INT8 only"


def test_multiply_accumulates(judged):
    assert judged(*CONV, (6, 4, 3, 5)).macs == 2 * 6 * 38 * 36 * 4 * 3 * 5
    assert judged(*CONV, (6, 2, 3, 3), group=2).macs == 2 * 6 * 38 * 38 * 2 * 3 * 3
    assert judged("ConvTranspose", (2, 4, 5, 5), (4, 6, 2, 3)).macs == 2 * 4 * 5 * 5 * 6 * 2 * 3
    assert judged("MatMul", (3, 7), (7, 5)).macs == 3 * 7 * 5
    assert judged("Relu", (1, 4, 8, 8)).macs == 0


def test_an_open_batch_counts_as_the_one_asked_for(judged):
    assert judged("Conv", ("N", 4, 5, 5), (6, 4, 3, 3), batch=7).macs == 7 * 6 * 3 * 3 * 4 * 3 * 3


def test_nodes_that_only_change_types_are_no_layers(save):
    rows = documented(open_model(save(int8=True), step="test"), precision="int8", ranges={}, site=ORIN)
    assert [row.kind for row in rows] == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]
    assert rows[0].macs == 5 * 8 * 8 * 3 * 3 * 3


def test_shares_and_transitions():
    rows = [
        DlaLayer(name="a", kind="Conv", macs=60),
        DlaLayer(name="b", kind="Exp", macs=0, reason="Exp is none of its layers"),
        DlaLayer(name="c", kind="Conv", macs=30),
        DlaLayer(name="d", kind="Conv", macs=10, reason="kernel 40"),
    ]
    plan = plan_of(1, rows)
    assert (plan.core, plan.fallback_percent, plan.transitions) == (1, 10.0, 3)
    check_fallback(plan, 10)
    check_fallback(plan, None)
    with pytest.raises(GateError, match=r"10\.0 % .* at most 9\.5 % .* \(3 changes of device\)") as caught:
        check_fallback(plan, 9.5)
    assert "The largest is d (Conv): kernel 40." in str(caught.value)
    assert plan_of(0, []).fallback_percent == 0.0


@pytest.mark.parametrize(
    ("target", "release", "says"),
    [("xavier-nx", "8.6.1", "DLA 2 (Orin) alone"), ("orin-nx", "8.6.1", "the builder keeps it"), ("orin-nx", None, "")],
)
def test_the_limits_are_those_of_the_target_and_of_the_tensorrt_that_builds(tmp_path, target, release, says):
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 100, 1, 1])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 100, 1, 1])
    half = onnx.numpy_helper.from_array(np.ones((100, 1, 1), np.float16), "w")
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["z"], name="mul"),
        helper.make_node("Softmax", ["z"], ["y"], axis=1, name="it"),
    ]
    graph = helper.make_graph(nodes, "one", [shape], [made], [half])
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model, options = open_model(path, step="test"), BuildOptions(dla=0, target=find_target(target))
    script = write_device_script(
        model, tmp_path / "one.engine", target=find_target(target), precision="fp16", options=options
    )
    assert [bool(row.reason) for row in script.dla.layers] == [False, target == "xavier-nx"]
    if release is None:
        return
    trt = Release(
        release, dla_cores=1, on_dla=lambda layer: layer.name != "it", layers=(("mul", "SCALE"), ("it", "SOFTMAX"))
    )
    site = choose_site(options, "fp16", machine=what_machine(), backend=trt.backend)
    report = build_engine_file(model, tmp_path / "one.engine", options=options, site=site)
    assert [says in row.reason for row in report.dla.layers] == [False, True]


@pytest.mark.parametrize(("kind", "options"), [("Softmax", {"axis": 1}), ("MaxPool", {"kernel_shape": [2, 2]})])
def test_sizes_that_nobody_knows_are_left_to_the_builder(tmp_path, kind, options):
    nodes = [
        helper.make_node("Mystery", ["x"], ["z"], name="mystery", domain="elsewhere"),
        helper.make_node(kind, ["z"], ["y"], name="it", **options),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 3]), ("y", None))
    ]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 1)]
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    rows = documented(open_model(path, step="test"), precision="fp16", ranges={}, site=ORIN)
    assert {row.name: row.reason for row in rows}["it"] == ""
