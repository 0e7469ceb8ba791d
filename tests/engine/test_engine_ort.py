from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, TensorSpec
from msn_deploy.engine import OrtRunner, load_runner, run_images
from msn_deploy.model.opened import made_model, open_model

pytest.importorskip("onnxruntime", reason="these tests run ONNX files")


def reference(images, *, norm=False):
    """What conv_net computes, in numpy and float64."""
    rng = np.random.default_rng(7)
    weight = rng.uniform(-0.5, 0.5, (5, 3, 3, 3)).astype(np.float32).astype(float)
    bias = rng.uniform(-1, 1, 5).astype(np.float32).astype(float)
    padded = np.pad(images.astype(float), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    out = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    if norm:
        gain, shift, mean, var = (rng.uniform(0.5, 2.0, 5).astype(np.float32)[:, None, None] for _ in range(4))
        out = (out - mean) / np.sqrt(var + 1e-5) * gain + shift
    return np.maximum(out, 0).mean(axis=(2, 3))


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def passes_over_the_image(path):
    """How many arithmetic layers really run. On x86, ONNX Runtime runs a lone normalisation, or a Mul by channel, as
    a 1x1 depthwise Conv in its own memory layout: another name, but still a layer of its own."""
    return sum(name in ("Conv", "BatchNormalization", "Mul", "Add") for name in operators(path))


def test_logits_are_those_of_the_network(save, batch):
    images = batch(4)
    runner = OrtRunner(open_model(save(batch="N"), step="test"), threads=1)
    logits = run_images(runner, images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference(images), atol=1e-5)
    assert (runner.name, runner.batch_range) == ("model.onnx", (1, None))
    assert runner.inputs == (TensorSpec("x", "float32", (None, 3, 8, 8)),)
    assert runner.outputs == (TensorSpec("logits", "float32", (None, 5)),)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8])
def test_a_fixed_batch_takes_any_number_of_images(save, batch, count):
    images = batch(count)
    runner = OrtRunner(open_model(save(batch=4), step="test"), threads=1)
    logits = run_images(runner, images)
    assert logits.shape == (count, 5)
    np.testing.assert_allclose(logits, reference(images), atol=1e-5)


def test_half_precision_weights_and_strided_images_run(save, batch):
    images = batch(2).transpose(0, 1, 3, 2)
    logits = run_images(OrtRunner(open_model(save(batch="N", half=True), step="test"), threads=1), images)
    np.testing.assert_allclose(logits, reference(images), atol=5e-3)


def test_fuse_norms_false_keeps_the_normalisation_and_the_numbers(save, batch, tmp_path):
    path, images = save(batch="N", norm=True), batch(3)
    fused = OrtRunner(open_model(path, step="test"), threads=1, optimized_to=tmp_path / "fused.onnx")
    kept = OrtRunner(open_model(path, step="test"), threads=1, fuse_norms=False, optimized_to=tmp_path / "kept.onnx")
    assert passes_over_the_image(tmp_path / "fused.onnx") == 1
    assert passes_over_the_image(tmp_path / "kept.onnx") == 2
    np.testing.assert_allclose(run_images(fused, images), reference(images, norm=True), atol=1e-5)
    np.testing.assert_allclose(run_images(kept, images), reference(images, norm=True), atol=1e-5)


