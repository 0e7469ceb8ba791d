"""Other TensorRT releases, as modules that have other names."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from msn_deploy.core.errors import InputError, MissingDevice
from msn_deploy.engine import Backend, BuildOptions, build_engine_file
from msn_deploy.engine.trt_build import is_weakly_typed, mask


def build(onnx_path, *, options=None, backend):
    out = onnx_path.with_name("model.engine")
    return build_engine_file(onnx_path, out, options=options or BuildOptions(), backend=backend)


def test_the_mask_follows_the_enum_and_not_the_bit():
    """Bit 1 is STRONGLY_TYPED in 10.x; bit 0 is EXPLICIT_BATCH in 8 and 10 but STRONGLY_TYPED in 11 and RTX."""
    names = ("EXPLICIT_BATCH", "STRONGLY_TYPED")
    assert mask(SimpleNamespace(EXPLICIT_BATCH=0), *names) == 0b01
    assert mask(SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1), *names) == 0b11
    assert mask(SimpleNamespace(STRONGLY_TYPED=0), *names) == 0b01
    assert mask(SimpleNamespace(), *names) == 0


class FakeTrt:
    """Enough of a TensorRT to see which calls are made; `kinds` are its network creation flags."""

    __version__ = "0.0"

    def __init__(self, kinds, *, builder_flags=(), monitor=False, plan=b"plan", refuse=None, layers=3, ctrl_c=False):
        outer = self
        self.calls = []
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**kinds)
        self.BuilderFlag = SimpleNamespace(**{name: name for name in builder_flags})
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")

        class ILogger:
            def __init__(self):
                pass

        self.ILogger = ILogger
        if monitor:
            self.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})

        class Config:
            def set_memory_pool_limit(self, pool, size):
                outer.calls.append(("workspace", size))

            def set_flag(self, flag):
                outer.calls.append(("flag", flag))

            def create_timing_cache(self, data):
                outer.calls.append(("cache", data))
                return None if data == b"foreign" else SimpleNamespace(data=data)

            def set_timing_cache(self, cache, ignore_mismatch):
                assert ignore_mismatch is False
                return True

            def get_timing_cache(self):
                return SimpleNamespace(serialize=lambda: b"filled")

        class Network:
            num_layers, num_inputs = layers, 1

            def get_input(self, index):
                return SimpleNamespace(name="x", shape=(1, 3, 8, 8))

        class Parser:
            num_errors = 0

            def __init__(self, network, logger):
                pass

            def parse(self, data):
                return True

        class Builder:
            def __init__(self, logger):
                self.logger = logger
                if refuse:
                    logger.log(1, refuse)
                    raise TypeError("factory function returned nullptr")

            def create_network(self, flags):
                outer.calls.append(("network", flags))
                return Network()

            def create_builder_config(self):
                return Config()

            def build_serialized_network(self, network, config):
                if ctrl_c:
                    os.kill(os.getpid(), signal.SIGINT)
                if plan is None:
                    self.logger.log(1, "Error Code 2: out of workspace (. In foo at /x/y.cpp:3)")
                outer.calls.append(("monitor", hasattr(config, "progress_monitor")))
                return None if plan is None else memoryview(plan)

        self.Builder, self.OnnxParser = Builder, Parser

    def backend(self):
        return Backend(name="tensorrt", module=self, version="0.0")


V8 = {"kinds": {"EXPLICIT_BATCH": 0}, "builder_flags": ("FP16", "INT8")}
V10 = {"kinds": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, "builder_flags": ("FP16", "INT8"), "monitor": True}
V11 = {"kinds": {"STRONGLY_TYPED": 0}, "monitor": True}


@pytest.mark.parametrize(
    ("release", "net", "asked", "network_flags", "builder_flags", "monitor"),
    [
        (V8, {}, None, 0b01, [], False),
        (V8, {}, "fp16", 0b01, ["FP16"], False),
        (V8, {"int8": True}, None, 0b01, ["FP16", "INT8"], False),
        (V10, {"half": True}, "fp16", 0b11, [], True),
        (V10, {"int8": True}, "int8", 0b11, [], True),
        (V11, {"int8": True}, None, 0b01, [], True),
    ],
)
def test_flags_are_set_only_where_the_release_is_weakly_typed(
    save, release, net, asked, network_flags, builder_flags, monitor
):
    trt = FakeTrt(**release)
    report = build(save(**net), options=BuildOptions(precision=asked, workspace_mib=64), backend=trt.backend())
    assert [value for name, value in trt.calls if name == "network"] == [network_flags]
    assert [value for name, value in trt.calls if name == "flag"] == builder_flags
    assert ("workspace", 64 << 20) in trt.calls
    assert ("monitor", monitor) in trt.calls
    assert is_weakly_typed(trt) == (release is V8)
    assert report.path.read_bytes() == b"plan"
    assert (report.layers, report.int8_convs, report.weight_memory_bytes) == (None, None, None)


def test_int8_needs_its_nodes_in_the_file_even_where_flags_exist(save):
    with pytest.raises(InputError, match="INT8 was asked for"):
        build(save(), options=BuildOptions(precision="int8"), backend=FakeTrt(**V8).backend())


@pytest.mark.parametrize(("before", "loaded"), [(None, [b""]), (b"good", [b"good"]), (b"foreign", [b"foreign", b""])])
def test_a_timing_cache_is_read_if_it_fits_and_written(save, tmp_path, before, loaded):
    cache = tmp_path / "timing.cache"
    if before is not None:
        cache.write_bytes(before)
    trt = FakeTrt(**V10)
    build(save(), options=BuildOptions(timing_cache=cache), backend=trt.backend())
    assert [value for name, value in trt.calls if name == "cache"] == loaded
    assert cache.read_bytes() == b"filled"


def test_no_plan_is_an_error_with_the_reason(save):
    path = save()
    with pytest.raises(InputError, match=r"TensorRT 0\.0 cannot build .*: out of workspace"):
        build(path, backend=FakeTrt(**V10, plan=None).backend())
    assert not path.with_name("model.engine").exists()


def test_a_parser_that_finds_nothing_is_an_error(save):
    with pytest.raises(InputError, match="found no network"):
        build(save(), backend=FakeTrt(**V11, layers=0).backend())


def test_ctrl_c_waits_until_the_builder_returns(save):
    """Raised inside the builder it would pass through C++ frames, and those end the process."""
    path, trt = save(), FakeTrt(**V8, ctrl_c=True)
    with pytest.raises(KeyboardInterrupt):
        build(path, backend=trt.backend())
    assert ("monitor", False) in trt.calls  # the builder ran to its end
    assert not path.with_name("model.engine").exists()


def test_no_builder_without_a_gpu_is_a_missing_device(save):
    trt = FakeTrt(**V10, refuse="CUDA initialization failure with error: 35")
    with pytest.raises(MissingDevice, match=r"CUDA initialization failure with error: 35\.\nIt needs an NVIDIA GPU"):
        build(save(), backend=trt.backend())
