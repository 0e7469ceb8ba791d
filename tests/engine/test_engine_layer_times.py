"""Layer times: ONNX Runtime's profile of real runs, and TensorRT's profiler on the stand-in GPU."""

from __future__ import annotations

import json
import tempfile

import numpy as np
import pytest
from numpy_trt import logits
from onnx import TensorProto, helper
from test_engine_trt import images, load

from msn_deploy.core.errors import InputError
from msn_deploy.engine import layer_times
from msn_deploy.engine.layer_times import fusions, time_ort_layers, time_trt_layers
from msn_deploy.engine.runner import run_images
from msn_deploy.model.opened import open_model

pytest.importorskip("onnxruntime", reason="these tests run ONNX files")


def timed(path, batch, **options):
    model = open_model(path, step="test")
    times = time_ort_layers(model, [{model.inputs[0].name: batch(1)}], threads=1, runs=7, **options)
    return times, {layer.name: layer for layer in times.layers}


def test_layers_of_an_onnx_file_with_what_they_were_fused_from(save, batch):
    times, layers = timed(save(norm=True), batch)
    assert (times.source, times.runs) == ("ONNX Runtime's profiler", 7)
    assert layers["conv0"].fused_from == ("conv0", "bn0", "act0")
    assert (layers["gap0"].operator, layers["gap0"].fused_from) == ("GlobalAveragePool", ())
    assert sum(layer.share for layer in times.layers) == pytest.approx(1)
    total = sum(layer.us for layer in times.layers)
    for layer in times.layers:
        assert layer.us >= 0
        assert layer.share == pytest.approx(layer.us / total)
        assert layer.precision == "fp32"


def test_norms_that_must_stay_are_layers_of_their_own(save, batch):
    _, layers = timed(save(norm=True), batch, fuse_norms=False)
    assert "bn0" in layers
    assert "bn0" not in layers["conv0"].fused_from


def test_precision_is_that_of_what_a_layer_reads(save, batch):
    _, layers = timed(save(int8=True), batch)
    assert {name: layers[name].precision for name in ("q", "dq", "dqw")} == {"q": "fp32", "dq": "int8", "dqw": "int8"}
    assert layers["conv0"].fused_from == ("conv0", "act0")
    assert layers["dq"].fused_from == ()  # though ONNX Runtime renames what it reads
    _, layers = timed(save(half=True), batch)
    assert layers["flat0"].precision == "fp16"
    assert "conv0" in layers


@pytest.mark.parametrize(("name", "shown"), [("", "Sin_0"), ("same", "same")])
def test_nodes_without_names_of_their_own_are_told_apart(tmp_path, batch, name, shown):
    nodes = [helper.make_node("Sin", [f"t{at}"], [f"t{at + 1}"], name=name) for at in range(3)]
    shape = [1, 3, 8, 8]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("t0", "t3"))
    graph = helper.make_graph(nodes, "g", [given], [made])
    path = tmp_path / "same.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    times, layers = timed(path, batch)
    assert list(layers) == [shown, "Sin_1", "Sin_2"]
    assert all(layer.fused_from == () for layer in times.layers)


