"""What the documented limits of DLA layers say of a network, without any TensorRT."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from msn_deploy.core.errors import GateError  # noqa: E402
from msn_deploy.engine import BuildOptions  # noqa: E402
from msn_deploy.engine.dla import DlaLayer, check_fallback, documented, plan_of  # noqa: E402
from msn_deploy.model.opened import open_model  # noqa: E402


@pytest.fixture
def judged(tmp_path):
    """Return the only row of a graph of one node; `weights` are sizes of further inputs."""

    def judge(kind, image, *weights, precision="fp16", batch=None, **attributes):
        names = [f"w{at}" for at in range(len(weights))]
        node = helper.make_node(kind, ["x", *names], ["y"], name="it", **attributes)
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(image))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [
                helper.make_tensor(name, TensorProto.FLOAT, sizes, [0.5] * int(onnx.numpy_helper.np.prod(sizes)))
                for name, sizes in zip(names, weights, strict=True)
            ],
        )
        path = tmp_path / "one.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        model = open_model(path, step="test")
        [row] = documented(model, precision=precision, ranges=BuildOptions(batch=batch).ranges(model))
        return row

    return judge


CONV = ("Conv", (2, 4, 40, 40))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ((*CONV, (6, 4, 3, 3)), ""),
        ((*CONV, (6, 4, 33, 1)), "kernel 33, stride 1; at most 32 and 8"),
        ((*CONV, (6, 4, 3, 3), {"strides": [9, 1]}), "kernel 3, stride 9; at most 32 and 8"),
        (("Conv", (1, 4, 9), (6, 4, 3)), "no 2-D convolution"),
        (("ConvTranspose", (1, 4, 5, 5), (4, 6, 2, 2)), ""),
        (("ConvTranspose", (1, 4, 5, 5), (4, 6, 2, 2), {"pads": [1, 1, 1, 1]}), "transposed convolution with padding"),
        (("ConvTranspose", (1, 4, 5, 5), (4, 3, 2, 2), {"group": 2}), "with groups or dilation"),
        (("ConvTranspose", (1, 4, 5, 5), (4, 3, 2, 2), {"dilations": [2, 2]}), "with groups or dilation"),
        (("MaxPool", (1, 4, 32, 32), {"kernel_shape": [8, 8]}), ""),
        (("MaxPool", (1, 4, 32, 32), {"kernel_shape": [9, 1]}), "window 9, stride 1; at most 8 and 16"),
        (
            ("AveragePool", (1, 4, 64, 64), {"kernel_shape": [2, 2], "strides": [17, 1]}),
            "window 2, stride 17; at most 8 and 16",
        ),
        (("GlobalAveragePool", (1, 4, 8, 8)), ""),
        (("GlobalAveragePool", (1, 4, 9, 8)), "window 9; at most 8"),
        (("Concat", (1, 4, 8, 8), (1, 2, 8, 8), {"axis": 1}), ""),
        (("Concat", (1, 4, 8, 8), (1, 4, 8, 8), {"axis": 2}), "another axis than channels"),
        (("Relu", (4097, 1, 2, 2)), "batch beyond 4096"),
        (("Relu", (1, 1, 8193, 2)), "a size beyond 8192"),
        (("Relu", (4096, 1, 2, 2)), ""),
        (("LeakyRelu", (1, 1, 2, 2)), ""),
        (("Flatten", (1, 1, 2, 2)), "Flatten is none of its layers"),
    ],
)
def test_every_documented_limit_is_a_reason(judged, case, reason):
    attributes = case[-1] if isinstance(case[-1], dict) else {}
    row = judged(*(part for part in case if not isinstance(part, dict)), **attributes)
    assert row.reason.endswith(reason)
    assert bool(row.reason) == bool(reason)


def test_in_fp32_nothing_runs_there(judged):
    assert judged(*CONV, (6, 4, 3, 3), precision="fp32").reason == "DLA computes in FP16 and INT8 only"


def test_multiply_accumulates(judged):
    assert judged(*CONV, (6, 4, 3, 5)).macs == 2 * 6 * 38 * 36 * 4 * 3 * 5
    assert judged(*CONV, (6, 2, 3, 3), group=2).macs == 2 * 6 * 38 * 38 * 2 * 3 * 3
    assert judged("ConvTranspose", (2, 4, 5, 5), (4, 6, 2, 3)).macs == 2 * 4 * 5 * 5 * 6 * 2 * 3
    assert judged("MatMul", (3, 7), (7, 5)).macs == 3 * 7 * 5
    assert judged("Relu", (1, 4, 8, 8)).macs == 0


def test_an_open_batch_counts_as_the_one_asked_for(judged):
    assert judged("Conv", ("N", 4, 5, 5), (6, 4, 3, 3), batch=7).macs == 7 * 6 * 3 * 3 * 4 * 3 * 3


def test_nodes_that_only_change_types_are_no_layers(save):
    rows = documented(open_model(save(int8=True), step="test"), precision="int8", ranges={})
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
