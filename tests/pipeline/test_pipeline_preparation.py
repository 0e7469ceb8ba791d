"""A file of another tool says how its images are prepared, and every command that feeds it heeds it, in any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.data.preparation import preparation
from msn_deploy.engine import load_runner
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.bench_inputs import inputs_of
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.images import calibration_inputs
from msn_deploy.pipeline.infer import infer

MEAN, STD = np.array([103.939, 116.779, 123.68]), np.array([57.0, 58.0, 59.0])  # of blue, green, red
SIZE = (10, 12)
INPUTS = {  # each gives the mean of every channel as a logit
    "NCHW": "(float[1,3,10,12] x) => (float[1,3] y) { y = ReduceMean<axes = [2, 3], keepdims = 0>(x) }",
    "NHWC": "(float[1,10,12,3] x) => (float[1,3] y) { y = ReduceMean<axes = [1, 2], keepdims = 0>(x) }",
    "bytes": "(uint8[1,10,12,3] x) => (float[1,3] y) { f = Cast<to = 1>(x) "
    "m = ReduceMean<axes = [1, 2], keepdims = 0>(f) c = Constant<value_float = 0.1>() y = Mul(m, c) }",
}


@pytest.fixture(params=list(INPUTS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bare(kind: str, tmp_path: Path) -> Path:
    path = tmp_path / "bare.onnx"
    onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {INPUTS[kind]}'), path)
    return path


@pytest.fixture
def stated(kind: str, bare: Path) -> Path:
    options: dict[str, Any] = {"colour": "bgr", "fit": "crop"}
    if kind != "bytes":
        options |= {"range": "0..255", "mean": tuple(MEAN), "std": tuple(STD)}
    export_onnx(str(bare), bare.with_name("net.onnx"), preparation=preparation(None, options), task="classification")
    return bare.with_name("net.onnx")


def _cropped(path: Path) -> np.ndarray:
    """30 x 20 to 15 x 10, then the middle 12 columns."""
    with Image.open(path) as image:
        return np.asarray(image.resize((15, 10), Image.Resampling.BILINEAR))[:, 2:14].astype(np.float64)


def _numbers(kind: str, path: Path) -> np.ndarray:
    bgr = _cropped(path)[..., ::-1]
    return bgr if kind == "bytes" else (bgr - MEAN) / STD


def test_it_is_asked_for_where_real_images_are_fed_and_nowhere_else(bare: Path, folder: Path) -> None:
    runner = load_runner(bare, threads=1)
    for fed in (
        lambda: evaluate(bare, data=str(folder)),
        lambda: infer(bare, [folder]),
        lambda: inputs_of(runner, batch=1, data=str(folder)),
        lambda: calibration_inputs(open_model(bare, step="calibrate"), str(folder), samples=16),
    ):
        with pytest.raises(
            InputError, match=r"does not say how images are prepared[\s\S]*export .*bare\.onnx --prep"
        ) as told:
            fed()
        assert told.value.exit_code == 2
    assert inputs_of(runner, batch=1).images is None
    np.save(bare.with_name("x.npy"), np.zeros((2, *(runner.inputs[0].shape or ())[1:]), runner.inputs[0].dtype))
    assert len(inputs_of(runner, batch=1, data=str(bare.with_name("x.npy"))).feeds) == 2


def test_every_command_feeds_the_same_numbers(stated: Path, kind: str, folder: Path) -> None:
    files = sorted(folder.glob("*/*.png"))
    logits = np.stack([_numbers(kind, path).mean((0, 1)) for path in files]) * (0.1 if kind == "bytes" else 1)
    answers = list(infer(stated, [folder], threads=1))
    assert [told.image for told in answers] == list(map(str, files))
    assert [told.answer.guesses[0].label for told in answers] == [str(best) for best in logits.argmax(1)]
    scores = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        [told.answer.guesses[0].score for told in answers], scores.max(1) / scores.sum(1), rtol=1e-5
    )

    known = {round(float(_numbers(kind, path).mean()), 4) for path in files}
    runner = load_runner(stated, threads=1)
    fed = [each["x"] for each in inputs_of(runner, batch=1, data=str(folder)).feeds]
    opened = open_model(stated, step="calibrate")
    calibrated = calibration_inputs(opened, str(folder), samples=16)
    fed += [each["x"] for each in calibrated.runs(16, most=1)]
    assert len(fed) > 20
    assert {round(float(each.astype(np.float64).mean()), 4) for each in fed} <= known
    assert {(each.dtype.name, each.shape) for each in fed} == {(runner.inputs[0].dtype, runner.inputs[0].shape)}
    labels = {"b": 0, "g": 1, "r": 2}  # the folder's classes in the order of their names, which is the network's
    test = [path for name in labels for path in sorted((folder / name).glob("*.png"))[::5]]
    answered = [int(_numbers(kind, path).mean((0, 1)).argmax()) for path in test]
    evaluation = evaluate(stated, data=str(folder), threads=1)
    assert list(evaluation.predictions) == answered
    assert evaluation.accuracy == np.mean(
        [answer == labels[path.parent.name] for answer, path in zip(answered, test, strict=True)]
    )