def test_fuse_norms_false_keeps_a_normalisation_in_pieces(tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    inits = {
        "w": rng.standard_normal((4, 3, 3, 3)),
        "a": rng.uniform(1, 2, (4, 1, 1)),
        "b": rng.uniform(1, 2, (4, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "a"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pieces",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in inits.items()],
    )
    path = tmp_path / "pieces.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    OrtRunner(open_model(path, step="test"), optimized_to=tmp_path / "fused.onnx")
    OrtRunner(open_model(path, step="test"), fuse_norms=False, optimized_to=tmp_path / "kept.onnx")
    assert passes_over_the_image(tmp_path / "fused.onnx") == 1
    assert passes_over_the_image(tmp_path / "kept.onnx") == 3


def two_by_two(path):
    """Write a network of two inputs and two outputs, of several types: sum = a + float(b), same = b."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["b"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["a", "f"], ["sum"]),
            helper.make_node("Identity", ["b"], ["same"]),
        ],
        "two",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("b", TensorProto.INT64, [3]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("same", TensorProto.INT64, [3]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_several_inputs_and_outputs_run_by_name(tmp_path):
    runner = load_runner(two_by_two(tmp_path / "two.onnx"))
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*runner.inputs, *runner.outputs)] == [
        ("a", "float32", (None, 3)),
        ("b", "int64", (3,)),
        ("sum", "float32", (None, 3)),
        ("same", "int64", (3,)),
    ]
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([10, 20, 30])
    made = runner.run({"b": b, "a": a})
    assert list(made) == ["sum", "same"]
    np.testing.assert_array_equal(made["sum"], a + b)
    np.testing.assert_array_equal(made["same"], b)
    with pytest.raises(InputError, match=r"2 inputs \(a, b\); a network that is fed images has one"):
        run_images(runner, a)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        (np.zeros((2, 3), np.float32), "an array without a name"),
        ({"a": np.zeros((2, 3), np.float32)}, "takes the inputs a, b; it is fed a"),
        ({"a": np.zeros((2, 3), np.float32), "c": np.zeros(3, np.int64)}, "fed a, c"),
        ({"a": np.zeros((2, 3)), "b": np.zeros(3, np.int64)}, "a takes float32 of anyx3; it is fed float64 of 2x3"),
        ({"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 3), np.int64)}, "b takes int64 of 3; .* int64 of 2x3"),
        ({"a": np.zeros((2, 4), np.float32), "b": np.zeros(3, np.int64)}, "anyx3; it is fed float32 of 2x4"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(tmp_path, feeds, said):
    with pytest.raises(InputError, match=said):
        load_runner(two_by_two(tmp_path / "two.onnx")).run(feeds)


def test_a_network_that_is_not_of_floats_is_not_fed_images(tmp_path):
    path = two_by_two(tmp_path / "two.onnx")
    model = onnx.load(path)
    del model.graph.node[:2], model.graph.input[:1], model.graph.output[:1]
    onnx.save(model, path)
    with pytest.raises(InputError, match="takes int64 of 3; images"):
        run_images(load_runner(path), np.zeros((3,), np.float32))


def test_hostile_files_give_a_short_input_error_and_no_noise(hostile, capfd):
    with pytest.raises(InputError) as caught:
        load_runner(hostile)
    assert str(hostile) in str(caught.value)
    assert str(caught.value).count("\n") <= 2
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_onnxruntime_cannot_load_is_named_without_its_noise(save, capfd):
    with pytest.raises(InputError, match=r"cannot load .*Frobnicate") as caught:
        OrtRunner(open_model(save(act="Frobnicate"), step="test"))
    assert "ONNXRuntimeError" not in str(caught.value)
    assert str(caught.value).count("\n") <= 2
    assert capfd.readouterr().err == ""


def test_a_graph_that_loads_but_does_not_run_is_an_input_error_without_noise(save, batch, capfd):
    path = save()
    model = onnx.load(path)
    wrong = onnx.numpy_helper.from_array(np.zeros((5, 4, 3, 3), np.float32), "weight")
    index = [each.name for each in model.graph.initializer].index("weight")
    model.graph.initializer[index].CopyFrom(wrong)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"model\.onnx") as caught:
        run_images(OrtRunner(open_model(path, step="test")), batch(1))
    assert str(caught.value).count("\n") <= 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("inside", [True, False])
def test_weights_in_another_file_are_refused_from_any_working_directory(external, monkeypatch, tmp_path, inside):
    """From bytes without a path, ONNX Runtime and TensorRT look in the working directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(external.parent if inside else elsewhere)
    with pytest.raises(InputError, match=r"another file \(weights\.bin\)") as caught:
        OrtRunner(open_model(external, step="test"))
    command = str(caught.value).splitlines()[1].partition(": ")[2]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert os.system(command) == 0
    assert load_runner("merged.onnx").inputs[0].shape == (1, 3, 8, 8)


def test_weights_in_another_file_are_found_inside_branches_too(tmp_path):
    from onnx import TensorProto, helper

    secret = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    secret.external_data.add(key="location", value="../../etc/passwd")
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])
    for nodes, inits in (([helper.make_node("Identity", ["v"], ["o"])], [secret]), ([_constant(secret)], [])):
        branch = helper.make_graph(
            nodes, "branch", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])], inits
        )
        node = helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("cond", TensorProto.BOOL, [])], [value])
        path = tmp_path / "branch.onnx"
        path.write_bytes(helper.make_model(graph).SerializeToString())
        with pytest.raises(InputError, match=r"\.\./\.\./etc/passwd"):
            open_model(path, step="test")


def _constant(tensor):
    from onnx import helper

    return helper.make_node("Constant", [], ["o"], value=tensor)


def test_images_of_another_shape_are_refused_with_both_shapes(save, batch):
    runner = OrtRunner(open_model(save(batch="N", size=32, channels=1), step="test"))
    with pytest.raises(InputError, match=r"model wants 1x32x32 images, the data gives 1x28x28"):
        run_images(runner, batch(2, channels=1, size=28))
    with pytest.raises(InputError, match="1x32x32"):
        run_images(runner, np.zeros((1, 32, 32), np.float32))
    with pytest.raises(InputError, match="no image"):
        run_images(runner, np.zeros((0, 1, 32, 32), np.float32))
    with pytest.raises(InputError, match="uint8"):
        run_images(runner, np.zeros((1, 1, 32, 32), np.uint8))


def test_an_open_image_size_takes_any_size(save, batch):
    runner = OrtRunner(open_model(save(batch="N", size="S"), step="test"))
    assert runner.inputs[0].shape == (None, 3, None, None)
    images = batch(2, size=11)
    np.testing.assert_allclose(run_images(runner, images), reference(images), atol=1e-5)


