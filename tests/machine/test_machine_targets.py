from __future__ import annotations

import re

import pytest

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import PRECISIONS
from msn_deploy.machine.targets import ALIASES, TARGETS, check_dla, check_precision, find_target


def test_names_are_unique_kebab_case_and_no_alias_hides_one():
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names) == 19
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in [*names, *ALIASES])
    assert not set(ALIASES) & set(names)
    assert set(ALIASES.values()) <= set(names)


@pytest.mark.parametrize(
    ("typed", "name", "cc", "memory"),
    [
        ("orin-nano", "orin-nano-8gb", "8.7", 8),
        ("Orin-NX-16GB", "orin-nx-16gb", "8.7", 16),
        ("thor", "thor-t5000", "11.0", 128),
        ("nano", "nano", "5.3", 4),
        ("rtx-sm86", "rtx-sm86", "8.6", None),
    ],
)
def test_a_target_is_found_by_name_and_alias(typed, name, cc, memory):
    target = find_target(typed)
    assert (target.name, target.compute_capability, target.memory_gib) == (name, cc, memory)


def test_an_unknown_target_gets_the_nearest_name_and_the_command_that_lists_them():
    with pytest.raises(InputError, match="orin-nano") as caught:
        find_target("orin-nanno")
    assert "`msn-deploy targets`" in str(caught.value)
    with pytest.raises(InputError) as caught:
        find_target("zzzz")
    assert "Did you mean" not in str(caught.value)


def test_orin_speeds_follow_the_data_sheets():
    """Dense INT8 = SMs x 2048 MAC per clock x 2 x GHz, half of it in FP16; SMs = CUDA cores / 128."""
    clocks = {
        "orin-nano-4gb": (512, 0.625),
        "orin-nano-8gb": (1024, 0.625),
        "orin-nano-super": (1024, 1.02),
        "orin-nx-8gb": (1024, 0.765),
        "orin-nx-16gb": (1024, 0.918),
        "agx-orin-32gb": (1792, 0.939),
        "agx-orin-64gb": (2048, 1.301),
    }
    for name, (cores, ghz) in clocks.items():
        tops = cores / 128 * 2048 * 2 * ghz / 1000
        target = find_target(name)
        assert target.int8_tops == pytest.approx(tops, rel=0.03)
        assert target.fp16_tflops == pytest.approx(tops / 2, rel=0.03)


def test_a_precision_without_a_path_is_refused_with_the_reason():
    for name in ("nano", "tx2"):
        with pytest.raises(InputError, match=r"has no INT8 in TensorRT: its GPU lacks the 8-bit units .*FP32 and FP16"):
            check_precision(find_target(name), "int8")
        check_precision(find_target(name), "fp16")
    for target in TARGETS:
        assert {*target.precisions} <= {*PRECISIONS}
        if target.int8_tops is not None:
            check_precision(target, "int8")


def test_fp8_begins_with_ada_and_thor():
    have = {"thor-t4000", "thor-t5000", "rtx-sm89", "rtx-sm120", "rtx-sm121"}
    for target in TARGETS:
        if target.name in have:
            check_precision(target, "fp8")
            continue
        with pytest.raises(InputError, match=r"has no FP8 in TensorRT: FP8 begins with Ada \(8\.9\)") as caught:
            check_precision(target, "fp8")
        assert all(name in str(caught.value) for name in have)


def test_dla_is_refused_where_there_is_none():
    for name in ("orin-nano", "orin-nano-super", "orin-nano-4gb", "nano", "thor"):
        with pytest.raises(InputError, match=r"has no DLA.*\n.*orin-nx-16gb"):
            check_dla(find_target(name), 0)
    with pytest.raises(InputError, match=r"Orin NX 8GB has 1 DLA cores, .* core 1 is none"):
        check_dla(find_target("orin-nx-8gb"), 1)
    with pytest.raises(InputError, match="core -1"):
        check_dla(find_target("agx-orin"), -1)
    for target in TARGETS:
        for core in range(target.dla_cores):
            check_dla(target, core)
        assert bool(target.dla_cores) == bool(target.dla_version)


def test_the_tensorrt_of_a_target_is_that_of_its_jetpacks():
    assert find_target("orin-nano").tensorrt == ("8.5.2", "8.6.2", "10.3.0", "10.16.2")
    assert find_target("thor").tensorrt == ("10.13.3", "10.16.2")
    assert find_target("thor-t5000").jetpacks == ("7.0", "7.1", "7.2")
    assert find_target("thor-t4000").jetpacks == ("7.1", "7.2")  # it came with 7.1
    assert find_target("orin-nano-super").jetpacks == ("6.1", "6.2", "7.2")
    assert find_target("nano").tensorrt == ("8.2.1",)
    assert all(target.source for target in TARGETS)


def test_only_jetpack_4_and_5_boards_are_weakly_typed():
    weak = {target.name for target in TARGETS if target.weakly_typed}
    assert weak == {"nano", "tx2", "xavier-nx", "agx-xavier"}
