from __future__ import annotations

import pytest

from msn_deploy.engine.build_log import PhaseShare, count_int8_convs, layer_rows, shorten, weight_memory_bytes

ROWS = """Layers:
Name: a, LayerType: correlation, Inputs: [ { Name: x, Datatype: Int8, Format: f }], Constants: [ ], Outputs: [ ]
Name: b, LayerType: correlation, Inputs: [ { Name: x, Datatype: Half }], Constants: [ { Datatype: Int8 }], Outputs: []
Name: c, LayerType: CaskConvolution, Inputs: [ { Name: x, Format/Datatype: Thirty-two wide row major Int8 format }], \
Outputs: [ { Name: y, Format/Datatype: Int8 }], ParameterType: Convolution
Name: d, LayerType: maxpool, Inputs: [ { Datatype: Int8 }], Constants: [], Outputs: []

I/O Tensors:
 Name: x, IOMode: Input"""


def test_only_convolutions_that_read_int8_are_counted():
    rows = layer_rows(["Layers:\nName: old, LayerType: kgen", "noise", ROWS])
    assert len(rows) == 4
    assert count_int8_convs(rows) == 2
    assert layer_rows(["no listing"]) == []


def test_weight_memory_is_the_last_total():
    assert weight_memory_bytes(["Total Weights Memory: 5 bytes", "x", "Total Weights Memory: 97156 bytes"]) == 97156
    assert weight_memory_bytes(["Total Host Memory: 5 bytes"]) is None


def test_messages_are_cut_to_what_happened():
    text = "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot do it. "
    text += "In run at /_src/a.cpp:2)"
    assert shorten(text) == "Cannot do it"
    assert shorten("a\n  b" + "c" * 500, 20) == "a bccccccccccc [...]"


def test_a_phase_fills_the_step_of_its_parent_and_never_falls():
    share = PhaseShare()
    share.start("all", None, 2)
    share.start("first", "all", 4)
    share.step("first", 0)
    assert share.value() == pytest.approx(0.125)
    share.step("first", 3)
    share.finish("first")
    share.step("all", 0)
    assert share.value() == pytest.approx(0.5)
    share.start("late", "all", 10)
    share.step("late", 4)
    assert share.value() == pytest.approx(0.75)
    share.start("later", None, 100)
    share.finish("late")
    assert share.value() == pytest.approx(0.75)
    share.step("unknown", 3)
