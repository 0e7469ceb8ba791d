"""`export --uint8-input`: the file takes bytes, answers as the network does, and every command feeds it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from any_network import HEAD
from onnx import ModelProto, numpy_helper, parser
from PIL import Image

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import InputError, ParityError
from msn_deploy.data import load_split
from msn_deploy.data.preparation import preparation
from msn_deploy.engine import BuildOptions, find_target, load_runner, run_images
from msn_deploy.graph import bytes_input
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.bench_inputs import inputs_of
from msn_deploy.pipeline.build import build_engine
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.evaluate import evaluate, open_image_model
from msn_deploy.pipeline.export import ExportReport, export_onnx
from msn_deploy.pipeline.fp16 import cast_to_fp16
from msn_deploy.pipeline.images import calibration_inputs
from msn_deploy.pipeline.infer import infer

pytestmark = pytest.mark.slow

PREPARED = preparation(
    None, {"range": "0..255", "mean": (103.9, 116.8, 123.7), "std": (57.0, 58.0, 59.0), "colour": "bgr", "fit": "crop"}
)
CONV = """(float[N,3,10,12] x) => (float[N,3] y) {
    c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) m = GlobalAveragePool(r) y = Flatten(m)
}"""
NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = block(3, 8), block(8, 16, 2), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.b(self.a(x)).mean((2, 3)))
"""


