"""The opset of an export: by what the network uses, by the target's TensorRT, or as asked for and refused."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from msn_deploy.core.errors import InputError
from msn_deploy.engine import BuildOptions, check_with_rtx, find_target
from msn_deploy.machine.jetpacks import JETPACKS, first_to_read, opset_for, opset_read
from msn_deploy.model.opened import open_model
from msn_deploy.model.opset import opset_of
from msn_deploy.pipeline.build import build_engine
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.opset import at_opset


class Net(nn.Module):
    """A convolution, its norm, a ReLU, and what is looked at."""

    def __init__(self, rest):
        super().__init__()
        torch.manual_seed(7)
        self.conv, self.norm, self.rest = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), rest
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 1.5)
            self.norm.bias.normal_()
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        y = self.rest(functional.relu(self.norm(self.conv(x))))
        return self.head(functional.adaptive_avg_pool2d(y, 1).flatten(1))


def chunks(x):
    return torch.cat([each * (at + 0.5) for at, each in enumerate(x.chunk(3, 1))], 1)


# name: what stands between the norm and the head, the opset, an operator that is in the file (None: that is not)
KINDS = {
    "Resize beside a mean": (nn.Upsample(scale_factor=2, mode="bilinear"), 17, "Resize"),
    "Pad as in TensorFlow": (nn.ZeroPad2d((0, 1, 0, 1)), 17, "Pad"),
    "Pad around": (nn.CircularPad2d(2), 17, "Concat"),
    "Split with a rest": (chunks, 17, "Split"),
    "Mish": (nn.Mish(), 17, "Softplus"),
    "neighbours": (nn.LocalResponseNorm(3), 17, "AveragePool"),
    "spread": (lambda x: x * x.std((2, 3), keepdim=True), 17, "ReduceMean"),
    "LayerNormalization": (lambda x: functional.layer_norm(x, x.shape[1:]), 17, "LayerNormalization"),
    "the last window of a pool": (nn.MaxPool2d(2, 3, 1, ceil_mode=True), 17, "MaxPool"),
    "antialias": (lambda x: functional.interpolate(x, size=5, mode="bilinear", antialias=True), 18, "Resize"),
    "maxima": (
        lambda x: torch.zeros_like(x).scatter_reduce(1, x.argmax(1, keepdim=True), x[:, :1], "amax"),
        18,
        "ScatterElements",
    ),
}
QUICK = ("Resize beside a mean", "Split with a rest", "antialias")


@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in KINDS]
)
def test_the_default_is_the_lowest_from_17_that_has_what_the_network_uses(name, tmp_path):
    rest, opset, operator = KINDS[name]
    export_onnx(Net(rest).eval(), tmp_path / "m.onnx", input_shape=(1, 3, 9, 8))
    made = onnx.load(str(tmp_path / "m.onnx"))
    assert opset_of(made) == opset
    assert operator in {node.op_type for node in made.graph.node}
    onnx.checker.check_model(made, full_check=True)


@pytest.mark.parametrize("fold", [True, False])
def test_what_is_not_folded_is_read_by_tensorrt_too(fold, tmp_path):
    """The unoptimised exporter computes the axes of a mean from constants, which no parser takes."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    net = Net(nn.Sequential(nn.ReflectionPad2d((1, 0, 2, 1)), nn.Upsample(scale_factor=2), nn.Mish())).eval()
    export_onnx(net, tmp_path / "m.onnx", input_shape=(1, 3, 9, 8), fold=fold)
    model = open_model(tmp_path / "m.onnx", step="test")
    assert opset_of(model.proto) == 17
    kinds = [node.op_type for node in model.proto.graph.node]
    assert ("BatchNormalization" in kinds) is not fold
    assert not {"Constant", "Shape", "Reshape"} & set(kinds[:6])
    assert check_with_rtx(model, options=BuildOptions()).layers > 0


def graph_of(*nodes, opset=18, **constants):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 6, 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def test_lowered_operators_are_read_by_tensorrt(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    model = graph_of(
        helper.make_node("Pad", ["x", "p", "", "a"], ["padded"], mode="reflect"),
        helper.make_node("Resize", ["padded", "", "", "s"], ["large"], mode="linear", axes=[3, 2]),
        helper.make_node("Split", ["large"], ["one", "two"], axis=1, num_outputs=2),
        helper.make_node("Mish", ["one"], ["soft"]),
        helper.make_node("Swish", ["two"], ["swish"]),
        helper.make_node("Concat", ["soft", "swish"], ["both"], axis=1),
        helper.make_node("Gelu", ["both"], ["gelu"]),
        helper.make_node("GroupNormalization", ["gelu", "w", "b"], ["normal"], num_groups=2),
        helper.make_node("ReduceMean", ["normal", "a"], ["y"]),
        opset=24,
        p=np.int64([2, 1]),
        a=np.int64([3]),
        s=np.int64([13, 11]),
        w=np.float32([0.5, 1.5, 2, 0.7]),
        b=np.float32([0.1, -0.2, 0.3, 0.4]),
    )
    for opset in (17, 13):
        made = at_opset(model, opset=opset, target=None, ours=True)
        path = tmp_path / f"{opset}.onnx"
        path.write_bytes(made.SerializeToString())
        assert check_with_rtx(open_model(path, step="test"), options=BuildOptions()).layers > 0


SIZES = np.int64([1, 3])
SPLIT = helper.make_node("Split", ["x", "s"], ["a", "y"], axis=1)
MAXIMA = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], name="fill", reduction="max")
INTO = {"i": np.int64([[[[2]]]]), "u": np.float32([[[[0.7]]]])}


