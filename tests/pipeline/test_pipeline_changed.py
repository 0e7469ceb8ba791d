"""An exported network that another tool has saved again: each command says what it is by its graph."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from msn_deploy.core.artifacts import publish
from msn_deploy.core.errors import InputError
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.verify import verify_folder


class Measured(Exception):
    """In place of timing: the arms, each of which has run."""


def arms_of(arms, **options):
    for arm in arms:
        arm.run()
    raise Measured(*arms)


class Images(CalibrationDataReader):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.left = [{"input": rng.standard_normal((4, 1, 28, 28), dtype=np.float32)} for _ in range(2)]

    def get_next(self):
        return self.left.pop() if self.left else None


def optimised(level):
    def save(source, out):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(out)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return save


def by_onnxsim(source, out):
    onnxsim = pytest.importorskip("onnxsim")
    onnx.save(onnxsim.simplify(onnx.load(source))[0], out)


def by_onnxslim(source, out):
    onnxslim = pytest.importorskip("onnxslim")
    onnxslim.slim(str(source), str(out))


# What saves it, and the precision and whether the graph is the same afterwards; the graph of None is not foretold.
TOOLS = {
    "dynamic": (quantize_dynamic, "int8", False),
    "qdq": (lambda source, out: quantize_static(source, out, Images(), quant_format=QuantFormat.QDQ), "int8", False),
    "qlinear": (
        lambda source, out: quantize_static(source, out, Images(), quant_format=QuantFormat.QOperator), "int8", False,
    ),
    "onnxsim": (by_onnxsim, "fp32", True),
    "onnxslim": (by_onnxslim, "fp32", None),
    "ort_basic": (optimised("ORT_ENABLE_BASIC"), "fp32", True),
    "ort_extended": (optimised("ORT_ENABLE_EXTENDED"), "fp32", False),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(checkpoint):
    """A small folded network of ours, for any batch."""
    path = checkpoint.with_name("net.onnx")
    export_onnx(str(checkpoint), path, dynamic_batch=True)
    return path


@pytest.fixture(params=TOOLS)
def saved(request, exported, tmp_path, caplog):
    """The file that a tool made of it, with its precision and whether its graph is another one."""
    save, precision, same = TOOLS[request.param]
    path = tmp_path / f"{request.param}.onnx"
    with caplog.at_level(logging.ERROR):  # onnxruntime.quantization talks to the root logger
        save(exported, path)
    if same is None:
        same = open_model(path, step="test").structure == open_model(exported, step="test").structure
    return path, precision, not same


def test_each_command_says_what_a_changed_file_is(saved, exported, tmp_path, caplog, monkeypatch):
    path, precision, changed = saved
    told = [f"{path.name} was changed", f"{precision.upper()} graph with no normalisation left"]

    def warned():
        texts = [record.getMessage() for record in caplog.records if "changed by another tool" in record.getMessage()]
        caplog.clear()
        assert all(part in text for text in texts for part in told)
        return len(texts)

    monkeypatch.setattr("msn_deploy.pipeline.bench.measure", arms_of)
    with pytest.raises(Measured) as measured:
        bench([exported, path], threads=1)
    ours, theirs = measured.value.args
    assert warned() == changed
    assert (theirs.facts.precision, theirs.facts.norms_left) == (precision, 0)
    assert (theirs.facts.changed, ours.facts.changed) == (changed, False)
    assert (theirs.facts.graph != ours.facts.graph) is changed

    result = evaluate(path, samples=32, threads=1)
    assert warned() == changed
    assert (result.precision, result.norms_left, result.changed) == (precision, 0, changed)

    if precision == "int8":
        with pytest.raises(InputError, match=f"{path.name} is INT8 already"):
            calibrate(path, tmp_path / "again.onnx", samples=32)
        assert warned() == 1

    publish(tmp_path / "own.onnx", lambda partial: partial.write_bytes(exported.read_bytes()), kind="onnx")
    found = {finding.file: finding for finding in verify_folder(tmp_path)}
    assert warned() == changed
    assert (found[path.name].verdict, found[path.name].changed) == ("unknown", changed)
    assert told[1] in found[path.name].why
    (tmp_path / "own.onnx").write_bytes(path.read_bytes())
    broken = next(finding for finding in verify_folder(tmp_path) if finding.file == "own.onnx")
    assert (broken.verdict, broken.changed) == ("broken", changed)
    assert told[1] in broken.why