def convolution() -> ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {CONV}')
    weight = np.random.default_rng(1).normal(0, 0.3, (3, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


@pytest.fixture(scope="module")
def digits_net(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> ExportReport:
    """A network for digits that takes bytes."""
    return export_onnx(
        str(checkpoint), tmp_path_factory.mktemp("digits") / "net.onnx", uint8_input=True, dynamic_batch=True,
        ladder=True, task="classification",
    )  # fmt: skip


def test_the_file_of_a_checkpoint_answers_as_the_checkpoint(digits_net: ExportReport, checkpoint: Path) -> None:
    path, network, own = digits_net.path, open_image_model(digits_net.path, 1), open_image_model(checkpoint, 1)
    assert [(each.name, each.dtype, each.shape) for each in open_model(path, step="test").inputs] == [
        ("input", "uint8", (None, 1, 28, 28))
    ]
    assert network.prep.is_bytes
    images = load_split("digits", "test", **own.prep.image_size).first(200).images
    (expected,), (answers,) = (each.run(each.prepared(images)).values() for each in (own, network))
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-5 * np.ptp(expected))

    assert [each.stage for each in digits_net.ladder][-2:] == ["fp16", "int8"]
    assert digits_net.parity_on.endswith("test images of digits")
    assert digits_net.operators["Add"] == 1
    assert "Mul" not in digits_net.operators
    assert digits_net.in_graph == own.prep
    assert digits_net.certificate is not None
    assert digits_net.certificate.is_exact
    assert digits_net.certificate.inputs == ("data",)
    assert "preparation" in {norm.norm for norm in digits_net.certificate.norms}
    config = read_sidecar(path).config
    assert config["inputs"][0]["dtype"] == "uint8"
    assert config["in_graph"] == {**own.prep.to_dict(), "mean": list(own.prep.mean), "std": list(own.prep.std)}
    assert json.loads(path.with_suffix(".fold.json").read_text())["output"]["difference"] <= 1e-9


def test_its_int8_and_fp16_files_and_an_engine_take_bytes(digits_net: ExportReport, tmp_path: Path) -> None:
    path = digits_net.path
    int8 = calibrate(path, tmp_path / "int8.onnx", samples=64, use_cache=False)
    half = cast_to_fp16(path, tmp_path / "half.onnx")
    for report, least in ((int8, 20), (half, 50)):
        assert report.parity is not None
        assert report.parity.sqnr_db > least
    made = {node.output[0]: node for node in open_model(int8.path, step="test").proto.graph.node}
    node = next(node for node in made.values() if node.op_type == "Conv")
    behind = []  # what the first convolution reads
    while node.input[0] in made:
        node = made[node.input[0]]
        behind.append(node.op_type)
    assert behind == ["DequantizeLinear", "QuantizeLinear", "Add", "Cast"]
    assert node.input[0] == "input"
    right = [evaluate(each, samples=100, threads=1).value for each in (path, half.path, int8.path)]
    assert right[0] == right[1]
    assert right[2] == pytest.approx(right[0], abs=0.1)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    options = BuildOptions(backend="tensorrt-rtx", target=find_target("rtx-sm86"), opt_batch=1)
    for precision, given in (("fp32", path), ("int8", int8.path), ("fp16", half.path)):
        built = build_engine(given, tmp_path / f"{precision}.engine", precision=precision, options=options)
        assert built.engine is not None
        assert [each.dtype for each in built.engine.inputs] == ["uint8"]


@pytest.mark.parametrize("options", [{}, {"uint8_layout": "NHWC", "uint8_colour": "bgr"}, {"fold": False}])
def test_every_command_feeds_bytes(tmp_path: Path, folder: Path, options: dict[str, Any]) -> None:
    onnx.save(convolution(), tmp_path / "bare.onnx")
    floats, path = tmp_path / "floats.onnx", tmp_path / "net.onnx"
    export_onnx(str(tmp_path / "bare.onnx"), floats, preparation=PREPARED, task="classification")
    report = export_onnx(str(floats), path, uint8_input=True, data=str(folder), **options)
    assert report.task == "classification"
    assert report.parity_on.endswith(f"test images of {folder}")
    runner, own = load_runner(path, threads=1), load_runner(floats, threads=1)
    (given,) = runner.inputs
    last = options.get("uint8_layout") == "NHWC"
    assert (given.dtype, given.shape) == ("uint8", (None, 10, 12, 3) if last else (None, 3, 10, 12))
    told, expected = ([each.answer.guesses for each in infer(net, [folder], threads=1)] for net in (path, floats))
    assert [guesses[0].label for guesses in told] == [guesses[0].label for guesses in expected]
    np.testing.assert_allclose(
        [guess.score for guesses in told for guess in guesses],
        [guess.score for guesses in expected for guess in guesses], atol=1e-5,
    )  # fmt: skip
    first, before = evaluate(path, data=str(folder), threads=1), evaluate(floats, data=str(folder), threads=1)
    assert first.predictions == before.predictions
    fed = [inputs_of(each, batch=2, data=str(folder)).feeds[0]["x"] for each in (runner, own)]
    assert fed[0].dtype == np.uint8
    np.testing.assert_allclose(runner.run({"x": fed[0]})["y"], own.run({"x": fed[1]})["y"], atol=1e-4)
    seen = next(iter(calibration_inputs(open_model(path, step="test"), str(folder), samples=16).runs(1, most=1)))
    assert (seen["x"].dtype, seen["x"].shape[1:]) == (np.uint8, given.shape[1:])
    with Image.open(min(folder.glob("*/*.png"))) as image:  # as a decoder or OpenCV gives it
        pixels = np.asarray(image.resize((15, 10), Image.Resampling.BILINEAR))[:, 2:14]
    pixels = pixels[..., ::-1] if options.get("uint8_colour") == "bgr" else pixels
    answer = run_images(runner, np.ascontiguousarray(pixels if last else pixels.transpose(2, 0, 1))[np.newaxis])
    powers = np.exp(answer[0] - answer[0].max())
    assert expected[0][0].score == pytest.approx((powers / powers.sum()).max(), abs=1e-5)


def test_a_network_from_a_file_takes_frames_as_opencv_gives_them(tmp_path: Path) -> None:
    import torch

    source = tmp_path / "net.py"
    source.write_text(HEAD + NET)
    report = export_onnx(
        f"{source}:build", tmp_path / "net.onnx", input_shape=(1, 3, 16, 16), uint8_input=True, opset=18,
        preparation=preparation("imagenet", {}), uint8_layout="NHWC", uint8_colour="bgr", dynamic_batch=True,
    )  # fmt: skip
    assert report.parity_on.endswith("random inputs")
    assert report.operators == {"Add": 1, "Cast": 1, "Conv": 2, "Gemm": 1, "ReduceMean": 1, "Relu": 2, "Transpose": 1}
    spec = importlib.util.spec_from_file_location("own", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    numbers = (frames[..., ::-1] / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = module.build()(torch.from_numpy(numbers.transpose(0, 3, 1, 2)).float()).numpy()
    (answer,) = load_runner(tmp_path / "net.onnx", threads=1).run({"input": frames}).values()
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_a_graph_that_prepares_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fold before and after agree; what tells is the network that is fed prepared numbers."""
    onnx.save(convolution(), tmp_path / "net.onnx")
    real = bytes_input._numbers
    monkeypatch.setattr(bytes_input, "_numbers", lambda *args, **options: real(*args, **options)[1:])
    for fold in (True, False):
        with pytest.raises(ParityError):
            export_onnx(
                str(tmp_path / "net.onnx"), tmp_path / "out.onnx", preparation=PREPARED, uint8_input=True, fold=fold
            )
    assert not (tmp_path / "out.onnx").exists()


REFUSED = {
    "not known how images are prepared for .* so that its graph can't do it.\nSay it: `--preprocess": ({}, None),
    "takes bytes already": ({"preparation": preparation(None, {"fit": "stretch"})}, "uint8[1,3,10,12] x"),
    "gives its input x back": ({"preparation": PREPARED}, "back"),
    "takes 2 inputs": ({}, "float[1,3,10,12] x, float[1] z"),
    "have one colour": (
        {"preparation": preparation("zero-one", {"colour": "grey"}), "uint8_colour": "bgr"},
        "float[1,3,10,12] x",
    ),
    "'RGB' is none of NCHW, NHWC": ({"uint8_layout": "RGB"}, None),
    "`--uint8-layout` is of bytes": ({"uint8_layout": "NHWC", "uint8_input": False}, None),
    "`--uint8-colour` is of bytes": ({"uint8_colour": "bgr", "uint8_input": False}, None),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_take_bytes_is_refused_and_told_why(why: str, tmp_path: Path) -> None:
    options, given = REFUSED[why]
    path = tmp_path / "bare.onnx"
    if given == "back":
        text = "(float[1,3,10,12] x) => (float[1,3,10,12] x, float[1,3,10,12] y) { y = Relu(x) }"
        onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}'), path)
    elif given:
        text = f"({given}) => (float y) {{ f = Cast<to = 1>(x) y = ReduceMean<keepdims = 0>(f) }}"
        onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}'), path)
    else:
        onnx.save(convolution(), path)
    with pytest.raises(InputError, match=why) as told:
        export_onnx(str(path), tmp_path / "out.onnx", **{"uint8_input": True, **options})
    assert told.value.exit_code == 2
    assert not (tmp_path / "out.onnx").exists()
