from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from msn_deploy.core.artifacts import read_sidecar, sha256_of
from msn_deploy.core.errors import InputError, MissingDevice
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.engine import BuildOptions, build_engine_file, find_target, load_runner, what_machine
from msn_deploy.engine.build import check_out, choose_site, rtx_default
from msn_deploy.engine.build_options import parse_mib
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.model.opened import open_model
from msn_deploy.model.opset import to_opset
from msn_deploy.pipeline.budget import quantised_graph
from msn_deploy.quant.layout import Layout
from msn_deploy.quant.placement import place

pytestmark = pytest.mark.slow

needs_rtx = pytest.mark.skipif(not find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")
RTX = BuildOptions(backend="tensorrt-rtx")


def build(onnx_path, name="model.engine", options=RTX, machine=None, **more):
    model = open_model(onnx_path, step="test")
    site = choose_site(options, options.precision or model.precision, machine=machine or what_machine())
    return build_engine_file(model, onnx_path.with_name(name), options=options, site=site, **more)


def quantised_upsampler():
    """A convolution and a transposed one, both with Q/DQ nodes around what they read."""
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(11)
    inits = {"s": np.float32(1 / 32), "ws": np.float32(1 / 200), "z": np.int8(0)}
    inits["w0"], inits["w1"] = (rng.uniform(-0.6, 0.6, (16, 16, 3, 3)).astype(np.float32) for _ in range(2))
    nodes, last = [], "x"
    for at, (kind, name) in enumerate((("Conv", "conv0"), ("ConvTranspose", "up0"))):
        for tensor, scale in ((last, "s"), (f"w{at}", "ws")):
            nodes.append(helper.make_node("QuantizeLinear", [tensor, scale, "z"], [f"{tensor}_q{at}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q{at}", scale, "z"], [f"{tensor}_d{at}"]))
        more = {"strides": [2, 2]} if kind == "ConvTranspose" else {}
        nodes.append(
            helper.make_node(kind, [f"{last}_d{at}", f"w{at}_d{at}"], [f"c{at}"], name=name, pads=[1, 1, 1, 1], **more)
        )
        nodes.append(helper.make_node("Relu", [f"c{at}"], [last := f"r{at}"]))
    graph = helper.make_graph(
        nodes,
        "upsampler",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16, 12, 12])],
        [helper.make_tensor_value_info("r1", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in inits.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# Building for real


@needs_rtx
@pytest.mark.parametrize(
    ("net", "precision", "int8_convs"), [({}, "fp32", 0), ({"half": True}, "fp16", 0), ({"int8": True}, "int8", 1)]
)
def test_an_engine_is_built_in_the_precision_of_the_file(save, net, precision, int8_convs, capfd):
    path = save(channels=16, size=16, **net)
    report = build(path)
    plan = report.path.read_bytes()
    assert (report.precision, report.int8_convs) == (precision, int8_convs)
    assert (report.backend, report.target, report.compute_capability) == ("tensorrt-rtx", "rtx-sm86", "8.6")
    assert report.plan_bytes == len(plan) > 10_000
    assert {layer.precision for layer in report.layers} >= {precision}
    assert all(layer.name and layer.kind for layer in report.layers)
    assert report.weight_memory_bytes >= 5 * 16 * 9 * {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    assert report.inputs == (TensorSpec("x", "float32", (1, 16, 16, 16)),)
    assert report.outputs == (TensorSpec("logits", "float32", (1, 5)),)
    assert report.ranges == {}
    side = read_sidecar(report.path)
    assert side.kind == "engine"
    assert side.sha256 == sha256_of(report.path)
    assert [(each.role, each.file, each.sha256) for each in side.parents] == [("onnx", "model.onnx", sha256_of(path))]
    assert side.facts["int8_convs"] == int8_convs
    assert side.facts["machine"] == json.loads(json.dumps(asdict(what_machine()))) | {
        "memory_free_gib": side.facts["machine"]["memory_free_gib"]
    }
    assert side.versions["tensorrt_rtx_cu13"] == report.backend_version
    assert report.path.with_name("model.plan.json").is_file()
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_the_target_decides_what_is_built(save):
    path = save(channels=16)
    one = build(path, "a.engine", replace(RTX, target=find_target("rtx-sm86")))
    other = build(path, "b.engine", replace(RTX, target=find_target("rtx-sm120")))
    assert (one.compute_capability, other.compute_capability) == ("8.6", "12.0")
    assert one.path.read_bytes() != other.path.read_bytes()


@needs_rtx
def test_an_open_batch_gets_a_range(save):
    path = save(batch="N")
    report = build(path, options=replace(RTX, batch=4))
    assert report.inputs == (TensorSpec("x", "float32", (None, 3, 8, 8)),)
    assert report.ranges == {"x": ((1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8))}
    with pytest.raises(InputError, match=r"leaves more than the batch open: input x is anyx3xanyxany"):
        build(save("open.onnx", batch="N", size="S"))
    wide = build(
        path.with_name("open.onnx"), options=replace(RTX, shapes=(parse_shapes("x=1x3x8x8:2x3x8x32:4x3x8x96"),))
    )
    assert wide.outputs == (TensorSpec("logits", "float32", (None, 5)),)


@needs_rtx
def test_several_inputs_and_outputs_of_any_type_and_rank_are_built(stereo):
    shapes = tuple(parse_shapes(f"{name}=1x3x8x16:2x3x8x32:4x3x8x64") for name in ("left", "right"))
    report = build(stereo, options=replace(RTX, shapes=shapes))
    assert report.inputs == open_model(stereo, step="test").inputs
    assert [(spec.name, spec.dtype) for spec in report.outputs] == [
        ("sum", "float32"),
        ("best", "int64"),
        ("any", "bool"),
    ]
    assert [len(spec.shape) for spec in report.outputs] == [4, 1, 0]


@needs_rtx
def test_an_input_whose_values_are_sizes_is_refused(tmp_path):
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "to"], ["y"])],
        "reshape",
        [
            helper.make_tensor_value_info(*each)
            for each in (("x", TensorProto.FLOAT, [1, 4]), ("to", TensorProto.INT64, [2]))
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
    )
    path = tmp_path / "reshape.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(InputError, match=r"values of the input to of .* decide sizes"):
        build(path)


