"""Reductions go down to opset 17 with their axes; what means something else there is left alone."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from msn_deploy.graph.export import to_onnx
from msn_deploy.model.opset import from_18_to_17
from msn_deploy.training.runner import logits_of


def logits_in_onnxruntime(model, batch):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        y = self.conv(x)
        return y.mean((2, 3)) + y.amax((2, 3)) + nn.functional.adaptive_avg_pool2d(y, 1).flatten(1)


def test_a_network_that_pools_to_one_pixel_exports_at_17():
    torch.manual_seed(3)
    net = Pooled().eval()
    batch = torch.randn(1, 3, 9, 8).numpy()
    made = to_onnx(net, input_shape=(1, 3, 9, 8))
    assert [entry.version for entry in made.opset_import] == [17]
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(logits_in_onnxruntime(made, batch), logits_of(net, batch), atol=1e-6)


def graph_of(node, initializers=()):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inputs = (
        [x] if len(node.input) < 2 or initializers else [x, helper.make_tensor_value_info("a", TensorProto.INT64, [1])]
    )
    graph = helper.make_graph([node], "g", inputs, [y], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceL2"])
def test_axes_become_an_attribute(op):
    axes = helper.make_tensor("a", TensorProto.INT64, [2], [1, 2])
    model = graph_of(helper.make_node(op, ["x", "a"], ["y"], keepdims=0), [axes])
    batch = np.random.default_rng(4).standard_normal((2, 3, 4)).astype(np.float32)
    before = logits_in_onnxruntime(model, batch)
    assert from_18_to_17(model)
    assert model.opset_import[0].version == 17
    assert len(model.graph.initializer) == 0
    np.testing.assert_allclose(logits_in_onnxruntime(model, batch), before, rtol=1e-6)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("ReduceMean", ["x", "a"], ["y"]),  # axes that are only known when it runs
        helper.make_node("Split", ["x"], ["y", "z"], axis=2, num_outputs=2),  # num_outputs is new in 18
        helper.make_node("Mish", ["x"], ["y"]),  # new in 18
    ],
    ids=lambda node: node.op_type,
)
def test_what_has_no_twin_in_17_is_left_as_it_is(node):
    model = graph_of(node)
    before = model.SerializeToString()
    assert not from_18_to_17(model)
    assert model.SerializeToString() == before
