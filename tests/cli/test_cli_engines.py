"""Engines on the command line: each reason not to load one has words and an exit code, and nothing is loaded."""

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cli_explained import assert_explained as explained

from msn_deploy.bench import MeasureOptions, from_json, to_json
from msn_deploy.core import artifacts
from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.model_info import METADATA_KEY
from msn_deploy.engine import OrtRunner
from msn_deploy.engine.plan import what_is_here
from msn_deploy.engine.preflight import preflight
from msn_deploy.engine.trust import trust, trusted
from msn_deploy.machine.device import Gpu
from msn_deploy.model.cost import cost_of
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.models import onnx_of

NATIVE = {"tensorrt", "tensorrt_rtx", "pycuda", "cuda"}


class Tripwire:
    """Refuses the import of TensorRT and CUDA, and keeps which it was."""

    def __init__(self):
        self.touched = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NATIVE:
            self.touched.append(name)
            raise ImportError("nothing may be loaded")
        return None


@pytest.fixture
def tripwire(monkeypatch, cli):
    cli("eval", "gone.onnx")  # what torch looks for when it is imported is not ours
    wire = Tripwire()
    for name in list(sys.modules):
        if name.partition(".")[0] in NATIVE:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [wire, *sys.meta_path])
    return wire


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Make the command line believe that this is another machine, on which nothing is trusted yet."""
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "home"))
    return lambda here: monkeypatch.setattr("msn_deploy.engine.preflight.what_is_here", lambda: here)


def assert_explained(outcome, code, words):
    assert outcome.code == code, outcome
    assert outcome.out == ""
    explained(outcome.err, words)


def _schema(path):
    side = artifacts.sidecar_path(path)
    value = {**json.loads(side.read_bytes()), "schema": 99}
    del value["seal"]
    side.write_bytes(artifacts._sealed(value))


# facts of the plan, what happens to the files, the machine, exit code, words that the message must hold
CASES = {
    "wrong TensorRT": ({}, None, {"versions": {"tensorrt": "10.7.0"}}, 2, "built by TensorRT 10.3.0.30 here 10.7.0"),
    "other TensorRT": ({}, None, {"versions": {"tensorrt-rtx": "1.7.1"}}, 3, "which TensorRT-RTX cannot load"),
    "no TensorRT": ({}, None, {"versions": {}}, 3, "no TensorRT is installed"),
    "wrong SM": ({"compute_capability": "8.6"}, None, {}, 2, "holds code for sm_86 sm_87"),
    "wrong device": ({}, None, {"memory_gib": 3.3}, 2, "another device Orin Nano 8GB Orin Nano 4GB"),
    "no GPU": ({}, None, {"gpu": None}, 3, "no NVIDIA driver"),
    "no DLA": ({"dla_core": 0}, None, {}, 3, "DLA core 0"),
    "stale parent": (
        {},
        lambda path: path.with_name("net.int8.onnx").write_bytes(b"a newer model"),
        {},
        2,
        "an older model",
    ),
    "unknown schema": ({}, _schema, {}, 2, "schema 99"),
    "no sidecar": ({}, lambda path: artifacts.sidecar_path(path).unlink(), {}, 2, "has no sidecar net.plan.json"),
    "damaged": ({}, lambda path: path.write_bytes(b"b plan"), {}, 2, "damaged replaced"),
    "untrusted": ({}, None, {}, 2, "is not trusted --trust"),
}


def run_case(case, cli, on, orin, forge_plan):
    facts, change, machine, _, _ = CASES[case]
    on(orin(**machine))
    path = forge_plan(case.encode(), **facts)
    path.with_name("net.int8.onnx").unlink(missing_ok=True)
    if change is not None:
        change(path)
    if case != "untrusted":
        trust(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
    return cli("eval", path, "--data", "digits")


@pytest.mark.parametrize("case", CASES)
def test_an_engine_that_may_not_be_loaded_is_not(cli, on, orin, forge_plan, tripwire, case):
    outcome = run_case(case, cli, on, orin, forge_plan)
    assert_explained(outcome, CASES[case][3], CASES[case][4])
    assert tripwire.touched == []


def test_the_tripwire_is_there_and_a_good_plan_reaches_it(cli, on, orin, forge_plan, tripwire):
    on(orin())
    path = forge_plan()
    trust(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
    assert_explained(cli("eval", path, "--data", "digits"), 3, "needs tensorrt nothing may be loaded")
    assert tripwire.touched == ["tensorrt"]


def test_the_messages_are_distinct(cli, on, orin, forge_plan):
    said = {case: run_case(case, cli, on, orin, forge_plan).err.splitlines()[0] for case in CASES}
    for case, message in said.items():
        words = CASES[case][4].split()
        assert [other for other in said if all(word in said[other] for word in words)] in ([case], []), message
    assert len(set(said.values())) == len(CASES)


@pytest.mark.parametrize("command", ["eval", "bench", "infer"])
def test_trust_is_given_once_and_says_what_to(cli, on, orin, forge_plan, tripwire, command):
    on(orin())
    path = forge_plan()
    line = [command, path, *(["x.png"] if command == "infer" else [])]
    assert_explained(cli(*line), 2, "is not trusted --trust")
    assert trusted() == frozenset()
    outcome = cli(*line, "--trust")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in outcome.err
    assert tripwire.touched == ["tensorrt"]
    assert trusted() == {digest}
    again = cli(*line)
    assert digest not in again.err
    assert "needs tensorrt" in again.err


def test_a_plan_built_here_is_trusted_and_carries_the_models_own_words(run_folder):
    onnx = pytest.importorskip("onnx")
    path = run_folder / "cnn3_msn.int8.engine"
    side = read_sidecar(path)
    assert side.sha256 in trusted()
    model = onnx.load(run_folder / "cnn3_msn.int8.onnx")
    assert side.facts["info"] == next(each.value for each in model.metadata_props if each.key == METADATA_KEY)


# The rest of the way, on a stand-in for the runner: the ONNX file that the engine was built from


@pytest.fixture
def engine(monkeypatch, run_folder, tmp_path):
    """An engine that runs; returns its path."""

    path = run_folder / "cnn3_msn.int8.engine"

    class Runner(OrtRunner):
        most, graphs, waits, mapped = 1, [], [], []

        def __init__(self, plan, *, cuda_graph, wait, mapped):
            super().__init__(open_model(run_folder / plan.onnx.file, step="test"), threads=1)
            self.path, self.name, self.info = plan.path, plan.path.name, plan.info
            self.batch_range, self.report = (1, self.most), None
            self.graphs.append(cuda_graph)
            self.waits.append(wait)
            self.mapped.append(mapped)

        def report_layers(self, report):
            self.report = report
            return '{"Layers": [{"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Datatype": "Int8"}]}]}'

        def run(self, feeds):
            if self.report is not None:
                self.report("conv", 0.02)
            return super().run(feeds)

    here = replace(what_is_here(), gpu=Gpu(name="a GPU", compute_capability="8.6"))
    monkeypatch.setattr("msn_deploy.engine.preflight.what_is_here", lambda: here)
    monkeypatch.setattr("msn_deploy.engine.load.TrtRunner", Runner)
    return path


def test_eval_and_infer_know_classes_and_preprocessing_from_the_sidecar(ok, engine, run_folder, digit_images):
    of = {}
    for path in (engine, run_folder / "cnn3_msn.int8.onnx"):
        of[path.suffix] = json.loads(ok("eval", path, "--json", "-").out)
        lines = ok("infer", path, *digit_images, "--json").out.splitlines()
        labels = [json.loads(line)["label"] for line in lines]
        of[path.suffix]["labels"] = labels
    for key in ("accuracy", "predictions", "labels", "data"):
        assert of[".engine"][key] == of[".onnx"][key]
    assert of[".engine"]["sha256"] == read_sidecar(engine).sha256


def test_bench_names_the_engine_and_says_that_it_is_no_onnx_file_on_the_cpu(engine, run_folder):
    onnx = run_folder / "cnn3_msn.int8.onnx"
    quick = MeasureOptions(seconds=0.1, block_ms=2, warmup_seconds=0, warmup_queries=1)
    result = bench([onnx, engine], threads=1, options=quick)
    assert [arm.name for arm in result.arms] == [str(onnx), str(engine)]
    assert result.profile.provider == "cpu and engine"
    assert [arm.facts.net for arm in result.arms] == ["cnn3", "cnn3"]


@pytest.mark.parametrize("asked", [False, True])
def test_bench_replays_a_cuda_graph_if_asked_and_says_so(engine, asked):
    from msn_deploy.engine import load

    quick = MeasureOptions(seconds=0.1, block_ms=2, warmup_seconds=0, warmup_queries=1)
    result = bench([engine], threads=1, builds=2, cuda_graph=asked, options=quick)
    assert load.TrtRunner.graphs == [asked, asked]
    assert result.profile.cuda_graph is asked


@pytest.mark.parametrize(("asked", "wait"), [(None, "spin"), ("sleep", "sleep")])
def test_bench_says_how_an_engine_waits_and_writes_it_down(engine, asked, wait):
    from msn_deploy.engine import load

    quick = MeasureOptions(seconds=0.1, block_ms=2, warmup_seconds=0, warmup_queries=1)
    result = bench([engine], threads=1, wait=asked, options=quick)
    assert load.TrtRunner.waits == [wait]
    assert from_json(to_json(result)).profile.wait == wait


def test_bench_holds_copied_and_mapped_buffers_of_an_engine_against_each_other(engine, run_folder):
    from msn_deploy.engine import load

    quick = MeasureOptions(seconds=0.1, block_ms=2, warmup_seconds=0, warmup_queries=1)
    onnx = run_folder / "cnn3_msn.onnx"
    result = bench([engine, onnx], threads=1, builds=2, mapped=True, options=quick)
    assert [arm.name for arm in result.arms] == ["cnn3_msn.int8", "cnn3_msn.int8 mapped", "cnn3_msn"]
    assert [arm.facts.provider for arm in result.arms] == ["engine", "engine-mapped", "cpu"]
    assert load.TrtRunner.mapped == [False, True, False, True]
    assert (result.profile.provider, result.profile.h2d) == ("cpu and engine and engine-mapped", True)


def test_bench_leaves_the_norms_of_an_engine_to_tensorrt(engine, monkeypatch):
    plan = preflight(engine)
    plan = replace(plan, info=replace(plan.info, folded=False))
    monkeypatch.setattr("msn_deploy.engine.load.preflight", lambda path, *, trusting, plugins: plan)
    quick = MeasureOptions(seconds=0.1, block_ms=2, warmup_seconds=0, warmup_queries=1)
    (arm,) = bench([engine], threads=1, options=quick).arms
    assert (arm.facts.folded, arm.facts.runtime_norm_fusions) == (False, "on")


def test_bench_times_the_layers_of_an_engine_and_counts_its_onnx_file(engine, run_folder, tmp_path, monkeypatch):
    machine = SimpleNamespace(jetson="NVIDIA Jetson Orin Nano Developer Kit", memory_gib=7.4, compatible=())
    monkeypatch.setattr("msn_deploy.pipeline.bench.what_machine", lambda root: machine)
    quick = MeasureOptions(seconds=0.1, block_ms=2, warmup_seconds=0, warmup_queries=1)
    (arm,) = bench([engine], threads=1, options=quick, layers=True).arms
    profile = arm.layers
    assert [(row.name, row.operator, row.us, row.precision) for row in profile.layers] == [
        ("conv", "CaskConvolution", 20.0, "int8")
    ]
    assert profile.cost == cost_of(open_model(run_folder / "cnn3_msn.int8.onnx", step="test").proto, batch=1)
    assert profile.cost.flops > 1000
    assert (profile.limits.device, profile.limits.precision) == ("Jetson Orin Nano 8GB", "int8")
    assert profile.limits.peak_gops == 20_000
    for name in ("cnn3_msn.int8.engine", "cnn3_msn.int8.engine.json", "cnn3_msn.int8.plan.json"):
        if (run_folder / name).exists():
            shutil.copy(run_folder / name, tmp_path)
    alone = tmp_path / engine.name
    assert onnx_of(engine) == run_folder / "cnn3_msn.int8.onnx"
    assert onnx_of(alone) is None
    (tmp_path / "cnn3_msn.int8.onnx").write_bytes(b"another file of that name")
    assert onnx_of(alone) is None


def test_bench_refuses_a_batch_that_would_be_several_queries(cli, engine, monkeypatch):
    monkeypatch.setattr("msn_deploy.engine.load.TrtRunner.most", 0)
    assert_explained(cli("bench", engine, "--batch", 1), 2, "cnn3_msn.int8.engine at most 0 images --batch 1")


def test_doctor_names_the_stale_engines_of_a_folder_and_rebuilds_them(cli, forge_plan, orin, monkeypatch):
    run = forge_plan().parent / "run"
    run.mkdir()
    for path in (forge_plan(), artifacts.sidecar_path(forge_plan())):
        path.rename(run / path.name)
    (run / "net.int8.onnx").write_bytes(b"the model")
    monkeypatch.setattr("msn_deploy.pipeline.doctor.what_is_here", lambda: orin(versions={"tensorrt": "10.16.2"}))
    outcome = cli("doctor", run, "--json")
    found = {each["name"]: each for each in json.loads(outcome.out)}
    assert outcome.code == 3
    assert {"python", "net.engine"} <= found.keys()
    assert found["net.engine"] == {
        "name": "net.engine",
        "verdict": "problem",
        "found": "stale: was built by TensorRT 10.3.0.30, and here is TensorRT 10.16.2: a plan loads only in the "
        "version that built it.",
        "hint": f"msn-deploy doctor {run} --rebuild",
    }
    built = []
    monkeypatch.setattr("msn_deploy.pipeline.doctor._rebuild", lambda path, *rest: built.append(path.name))
    assert "rebuilt: " in cli("doctor", run, "--rebuild").out
    assert built == ["net.engine"]


@pytest.mark.parametrize("arguments", [[], ["m.onnx"]])
def test_doctor_rebuilds_folders_alone(cli, arguments):
    outcome = cli("doctor", *arguments, "--rebuild")
    assert (outcome.code, "msn-deploy doctor RUN --rebuild" in outcome.err) == (2, True)


def test_diff_compares_an_engine_by_its_outputs_and_looks_into_the_file_that_it_was_built_from(
    cli, engine, run_folder, tmp_path
):
    reference = run_folder / "cnn3_msn.onnx"
    report = json.loads(cli("diff", engine, reference, "--samples", 2, "--json", "-").out)
    assert report["inside"] == str(run_folder / "cnn3_msn.int8.onnx")
    assert report["tensors"]
    assert report["disturbed_db"] == float("inf")  # the engine itself was not disturbed
    text = " ".join(cli("diff", engine, reference, "--samples", 2).out.split())
    assert "Marking an engine's tensors as outputs would change what it fuses" in text
    for name in ("cnn3_msn.int8.engine", "cnn3_msn.int8.engine.json", "cnn3_msn.int8.plan.json"):
        if (run_folder / name).exists():
            shutil.copy(run_folder / name, tmp_path)
    outcome = cli("diff", tmp_path / engine.name, reference, "--samples", 2, "--json", "-")
    alone = json.loads(outcome.out)
    assert (alone["inside"], alone["tensors"]) == ("", [])
    assert alone["outputs"] == report["outputs"]
    assert "its outputs alone are compared" in outcome.err
