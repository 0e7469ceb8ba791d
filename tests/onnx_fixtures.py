"""Small ONNX models, built node by node, for the tests of the engine half."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the tests of engine/ build their models with onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CLASSES = 5


def conv_net(
    *,
    batch: int | str = 1,
    size: int | str = 8,
    channels: int = 3,
    act: str = "Relu",
    norm: bool = False,
    int8: bool = False,
    half: bool = False,
    metadata: dict[str, str] | None = None,
) -> Any:
    """Conv -> [BatchNormalization] -> act -> GlobalAveragePool -> Flatten, of random seeded weights."""
    rng = np.random.default_rng(7)
    floats = np.float16 if half else np.float32
    weight = rng.uniform(-0.5, 0.5, (CLASSES, channels, 3, 3)).astype(floats)
    inits = {"bias": rng.uniform(-1, 1, CLASSES).astype(floats)}
    nodes = []
    image, kernel = "x", "weight"
    if half:
        nodes.append(helper.make_node("Cast", ["x"], ["xh"], name="to_half", to=TensorProto.FLOAT16))
        image = "xh"
    if int8:
        inits |= {
            "xs": np.float32(1 / 64),
            "zero": np.int8(0),
            "weight_q": np.round(weight * 254).astype(np.int8),
            "ws": np.full(CLASSES, 1 / 254, np.float32),
            "zeros": np.zeros(CLASSES, np.int8),
        }
        nodes += [
            helper.make_node("QuantizeLinear", [image, "xs", "zero"], ["xq"], name="q"),
            helper.make_node("DequantizeLinear", ["xq", "xs", "zero"], ["xd"], name="dq"),
            helper.make_node("DequantizeLinear", ["weight_q", "ws", "zeros"], ["wd"], name="dqw", axis=0),
        ]
        image, kernel = "xd", "wd"
    else:
        inits["weight"] = weight
    nodes.append(helper.make_node("Conv", [image, kernel, "bias"], ["c"], name="conv0", pads=[1, 1, 1, 1]))
    last = "c"
    if norm:
        for name in ("gain", "shift", "mean", "var"):
            inits[name] = rng.uniform(0.5, 2.0, CLASSES).astype(floats)
        nodes.append(helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "var"], ["n"], name="bn0"))
        last = "n"
    nodes += [
        helper.make_node(act, [last], ["a"], name="act0"),
        helper.make_node("GlobalAveragePool", ["a"], ["g"], name="gap0"),
        helper.make_node("Flatten", ["g"], ["f" if half else "logits"], name="flat0"),
    ]
    if half:
        nodes.append(helper.make_node("Cast", ["f"], ["logits"], name="to_float", to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "conv_net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in inits.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata:
        helper.set_model_props(model, metadata)
    return model


def stereo_net(*, batch: int | str = "N", width: int | str = "W") -> Any:
    """Two images, floats and bytes, and a scalar, to the convolved sum, its best channel and whether any is above 0."""
    weight = np.random.default_rng(7).uniform(-0.5, 0.5, (4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["right"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["gain"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["bytes", "factor"], ["scaled"]),
        helper.make_node("Add", ["left", "scaled"], ["both"]),
        helper.make_node("Conv", ["both", "weight"], ["sum"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMax", ["sum"], ["most"], axes=[2, 3], keepdims=0),
        helper.make_node("ArgMax", ["most"], ["best"], axis=1, keepdims=0),
        helper.make_node("ReduceMax", ["sum"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["any"]),
    ]
    shape = [batch, 3, 8, width]
    graph = helper.make_graph(
        nodes,
        "stereo_net",
        [
            helper.make_tensor_value_info("left", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("right", TensorProto.UINT8, shape),
            helper.make_tensor_value_info("gain", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [batch, 4, 8, width]),
            helper.make_tensor_value_info("best", TensorProto.INT64, [batch]),
            helper.make_tensor_value_info("any", TensorProto.BOOL, []),
        ],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32(0.25), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    """A stereo_net whose batch and width are open."""
    path = tmp_path / "stereo.onnx"
    path.write_bytes(stereo_net().SerializeToString())
    return path


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a conv_net of the given options to a file of its own."""

    def write(name: str = "model.onnx", **options: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(conv_net(**options).SerializeToString())
        return path

    return write


@pytest.fixture
def batch() -> Callable[..., Any]:
    """Make seeded images, float32 (N, C, H, W)."""

    def make(count: int, channels: int = 3, size: int = 8) -> Any:
        return np.random.default_rng(3).standard_normal((count, channels, size, size)).astype(np.float32)

    return make


@pytest.fixture(params=["empty", "text", "cut", "zip", "folder", "missing", "no_graph"])
def hostile(request: pytest.FixtureRequest, save: Callable[..., Path], tmp_path: Path) -> Path:
    """A path named .onnx that is no usable ONNX file."""
    path = tmp_path / "hostile.onnx"
    whole = save("whole.onnx").read_bytes()
    contents = {
        "empty": b"",
        "text": b"hello world\n",
        "cut": whole[: len(whole) // 2],
        "zip": b"PK\x03\x04" + bytes(64),
        "no_graph": onnx.ModelProto(ir_version=8).SerializeToString(),
    }
    if request.param == "folder":
        path.mkdir()
    elif request.param != "missing":
        path.write_bytes(contents[request.param])
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model that keeps its weights in weights.bin beside it."""
    path = tmp_path / "external.onnx"
    onnx.save_model(conv_net(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path
