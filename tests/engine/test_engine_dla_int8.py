"""INT8 on a DLA by the verb: from the FP32 file and a table, or from Q/DQ nodes, by the TensorRT there."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from trt_standin import Release  # noqa: E402

from msn_deploy.core.artifacts import read_sidecar, sha256_of  # noqa: E402
from msn_deploy.core.errors import InputError, MissingDevice  # noqa: E402
from msn_deploy.engine import Backend, BuildOptions, find_target, what_machine  # noqa: E402
from msn_deploy.engine.calibration_table import parse_table  # noqa: E402
from msn_deploy.model.graphs import activations  # noqa: E402
from msn_deploy.model.opened import open_model  # noqa: E402
from msn_deploy.pipeline.build import build_engine  # noqa: E402

DESK = replace(what_machine(), jetson=None, gpu_nodes=())


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return a function that builds net.onnx, given feeds, for a target or with a stand-in of a release."""
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,4,8,8] y)'
    proto = onnx.parser.parse_model(f"{text} {{ c = Conv<pads=[1,1,1,1]>(x, w)  y = Relu(c) }}")
    weight = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    for at, node in enumerate(proto.graph.node):
        node.name = f"node{at}"
    onnx.save(proto, tmp_path / "net.onnx")
    images = np.random.default_rng(2).uniform(-2, 2, (32, 1, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "feeds.npz", x=images[:, 0])

    def run(*, target=None, release=None, source="net.onnx", data="feeds.npz", precision="int8", **options):
        settings = {each: options.pop(each) for each in ("max_drop", "min_sqnr", "leave_out") if each in options}
        trt = Release(release, dla_cores=2) if release else None
        if trt is not None:
            monkeypatch.setattr("msn_deploy.engine.build.pick_backend", lambda *given, **more: trt.backend)
        report = build_engine(
            tmp_path / source,
            tmp_path / "net.int8.dla0.engine",
            precision=precision,
            options=BuildOptions(dla=0, target=None if target is None else find_target(target), **options),
            data=None if data is None else str(tmp_path / data),
            machine=DESK,
            **settings,
        )
        return report, trt

    return run


def test_on_the_device_the_fp32_file_is_built_with_the_table_that_was_calibrated(build, tmp_path):
    report, trt = build(release="10.3.0")
    table = tmp_path / "net.int8.cache"
    assert (report.onnx, report.typed.table) == (tmp_path / "net.onnx", table)
    assert report.typed.path == tmp_path / "net.int8.onnx"
    [calibrator] = trt.called("int8_calibrator")
    text = calibrator.read_calibration_cache().decode()
    assert text.startswith("TRT-100300-EntropyCalibration2\n")
    model = open_model(report.onnx, step="test")
    scales = parse_table(text)
    assert set(scales) == set(activations(model.proto)) == {"x", "c", "y"}
    assert scales["x"] == pytest.approx(2 / 127, rel=0.2)
    assert struct.pack(">f", scales["x"]).hex() in text
    side = read_sidecar(report.engine.path)
    digests = {parent.role: parent.sha256 for parent in side.parents}
    assert digests["onnx"] == sha256_of(report.onnx)
    assert digests["calibration-table"] == sha256_of(table)
    assert any(role.startswith("data") for role in digests)
    assert (report.engine.precision, report.engine.dla_core) == ("int8", 0)
    again, trt = build(release="8.6.1", data=None, calibration_table=table)
    assert again.typed is None
    [calibrator] = trt.called("int8_calibrator")
    assert calibrator.read_calibration_cache().decode() == text.replace("100300", "8601", 1)


def test_elsewhere_the_script_gets_the_table_and_for_agx_orin_the_int8_file_too(build, tmp_path):
    report, _ = build(target="orin-nx")
    assert report.onnx == tmp_path / "net.onnx"
    assert report.elsewhere.beside == ("net.int8.cache",)
    assert (tmp_path / "net.int8.cache").read_text().startswith("TRT-100300-")  # the newest with a DLA
    assert read_sidecar(report.elsewhere.script).parents[0].sha256 == sha256_of(report.onnx)
    assert build(target="xavier-nx")[0].elsewhere.beside == ("net.int8.cache",)
    assert (tmp_path / "net.int8.cache").read_text().startswith("TRT-8502-")
    assert build(target="agx-orin")[0].elsewhere.beside == ("net.int8.cache", "net.int8.onnx")
    assert [row.reason for row in report.elsewhere.dla.layers] == ["", ""]


def test_a_dla_that_takes_q_dq_nodes_gets_the_int8_file(build, tmp_path, monkeypatch):
    trt = Release("11.4.0", dla_cores=2)  # its names; 11.4.1 is the first with a DLA on a Jetson
    backend = Backend(name="tensorrt", module=trt.module, version="11.4.1")
    monkeypatch.setattr("msn_deploy.engine.build.pick_backend", lambda *given, **more: backend)
    report, _ = build()
    assert report.onnx == tmp_path / "net.int8.onnx"
    assert not (tmp_path / "net.int8.cache").exists()
    assert not trt.called("int8_calibrator")
    with pytest.raises(InputError, match=r"11\.4\.1 takes no calibration table"):
        build(data=None, calibration_table=tmp_path / "net.int8.cache")


def test_a_q_dq_file_is_refused_with_what_to_type(build, tmp_path):
    build(release="10.3.0")
    for where in ({"release": "8.6.1"}, {"release": "10.3.0"}, {"target": "orin-nx"}, {"target": "xavier-nx"}):
        with pytest.raises(InputError, match=r"Q/DQ nodes.*\n.*`msn-deploy build-engine NAME\.onnx .* --dla 0`"):
            build(source="net.int8.onnx", **where)
    report, _ = build(source="net.int8.onnx", target="agx-orin")  # which can get TensorRT 11.4.1
    assert list(report.elsewhere.trtexec) == ["TensorRT 11.4.1"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_drop": 0.01, "data": None}, "`--max-drop` leaves layers in FP16"),
        ({"min_sqnr": 20.0}, "`--min-sqnr` leaves layers in FP16"),
        ({"leave_out": ["node0"]}, "`--leave-out` leaves layers in FP16"),
        ({"precision": "fp32"}, "a DLA computes in FP16 and INT8 only"),
        ({"calibration_table": "net.int8.cache"}, "`--calibration-table` has the scales that `--data` is for"),
    ],
)
@pytest.mark.parametrize("where", [{"release": "10.3.0"}, {"target": "orin-nx"}])
def test_what_a_table_cannot_hold_is_refused_before_the_calibration(build, tmp_path, options, says, where):
    if "calibration_table" in options:
        options = {"calibration_table": tmp_path / options["calibration_table"]}
    with pytest.raises(InputError, match=says):
        build(**options, **where)
    assert not list(tmp_path.glob("net.int8*"))


def test_a_tensorrt_without_a_dla_is_told_before_the_calibration(build, tmp_path):
    """JetPack 7.2 on an Orin."""
    with pytest.raises(MissingDevice, match=r"10\.16\.1 finds 0 DLA cores"):
        build(release="10.16.1")
    assert not list(tmp_path.glob("net.int8*"))
