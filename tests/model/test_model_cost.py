"""Operations and bytes against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_fixtures import conv_net

from msn_deploy.model.cost import cost_of


def model_of(nodes, *, x=(1, 4, 8, 8), weights=None, inputs=(), outputs=("y",)):
    """A model of nodes `(operator, inputs, outputs, attributes)`; weights: shapes or arrays by name."""
    made = [helper.make_node(kind, list(given), list(out), **attributes) for kind, given, out, attributes in nodes]
    arrays = {
        name: np.ones(value, np.float32) if isinstance(value, tuple) else value
        for name, value in (weights or {}).items()
    }
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", list(x)), *inputs)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def counted(*nodes, batch=1, **options):
    cost = cost_of(model_of(nodes, **options), batch=batch)
    return cost.flops, cost.weight_bytes, cost.activation_bytes


def test_convolution_with_groups_and_stride():
    # 4 channels in 2 groups, 6 out, 3x3, stride 2 and padding 1: 8x8 becomes 4x4.
    node = ("Conv", ["x", "w", "b"], ["y"], {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]})
    flops = 2 * (6 * 4 * 4) * (2 * 3 * 3)
    assert counted(node, weights={"w": (6, 2, 3, 3), "b": (6,)}) == (flops, 4 * (108 + 6), 4 * (256 + 96))


def test_depthwise_convolution_of_a_larger_batch():
    node = ("Conv", ["x", "w"], ["y"], {"group": 4, "pads": [1, 1, 1, 1]})
    got = counted(node, weights={"w": (4, 1, 3, 3)}, x=("N", 4, 8, 8), batch=3)
    assert got == (2 * 3 * 256 * 9, 4 * 36, 4 * 2 * 3 * 256)


def test_transposed_convolution():
    # Every input element meets every weight of its channel: 4 in, 3 out in 1 group, 2x2, stride 2: 8x8 becomes 16x16.
    node = ("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]})
    assert counted(node, weights={"w": (4, 3, 2, 2)}) == (2 * 256 * 3 * 4, 4 * 48, 4 * (256 + 3 * 256))


@pytest.mark.parametrize(("trans_a", "x"), [(0, (5, 7)), (1, (7, 5))])
def test_matrix_products(trans_a, x):
    node = ("Gemm", ["x", "w", "b"], ["y"], {"transA": trans_a})
    assert counted(node, x=x, weights={"w": (7, 3), "b": (3,)}) == (2 * 5 * 7 * 3, 4 * 24, 4 * (35 + 15))


def test_batched_matrix_product():
    node = ("MatMul", ["x", "w"], ["y"], {})
    assert counted(node, x=(2, 5, 7), weights={"w": (7, 3)}) == (2 * 2 * 5 * 7 * 3, 4 * 21, 4 * (70 + 30))


def test_pools_count_what_they_read():
    node = ("MaxPool", ["x"], ["y"], {"kernel_shape": [3, 3], "strides": [2, 2]})
    assert counted(node) == (4 * 3 * 3 * 9, 0, 4 * (256 + 36))
    assert counted(("GlobalAveragePool", ["x"], ["y"], {})) == (256, 0, 4 * (256 + 4))


def test_concatenation_only_moves():
    node = ("Concat", ["x", "z"], ["y"], {"axis": 1})
    assert counted(node, inputs=[("z", [1, 2, 8, 8])]) == (0, 0, 4 * (256 + 128 + 384))


def test_normalisation_and_addition_read_and_write():
    norm = ("BatchNormalization", ["x", "a", "b", "m", "v"], ["n"], {})
    weights = dict.fromkeys("abmv", (4,))
    assert counted(norm, outputs=("n",), weights=weights) == (512, 4 * 16, 4 * 512)
    assert counted(norm, ("Add", ["n", "x"], ["y"], {}), weights=weights) == (512 + 256, 4 * 16, 4 * (512 + 3 * 256))


def test_an_activation_is_done_where_its_input_is_made_if_nothing_else_reads_that():
    conv = ("Conv", ["x", "w"], ["c"], {})
    weights = {"w": (4, 4, 1, 1)}
    fused = counted(conv, ("Relu", ["c"], ["y"], {}), weights=weights)
    assert fused == (2 * 256 * 4 + 256, 4 * 16, 4 * 2 * 256)
    twice = counted(conv, ("Relu", ["c"], ["r"], {}), ("Add", ["r", "c"], ["y"], {}), weights=weights)
    assert twice == (2 * 256 * 4 + 512, 4 * 16, 4 * (2 * 256 + 2 * 256 + 3 * 256))
    shown = counted(conv, ("Relu", ["c"], ["y"], {}), weights=weights, outputs=("y", "c"))
    assert shown[2] == 4 * 4 * 256
    assert counted(("Relu", ["x"], ["y"], {}))[2] == 4 * 2 * 256


def test_views_move_nothing():
    nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        ("Flatten", ["c"], ["f"], {}),
        ("Gemm", ["f", "v"], ["y"], {}),
    ]
    got = counted(*nodes, weights={"w": (4, 4, 1, 1), "v": (256, 3)})
    assert got == (2 * 256 * 4 + 2 * 256 * 3, 4 * (16 + 768), 4 * (256 + 256 + 256 + 3))


def test_int8_moves_one_byte_between_quantise_and_dequantise():
    cost = cost_of(conv_net(int8=True, channels=3), batch=1)
    conv, image, made = 2 * 5 * 64 * 27, 3 * 64, 5 * 64
    assert cost.flops == conv + made + made
    assert cost.weight_bytes == 5 * 27 + 4 * 5  # INT8 weights, float bias
    # The image is quantised (float read, byte written) and read as bytes; the output stays float, for the pooling.
    assert cost.activation_bytes == 4 * image + image + image + 4 * made + 4 * made + 4 * 5


def test_int8_after_an_activation_is_written_as_bytes():
    scale = {"s": np.float32(0.1), "z": np.int8(0)}
    nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        ("Relu", ["c"], ["r"], {}),
        ("QuantizeLinear", ["r", "s", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
        ("Conv", ["d", "w"], ["y"], {}),
    ]
    got = counted(*nodes, weights={"w": (4, 4, 1, 1), **scale})
    assert got == (2 * (2 * 256 * 4) + 256, 4 * 16, 4 * 256 + 256 + 256 + 4 * 256)


def test_half_precision_moves_two_bytes():
    full, half = (cost_of(conv_net(half=half), batch=1) for half in (False, True))
    assert half.flops == full.flops
    assert half.weight_bytes == full.weight_bytes / 2
    assert half.activation_bytes < full.activation_bytes


def test_what_follows_from_constants_alone_is_not_part_of_a_query():
    nodes = [("Mul", ["w", "s"], ["v"], {}), ("Conv", ["x", "v"], ["y"], {})]
    got = counted(*nodes, weights={"w": (4, 4, 1, 1), "s": (1,)})
    assert got == (2 * 256 * 4, 4 * 16, 4 * 2 * 256)


def test_unknown_operators_are_named_and_open_sizes_give_nothing():
    cost = cost_of(model_of([("Softmax", ["x"], ["y"], {"axis": 1})]), batch=1)
    assert (cost.flops, cost.uncounted) == (0, ("Softmax",))
    assert cost_of(conv_net(size="side"), batch=1) is None


def test_the_batch_of_the_file_or_of_the_query():
    model = conv_net(batch="batch")
    one, eight = (cost_of(model, batch=batch) for batch in (1, 8))
    assert (eight.flops, eight.activation_bytes) == (8 * one.flops, 8 * one.activation_bytes)
    assert eight.weight_bytes == one.weight_bytes
    assert eight.intensity > one.intensity
    assert eight.bytes == eight.weight_bytes + eight.activation_bytes
