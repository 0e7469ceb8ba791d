from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice
from msn_deploy.engine import DeviceFacts, find_target, pick_backend

DESK = DeviceFacts(
    arch="x86_64",
    jetson=None,
    l4t=None,
    memory_gib=32.0,
    memory_free_gib=20.0,
    driver=None,
    gpu_nodes=(),
    container=False,
)
GPU = replace(DESK, driver="580.65.06", gpu_nodes=("/dev/nvidia0",))
ORIN = replace(
    DESK,
    arch="aarch64",
    jetson="NVIDIA Jetson Orin Nano Developer Kit",
    l4t="36.4.3",
    memory_gib=7.4,
    gpu_nodes=("/dev/nvhost-gpu",),
)


def loader(*present):
    """A stand-in for `require` on a machine where only these modules import."""

    def load(module, *, step):
        if module in present:
            return SimpleNamespace(__name__=module, __version__="9.9")
        raise MissingDependency(f"{module} is not there") from ImportError(f"No module named {module!r}")

    return load


BOTH = ("tensorrt", "tensorrt_rtx")


@pytest.mark.parametrize(
    ("machine", "present", "name", "target", "expected"),
    [
        (DESK, BOTH, "auto", None, "tensorrt-rtx"),  # without a GPU the full TensorRT builds nothing
        (DESK, ("tensorrt_rtx",), "auto", "rtx-sm89", "tensorrt-rtx"),
        (GPU, BOTH, "auto", None, "tensorrt"),
        (GPU, ("tensorrt_rtx",), "auto", None, "tensorrt-rtx"),
        (GPU, BOTH, "auto", "rtx-sm89", "tensorrt-rtx"),
        (GPU, BOTH, "tensorrt-rtx", None, "tensorrt-rtx"),
        (ORIN, BOTH, "auto", None, "tensorrt"),
        (ORIN, BOTH, "auto", "orin-nano", "tensorrt"),
        (ORIN, BOTH, "tensorrt", "orin-nano-super", "tensorrt"),
    ],
)
def test_the_backend_that_can_build_is_taken(machine, present, name, target, expected):
    target = find_target(target) if target else None
    backend = pick_backend(name, target, machine=machine, load=loader(*present))
    assert backend.name == expected
    assert backend.module.__name__ == expected.replace("-", "_")
    assert backend.is_rtx == (expected == "tensorrt-rtx")
    assert backend.title.endswith(" 9.9")


@pytest.mark.parametrize("machine", [DESK, GPU, ORIN])
def test_without_any_tensorrt_both_ways_to_get_one_are_named(machine):
    with pytest.raises(MissingDependency) as caught:
        pick_backend("auto", None, machine=machine, load=loader())
    text = str(caught.value)
    assert text.count("\n") == 2
    for part in ("No module named", "pip install '.[rtx]'", "vendor's own index", "JetPack", "apt install"):
        assert part in text


def test_a_jetson_never_falls_back_to_tensorrt_rtx():
    with pytest.raises(MissingDependency, match="tensorrt: No module"):
        pick_backend("auto", None, machine=ORIN, load=loader("tensorrt_rtx"))


def test_a_wheel_whose_libraries_do_not_load_is_a_missing_dependency():
    def load(module, *, step):
        raise OSError("libnvinfer.so.10: file too short")

    with pytest.raises(MissingDependency, match="file too short"):
        pick_backend("tensorrt", None, machine=GPU, load=load)


@pytest.mark.parametrize(
    ("machine", "name", "target"),
    [
        (DESK, "auto", "orin-nano"),
        (GPU, "tensorrt", "agx-orin"),
        (DESK, "tensorrt-rtx", "thor"),
        (ORIN, "tensorrt-rtx", "orin-nano"),
        (ORIN, "auto", "thor"),
    ],
)
def test_a_plan_for_a_jetson_is_built_on_it(machine, name, target):
    with pytest.raises(MissingDevice, match="tied to the GPU, the OS and the exact TensorRT version") as caught:
        pick_backend(name, find_target(target), machine=machine, load=loader(*BOTH))
    assert caught.value.exit_code == 3


def test_tensorrt_is_not_asked_for_another_gpu():
    with pytest.raises(InputError, match="rtx-sm89"):
        pick_backend("tensorrt", find_target("rtx-sm89"), machine=GPU, load=loader(*BOTH))


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="auto, tensorrt, tensorrt-rtx"):
        pick_backend("openvino", None, machine=DESK, load=loader(*BOTH))
