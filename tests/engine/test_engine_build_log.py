from __future__ import annotations

import pytest

from msn_deploy.engine.build_log import PhaseShare, shorten


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
