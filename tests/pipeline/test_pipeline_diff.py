"""`diff` names the layer that is off, whatever the files are called and in whatever precision they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.model.matching import match
from msn_deploy.model.opened import with_info
from msn_deploy.pipeline.diff import DiffReport, diff, write_plot
from msn_deploy.quant.layout import Layout
from msn_deploy.quant.precision import to_fp16
from msn_deploy.quant.quantize import quantize

_TWO_BRANCHES = """
    stem = Conv<pads=[1,1,1,1]>(x, w0, b0)  r0 = Relu(stem)
    left = Conv<pads=[1,1,1,1]>(r0, w1, b1)  rl = Relu(left)
    right = Conv<pads=[1,1,1,1]>(r0, w2, b2)  rr = Relu(right)
    both = Concat<axis=1>(rl, rr)
    deep = Conv(both, w3, b3)  added = Add(deep, r0)  r3 = Relu(added)
    flat = Flatten(r3)  y = Gemm(flat, w4, b4)
"""
_SHAPES = {"w0": (4, 1, 3, 3), "w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 8, 1, 1), "w4": (256, 3)}
LAYERS = ("stem", "left", "right", "deep", "y")


def network(body: str = _TWO_BRANCHES) -> ModelProto:
    text = f"g (float[1,1,8,8] x) => (float[1,3] y) {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    rng = np.random.default_rng(5)
    for at, (name, shape) in enumerate(_SHAPES.items()):
        outputs = shape[1] if at == 4 else shape[0]
        values = {name: rng.normal(0, np.prod(shape[1:]) ** -0.5, shape), f"b{at}": rng.normal(0, 0.1, outputs)}
        model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items())
    return model


def written(model: ModelProto, path: Path) -> Path:
    path.write_bytes(with_info(model, ModelInfo(net="custom", norm="none")))
    return path


def spoiled(model: ModelProto, node: str, index: int, factor: float = 1.1) -> ModelProto:
    """Multiply what a node reads, a constant or one that is dequantised, by a factor, in a copy."""
    copied = ModelProto()
    copied.CopyFrom(model)
    (name,) = (each.input[index] for each in copied.graph.node if each.output[0] in (node, f"{node}_unquantized"))
    for each in copied.graph.node:
        if each.output[0] == name:  # dequantised: its scale
            name = each.input[1]
    (tensor,) = (each for each in copied.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return copied


def renamed(model: ModelProto) -> ModelProto:
    """Give every tensor and node another name, inputs and outputs too."""
    copied = ModelProto()
    copied.CopyFrom(model)
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}") if name else ""

    for node in copied.graph.node:
        for fields in (node.input, node.output):
            fields[:] = [new(name) for name in fields]
        node.name = ""
    for named in (*copied.graph.input, *copied.graph.output, *copied.graph.initializer):
        named.name = new(named.name)
    return copied


def in_int8(model: ModelProto, runtime: Any) -> ModelProto:
    layout = Layout(runtime=runtime)
    return quantize(model, dict.fromkeys(layout.place(model).tensors, 4.0), layout=layout)


def test_equal_files_are_equal(tmp_path: Path) -> None:
    reference = written(network(), tmp_path / "a.onnx")
    report = diff(reference, reference, samples=2)
    assert (report.first_off, report.worst, report.samples, report.data) == (None, [], 2, "random numbers")
    assert report.outputs["y"].sqnr_db == math.inf
    assert report.disturbed_db > 100  # rounding
    assert len(report.tensors) == 12


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("twin", ["same", "renamed", "fp16", "tensorrt", "onnxruntime"])
def test_the_layer_that_was_spoiled_is_the_first_that_is_off(tmp_path: Path, layer: str, twin: str) -> None:
    model = network()
    reference = written(model, tmp_path / "reference.onnx")
    if twin == "renamed":
        made = renamed(spoiled(model, layer, 1))
    elif twin in ("tensorrt", "onnxruntime"):
        made = spoiled(in_int8(model, twin), layer, 1, 1.5)
    else:
        made = spoiled(model, layer, 1)
        made = to_fp16(made) if twin == "fp16" else made
    report = diff(written(made, tmp_path / "model.onnx"), reference, samples=4)
    assert report.unmatched == ()
    assert report.first_off is not None
    assert report.first_off.layer == layer
    assert [each.layer for each in report.tensors if each.off] == [layer]  # what follows only carries it on
    assert report.worst[0].layer == layer
    assert report.outputs["y"].sqnr_db < 60
    ways = {each.by for each in report.tensors}
    assert ways == {"position"} if twin == "renamed" else "name" in ways


def test_an_int8_twin_without_a_fault_is_not_off(tmp_path: Path) -> None:
    reference = written(network(), tmp_path / "reference.onnx")
    for runtime in ("tensorrt", "onnxruntime"):
        report = diff(written(in_int8(network(), runtime), tmp_path / "int8.onnx"), reference, samples=4)
        assert report.first_off is None
        assert 20 < report.outputs["y"].sqnr_db < 60
        added = {each.layer: each.own.sqnr_db for each in report.tensors if each.own}
        assert all(20 < added[layer] < 70 for layer in LAYERS)
        assert added["r0"] == math.inf  # a ReLU rounds nothing


def test_twins_side_by_side_are_told_apart_by_their_weights() -> None:
    """Both convolutions read the same tensor; the other file has them in the other order, under other names."""
    lines = _TWO_BRANCHES.strip().splitlines()
    swapped = renamed(network("\n".join([lines[0], lines[2], lines[1], *lines[3:]])))
    reference = network()
    pairs = {each.reference: each.model for each in match(swapped, reference)}
    assert len(pairs) == 12
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in swapped.graph.initializer}
    read = {node.output[0]: node.input[1] for node in swapped.graph.node if node.op_type == "Conv"}
    truth = {tensor.name: numpy_helper.to_array(tensor) for tensor in reference.graph.initializer}
    np.testing.assert_array_equal(weights[read[pairs["left"]]], truth["w1"])
    np.testing.assert_array_equal(weights[read[pairs["right"]]], truth["w2"])


def test_where_a_file_lacks_a_node_the_chain_is_taken_up_behind_it() -> None:
    less = network(_TWO_BRANCHES.replace("rl = Relu(left)", "").replace("Concat<axis=1>(rl,", "Concat<axis=1>(left,"))
    found = {each.reference: each.model for each in match(less, network())}
    assert "rl" not in found
    assert {found[name] for name in ("both", "deep", "added", "y")} == {"both", "deep", "added", "y"}
    other = {each.reference for each in match(renamed(less), network())}
    assert {"left", "right", "both", "deep", "added", "y"} <= other


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    reference = written(network(), tmp_path / "reference.onnx")
    model = network()
    model.graph.output.add(name="r3").type.tensor_type.elem_type = 1
    with pytest.raises(InputError, match="has 2 outputs, the other 1"):
        diff(written(model, tmp_path / "two.onnx"), reference)
    for tensor in (wide := network()).graph.initializer:
        if tensor.name in ("w4", "b4"):
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate([value, value], -1), tensor.name))
    wide.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    with pytest.raises(InputError, match=r"of shape \(1, 6\); .* makes y of \(1, 3\)"):
        diff(written(wide, tmp_path / "wide.onnx"), reference)


def test_the_picture_is_the_same_each_time_and_has_a_sidecar(tmp_path: Path) -> None:
    reference = written(network(), tmp_path / "reference.onnx")
    report = diff(written(in_int8(network(), "tensorrt"), tmp_path / "int8.onnx"), reference, samples=2)
    for name, start in (("d.svg", b"<?xml"), ("d.png", b"\x89PNG")):
        write_plot(report, tmp_path / name)
        first = (tmp_path / name).read_bytes()
        assert first.startswith(start)
        write_plot(report, tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
    side = read_sidecar(tmp_path / "d.svg")
    assert sorted(parent.file for parent in side.parents) == ["int8.onnx", "reference.onnx"]
    with pytest.raises(InputError, match=r"does not end in \.svg or \.png"):
        write_plot(report, tmp_path / "d.jpg")


def test_a_tensor_that_is_not_finite_is_off(tmp_path: Path) -> None:
    reference = written(network(), tmp_path / "reference.onnx")
    broken = network()
    (deep,) = (each for each in broken.graph.initializer if each.name == "w3")
    deep.CopyFrom(numpy_helper.from_array(np.full(_SHAPES["w3"], 3e38, np.float32), "w3"))  # sums of it overflow
    report: DiffReport = diff(written(broken, tmp_path / "broken.onnx"), reference, samples=1)
    assert report.first_off is not None
    assert (report.first_off.layer, report.first_off.total.sqnr_db) == ("deep", -math.inf)
