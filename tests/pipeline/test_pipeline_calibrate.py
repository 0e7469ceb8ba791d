"""`calibrate`: streams its images, asks the cache, refuses what is no data, gives every TensorRT the same scales."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import msn_deploy
from msn_deploy.bench import MeasureOptions, to_json
from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.data import load_split
from msn_deploy.data.preprocess import measured_preprocess
from msn_deploy.engine.calibration_table import parse_table
from msn_deploy.model.opened import open_model, with_info
from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.build import build_engine
from msn_deploy.pipeline.calibrate import CalibrationOptions, calibrate
from msn_deploy.pipeline.ranges import cache_folder
from msn_deploy.report.bench import render_html

pytestmark = pytest.mark.slow

REPO = Path(msn_deploy.__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_net: Callable[..., Any]) -> dict[str, Path]:
    """A narrow cnn3 exported with batch 1, 3 and dynamic; each file says how digits are prepared."""
    from msn_deploy.graph.export import to_onnx
    from msn_deploy.msn import fold

    images = load_split("digits", "train", height_px=28, width_px=28, channels=1).images
    info = ModelInfo(
        net="cnn3", norm="msn", task="classification", data="digits", preprocess=measured_preprocess(images)
    )
    model = fold(small_net("cnn3", "msn"))
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for name, batch in (("1", 1), ("3", 3), ("dynamic", 1)):
        graph = to_onnx(model, input_shape=(batch, 1, 28, 28), dynamic_batch=name == "dynamic")
        made[name] = folder / f"net-{name}.onnx"
        made[name].write_bytes(with_info(graph, info))
    return made


def _ranges(path: Path) -> dict[str, float]:
    return read_sidecar(path).facts["ranges"]


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_files_of_every_batch_get_the_same_scales(files: dict[str, Path], tmp_path: Path, method: str) -> None:
    out = tmp_path / "x.int8.onnx"
    found = []
    for onnx in files.values():
        report = calibrate(onnx, out, method=method, samples=110)
        assert (report.samples, report.scales, report.warnings, report.method) == (110, 4, (), method)
        assert "no cached scales fit: model changed" in report.cache or "no cached scales" in report.cache
        found.append(_ranges(out))
    assert found[0] == found[1] == found[2]


def test_the_second_time_the_scales_come_from_the_cache(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.int8.onnx"
    run = {"samples": 110, "sufficiency": True}
    first = calibrate(files["1"], out, **run)
    content = out.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("msn_deploy.quant.histograms.collect", lambda *_, **__: pytest.fail("the network ran again"))
        again = calibrate(files["1"], out, **run)
        assert again.cache.startswith("scales from cache ")
        assert out.read_bytes() == content
        assert again.drift == first.drift
        assert calibrate(files["1"], out, samples=110).drift == ()
    for other, words in (
        ({"samples": 120}, "images changed"),
        ({"samples": 110, "seed": 1}, "samples changed (count 120 -> 110, seed None -> 1)"),
        ({"samples": 110, "method": "minmax"}, "method changed (leave_out [] -> None, name auto -> minmax, "),
        ({"samples": 110, "method": "percentile", "percentile": 99.0}, "method changed"),
    ):
        assert words in calibrate(files["1"], out, **other).cache
    monkeypatch.setattr("msn_deploy.quant.calibrate.CALIBRATOR", 99)
    assert calibrate(files["1"], out, samples=110).cache.endswith("versions changed (calibrator 3 -> 99)")


def test_a_changed_preprocessing_is_another_key(files: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    calibrate(files["1"], tmp_path / "x.onnx", samples=110)
    prep = Preprocess(height_px=28, width_px=28, channels=1, mean=(0.3,), std=(0.3,))
    other = tmp_path / "other.onnx"
    model = onnx.load(files["1"])
    other.write_bytes(
        with_info(model, ModelInfo(net="cnn3", norm="msn", task="classification", data="digits", preprocess=prep))
    )
    said = calibrate(other, tmp_path / "x.onnx", samples=110).cache
    assert "model changed" in said
    assert "preprocessing changed (mean [" in said


def test_without_a_cache(files: dict[str, Path], tmp_path: Path, home: Path) -> None:
    report = calibrate(files["1"], tmp_path / "x.onnx", samples=110, use_cache=False)
    assert report.cache == ""
    assert not home.exists()


def test_a_cached_entry_without_a_curve_is_measured_again(files: dict[str, Path], tmp_path: Path) -> None:
    calibrate(files["1"], tmp_path / "x.onnx", samples=110)
    report = calibrate(files["1"], tmp_path / "x.onnx", samples=110, sufficiency=True)
    assert "without a sufficiency curve" in report.cache
    assert [point.images for point in report.drift] == [16, 32, 64]
    assert [point["images"] for point in read_sidecar(tmp_path / "x.onnx").facts["drift"]] == [16, 32, 64]
    assert len(list(cache_folder().iterdir())) == 1


def test_the_table_holds_the_same_scales_for_every_tensor(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "x.int8.onnx"
    plain = calibrate(files["1"], out, samples=110)
    ranges = _ranges(out)
    report = calibrate(files["1"], out, samples=110, table="trt-10.3", use_cache=False)
    assert plain.table is None
    assert report.table == tmp_path / "x.int8.cache"
    text = report.table.read_text()
    assert text.startswith("TRT-100300-EntropyCalibration2\n")
    scales = parse_table(text)
    assert _ranges(out) == ranges
    assert {name: scales[name] for name in ranges} == {n: float(np.float32(r / 127)) for n, r in ranges.items()}
    assert len(scales) > len(ranges)
    assert "logits" in scales
    side = read_sidecar(report.table)
    assert side.kind == "calibration-table"
    assert [parent.role for parent in side.parents] == ["onnx", "data:train"]
    assert side.config["table"] == "trt-10.3"


def test_what_is_wrong_is_said_before_the_network_runs(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msn_deploy.quant.histograms.collect", lambda *_, **__: pytest.fail("the network ran"))
    noise = tmp_path / "noise"
    rng = np.random.default_rng(0)
    for at in range(40):
        path = noise / "train" / "ab"[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    out = tmp_path / "x.onnx"
    for options, words in (
        ({"data": str(noise)}, "are noise: neighbouring pixels correlate"),
        ({"samples": 15}, "15 images are too few"),
        ({"method": "median"}, "unknown calibration method 'median'"),
        ({"method": "percentile", "percentile": 0.9999}, "percentile 0.9999 is out of reach"),
        ({"table": "trt-11.0"}, "TensorRT 11 reads no calibration table"),
    ):
        with pytest.raises(InputError, match=words):
            calibrate(files["1"], out, **options)
    assert not out.exists()


def test_doubts_are_in_the_report_and_the_log(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "one"
    split = load_split("digits", "train", height_px=28, width_px=28, channels=1)
    for at, pixels in enumerate(split.images[:50, ..., 0]):
        for name in ("a", "b")[: 1 + (at == 0)]:  # b: a class with one image, which is not among those that are taken
            path = folder / "train" / name / f"{at:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    report = calibrate(files["1"], tmp_path / "x.onnx", data=str(folder), samples=20, seed=2)
    assert report.warnings == (
        "20 calibration images are few; 100 or more give steadier scales",
        "all calibration images are of one class of 2 (a)",
    )
    assert all(each in caplog.text for each in report.warnings)
    assert read_sidecar(tmp_path / "x.onnx").facts["images"]["distinct"] == 20


def test_image_files_that_are_not_taken_are_not_read(files: dict[str, Path], tmp_path: Path) -> None:
    split = load_split("digits", "train", height_px=28, width_px=28, channels=1)
    for at, pixels in enumerate(split.images[:200, ..., 0]):
        path = tmp_path / "some" / "train" / str(at % 10) / f"{at:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    taken = np.linspace(0, 199, 100).round().astype(int)
    ordered = sorted((tmp_path / "some" / "train").glob("*/*.png"))
    spare = ordered[next(at for at in range(200) if at not in taken)]
    spare.write_bytes(b"no image")
    info = {"data": str(tmp_path / "some"), "samples": 100}
    assert calibrate(files["1"], tmp_path / "x.onnx", **info).samples == 100
    ordered[taken[50]].write_bytes(b"no image")
    with pytest.raises(InputError, match=f"{ordered[taken[50]].name} is not a readable image"):
        calibrate(files["1"], tmp_path / "x.onnx", **info)


_MEASURE = """
import json, sys
from pathlib import Path
from msn_deploy.pipeline.calibrate import CalibrationOptions, calibrate
report = calibrate(Path(sys.argv[1]), Path(sys.argv[2]), data=sys.argv[3], samples=int(sys.argv[4]))
# Not getrusage: its maximum counts the process that this one was forked from.
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(json.dumps([report.samples, peak]))
"""


def test_memory_does_not_grow_with_the_number_of_images(files: dict[str, Path], tmp_path: Path) -> None:
    """Image files on the disk: 5,000 of them as input would be 15 MiB, their activations hundreds."""
    rng = np.random.default_rng(0)
    digits = load_split("digits", "train", height_px=28, width_px=28, channels=1).images[..., 0]
    for at in range(5000):
        path = tmp_path / "many" / "train" / str(at % 10) / f"{at}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5 28 28 255\n" + np.roll(digits[at % len(digits)], rng.integers(3)).tobytes())
    peaks = {}
    for samples in (100, 5000):
        command = [sys.executable, "-c", _MEASURE, str(files["1"]), str(tmp_path / f"{samples}.onnx")]
        done = subprocess.run(
            [*command, str(tmp_path / "many"), str(samples)],
            env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        used, peaks[samples] = json.loads(done.stdout.splitlines()[-1])
        assert used == samples
    assert peaks[5000] < 1.1 * peaks[100]


def test_options_come_as_a_record_as_keywords_and_as_both(files: dict[str, Path], tmp_path: Path) -> None:
    record = CalibrationOptions(samples=110, method="minmax")
    first = calibrate(str(files["1"]), str(tmp_path / "a.onnx"), record)
    second = calibrate(files["1"], tmp_path / "b.onnx", samples=110, method="minmax")
    third = calibrate(files["1"], tmp_path / "c.onnx", replace(record, samples=20), samples=110)
    assert len({each.path.read_bytes() for each in (first, second, third)}) == 1
    with pytest.raises(TypeError, match="sample"):
        calibrate(files["1"], tmp_path / "d.onnx", sample=110)


@pytest.mark.parametrize(
    "wrong", [{"method": "magic"}, {"percentile": 20.0}, {"table": "trt-11"}, {"max_drop": 0.01, "leave_out": ("a",)}]
)
def test_options_that_cannot_be_are_refused_before_a_file_is_opened(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        calibrate(tmp_path / "nowhere.onnx", tmp_path / "out.onnx", **wrong)
    assert "does not exist" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        calibrate(tmp_path / "nowhere.onnx", tmp_path / "out.onnx")


def test_the_same_ranges_are_laid_out_for_onnx_runtime(files: dict[str, Path], tmp_path: Path) -> None:
    trt = calibrate(files["1"], tmp_path / "trt.onnx", samples=110)
    ort = calibrate(files["1"], tmp_path / "ort.onnx", samples=110, runtime="onnxruntime")
    shared, all_of_it = _ranges(trt.path), _ranges(ort.path)
    assert {name: all_of_it[name] for name in shared} == shared
    assert all_of_it.keys() > shared.keys()  # what the layers make besides
    assert (trt.runtime, ort.runtime) == ("tensorrt", "onnxruntime")
    made = [open_model(report.path, step="test") for report in (trt, ort)]
    assert [model.stored_info.runtime for model in made if model.stored_info] == ["tensorrt", "onnxruntime"]
    assert trt.parity is not None
    assert ort.parity is not None
    assert ort.parity.sqnr_db > trt.parity.sqnr_db - 1
    assert read_sidecar(ort.path).config["runtime"] == "onnxruntime"


def test_layers_that_a_budget_leaves_out_stay_in_fp32_on_a_cpu(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "ort.onnx"
    plain = calibrate(files["1"], out, samples=110, runtime="onnxruntime").parity
    assert plain is not None
    report = calibrate(files["1"], out, samples=110, runtime="onnxruntime", min_sqnr=plain.sqnr_db + 1)
    assert report.verdict is not None
    assert report.verdict.kind == "MIXED"
    assert report.left_out
    model = open_model(out, step="test")
    assert "Cast" not in {node.op_type for node in model.proto.graph.node}
    with pytest.raises(GateError, match=r"(?s)^verdict FP32: INT8 keeps [\d.]+ dB .*Keep the FP32 file"):
        calibrate(files["1"], out, samples=110, runtime="onnxruntime", min_sqnr=300.0)


def test_what_is_for_tensorrt_alone_and_what_is_no_runtime_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`--table` is for TensorRT"):
        CalibrationOptions(runtime="onnxruntime", table="trt-8.6")
    with pytest.raises(InputError, match="unknown runtime 'onnx'"):
        CalibrationOptions(runtime="onnx")  # type: ignore[arg-type]
    out = tmp_path / "ort.onnx"
    calibrate(files["1"], out, samples=110, runtime="onnxruntime")
    with pytest.raises(InputError, match="laid out for ONNX Runtime on a CPU"):
        build_engine(out, tmp_path / "x.engine", precision="int8")
    with pytest.raises(InputError, match="laid out for onnxruntime"):
        build_engine(files["1"], tmp_path / "x.engine", precision="int8", runtime="onnxruntime")


def test_a_benchmark_says_what_a_file_for_tensorrt_cannot_tell_on_a_cpu(files: dict[str, Path], tmp_path: Path) -> None:
    made = [tmp_path / "tensorrt.onnx", tmp_path / "onnxruntime.onnx"]
    for out in made:
        calibrate(files["1"], out, samples=110, runtime=out.stem)
    made.append(calibrate(files["1"], tmp_path / "fp8.onnx", samples=110, precision="fp8").path)
    options = MeasureOptions(seconds=0.05, block_ms=1.0, warmup_seconds=0.0)
    result = bench([files["1"], *made], options=options, threads=1)
    notes = [arm.facts.note for arm in result.arms]
    assert [note is None for note in notes] == [True, False, True, False]
    assert "--runtime onnxruntime" in str(notes[1])
    assert "nothing about FP8" in str(notes[3])
    assert [arm.facts.runtime for arm in result.arms] == [None, "tensorrt", "onnxruntime", "tensorrt"]
    assert json.loads(to_json(result))["arms"][1]["facts"]["note"] == notes[1]
    assert render_html(result, title="t").count(str(notes[1]).split("`")[0]) >= 1


def test_fp8_is_calibrated_by_the_largest_value_with_fp16_around_it(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "net.fp8.onnx"
    report = calibrate(files["1"], out, samples=110, precision="fp8")
    assert (report.precision, report.method, report.runtime) == ("fp8", "minmax", "tensorrt")
    assert report.parity is not None
    assert report.parity.sqnr_db > 25
    model = open_model(out, step="test")
    assert model.stored_info is not None
    assert model.precision == model.stored_info.precision == read_sidecar(out).config["precision"] == "fp8"
    by_output = {name: node for node in model.proto.graph.node for name in node.output}
    convolutions = [node for node in model.proto.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 3
    for node in convolutions:
        for name in node.input[:2]:  # in FP8, then as FP16
            cast = by_output[name]
            assert (cast.op_type, by_output[cast.input[0]].op_type) == ("Cast", "DequantizeLinear")
    kept = calibrate(files["1"], out, samples=110, precision="fp8", leave_out=[convolutions[1].name])
    assert kept.left_out == (convolutions[1].name,)
    assert kept.scales == report.scales - 1


@pytest.mark.parametrize(
    "wrong",
    [{"method": "mse"}, {"table": "trt-8.6"}, {"runtime": "onnxruntime"}, {"tune": "latency"}, {"max_drop": 0.01}],
)
def test_what_is_for_int8_alone_is_refused_for_fp8(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong)).replace('_', '-')}.*INT8"):
        CalibrationOptions(precision="fp8", **wrong)
    CalibrationOptions(precision="fp8", method="percentile", leave_out=["a"])