@pytest.mark.parametrize(
    ("target", "opset"),
    [("nano", 13), ("xavier-nx", 13), ("orin-nano", 16), ("thor", 17), ("rtx-sm86", 17), (None, 17)],
)
def test_a_target_gets_what_its_oldest_tensorrt_reads(target, opset):
    made = at_opset(graph_of(SPLIT, s=SIZES), opset=None, target=target, ours=True)
    assert opset_of(made) == opset


def test_a_file_of_others_keeps_its_opset_unless_it_is_more_than_the_target_reads():
    assert opset_of(at_opset(graph_of(SPLIT, s=SIZES), opset=None, target=None, ours=False)) == 18
    assert opset_of(at_opset(graph_of(SPLIT, s=SIZES), opset=None, target="nano", ours=False)) == 13
    older = graph_of(helper.make_node("Relu", ["x"], ["y"]), opset=11)
    assert opset_of(at_opset(older, opset=None, target="nano", ours=False)) == 11
    assert opset_of(at_opset(older, opset=13, target="nano", ours=False)) == 13


@pytest.mark.parametrize(("opset", "target"), [(17, None), (None, "nano"), (13, "nano"), (16, "orin-nano")])
def test_what_cannot_be_had_is_refused_with_the_operator_its_opset_and_the_tensorrt(opset, target):
    with pytest.raises(InputError) as caught:
        at_opset(graph_of(MAXIMA, **INTO), opset=opset, target=target, ours=True)
    message = str(caught.value)
    assert "ScatterElements 'fill' needs opset 18 (its reduction is max)" in message
    assert ("TensorRT 8.2.1 of Jetson Nano reads opset 13" in message) is (target == "nano")
    assert ("--opset 18" in message) is (target != "nano"), "for a nano there is no such way out"
    assert len(message.splitlines()) <= 3


def test_an_opset_that_a_target_does_not_read_is_refused():
    with pytest.raises(
        InputError, match=r"TensorRT 8\.2\.1 of Jetson Nano reads opset 13 at most, not 17\.\nTry `--opset 13`"
    ):
        at_opset(graph_of(SPLIT, s=SIZES), opset=17, target="nano", ours=True)


@pytest.mark.parametrize("opset", [None, 18])
def test_a_target_some_of_whose_releases_read_it_gets_it_and_is_told(opset, caplog):
    caplog.set_level(logging.WARNING)
    made = at_opset(graph_of(MAXIMA, **INTO), opset=opset, target="orin-nano", ours=True)
    assert opset_of(made) == 18
    said = [record.getMessage() for record in caplog.records]
    assert [message.split()[1] for message in said] == ["8.5.2", "8.6.2"]
    assert all("reads opset 17 at most; the file has 18" in message for message in said)


NORM = helper.make_node("LayerNormalization", ["x", "s"], ["y"], name="norm")


def test_tensorrt_8_5_reads_17_without_its_new_operators(caplog):
    caplog.set_level(logging.WARNING)
    span = np.float32([0.5, 1.5, 2, 0.7, 0.3, 1.1])
    made = at_opset(graph_of(NORM, s=span), opset=None, target="orin-nano", ours=True)
    assert "LayerNormalization" not in {node.op_type for node in made.graph.node}
    assert caplog.records == []
    kept = at_opset(graph_of(NORM, s=span), opset=17, target="orin-nano", ours=True)
    assert opset_of(kept) == 17
    (record,) = caplog.records
    assert "8.5.2" in record.getMessage()
    assert "LayerNormalization" in record.getMessage()
    caplog.clear()
    at_opset(graph_of(SPLIT, s=SIZES), opset=17, target="orin-nano", ours=True)
    assert caplog.records == []


def test_an_engine_for_a_device_is_told_what_its_tensorrt_does_not_read(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    model = graph_of(helper.make_node("Conv", ["x", "w"], ["y"]), opset=17, w=np.full((4, 4, 1, 1), 0.3, np.float32))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    build_engine(path, tmp_path / "m.engine", precision="fp32", options=BuildOptions(target=find_target("nano")))
    assert "TensorRT 8.2.1 of Jetson Nano reads opset 13 at most; the file has 17" in caplog.messages


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match="orin-nano"):
        at_opset(graph_of(SPLIT, s=SIZES), opset=None, target="orin-nan", ours=True)


def test_what_each_tensorrt_reads():
    assert [opset_read(each) for each in ("7.1.3", "8.0.1", "8.2.1", "8.4.1", "8.5.2", "8.6.2")] == [
        11,
        13,
        13,
        17,
        17,
        17,
    ]
    assert [opset_for(each) for each in ("8.2.1", "8.5.2", "8.6.2", "10.3.0")] == [13, 16, 17, 20]
    assert [opset_read(each) for each in ("10.3.0", "10.13.3", "10.16.2", "11.4")] == [20, 20, 24, 24]
    assert [first_to_read(each) for each in (13, 17, 18, 24, 25)] == ["7.2", "8.4", "10.0", "10.15", None]
    assert all(opset_read(older.tensorrt) <= opset_read(newer.tensorrt) for older, newer in pairwise(JETPACKS))
