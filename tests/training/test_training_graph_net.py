"""A graph as a network in torch: every operator as ONNX Runtime has it, networks, Q/DQ pairs as written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.quant.placement import place
from msn_deploy.training.graph_net import GraphNet, net_of_state, quantised_net
from msn_deploy.training.operators import OPERATORS
from msn_deploy.training.qat import folded_graph

RNG = np.random.default_rng(0)
IMAGE = (2, 4, 6, 6)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


W, C = _floats(4, 4, 3, 3), _floats(4)
CASES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "conv": ("Conv", (W, C), {"pads": [1, 1, 1, 1]}),
    "conv, uneven": ("Conv", (W, C), {"pads": [0, 1, 1, 0], "strides": [2, 1]}),
    "conv, same": ("Conv", (W,), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv, groups": ("Conv", (_floats(8, 1, 3, 3), _floats(8)), {"group": 4, "dilations": [2, 2]}),
    "transposed": ("ConvTranspose", (W, C), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "transposed, uneven": ("ConvTranspose", (W, C), {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    "max pool": ("MaxPool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max pool, uneven": ("MaxPool", (), {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "max pool, ceil": ("MaxPool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "mean pool": ("AveragePool", (), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "mean pool, padded": ("AveragePool", (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "mean pool, counted": ("AveragePool", (), {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
    "global mean": ("GlobalAveragePool", (), {}),
    "global max": ("GlobalMaxPool", (), {}),
    "mean": ("ReduceMean", (), {"axes": [2, 3], "keepdims": 0}),
    "sum": ("ReduceSum", (_ints(1),), {}),
    "batch norm": ("BatchNormalization", (C, C, C, np.abs(C)), {}),
    "layer norm": ("LayerNormalization", (_floats(6), _floats(6)), {}),
    "instance norm": ("InstanceNormalization", (C, C), {}),
    "clip": ("Clip", (np.float32(0), np.float32(1)), {}),
    "prelu": ("PRelu", (_floats(4, 1, 1),), {}),
    "max": ("Max", (_floats(4, 1, 1),), {}),
    "softmax": ("Softmax", (), {"axis": 1}),
    "reshape": ("Reshape", (_ints(0, 2, -1),), {}),
    "flatten": ("Flatten", (), {"axis": 1}),
    "transpose": ("Transpose", (), {"perm": [0, 2, 3, 1]}),
    "unsqueeze": ("Unsqueeze", (_ints(0, -1),), {}),
    "slice": ("Slice", (_ints(1, -1), _ints(3, -100), _ints(1, 2), _ints(1, -2)), {}),
    "gather": ("Gather", (_ints(2, -1, 0),), {"axis": 1}),
    "expand": ("Expand", (_ints(3, 1, 1, 1, 1),), {}),
    "pad": ("Pad", (_ints(0, 0, 1, 0, 0, 1, 0, 2),), {}),
    "pad, reflected": ("Pad", (_ints(0, 0, 1, 2, 0, 0, 0, 1),), {"mode": "reflect"}),
    "nearest": (
        "Resize",
        (None, np.array([1, 1, 2, 2], np.float32)),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "linear": ("Resize", (None, np.array([1, 1, 1.5, 2], np.float32)), {"mode": "linear"}),
    "depth to space": ("DepthToSpace", (), {"blocksize": 2}),
    "matmul": ("MatMul", (_floats(6, 3),), {}),
}


def _graph(kind: str, others: tuple[Any, ...], attributes: dict[str, Any]) -> onnx.ModelProto:
    names = ["x"] + ["" if each is None else f"c{at}" for at, each in enumerate(others)]
    constants = [numpy_helper.from_array(each, f"c{at}") for at, each in enumerate(others) if each is not None]
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _in_ort(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return made


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_that_of_onnx_runtime_and_passes_gradients(case: str) -> None:
    model, x = _graph(*CASES[case]), _floats(*IMAGE)
    net, given = GraphNet(model), torch.from_numpy(x).requires_grad_()
    made = net(given)
    np.testing.assert_allclose(made.detach().numpy(), _in_ort(model, x), rtol=1e-5, atol=1e-5)
    made.square().sum().backward()
    assert given.grad is not None
    assert bool(given.grad.any())
    assert all(bool(each.grad.any()) for each in net.parameters() if each.grad is not None)


def test_the_table_of_operators_has_none_twice_or_unknown_to_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(OPERATORS) <= known


@pytest.mark.parametrize(
    ("net", "norm", "side"),
    [("cnn3", "bn", 28), ("densenet_bc_22", "msn", 32)],
)
def test_a_folded_network_is_the_network(small_net: Callable[..., nn.Module], net: str, norm: str, side: int) -> None:
    model = small_net(net, norm, width=4)
    x = torch.from_numpy(_floats(3, 1, side, side))
    graph = GraphNet(folded_graph(model, (1, 1, side, side)))
    assert not graph.is_quantised
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)
    assert not any("running" in name for name in graph.state_dict())
    learned = sum(each.numel() for each in graph.parameters())
    assert learned == pytest.approx(sum(each.numel() for each in model.parameters()), rel=0.1)


def _concat(seed: int = 0) -> onnx.ModelProto:
    """Two convolutions whose outputs are concatenated and read by a third: one scale for three tensors."""
    rng = np.random.default_rng(seed)
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
            b = Conv <pads = [1, 1, 1, 1]> (x, wb, bb)
            both = Concat <axis = 1> (a, b)
            y = Conv (both, wc, bc)
        }
    """
    model = onnx.parser.parse_model(text)
    for name, shape in (
        ("wa", (4, 3, 3, 3)),
        ("ba", 4),
        ("wb", (4, 3, 3, 3)),
        ("bb", 4),
        ("wc", (2, 8, 1, 1)),
        ("bc", 2),
    ):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return model


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_pairs_are_those_of_the_placement_and_what_shares_a_scale_is_one_step(per_channel: bool) -> None:
    model = _concat()
    ranges = dict.fromkeys(place(model).tensors, 4.0) | {"a": 30.0}
    net = quantised_net(model, ranges, per_channel=per_channel)
    assert net.is_quantised
    made = net.to_onnx()
    pairs = {node.input[0]: node.input[1] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    groups = place(model).scale_of
    assert pairs.keys() == groups.keys() == {"x", "a", "b", "both"}
    assert {groups[name] == groups["a"] for name in ("b", "both")} == {
        pairs[name] == pairs["a"] for name in ("b", "both")
    }
    assert len(net.activations) == 2
    assert len(net.weights) == 3
    x = _floats(2, 3, 8, 8)
    truth = _in_ort(model, x)
    with torch.no_grad():
        own = net(torch.from_numpy(x)).numpy()
    exact = _in_ort(made, x)
    assert np.abs(own - exact).max() <= 1e-6 * np.abs(exact).max()
    assert 0.01 < np.abs(own - truth).max() / np.abs(truth).max() < 0.1
    with torch.no_grad():  # what has become of its constants is what is written
        for each in net.parameters():
            each.add_(0.3 * torch.randn(each.shape, generator=torch.Generator().manual_seed(1)))
        moved = net(torch.from_numpy(x)).numpy()
    assert np.abs(moved - own).max() > 0.1
    assert np.abs(moved - _in_ort(net.to_onnx(), x)).max() <= 1e-6 * np.abs(moved).max()


def test_a_state_dict_holds_the_network() -> None:
    model = _concat()
    net = quantised_net(model, dict.fromkeys(place(model).tensors, 4.0))
    with torch.no_grad():
        for each in net.parameters():
            each.mul_(1.1)
    again = net_of_state(net.state_dict(), "x.safetensors")
    again.load_state_dict(net.state_dict())
    x = torch.from_numpy(_floats(2, 3, 8, 8))
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    for state, said in (({}, "no graph"), ({"graph": torch.tensor([1, 2], dtype=torch.uint8)}, "not ONNX")):
        with pytest.raises(InputError, match=said):
            net_of_state(state, "x.safetensors")


def test_a_graph_in_a_state_dict_reads_no_other_file(tmp_path: Path) -> None:
    """It is as foreign as any file."""
    model = _concat()
    net = quantised_net(model, dict.fromkeys(place(model).tensors, 4.0))
    (tmp_path / "secret").write_bytes(bytes(range(8)))
    graph = net.to_onnx()
    tensor = next(each for each in graph.graph.initializer if each.name == "bc")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", str(tmp_path / "secret")), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    state = {"graph": torch.frombuffer(bytearray(graph.SerializeToString()), dtype=torch.uint8)}
    with pytest.raises(InputError, match="another file"):
        net_of_state(state, "x.safetensors")


def test_a_damaged_graph_in_a_state_dict_is_a_message() -> None:
    model = _concat()
    graph = quantised_net(model, dict.fromkeys(place(model).tensors, 4.0)).to_onnx()
    scale = next(each for each in graph.graph.initializer if each.name == "wa_scale")
    scale.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "wa_scale"))  # of four channels
    state = {"graph": torch.frombuffer(bytearray(graph.SerializeToString()), dtype=torch.uint8)}
    with pytest.raises(InputError, match=r"x\.safetensors"):
        net_of_state(state, "x.safetensors")


def test_what_is_not_trained_is_refused_by_name() -> None:
    for kind, attributes, said in (("NonZero", {}, "NonZero"), ("Det", {}, "Det")):
        with pytest.raises(InputError, match=said):
            GraphNet(_graph(kind, (), attributes))
    pair = _graph("QuantizeLinear", (np.float32(0.1), np.uint8(128)), {})
    with pytest.raises(InputError, match="symmetric"):
        GraphNet(pair)
    dilated = GraphNet(_graph("AveragePool", (), {"kernel_shape": [2, 2], "dilations": [2, 2]}))
    with pytest.raises(InputError, match="dilations"):
        dilated(torch.zeros(IMAGE))