def test_metadata_comes_back_and_its_absence_is_none(save):
    info = ModelInfo(net="cnn3", norm="msn", classes=("a", "b"))
    found = load_runner(save(metadata={METADATA_KEY: info.to_json()})).info
    assert replace(found, graph="") == info
    assert len(found.graph) == 64
    assert OrtRunner(open_model(save(), step="test")).info is None
    with pytest.raises(InputError, match="damaged"):
        OrtRunner(open_model(save(metadata={METADATA_KEY: "x"}), step="test"))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_missing_provider_is_refused_not_replaced(save, provider):
    import onnxruntime

    if any(provider in name.lower() for name in onnxruntime.get_available_providers()):
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(MissingDependency, match=rf"no provider {provider}; it has: cpu"):
        load_runner(save(), provider=provider)


def test_a_provider_that_onnxruntime_drops_is_refused(save, monkeypatch):
    """An onnxruntime-gpu without a usable CUDA lists the provider, then runs on the CPU."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(MissingDevice, match="fell back"):
        load_runner(save(), provider="cuda")


def test_unusable_options_are_refused(save):
    with pytest.raises(InputError, match="threads"):
        OrtRunner(open_model(save(), step="test"), threads=0)
    with pytest.raises(InputError, match="cpu, cuda, tensorrt"):
        OrtRunner(open_model(save(), step="test"), provider="opencl")


def test_threads_reach_onnxruntime(save):
    assert load_runner(save(), threads=1)._session.get_session_options().intra_op_num_threads == 1


def test_a_closed_runner_does_not_run(save, batch):
    runner = OrtRunner(open_model(save(), step="test"))
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        run_images(runner, batch(1))


def test_other_files_are_refused_by_what_they_are(tmp_path):
    checkpoint = tmp_path / "net.pt"
    checkpoint.write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"net\.pt cannot be run by that name.\nGive a file that ends in \.onnx, \.engine, "
    ):
        load_runner(checkpoint)
    engine = tmp_path / "net.engine"
    with pytest.raises(InputError, match="does not exist"):
        load_runner(engine)
    engine.write_bytes(b"x")
    with pytest.raises(InputError, match=r"has no sidecar net\.plan\.json"):
        load_runner(engine)


@pytest.mark.parametrize(
    ("options", "precision"),
    [({}, "fp32"), ({"half": True}, "fp16"), ({"int8": True}, "int8"), ({"norm": True}, "fp32")],
)
def test_the_precision_is_read_from_the_graph(save, options, precision):
    model = open_model(save(**options), step="test")
    assert model.precision == precision


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello\n", "do not parse"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no network"),
    ],
)
def test_a_file_without_a_network_is_told_from_a_damaged_one(tmp_path, content, said):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        open_model(path, step="test")


def test_a_graph_that_only_casts_to_half_counts_as_half(save):
    path = save()
    model = onnx.load(path)
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16))
    path.write_bytes(model.SerializeToString())
    assert open_model(path, step="test").precision == "fp16"


def test_what_is_not_one_row_per_image_is_returned_whole_and_refused_in_parts(save, batch):
    path = save(batch=2)
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["logits"], ["mean"], keepdims=0))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, []))
    path.write_bytes(model.SerializeToString())
    runner, images = load_runner(path), batch(4)
    assert run_images(runner, images[:2]) == pytest.approx(reference(images[:2]).mean(), abs=1e-5)
    with pytest.raises(InputError, match=r"makes \(\) of 2 images; one row for each"):
        run_images(runner, images)


def test_a_number_by_itself_is_fed_and_returned_as_one() -> None:
    given = [helper.make_tensor_value_info("rate", TensorProto.INT64, [])]
    made = [
        helper.make_tensor_value_info("size", TensorProto.INT64, [0]),
        helper.make_tensor_value_info("twice", TensorProto.INT64, []),
    ]
    nodes = [helper.make_node("Shape", ["rate"], ["size"]), helper.make_node("Add", ["rate", "rate"], ["twice"])]
    graph = helper.make_graph(nodes, "g", given, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runner = OrtRunner(made_model(Path("m.onnx"), model, model.SerializeToString()))
    found = runner.run({"rate": np.array(16000)})
    assert (found["size"].shape, found["twice"].shape, int(found["twice"])) == ((0,), (), 32000)


def test_a_relu_before_fp8_is_kept():
    """ONNX Runtime's own optimisation takes the zero point of FP8 for the least number, as it is in UINT8."""
    text = """<ir_version: 9, opset_import: ["" : 19]> g (float[4] x) => (float[4] y) <float s = {0.01}>
        { r = Relu(x)  q = QuantizeLinear(r, s, z)  y = DequantizeLinear(q, s, z) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0]))
    runner = OrtRunner(made_model(Path("fp8.onnx"), model, model.SerializeToString()))
    found = runner.run({"x": np.array([-3, -0.5, 0.5, 9], np.float32)})["y"]
    np.testing.assert_allclose(found, [0, 0, 0.48, 4.48], rtol=1e-6)
