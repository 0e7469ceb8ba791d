"""The FP16 cast looks at real images first: what would overflow stays in FP32, and is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.data import load_split
from msn_deploy.data.preprocess import measured_preprocess, to_input
from msn_deploy.engine import load_runner, run_images
from msn_deploy.model.opened import with_info
from msn_deploy.pipeline.fp16 import cast_to_fp16


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, small_net: Callable[..., Any]
) -> Callable[..., tuple[Path, np.ndarray]]:
    """A narrow cnn3 whose second convolution gives values `factor` times as large, which the third takes back."""
    from msn_deploy.graph.export import to_onnx
    from msn_deploy.msn import fold

    images = load_split("digits", "train", height_px=28, width_px=28, channels=1).images
    prep = measured_preprocess(images)
    graph = to_onnx(fold(small_net("cnn3", "msn")), input_shape=(1, 1, 28, 28), dynamic_batch=True)

    def write(factor: float = 1.0, *, data: str = "digits", tell: bool = True) -> tuple[Path, np.ndarray]:
        copied = onnx.ModelProto()
        copied.CopyFrom(graph)
        first, second, third = [node for node in copied.graph.node if node.op_type == "Conv"]
        step = factor**0.25  # in two steps, so that no weight is too large by itself
        tensors = {tensor.name: tensor for tensor in copied.graph.initializer}
        scales = {1: (step, factor / step, 1 / factor), 2: (step, 0, 1)}
        for name, by in (
            (node.input[index], scales[index][at]) for at, node in enumerate((first, second, third)) for index in (1, 2)
        ):
            value = numpy_helper.to_array(tensors[name]) * np.float32(by)
            tensors[name].CopyFrom(numpy_helper.from_array(value, name))
        path = tmp_path_factory.mktemp("fp16") / "net.onnx"
        info = ModelInfo(net="cnn3", norm="msn", task="classification", data=data, preprocess=prep)
        path.write_bytes(with_info(copied, info) if tell else copied.SerializeToString())
        return path, to_input(images[:20], prep)

    return write


def test_a_calm_network_is_cast_as_a_whole(make: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = make()
    report = cast_to_fp16(path, tmp_path / "net.fp16.onnx")
    assert (report.samples, report.in_fp32) == (128, {})
    side = read_sidecar(report.path)
    assert report.parity is not None
    assert 50 < report.parity.sqnr_db < 90
    assert [parent.role for parent in side.parents] == ["onnx", "data:train"]
    assert 1 < side.facts["maxima"]["input"] < 4
    kinds = {tensor.data_type for tensor in onnx.load(report.path).graph.initializer}
    assert onnx.TensorProto.FLOAT not in kinds


def test_what_would_overflow_stays_in_fp32_and_is_named(
    make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, images = make(1e5)
    report = cast_to_fp16(path, tmp_path / "net.fp16.onnx")
    assert report.in_fp32
    assert all("reaches" in why and float(why.split()[-1]) > 32752 for why in report.in_fp32.values())
    assert "stays in FP32" in caplog.text
    wanted, got = (
        run_images(load_runner(path), images),
        run_images(load_runner(report.path), images),
    )
    np.testing.assert_allclose(got, wanted, atol=2e-2 * np.abs(wanted).max())
    convs = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    assert set(convs) & set(report.in_fp32) == set(convs[1:])  # it makes, or it reads, what is too large


@pytest.mark.parametrize("options", [{"data": ""}, {"data": "svhn"}, {"tell": False}], ids=["none", "away", "foreign"])
def test_a_model_without_images_is_judged_on_random_numbers_and_says_so(
    make: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
) -> None:
    monkeypatch.setenv("MSN_DEPLOY_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    path, _ = make(**options)
    report = cast_to_fp16(path, tmp_path / "net.fp16.onnx")
    assert report.samples == 0
    assert "is judged by its weights and on random numbers" in caplog.text
    assert report.parity is not None
    assert report.parity.sqnr_db > 40
    assert [parent.role for parent in read_sidecar(report.path).parents] == ["onnx"]


def test_images_that_were_named_are_looked_at_or_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = make(data="")
    assert cast_to_fp16(path, tmp_path / "net.fp16.onnx", data="digits").samples == 128
    with pytest.raises(InputError, match="no data called 'nowhere'"):
        cast_to_fp16(path, tmp_path / "net.fp16.onnx", data="nowhere")