@needs_rtx
def test_layers_of_an_int8_network_that_are_built_in_floats_are_named(tmp_path):
    """The builder has no INT8 kernel for a transposed convolution, whatever its Q/DQ nodes ask for."""
    path = tmp_path / "up.onnx"
    path.write_bytes(quantised_upsampler().SerializeToString())
    report = build(path)
    assert (report.precision, report.int8_convs) == ("int8", 1)
    (kept,) = report.not_int8
    assert "up0" in kept.name
    assert kept.precision == "fp32"
    assert read_sidecar(report.path).facts["not_int8"] == [asdict(kept)]


@needs_rtx
@pytest.mark.parametrize("target", ["rtx-sm89", "rtx-sm120"])
def test_convolutions_in_fp8_compute_in_fp8_and_not_with_its_weights_alone(save, target):
    path = save(channels=16, size=16)
    model = to_opset(onnx.load(path), 19)
    ranges = dict.fromkeys(place(model, precision="fp8").tensors, 4.0)
    graph, _ = quantised_graph(model, ranges, {}, (), Layout(precision="fp8"))
    path.write_bytes(graph.SerializeToString())
    report = build(path, options=replace(RTX, target=find_target(target)))
    assert (report.precision, report.fp8_convs, report.int8_convs, report.not_fp8) == ("fp8", 1, 0, ())
    for name in ("rtx-sm86", "agx-orin"):
        with pytest.raises(InputError, match="has no FP8 in TensorRT"):
            build(path, options=replace(RTX, target=find_target(name)))


def test_without_a_target_fp8_is_built_for_the_first_that_has_it():
    assert [rtx_default(precision).name for precision in ("int8", "fp8")] == ["rtx-sm86", "rtx-sm89"]


@needs_rtx
def test_progress_rises_to_one_and_the_log_is_let_go(save):
    from msn_deploy.engine.build_log import logger_of

    seen = []
    report = build(save(), progress=lambda done, total, note="": seen.append((done / total, note)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert shares[-1] == 1.0
    assert len(set(shares)) > 5
    assert {"Building engine", "done"} <= {note for _, note in seen}
    import tensorrt_rtx

    assert report.layers
    assert logger_of(tensorrt_rtx)[1].texts == []


@needs_rtx
@pytest.mark.parametrize("blow", [KeyboardInterrupt, ValueError])
def test_an_exception_in_a_callback_cancels_the_build_and_keeps_the_old_engine(save, blow):
    path = save()
    old = build(path).path.read_bytes()
    calls = []

    def progress(done, total, note=""):
        calls.append(done)
        raise blow("stop")

    with pytest.raises(blow, match="stop"):
        build(path, progress=progress)
    assert len(calls) < 20  # cancelled, not built to the end
    assert path.with_name("model.engine").read_bytes() == old
    assert not list(path.parent.glob(".*partial"))
    assert build(path).plan_bytes == len(old)  # and the next build is not disturbed


@needs_rtx
def test_a_target_that_lacks_an_operation_is_a_short_error(tmp_path, capfd):
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 8], [0.5] * 64)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense0")],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [weight],
    )
    path = tmp_path / "dense.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(InputError, match=r"'dense0' for Turing \(SM75\): FP32 GEMM is not supported") as caught:
        build(path, options=replace(RTX, target=find_target("rtx-sm75")))
    assert str(caught.value).count("\n") <= 2
    assert "/_src/" not in str(caught.value)
    assert "rtx-sm75" in str(caught.value)
    assert not path.with_name("model.engine").exists()
    assert capfd.readouterr().err == ""


@needs_rtx
def test_ctrl_c_ends_a_build_and_is_ctrl_c_again_afterwards(save):
    handler = signal.getsignal(signal.SIGINT)
    calls = []

    def progress(done, total, note=""):
        calls.append(done)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(save(), progress=progress)
    assert len(calls) < 20
    assert signal.getsignal(signal.SIGINT) is handler


