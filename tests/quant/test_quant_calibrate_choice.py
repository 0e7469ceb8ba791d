"""Of the methods, the one is taken whose INT8 keeps the most of the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from msn_deploy.data.feeds import ImageSamples
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.quant.calibrate import CANDIDATES, chosen, quantised_tensors, ranges_from
from msn_deploy.quant.histograms import collect
from msn_deploy.quant.layout import Layout
from msn_deploy.quant.quantize import quantize

# Most values are near zero, and a few far away: what matters of them is the network's business.
X = (np.random.default_rng(0).standard_t(1.6, size=(40, 2, 16, 16)) / 4).astype(np.float32)
SAMPLES = ImageSamples("x", X)


def _model(text: str, kind: str = "float[N,3,16,16]") -> ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,16,16] x) => ({kind} y) '
        f"<float low = {{-0.5}}, float high = {{0.5}}, float far = {{20}}> {{ c = Conv(x, w) {text} }}"
    )
    weight = np.random.default_rng(1).normal(size=(3, 2, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


def _chosen(model: ModelProto, **settings: Any) -> Any:
    found = collect(model, SAMPLES, quantised_tensors(model), load=run_on_one_thread)
    return chosen(model, SAMPLES, found, load=run_on_one_thread, **settings), found


def test_the_method_follows_what_the_outputs_are_made_of() -> None:
    near, found = _chosen(_model("y = Clip(c, low, high)"))
    assert near.method == max(near.sqnr_db, key=near.sqnr_db.get)
    assert near.method != "minmax"
    assert near.ranges == ranges_from(found, method=near.method)
    far, _ = _chosen(_model("a = Abs(c) s = Sub(a, far) y = Relu(s)"))
    assert far.method == "minmax"
    assert set(near.sqnr_db) == set(far.sqnr_db) == set(CANDIDATES)


def test_what_a_method_keeps_is_what_its_file_keeps() -> None:
    model = _model("y = Relu(c)")
    found, seen = _chosen(model)
    truth = run_on_one_thread(model).run({"x": X})["y"].astype(np.float64)
    for method, kept in found.sqnr_db.items():
        made = run_on_one_thread(quantize(model, ranges_from(seen, method=method))).run({"x": X})["y"]
        wanted = 10 * np.log10(np.square(truth).sum() / np.square(truth - made).sum())
        assert kept == pytest.approx(wanted, abs=0.01)


def test_a_method_that_is_given_is_taken_without_a_run() -> None:
    model = _model("y = Relu(c)")
    found = collect(model, SAMPLES, quantised_tensors(model), load=run_on_one_thread)
    choice = chosen(model, SAMPLES, found, load=lambda _: pytest.fail("it ran"), method="percentile", percentile=99.0)
    assert choice.ranges == ranges_from(found, method="percentile", percentile=99.0)
    assert (choice.method, choice.sqnr_db) == ("percentile", {})


def test_without_a_float_output_it_is_the_first() -> None:
    assert _chosen(_model("y = ArgMax<axis=1>(c)", "int64[N,1,16,16]"))[0].method == CANDIDATES[0]


def test_layers_left_out_are_left_out_of_the_trial() -> None:
    model = _model("r = Relu(c) y = Conv(r, v)", "float[N,2,16,16]")
    weight = np.random.default_rng(2).normal(size=(2, 3, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "v"))
    found = collect(model, SAMPLES, ["x"], load=run_on_one_thread)
    choice = chosen(model, SAMPLES, found, load=run_on_one_thread, leave_out=["y"])
    assert list(choice.ranges) == ["x"]


def test_the_layout_for_a_cpu_is_judged_as_it_is() -> None:
    model = _model("y = Relu(c)")
    layout = Layout(runtime="onnxruntime", extremes={"x": (float(X.min()), float(X.max()))})
    found = collect(model, SAMPLES, layout.place(model).tensors, load=run_on_one_thread)
    kept = [chosen(model, SAMPLES, found, load=run_on_one_thread, layout=each).sqnr_db for each in (layout, Layout())]
    assert kept[0] != kept[1]
