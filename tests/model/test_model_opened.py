"""A file opened once: its metadata, its inputs, and what is refused at the door of what edits graphs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.core.model_info import ModelInfo, TensorSpec
from msn_deploy.model.checks import check_editable, check_valid
from msn_deploy.model.identity import structural_hash
from msn_deploy.model.opened import inputs_of, made_model, only_input, open_model, with_info

INFO = ModelInfo(net="cnn3", norm="msn", folded=True, classes=("a", "b"), data="digits")


def test_the_info_travels_in_the_file(tmp_path: Path, tiny: Callable[..., ModelProto]) -> None:
    graph = tiny()
    onnx.helper.set_model_props(graph, {"made_by": "something else", "stale": "yes"})
    path = tmp_path / "net.onnx"
    path.write_bytes(with_info(graph, INFO))
    read = open_model(path, step="test")
    assert read.info == replace(INFO, graph=structural_hash(tiny()))
    assert [entry.key for entry in read.proto.metadata_props] == ["msn_deploy"]
    assert with_info(tiny(), INFO) == path.read_bytes()


def test_a_file_of_others_has_no_info_and_a_damaged_one_is_named(tiny: Callable[..., ModelProto]) -> None:
    graph = tiny()
    assert made_model(Path("net.onnx"), graph, b"").info is None
    onnx.helper.set_model_props(graph, {"msn_deploy": "{"})
    with pytest.raises(InputError, match=r"net\.onnx holds damaged metadata"):
        made_model(Path("net.onnx"), graph, b"")


def test_every_truncation_is_refused(saved: Callable[..., Path], tiny: Callable[..., ModelProto]) -> None:
    path = saved(tiny())
    whole = path.read_bytes()
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"net\.onnx"):
            open_model(path, step="test")


def test_an_invalid_graph_is_refused(saved: Callable[..., Path], tiny: Callable[..., ModelProto]) -> None:
    graph = tiny()
    graph.graph.node[0].op_type = "Convolve"
    with pytest.raises(InputError, match=r"net\.onnx is not valid ONNX: .*Convolve") as caught:
        check_editable(open_model(saved(graph), step="test").proto, source="net.onnx")
    assert len(str(caught.value).splitlines()) == 1
    graph = tiny()
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 5  # what shape inference alone can see
    with pytest.raises(InputError, match="the graph is not valid ONNX"):
        check_valid(graph, source="the graph")


def test_the_input_and_its_open_sizes(tiny: Callable[..., ModelProto]) -> None:
    graph = tiny()
    assert only_input(inputs_of(graph), source="x") == ("x", (1, 2, 3, 3))
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert only_input(inputs_of(graph), source="x") == ("x", (None, 2, 3, 3))


def test_weights_among_the_inputs_do_not_count_as_such(tiny: Callable[..., ModelProto]) -> None:
    graph = tiny()
    graph.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (2, 2, 1, 1)))
    assert only_input(inputs_of(graph), source="net.onnx")[0] == "x"
    graph.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, (1,)))
    with pytest.raises(InputError, match=r"net\.onnx has 2 inputs"):
        only_input(inputs_of(graph), source="net.onnx")


def test_what_the_graph_tells_is_not_believed_of_the_metadata(
    saved: Callable[..., Path], tiny: Callable[..., ModelProto]
) -> None:
    graph = tiny()
    onnx.helper.set_model_props(graph, {"msn_deploy": replace(INFO, precision="int8", graph="f" * 64).to_json()})
    model = open_model(saved(graph), step="test")
    assert model.changed
    assert model.info is not None
    assert (model.info.precision, model.info.graph) == ("fp32", structural_hash(graph))
    assert model.info.classes == INFO.classes
    whole = made_model(Path("net.onnx"), graph, with_info(graph, INFO))
    assert not whole.changed
    assert whole.as_parent().sha256 == hashlib.sha256(whole.data).hexdigest()


def test_inputs_and_outputs_are_told_with_types_and_open_sizes(tiny: Callable[..., ModelProto]) -> None:
    graph = tiny()
    shape = graph.graph.input[0].type.tensor_type.shape
    shape.dim[0].dim_param = "batch"
    shape.dim[2].dim_value = -1
    graph.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.BOOL, None))
    graph.graph.output.append(onnx.ValueInfoProto(name="untold"))
    model = made_model(Path("net.onnx"), graph, b"")
    assert model.inputs == (TensorSpec("x", "float32", (None, 2, None, 3)), TensorSpec("mask", "bool", None))
    assert model.outputs[-1].shape is None
    with pytest.raises(InputError, match="2 inputs"):
        _ = model.only_input


def test_without_the_package_onnx_opening_says_what_to_install(
    saved: Callable[..., Path], tiny: Callable[..., ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tiny())
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependency, match="`bench` needs onnx"):
        open_model(path, step="bench")


def test_importing_what_a_device_imports_does_not_import_onnx() -> None:
    names = "msn_deploy.engine, msn_deploy.model.opened, msn_deploy.model.parity, msn_deploy.pipeline.build"
    code = f"import sys, {names}, msn_deploy.pipeline.bench; print(*({{'onnx', 'torch'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
