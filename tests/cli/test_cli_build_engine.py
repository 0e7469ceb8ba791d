"""`build-engine` for devices that are elsewhere, and several engines of one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from msn_deploy.core.artifacts import read_sidecar, sha256_of
from msn_deploy.core.errors import MissingDependency
from msn_deploy.engine import what_machine
from msn_deploy.machine.containers import docker_run


@pytest.fixture(autouse=True)
def desk(monkeypatch):
    """A machine without a GPU, whatever runs the tests."""
    machine = replace(what_machine(), jetson=None, gpu_nodes=())
    monkeypatch.setattr("msn_deploy.pipeline.build.what_machine", lambda: machine)


def build(ok, run_folder, tmp_path, *options, precision="int8", source="cnn3_msn.onnx"):
    command = ["build-engine", run_folder / source, "--precision", precision, "--samples", 128]
    return ok(*command, "--out", tmp_path / f"net.{precision}.engine", *options)


_READ: list[str] = []  # while a test watches: names of files that were opened to read
_WATCHING: list[bool] = []


def _hear(event, args):  # an audit hook stays for the life of the process
    if _WATCHING and event == "open" and not isinstance(args[0], int) and not args[2] & (os.O_WRONLY | os.O_RDWR):
        _READ.append(Path(os.fsdecode(args[0])).name)


sys.addaudithook(_hear)


@pytest.fixture
def watched(monkeypatch):
    """Return how often a file is read, and its bytes parsed and checked in full, since the test began."""
    parsed, checked = [], []

    def noting(real, into):
        def call(given, *args, **options):
            into.append(given if into is parsed else _nodes(given))
            return real(given, *args, **options)

        return call

    for name in ("load_model_from_string", "load_from_string", "load_model", "load"):
        monkeypatch.setattr(onnx, name, noting(getattr(onnx, name), parsed))
    monkeypatch.setattr(onnx.checker, "check_model", noting(onnx.checker.check_model, checked))
    _READ.clear()
    monkeypatch.setattr(sys.modules[__name__], "_WATCHING", [True])

    def count(path):
        reads = sum(name.lstrip(".").startswith(path.name) and not name.endswith(".json") for name in _READ)
        content = path.read_bytes()
        return reads, parsed.count(content), checked.count(_nodes(onnx.ModelProto.FromString(content)))

    return count


def _nodes(model):
    """What tells a graph from others, with its large constants or without: the checker sees them as inputs."""
    return [(node.op_type, *node.output) for node in model.graph.node if node.op_type != "Constant"]


@pytest.mark.parametrize("where", [("--backend", "tensorrt-rtx"), ("--target", "orin-nano")])
def test_the_named_file_is_read_parsed_and_checked_once_and_the_typed_one_never(
    ok, run_folder, tmp_path, monkeypatch, watched, where
):
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "home"))
    build(ok, run_folder, tmp_path, *where)
    assert watched(run_folder / "cnn3_msn.onnx") == (1, 1, 1)
    assert watched(tmp_path / "cnn3_msn.int8.onnx")[:2] == (0, 0)


def test_int8_for_an_orin_writes_the_typed_file_and_a_script(ok, run_folder, tmp_path):
    outcome = build(ok, run_folder, tmp_path, "--target", "orin-nano")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == [
        "cnn3_msn.int8.onnx",
        "net.int8.build.sh",
    ]
    onnx, script = tmp_path / "cnn3_msn.int8.onnx", tmp_path / "net.int8.build.sh"
    assert read_sidecar(onnx).config["precision"] == "int8"
    assert any(parent.is_data for parent in read_sidecar(onnx).parents)
    assert read_sidecar(script).parents[0].sha256 == sha256_of(onnx)
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)
    for words in (
        "an engine for Jetson Orin Nano 8GB (sm_87) is built on that device",
        "the exact TensorRT version, and TensorRT-RTX has no sm_87 target",
        "for rtx-sm86 as a stand-in",
        " 3 INT8 convolutions",
        "\n  ./net.int8.build.sh\n",
        "\n  msn-deploy build-engine cnn3_msn.int8.onnx --precision int8 --target orin-nano-8gb --out net.int8.engine",
        f"\n  {docker_run()} build-engine cnn3_msn.int8.onnx",
        "--int8 --fp16   # TensorRT 8.5.2, 8.6.2\n",
        "--stronglyTyped   # TensorRT 10.3.0, 10.16.2\n",
    ):
        assert words in outcome.out
    ok("verify", tmp_path, "--no-data", "--json")


def test_int8_on_the_dla_of_an_orin_brings_its_table_and_has_a_name_of_its_own(ok, run_folder, tmp_path):
    source = tmp_path / "net.onnx"
    source.write_bytes((run_folder / "cnn3_msn.onnx").read_bytes())
    told = ok("build-engine", source, "--precision", "int8", "--dla", 0, "--target", "agx-orin", "--samples", 64).out
    names = {"net.onnx", "net.int8.onnx", "net.int8.cache", "net.int8.dla0.build.sh"}
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".json"} == names
    for words in (
        "Copy net.onnx, its .json, net.int8.cache, net.int8.onnx and net.int8.dla0.build.sh into one folder",
        "--dla 0 --calibration-table net.int8.cache --out net.int8.dla0.engine",
        "trtexec --onnx=net.onnx --saveEngine=net.int8.dla0.engine --calib=net.int8.cache",
        "--int8 --fp16 --useDLACore=0 --allowGPUFallback   # TensorRT 8.5.2, 8.6.2, 10.3.0\n",
        "trtexec --onnx=net.int8.onnx --saveEngine=net.int8.dla0.engine",
        "--useDLACore=0 --allowGPUFallback --adjustForDLA   # TensorRT 11.4.1\n",
        "2 axes; a DLA takes 4, NCHW",
    ):
        assert words in told, told
    ok("verify", tmp_path, "--no-data", "--json")


def test_the_report_is_the_same_as_json(ok, run_folder, tmp_path):
    source = "cnn3_msn.int8.onnx"
    report = json.loads(build(ok, run_folder, tmp_path, "--target", "thor", "--json", "-", source=source).out)
    assert report["engine"] is None
    assert report["typed"] is None
    assert report["onnx"] == str(run_folder / source)
    assert report["proxy"]["int8_convs"] == 3
    assert report["elsewhere"]["target"] == "thor-t5000"
    assert list(report["elsewhere"]["trtexec"]) == ["TensorRT 10.13.3, 10.16.2"]


def test_without_an_nvidia_builder_the_file_is_written_and_said_to_be_unchecked(ok, run_folder, tmp_path, monkeypatch):
    def missing(name, target):
        raise MissingDependency("no tensorrt_rtx")

    monkeypatch.setattr("msn_deploy.engine.proxy.pick_backend", missing)
    outcome = build(ok, run_folder, tmp_path, "--target", "orin-nano", precision="fp16")
    assert "unchecked  no NVIDIA builder here; TensorRT-RTX is one: pip install '.[rtx]'" in outcome.out
    assert (tmp_path / "net.fp16.build.sh").is_file()


def test_the_fallback_from_dla_is_told_before_anything_is_built(ok, run_folder, tmp_path):
    outcome = build(ok, run_folder, tmp_path, "--target", "orin-nx", "--dla", 1, precision="fp16")
    assert "DLA 1 " in outcome.out
    assert "2 axes; a DLA takes 4, NCHW" in outcome.out
    assert "--useDLACore=1 --allowGPUFallback" in outcome.out


@pytest.mark.parametrize(
    ("precision", "target", "message"),
    [
        ("int8", "nano", "Jetson Nano (sm_53) has no INT8 in TensorRT: its GPU lacks the 8-bit units"),
        ("fp8", "orin-nano", "Jetson Orin Nano 8GB (sm_87) has no FP8 in TensorRT: FP8 begins with Ada (8.9)"),
    ],
)
def test_a_precision_that_the_board_lacks_is_refused_before_anything_is_written(
    cli, run_folder, tmp_path, precision, target, message
):
    command = ["build-engine", run_folder / "cnn3_msn.onnx", "--precision", precision, "--target", target]
    outcome = cli(*command, "--out", tmp_path / "net.engine")
    assert outcome.code == 2
    assert message in outcome.err
    assert not list(tmp_path.iterdir())


def test_fp8_for_a_thor_is_calibrated_checked_and_given_a_script(ok, run_folder, tmp_path):
    outcome = build(ok, run_folder, tmp_path, "--target", "thor", precision="fp8")
    assert "for rtx-sm89 as a stand-in" in outcome.out
    assert "3 FP8 convolutions" in outcome.out
    assert "--stronglyTyped   # TensorRT 10.13.3, 10.16.2" in outcome.out
    script = (tmp_path / "net.fp8.build.sh").read_text(encoding="utf-8")
    assert "engine:8.6) fail 2 " in script


def test_replicates_are_engines_of_their_own(ok, run_folder, tmp_path):
    outcome = build(
        ok, run_folder, tmp_path, "--replicates", 2, "--backend", "tensorrt-rtx", "--workspace", "1GiB",
        source="cnn3_msn.int8.onnx",
    )  # fmt: skip
    engines = [tmp_path / "net.int8.engine", tmp_path / "net.int8.r2.engine"]
    assert sorted(tmp_path.glob("*.engine")) == engines
    for number, engine in enumerate(engines, 1):
        side = read_sidecar(engine)
        assert side.facts["replicate"] == number
        assert side.config["workspace_mib"] == 1024
        assert side.sha256 == sha256_of(engine)
        assert str(engine) in outcome.out


def test_the_sidecar_holds_what_a_loader_has_to_check(ok, run_folder, tmp_path):
    build(ok, run_folder, tmp_path, "--backend", "tensorrt-rtx", source="cnn3_msn.int8.onnx")
    facts = read_sidecar(tmp_path / "net.int8.engine").facts
    names = "backend backend_version target compute_capability device precision inputs outputs ranges plan_bytes"
    names += " weight_memory_bytes device_memory_bytes layers int8_convs version_compatible hardware_compatible"
    names += " dla_core replicate machine"
    assert set(names.split()) <= set(facts)
    assert sum(set(layer) == {"name", "kind", "precision"} for layer in facts["layers"]) == len(facts["layers"]) > 3
    assert facts["device_memory_bytes"] > facts["weight_memory_bytes"] > 0
    assert (facts["device"], facts["dla_core"], facts["version_compatible"]) == (None, None, False)


def test_the_table_of_targets_fits_a_terminal(ok, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ok("targets").out.splitlines()
    assert max(map(len, lines)) <= 80
    (orin,) = [line.split() for line in lines if line.startswith("orin-nx-16gb")]
    assert orin == ["orin-nx-16gb", "8.7", "16", "102", "15", "30", "2x", "v2", "5.1,", "6.0-6.2,", "7.2"]
    assert "6.1, 6.2: 10.3.0" in "\n".join(lines)
    assert all(row["source"] for row in json.loads(ok("targets", "--json").out))