# Bad input


@needs_rtx
def test_hostile_files_give_a_short_input_error_and_write_nothing(hostile, capfd):
    with pytest.raises(InputError) as caught:
        build(hostile)
    assert str(hostile) in str(caught.value)
    assert str(caught.value).count("\n") <= 2
    assert not list(hostile.parent.glob("*.engine"))
    assert not list(hostile.parent.glob("*.plan.json"))
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_parser_errors_name_the_node_and_the_operator(save, capfd):
    with pytest.raises(
        InputError, match=r"cannot read node act0 \(Frobnicate\) of .*\nTensorRT has no operator Frobnic"
    ) as c:
        build(save(act="Frobnicate"))
    path = save()
    model = onnx.load(path)
    model.graph.node[1].input[0] = "nowhere"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="nothing makes 'nowhere', which a node reads"):
        build(path)
    assert str(c.value).count("\n") <= 2
    assert capfd.readouterr().err == ""


@needs_rtx
def test_weights_in_another_file_are_refused(external, monkeypatch):
    monkeypatch.chdir(external.parent)  # where the parser would find them
    with pytest.raises(InputError, match=r"another file \(weights\.bin\)"):
        build(external)


def test_an_output_that_cannot_be_written_is_refused_before_the_build(save, tmp_path):
    path = save()
    with pytest.raises(InputError, match=r"does not end in \.engine"):
        check_out(path, path.with_name("model.plan"))
    (tmp_path / "folder.engine").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_out(path, path.with_name("folder.engine"))
    with pytest.raises(InputError, match="cannot be written"):
        check_out(path, path / "model.engine")
    for longest in (250, 246):  # the sidecar's name is four letters longer
        with pytest.raises(InputError, match="shorter name"):
            check_out(path, path.with_name(f"{'n' * longest}.engine"))
    check_out(path, path.with_name(f"{'n' * 245}.engine"))


@pytest.mark.parametrize("target", ["nano", "tx2"])
def test_int8_is_refused_where_tensorrt_has_none(save, target):
    with pytest.raises(InputError, match=r"has no INT8 in TensorRT"):
        build(save(int8=True), options=BuildOptions(target=find_target(target)))


def test_a_jetson_engine_is_built_on_the_jetson(save):
    desk = replace(what_machine(), jetson=None)
    with pytest.raises(MissingDevice, match="tied to the GPU") as caught:
        build(save("n.onnx", int8=True), "n.engine", BuildOptions(target=find_target("orin-nano")), machine=desk)
    assert "`msn-deploy build-engine ONNX --target orin-nano-8gb` writes a script" in str(caught.value)


@needs_rtx
def test_a_network_is_not_called_by_a_precision_that_it_does_not_have(save):
    with pytest.raises(InputError, match=r"FP32 network; FP16 was asked for, and TensorRT-RTX"):
        build(save(), options=replace(RTX, precision="fp16"))


def test_options_that_cannot_be_are_refused():
    for wrong, words in (
        ({"batch": 0}, "batch of 0"),
        ({"batch": 4, "opt_batch": 5}, r"1 \(least\), 5 \(fastest\) and 4 \(largest\)"),
        ({"batch": 4, "min_batch": 5}, "out of order"),
        ({"workspace_mib": 0}, "0 MiB"),
        ({"optimization_level": 6}, "level 6"),
        ({"replicates": 0}, "0 engines"),
        ({"replicates": 2, "timing_cache": Path("t")}, "Leave one of"),
        ({"max_dla_fallback": 5}, "Give `--dla N`"),
        ({"dla": 0, "max_dla_fallback": 101}, "101` is not a share"),
        ({"dla": 0, "target": find_target("orin-nano")}, "Orin Nano 8GB has no DLA"),
        ({"backend": "cuda"}, "no backend"),
    ):
        with pytest.raises(InputError, match=words):
            BuildOptions(**wrong)
    assert BuildOptions(batch=4).best_batch == 4


@pytest.mark.parametrize(
    ("text", "mib"), [("256", 256), ("512MiB", 512), ("1GiB", 1024), ("1.5 gib", 1536), ("2G", 2048)]
)
def test_a_workspace_has_a_unit(text, mib):
    assert parse_mib(text) == mib


@pytest.mark.parametrize("text", ["", "0", "-1", "0.5", "1KiB", "1TiB", "much", "nan", "1e3", "MiB"])
def test_a_workspace_of_no_size_is_refused(text):
    with pytest.raises(InputError, match="--workspace-mib"):
        parse_mib(text)


@needs_rtx
def test_an_engine_is_not_run_here_and_its_source_is_named(save):
    report = build(save("net.fp32.onnx"), "net.engine")
    with pytest.raises(MissingDevice, match=r"net\.engine runs on a GPU \(TensorRT-RTX (.*\n)*.*run net\.fp32\.onnx"):
        load_runner(report.path)
