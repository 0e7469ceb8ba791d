"""Which calls the builder makes in each TensorRT release, on stand-ins with the names that the release really has."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import onnx
import pytest
from trt_api import RELEASES
from trt_standin import Release

from msn_deploy.core.artifacts import Parent, publish, read_sidecar, sha256_of
from msn_deploy.core.errors import GateError, InputError, MissingDevice
from msn_deploy.engine import BuildOptions, build_engine_file, find_target, what_machine
from msn_deploy.engine.build import choose_site
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.engine.trt_build import is_weakly_typed, mask
from msn_deploy.machine.device import Gpu
from msn_deploy.model.opened import open_model

WEAK = ("8.6.1",)
TYPED_10 = ("10.0.1", "10.3.0", "10.13.3", "10.16.1")
TYPED_11 = ("11.0.0", "11.4.0", "rtx-1.7.1")
FULL = tuple(release for release in RELEASES if not release.startswith("rtx"))
DESK = replace(what_machine(), jetson=None, gpu_nodes=())
NETS = {"fp32": {}, "fp16": {"half": True}, "int8": {"int8": True}}


def build(onnx_path, trt, *, machine=DESK, **options):
    out = onnx_path.with_name("model.engine")
    model = open_model(onnx_path, step="test")
    chosen = BuildOptions(**options)
    site = choose_site(chosen, chosen.precision or model.precision, machine=machine, backend=trt.backend)
    return build_engine_file(model, out, options=chosen, site=site)


def test_the_mask_follows_the_enum_and_not_the_bit():
    """Bit 1 is STRONGLY_TYPED in 10.x; bit 0 is EXPLICIT_BATCH in 8 and 10 but STRONGLY_TYPED in 11 and RTX."""
    names = ("EXPLICIT_BATCH", "STRONGLY_TYPED")
    assert mask(SimpleNamespace(EXPLICIT_BATCH=0), *names) == 0b01
    assert mask(SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1), *names) == 0b11
    assert mask(SimpleNamespace(STRONGLY_TYPED=0), *names) == 0b01
    assert mask(SimpleNamespace(), *names) == 0


@pytest.mark.parametrize("precision", NETS)
@pytest.mark.parametrize("release", RELEASES)
def test_the_calls_fit_the_release(save, release, precision):
    trt = Release(release)
    report = build(
        save(**NETS[precision], batch="N"),
        trt,
        precision=precision,
        batch=6,
        min_batch=2,
        opt_batch=4,
        workspace_mib=64,
        optimization_level=3,
    )
    flags = {"fp32": [], "fp16": ["BuilderFlag.FP16"], "int8": ["BuilderFlag.FP16", "BuilderFlag.INT8"]}[precision]
    assert trt.called("set_flag") == (flags if release in WEAK else [])
    assert trt.called("create_network") == [0b11 if release in TYPED_10 else 0b01]
    assert is_weakly_typed(trt.module) == (release in WEAK)
    assert ("set_memory_pool_limit", "MemoryPoolType.WORKSPACE", 64 << 20) in trt.calls
    assert ("set_shape", "x", (2, 3, 8, 8), (4, 3, 8, 8), (6, 3, 8, 8)) in trt.calls
    assert trt.called("profiling_verbosity") == ["ProfilingVerbosity.DETAILED"]
    assert trt.called("builder_optimization_level") == [3]
    assert len(trt.called("progress_monitor")) == (release not in WEAK)
    rtx = release == "rtx-1.7.1"
    assert trt.called("num_compute_capabilities") == ([1] if rtx else [])
    assert [call[1:] for call in trt.calls if call[0] == "set_compute_capability"] == (
        [("ComputeCapability.SM86", 0)] if rtx else []
    )
    assert not {"DLA_core", "default_device_type", "int8_calibrator", "hardware_compatibility_level"} & {
        call[0] for call in trt.calls
    }
    assert report.path.read_bytes() == b"plan"
    assert (report.layers, report.int8_convs, report.weight_memory_bytes) == ((), None, None)
    assert report.backend_version == trt.module.__version__


STEREO = {
    "inputs": {"left": ("FLOAT", (-1, 3, 8, -1)), "right": ("UINT8", (-1, 3, 8, -1)), "gain": ("INT64", ())},
    "outputs": {"sum": ("FLOAT", (-1, 4, 8, -1)), "best": ("INT64", (-1,)), "any": ("BOOL", ())},
}


@pytest.mark.parametrize("release", RELEASES)
def test_all_open_inputs_share_one_profile_and_every_tensor_is_reported(stereo, release):
    trt = Release(release, **STEREO)
    shapes = [parse_shapes(f"{name}=1x3x8x16:2x3x8x32:4x3x8x64") for name in ("left", "right")]
    report = build(stereo, trt, shapes=tuple(shapes))
    sizes = ((1, 3, 8, 16), (2, 3, 8, 32), (4, 3, 8, 64))
    assert [call[1:] for call in trt.calls if call[0] == "set_shape"] == [("left", *sizes), ("right", *sizes)]
    assert len(trt.called("add_optimization_profile")) == 1
    assert report.ranges == {"left": sizes, "right": sizes}
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*report.inputs, *report.outputs)] == [
        ("left", "float32", (None, 3, 8, None)),
        ("right", "uint8", (None, 3, 8, None)),
        ("gain", "int64", ()),
        ("sum", "float32", (None, 4, 8, None)),
        ("best", "int64", (None,)),
        ("any", "bool", ()),
    ]
    side = read_sidecar(report.path)
    assert side.facts["ranges"]["left"] == [[1, 3, 8, 16], [2, 3, 8, 32], [4, 3, 8, 64]]
    assert side.facts["inputs"][1] == {"name": "right", "dtype": "uint8", "shape": [None, 3, 8, None]}
    assert side.config["shapes"] == [f"{name}=1x3x8x16:2x3x8x32:4x3x8x64" for name in ("left", "right")]


def test_an_open_size_that_no_option_speaks_of_is_refused_before_the_builder_starts(stereo):
    trt = Release("10.3.0", **STEREO)
    with pytest.raises(InputError, match=r"input right is anyx3x8xany\.\n.*--shapes right=1x3x8x32:1x3x8x64:4x3x8x128"):
        build(stereo, trt, shapes=(parse_shapes("left=1x3x8x16"),))
    assert trt.calls == []


def test_an_input_whose_values_are_sizes_is_refused(stereo):
    shapes = tuple(parse_shapes(f"{name}=1x3x8x16") for name in ("left", "right"))
    with pytest.raises(InputError, match=r"values of the input gain of .* decide sizes"):
        build(stereo, Release("10.3.0", sizes="gain", **STEREO), shapes=shapes)


def test_tensorrt_8_casts_an_fp32_file_by_its_flag_and_no_other_release_does(save):
    trt = Release("8.6.1")
    assert build(save(), trt, precision="fp16").precision == "fp16"
    assert trt.called("set_flag") == ["BuilderFlag.FP16"]
    with pytest.raises(InputError, match=r"FP32 network; FP16 was asked for, and TensorRT 10\.3\.0"):
        build(save(), Release("10.3.0"), precision="fp16")


@pytest.mark.parametrize("release", RELEASES)
def test_int8_needs_its_nodes_in_the_file_even_where_flags_exist(save, release):
    with pytest.raises(InputError, match="INT8 was asked for"):
        build(save(), Release(release), precision="int8")


# The timing cache


@pytest.mark.parametrize("release", FULL)
def test_a_timing_cache_is_read_and_written(save, tmp_path, release):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"before")  # by another program: no sidecar, so TensorRT itself has to judge it
    trt = Release(release)
    build(save(), trt, timing_cache=cache)
    assert trt.called("create_timing_cache") == [b"before"]
    assert trt.called("set_timing_cache") == [False]
    assert cache.read_bytes() == b"filled"
    facts = read_sidecar(cache).facts
    assert facts == {"backend": "tensorrt", "backend_version": trt.module.__version__, "device": None}
    again, tuned = Release(release), onnx.load(save())
    for tensor in tuned.graph.initializer:  # as fine-tuning leaves it: the same graph with other weights
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))
    onnx.save(tuned, tmp_path / "tuned.onnx")
    build(tmp_path / "tuned.onnx", again, timing_cache=cache)
    assert again.called("create_timing_cache") == [b"filled"]
    assert again.called("set_timing_cache") == [False]


def test_a_timing_cache_of_another_tensorrt_is_refused_and_kept(save, tmp_path):
    cache = tmp_path / "timing.cache"
    build(save(), Release("10.3.0"), timing_cache=cache)
    trt = Release("10.16.1")
    with pytest.raises(InputError, match=r"of tensorrt 10\.3\.0 on a GPU unknown; here it would be of tensorrt 10\.16"):
        build(save(), trt, timing_cache=cache)
    assert cache.read_bytes() == b"filled"
    assert not trt.called("create_timing_cache")
    cache.write_bytes(b"foreign")  # no longer what the sidecar speaks of
    with pytest.raises(InputError, match=r"of another GPU or TensorRT; here") as caught:
        build(save(), Release("10.16.1", fits=False), timing_cache=cache)
    assert "delete that file" in str(caught.value)
    assert cache.read_bytes() == b"foreign"


def test_rtx_has_no_use_for_a_timing_cache(save, tmp_path, caplog):
    trt = Release("rtx-1.7.1")
    build(save(), trt, timing_cache=tmp_path / "timing.cache")
    assert "uses no timing cache" in caplog.text
    assert not trt.called("create_timing_cache")
    assert not (tmp_path / "timing.cache").exists()


# Compatibility


@pytest.mark.parametrize("release", FULL)
def test_compatible_plans_where_they_can_be(save, release):
    trt = Release(release)
    report = build(save(), trt, version_compatible=True, hardware_compatible=True)
    assert trt.called("set_flag") == ["BuilderFlag.VERSION_COMPATIBLE"]
    assert trt.called("hardware_compatibility_level") == ["HardwareCompatibilityLevel.AMPERE_PLUS"]
    facts = read_sidecar(report.path).facts
    assert facts["version_compatible"] is facts["hardware_compatible"] is True


def test_compatible_plans_are_refused_with_the_reason_where_they_cannot_be(save):
    jetson = replace(DESK, jetson="NVIDIA Jetson Orin Nano Developer Kit", l4t="36.4.3")
    with pytest.raises(InputError, match="JetPack's TensorRT has no such plans"):
        build(save(), Release("10.3.0"), machine=jetson, hardware_compatible=True)
    build(save(), Release("10.3.0"), machine=jetson, version_compatible=True)
    for option in ("version_compatible", "hardware_compatible"):
        trt = Release("rtx-1.7.1")
        with pytest.raises(InputError, match=rf"TensorRT-RTX has no `--{option.replace('_', '-')}`"):
            build(save(), trt, **{option: True})
        assert not trt.calls


# DLA


@pytest.mark.parametrize("release", RELEASES)
def test_dla_only_where_the_builder_finds_cores(save, release):
    trt = Release(release)  # the names exist everywhere; num_DLA_cores is 0
    if release.startswith("rtx"):
        with pytest.raises(InputError, match="rtx-sm86 has no DLA"):
            build(save(half=True), trt, dla=0)
        assert not trt.calls
        return
    with pytest.raises(MissingDevice, match="finds 0 DLA cores here; core 0"):
        build(save(half=True), trt, dla=0)
    assert not trt.called("default_device_type")
    assert not trt.called("build_serialized_network")
    trt = Release(release, dla_cores=2)
    report = build(save(half=True), trt, dla=1)
    assert trt.called("default_device_type") == ["DeviceType.DLA"]
    assert trt.called("DLA_core") == [1]
    flagged = [] if release in TYPED_11 else ["BuilderFlag.FP16"]  # typed by the network only from TensorRT 11 on
    adjusted = ["OnnxParserFlag.ADJUST_FOR_DLA"] if release in ("10.16.1", *TYPED_11) else []
    assert trt.called("set_flag") == [*adjusted, *flagged, "BuilderFlag.GPU_FALLBACK"]
    assert trt.called("create_network") == [0b01]
    assert report.dla_core == 1
    assert report.dla.fallback_percent == 0.0
    with pytest.raises(MissingDevice, match="finds 2 DLA cores here; core 2"):
        build(save(half=True), Release(release, dla_cores=2), dla=2)


def test_what_falls_back_is_told_and_can_be_limited(save):
    def on_dla(layer):
        return layer.name != "conv0"

    layers = (("x", "CONSTANT"), ("act0", "ACTIVATION"), ("conv0", "CONVOLUTION"), ("reshape_1", "SHUFFLE"))
    trt = Release("8.6.1", dla_cores=1, on_dla=on_dla, layers=layers)
    report = build(save(half=True), trt, dla=0)
    assert [(layer.name, layer.kind, bool(layer.reason)) for layer in report.dla.layers] == [
        ("act0", "Relu", False),
        ("conv0", "Conv", True),
        ("reshape_1", "SHUFFLE", False),
    ]
    assert report.dla.layers[1].macs == 5 * 8 * 8 * 3 * 3 * 3
    assert report.dla.layers[1].reason == "the builder keeps it on the GPU"
    assert (report.dla.fallback_percent, report.dla.transitions) == (100.0, 2)
    assert read_sidecar(report.path).facts["dla"]["transitions"] == 2
    trt = Release("8.6.1", dla_cores=1, on_dla=on_dla, layers=layers)
    with pytest.raises(GateError, match=r"100\.0 % .* at most 40 % .*\nThe largest is conv0 \(Conv\)"):
        build(save(half=True), trt, dla=0, max_dla_fallback=40)
    assert not trt.called("build_serialized_network")


TABLES = ("8.6.1", "10.0.1", "10.3.0")  # whose DLA takes a calibration table
SCALES = "x: 3c010a14\nconv0: 3f800000\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "net.int8.cache"
    publish(
        path,
        lambda partial: partial.write_text(f"TRT-8502-EntropyCalibration2\n{SCALES}"),
        kind="calibration-table",
        parents=[Parent(role="data:train", file="mnist", sha256="1" * 64)],
    )
    return path


@pytest.mark.parametrize("release", TABLES)
def test_a_quantised_network_is_refused_by_a_dla_that_takes_a_table(save, release):
    trt = Release(release, dla_cores=1)
    with pytest.raises(
        InputError, match=rf"{release} does not take them.*\n.*build-engine NAME.onnx .* --dla 0"
    ) as caught:
        build(save(int8=True), trt, dla=0)
    assert caught.value.exit_code == 2
    assert not trt.called("build_serialized_network")


def test_a_quantised_network_is_built_by_a_dla_that_takes_one(save, table):
    assert build(save(int8=True), Release("11.4.0", dla_cores=1), dla=0).dla_core == 0
    for path in (save(), save(int8=True)):
        with pytest.raises(InputError, match=r"11\.4\.0 takes no calibration table; it takes Q/DQ nodes"):
            build(path, Release("11.4.0", dla_cores=1), precision="int8", dla=0, calibration_table=table)


@pytest.mark.parametrize("release", TABLES)
def test_int8_on_a_dla_is_built_from_the_fp32_file_and_a_table(save, table, release):
    trt = Release(release, dla_cores=1)
    report = build(save(batch="N"), trt, precision="int8", batch=4, dla=0, calibration_table=table)
    assert trt.called("create_network") == [0b01]  # weakly typed: flags decide
    assert trt.called("set_flag") == ["BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.GPU_FALLBACK"]
    [calibrator] = trt.called("int8_calibrator")
    assert isinstance(calibrator, trt.module.IInt8EntropyCalibrator2)  # the only one that a DLA takes
    major, minor, patch = map(int, release.split("."))
    number = f"{major}{minor:02}{patch:02}" if major > 9 else f"{major}{minor}{patch:02}"
    assert calibrator.read_calibration_cache() == f"TRT-{number}-EntropyCalibration2\n{SCALES}".encode()
    assert calibrator.get_batch_size() == 4
    assert calibrator.get_batch(["x"]) is None
    calibrator.write_calibration_cache(b"")
    assert trt.called("set_calibration_profile") == trt.called("add_optimization_profile")
    assert (report.precision, report.dla_core) == ("int8", 0)
    side = read_sidecar(report.path)
    roles = {parent.role: (parent.file, parent.sha256) for parent in side.parents}
    assert roles["calibration-table"] == (table.name, sha256_of(table))
    assert set(roles) == {"onnx", "calibration-table", "data:train"}
    assert side.config["calibration_table"] == str(table)


def test_a_file_that_is_no_table_is_refused(save, table):
    for content, says in ((b"TRT-8502-EntropyCalibration2\n", "holds no scales"), (b"x", "not a calibration table"),
                          (b"\xff", "cannot be read")):  # fmt: skip
        table.write_bytes(content)
        with pytest.raises(InputError, match=says):
            build(save(), Release("8.6.1", dla_cores=1), precision="int8", dla=0, calibration_table=table)


def test_a_table_is_for_a_dla(table):
    for options in ({}, {"dla": 0, "precision": "fp16"}):
        with pytest.raises(InputError, match="is for INT8 on a DLA"):
            BuildOptions(calibration_table=table, **options)


def test_every_size_is_fixed_on_dla(save):
    trt = Release("10.3.0", dla_cores=1)
    build(save(half=True, batch="N"), trt, dla=0, batch=4)
    assert ("set_shape", "x", (4, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8)) in trt.calls


# What was built, on a machine that can load it


@pytest.mark.parametrize("release", FULL)
def test_a_built_engine_is_inspected_where_there_is_a_gpu(save, release, monkeypatch):
    gpu = Gpu(name="Orin", compute_capability="8.7")
    monkeypatch.setattr("msn_deploy.engine.build.first_gpu", lambda: gpu)
    jetson = replace(DESK, jetson="NVIDIA Jetson Orin NX Engineering Reference", memory_gib=15.3, gpu_nodes=("/x",))
    trt = Release(release)
    report = build(save(int8=True), trt, machine=jetson)
    assert [(layer.name, layer.kind, layer.precision) for layer in report.layers] == [
        ("conv0", "CaskConvolution", "int8"),
        ("gap0", "CaskPooling", "fp16"),
    ]
    assert report.int8_convs == 1
    assert report.device_memory_bytes == (4096 if release in ("8.6.1", "10.0.1") else 8192)
    facts = read_sidecar(report.path).facts
    assert facts["layers"][0] == {"name": "conv0", "kind": "CaskConvolution", "precision": "int8"}
    assert (facts["device"], facts["compute_capability"], facts["target"]) == ("Orin", "8.7", "orin-nx-16gb")
    assert trt.called("engine_host_code_allowed") == [True]


# Failures


@pytest.mark.parametrize("release", RELEASES)
def test_no_plan_is_an_error_with_the_reason(save, release):
    path = save()
    with pytest.raises(InputError, match=r"TensorRT\S* \d+\.\d+\.\S+ cannot build .*: out of workspace"):
        build(path, Release(release, plan=None))
    assert not path.with_name("model.engine").exists()


@pytest.mark.parametrize("release", RELEASES)
def test_a_parser_error_names_the_node_in_the_words_that_the_release_has(save, release):
    trt = Release(release, error=(1, "act0_of_parser", "Relu", "Assertion failed: bad input"))
    name = "act0" if release in WEAK else "act0_of_parser"  # 8.6 tells the index alone
    with pytest.raises(InputError, match=rf"cannot read node {name} \(Relu\) of .*: bad input"):
        build(save(), trt)


def test_bytes_that_are_not_cast_at_once_are_told_what_tensorrt_takes(save):
    text = "ITensor::getDimensions: Error Code 4: API Usage Error (turn0: first input has type UInt8 but must have type"
    with pytest.raises(InputError, match=r"\nTensorRT takes uint8 into a Cast alone: .*`msn-deploy export`"):
        build(save(), Release("10.3.0", error=(0, "turn0", "Transpose", text)))


def test_a_parser_error_of_no_node_speaks_of_the_graph(save):
    with pytest.raises(InputError, match=r"cannot read the graph of .*: no graph"):
        build(save(), Release("10.3.0", error=(-1, "", "", "no graph")))


@pytest.mark.parametrize("release", RELEASES)
def test_a_parser_that_finds_nothing_is_an_error(save, release):
    with pytest.raises(InputError, match="found no network"):
        build(save(), Release(release, layers=()))


def test_ctrl_c_waits_until_the_builder_returns(save):
    """Raised inside the builder it would pass through C++ frames, and those end the process."""
    done = []

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("built")  # the builder runs to its end

    path = save()
    with pytest.raises(KeyboardInterrupt):
        build(path, Release("8.6.1", building=interrupted))
    assert done == ["built"]
    assert not path.with_name("model.engine").exists()


def test_no_builder_without_a_gpu_is_a_missing_device(save):
    trt = Release("10.3.0", refuse="CUDA initialization failure with error: 35")
    with pytest.raises(MissingDevice, match=r"CUDA initialization failure with error: 35\.\nIt needs an NVIDIA GPU"):
        build(save(), trt)


def test_rtx_does_not_build_for_a_gpu_that_it_does_not_know(save):
    with pytest.raises(InputError, match=r"does not build for agx-orin-64gb \(sm_87\)"):
        build(save(), Release("rtx-1.7.1"), target=find_target("agx-orin"))
