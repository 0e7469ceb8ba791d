"""`calibrate` with an accuracy budget, layers left out, and what `eval` says of the files."""

import json
import re
from types import SimpleNamespace

import pytest

from msn_deploy.bench.stats import Ratio
from msn_deploy.pipeline import tune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def onnx(run_folder):
    return run_folder / "cnn3_msn.onnx"


def test_a_budget_ends_in_a_verdict(ok, onnx, tmp_path):
    out = tmp_path / "x.int8.onnx"
    outcome = ok("calibrate", onnx, "--max-drop", "5pp", "--out", out)
    assert "verdict INT8: accuracy " in outcome.out
    assert "on 364 test images; allowed 5.00" in outcome.out
    side = json.loads((tmp_path / "x.int8.onnx.json").read_text())
    verdict = side["facts"]["verdict"]
    assert side["config"]["max_drop"] == "5pp"
    assert (verdict["kind"], verdict["samples"], verdict["left_out"]) == ("INT8", 364, [])
    measured = json.loads(ok("eval", out, "--json", "-").out)
    assert measured["accuracy"] == pytest.approx(verdict["metric"]["int8"])


def test_a_layer_left_out_is_said_and_recorded(ok, onnx, tmp_path):
    out = tmp_path / "x.int8.onnx"
    text = ok("calibrate", onnx, "--leave-out", "node_conv2d_1", "--out", out).out
    assert "left out of INT8, in FP16: node_conv2d_1" in text
    assert json.loads((tmp_path / "x.int8.onnx.json").read_text())["facts"]["left_out"] == ["node_conv2d_1"]
    assert ok("eval", out).code == 0


@pytest.mark.parametrize(("percentile", "is_far"), [("50", True), ("99.99", False)])
def test_what_is_far_from_fp32_names_the_ways_out(ok, onnx, tmp_path, percentile, is_far):
    text = ok("calibrate", onnx, "--method", "percentile", "--percentile", percentile, "--out", tmp_path / "x.onnx").out
    assert all((option in text) == is_far for option in ("--max-drop", "--min-sqnr", "--method"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-drop", "half"], "Write 0.5pp"),
        (["--max-drop", "1pp", "--leave-out", "node_linear"], "not both"),
        (["--leave-out", "conv9"], "there is no layer 'conv9' to leave out"),
        (["--method", "entropie"], "did you mean 'entropy'?"),
    ],
)
def test_what_is_no_budget_and_no_layer(cli, onnx, tmp_path, options, message):
    outcome = cli("calibrate", onnx, *options, "--out", tmp_path / "x.int8.onnx")
    assert (outcome.code, message in outcome.err) == (2, True), outcome
    assert len(outcome.err.strip().splitlines()) <= 3
    assert not list(tmp_path.iterdir())


def test_a_budget_that_cannot_be_kept_writes_nothing(cli, onnx, tmp_path, monkeypatch):
    from msn_deploy.pipeline import budget

    monkeypatch.setattr(budget, "drop_of", lambda before, after: 0.2)
    outcome = cli("calibrate", onnx, "--max-drop", "1pp", "--out", tmp_path / "x.int8.onnx")
    assert outcome.code == 1
    assert "verdict FP16: INT8 makes accuracy worse by 20.00%" in outcome.err
    assert "build-engine --precision fp16" in outcome.err
    assert not list(tmp_path.iterdir())


def test_an_engine_is_built_within_the_budget(ok, cli, onnx, tmp_path):
    command = ["build-engine", onnx, "--precision", "int8", "--leave-out", "node_conv2d_1"]
    text = ok(*command, "--out", tmp_path / "x.engine").out
    assert "INT8 convolutions 2;" in text
    assert "left out of INT8, in FP16: node_conv2d_1" in text
    outcome = ok("build-engine", onnx, "--precision", "int8", "--max-drop", "5pp", "--out", tmp_path / "y.engine")
    assert "verdict INT8" in outcome.out
    outcome = cli("build-engine", onnx, "--precision", "fp16", "--max-drop", "5pp", "--out", tmp_path / "z.engine")
    assert (outcome.code, "`--max-drop` is for INT8." in outcome.err) == (2, True), outcome


def test_tuning_shows_each_layer_and_what_it_let_out(ok, onnx, tmp_path, monkeypatch):
    def find_slow(layers, load, **_):
        times = {layer: ratio(0.9 if layer == "node_conv2d_1" else 1.2) for layer in layers}
        return tune.SlowLayers(times=times, slow=slow, together=ratio(0.88), let_out=slow)

    def ratio(value):
        return Ratio(ratio=value, low=value - 0.01, high=value + 0.01, p_value=0, rank_p_value=0, verdict="FASTER")

    slow = ("node_conv2d_1",)
    monkeypatch.setattr(tune, "find_slow", find_slow)
    options = ["--runtime", "onnxruntime", "--tune", "latency", "--out", tmp_path / "x.int8.onnx"]
    text = ok("calibrate", onnx, *options).out
    assert re.search(r"node_conv2d_1 +FP32 +\d+\.\d +0\.900 +0\.890 to 0\.910", text)
    assert re.search(r"node_conv2d_2 +INT8 +\d+\.\d +1\.200 +1\.190 to 1\.210", text)
    assert "let out: node_conv2d_1; the network takes 0.880 of the time" in text


def test_tuning_for_engines_needs_the_device(cli, onnx, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "what_machine", lambda: SimpleNamespace(has_gpu=False))
    for goal, code, words in (("latency", 3, "no GPU is here"), ("speed", 2, "`--tune speed` is not known")):
        outcome = cli("calibrate", onnx, "--tune", goal, "--out", tmp_path / "x.int8.onnx")
        assert (outcome.code, words in outcome.err) == (code, True), outcome
        outcome = cli("build-engine", onnx, "--precision", "fp16", "--tune", goal, "--out", tmp_path / "x.engine")
        assert (outcome.code, words in outcome.err) == (code, True), outcome
    assert not list(tmp_path.iterdir())
