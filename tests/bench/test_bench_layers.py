"""Rooflines against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_results import layers_of

from msn_deploy.bench.layers import LayerProfile, limits_of, roofline_parts
from msn_deploy.engine import find_target
from msn_deploy.model.cost import Cost

COST = Cost(batch=1, flops=3_000_000_000, weight_bytes=2_000_000, activation_bytes=4_000_000)


def profile_with(cost, limits=None):
    return LayerProfile(source="s", runs=5, layers=(), cost=cost, limits=limits)


def test_what_a_query_needs_and_what_was_reached():
    parts = roofline_parts(profile_with(COST), 2.0)
    assert parts == ["3 GFLOP", "6 MB moved", "500 FLOP/B", "reached 1.5e+03 GFLOP/s and 3 GB/s"]
    assert roofline_parts(profile_with(None), 2.0) == []
    small = Cost(batch=1, flops=950, weight_bytes=20_000, activation_bytes=0, uncounted=("Softmax", "Einsum"))
    assert roofline_parts(profile_with(small), 1.0)[:2] == ["950 FLOP", "20 kB moved"]
    assert roofline_parts(profile_with(small), 1.0)[-1] == "without the operations of Softmax, Einsum"


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [
        # Orin Nano 8GB: 10 TFLOPS in FP16, 20 TOPS in INT8, 68 GB/s. 3 GFLOP take 0.3 or 0.15 ms, 6 MB take 0.088 ms.
        ("fp16", "Jetson Orin Nano 8GB allows 0.3 ms (FP16 arithmetic), 15 % of the median"),
        ("int8", "Jetson Orin Nano 8GB allows 0.15 ms (INT8 arithmetic), 7.5 % of the median"),
        ("fp32", "Jetson Orin Nano 8GB allows 0.0882 ms (memory), 4.41 % of the median"),
    ],
)
def test_what_the_device_allows(precision, allowed):
    limits = limits_of(find_target("orin-nano-8gb"), precision)
    parts = roofline_parts(profile_with(COST, limits), 2.0)
    assert allowed in parts
    assert ("its FP32 rate is not known" in parts) is (precision == "fp32")


def test_memory_bounds_what_has_little_arithmetic():
    limits = limits_of(find_target("orin-nano-8gb"), "int8")
    parts = roofline_parts(profile_with(replace(COST, flops=1_000_000), limits), 2.0)
    assert "Jetson Orin Nano 8GB allows 0.0882 ms (memory), 4.41 % of the median" in parts


@pytest.mark.parametrize("target", [None, find_target("rtx-sm86")])
def test_no_limits_where_they_are_not_known(target):
    assert limits_of(target, "fp16") is None


def test_slowest_first():
    profile = layers_of(1.0, count=6)
    turned = replace(profile, layers=profile.layers[::-1])
    assert turned.slowest(2) == list(profile.layers[:2])
    assert turned.total_us == pytest.approx(1000)