def test_the_profile_is_removed(save, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    path = save()
    before = sorted(tmp_path.rglob("*"))
    timed(path, batch)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_providers_whose_layers_run_elsewhere_are_refused(save, batch, provider):
    with pytest.raises(InputError, match=f"times the launches on {provider}, not the layers"):
        timed(save(), batch, provider=provider)


def test_medians_leave_the_first_runs_out(save, batch, monkeypatch):
    """The trace is replaced by one that is known: run n of a node takes 1000 us while warming up, then n us."""
    real = layer_times.parse_json

    def known(data, **how):
        events, seen = real(data, **how), {}
        for event in events:
            if event.get("cat") == "Node":
                seen[event["name"]] = seen.get(event["name"], -1) + 1
                event["dur"] = 1000 if seen[event["name"]] < 5 else seen[event["name"]]
        return events

    monkeypatch.setattr(layer_times, "parse_json", known)
    times, _ = timed(save(), batch)
    assert {layer.us for layer in times.layers} == {8.0}  # of 5 to 11


def graph_of(*nodes):
    made = [helper.make_node(kind, given.split(), out.split(), name=name) for name, kind, given, out in nodes]
    return helper.make_graph(made, "g", [], [])


def test_fusions_follow_the_tensors():
    file = graph_of(
        ("pad", "Pad", "x", "p"),
        ("conv", "Conv", "p w", "c"),
        ("bn", "BatchNormalization", "c", "n"),
        ("relu", "Relu", "n", "r"),
        ("gap", "GlobalAveragePool", "r", "g"),
        ("add", "Add", "g k", "y"),
    )
    runs = graph_of(
        ("r_nchwc", "Conv", "x reordered", "t"),
        ("ReorderOutput", "ReorderOutput", "t", "r"),
        ("gap", "GlobalAveragePool", "r", "g"),
        ("add", "Add", "g k", "y"),
    )
    assert fusions(file, runs) == {
        "r_nchwc": ("pad", "conv", "bn", "relu"),
        "ReorderOutput": (),
        "gap": ("gap",),
        "add": ("add",),
    }


def test_fusions_do_not_follow_a_branch_that_another_layer_makes():
    file = graph_of(
        ("a", "Conv", "x w", "u"), ("b", "Conv", "x v", "s"), ("sum", "Add", "u s", "t"), ("relu", "Relu", "t", "y")
    )
    runs = graph_of(("a", "Conv", "x w", "u"), ("b", "FusedConv", "x v u", "y"))
    assert fusions(file, runs) == {"a": ("a",), "b": ("b", "sum", "relu")}


INSPECTED = {
    "Layers": [
        {"Name": "conv0 + act0", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Int8"}]},
        {
            "Name": "__myl_Fc_0",
            "LayerType": "kgen",
            "Inputs": [{"Datatype": "Half"}],
            "Metadata": "[ONNX Layer: gap0]\x1e[ONNX Layer: flat0]",
        },
        {"Name": "Reformat 1", "LayerType": "Reformat", "Inputs": [{"Datatype": "Float"}]},
    ]
}
TAKES_MS = {"conv0 + act0": 0.03, "__myl_Fc_0": 0.008, "Reformat 1": 0.002}


def test_layers_of_an_engine():
    runner, gpu, _ = load(inspected=json.dumps(INSPECTED), layers=TAKES_MS)
    given = images(4)
    times = time_trt_layers(runner, [{"x": given}], runs=9)
    assert (times.source, times.runs) == ("TensorRT's layer profiler", 9)
    found = [(row.name, row.operator, row.us, row.share, row.precision, row.fused_from) for row in times.layers]
    # The stand-in takes longer in each of its runs: the median is that of the last nine.
    assert [row[:2] + row[4:] for row in found] == [
        ("conv0 + act0", "CaskConvolution", "int8", ("conv0", "act0")),
        ("__myl_Fc_0", "kgen", "fp16", ("gap0", "flat0")),
        ("Reformat 1", "Reformat", "fp32", ()),
    ]
    assert [row[2] for row in found] == pytest.approx([1e3 * ms * 10 for ms in TAKES_MS.values()])
    assert [row[3] for row in found] == pytest.approx([0.75, 0.2, 0.05])
    np.testing.assert_allclose(run_images(runner, given), logits(given), atol=1e-4)
    runner.close()
    assert gpu.log.index("context") < gpu.log.index("engine")


def test_an_engine_built_without_details_still_has_names_and_times():
    runner, _, _ = load(inspected=json.dumps({"Layers": ["conv0 + act0"]}), layers=TAKES_MS)
    rows = time_trt_layers(runner, [{"x": images(4)}], runs=3).layers
    assert [(row.name, row.operator, row.precision) for row in rows] == [
        ("conv0 + act0", "", None),
        ("__myl_Fc_0", "", None),
        ("Reformat 1", "", None),
    ]
    runner.close()


def test_a_captured_graph_is_left_for_plain_runs_that_report():
    runner, gpu, _ = load(cuda_graph=True, inspected="", layers=TAKES_MS)
    run_images(runner, images(4))
    launches = gpu.launches
    assert launches > 0
    times = time_trt_layers(runner, [{"x": images(4)}], runs=3)
    assert len(times.layers) == 3
    assert gpu.launches == launches
    runner.close()


def test_ctrl_c_in_the_profiler_is_raised_by_the_run():
    runner, _, _ = load(inspected="", layers=TAKES_MS)

    def stop(name, ms):
        raise KeyboardInterrupt

    runner.report_layers(stop)
    with pytest.raises(KeyboardInterrupt):
        run_images(runner, images(4))
    runner.close()
    with pytest.raises(RuntimeError, match="was closed"):
        runner.report_layers(stop)
