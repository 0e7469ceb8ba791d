"""A stage agrees with the first, or it does not and is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from msn_deploy.core.errors import ParityError
from msn_deploy.model import parity
from msn_deploy.model.parity import Rung, require_ladder

BEFORE = np.array([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0], [0.0, 9.0, 1.0], [2.0, 3.0, 1.0]], dtype=np.float32)


def rung(stage: str, truth: NDArray[np.float32], output: NDArray[np.float32]) -> Rung:
    return parity.rung(stage, {"logits": truth}, {"logits": output}, classifies=True)


def test_by_hand() -> None:
    after = BEFORE.copy()
    after[0, 0] += 0.5
    after[1] = [4.0, 5.0, 6.0]  # another class
    found = rung("onnx", BEFORE, after)
    assert found.samples == 4
    assert found.worst == 2.0
    assert found.mean == pytest.approx((0.5 + 2 + 0 + 2) / 12)
    assert found.same_class == 0.75
    signal, noise = 1 + 4 + 9 + 36 + 25 + 16 + 81 + 1 + 4 + 9 + 1, 0.25 + 4 + 4
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    product = 1.5 + 4 + 9 + 24 + 25 + 24 + 81 + 1 + 4 + 9 + 1
    norm = math.sqrt(2.25 + 4 + 9 + 16 + 25 + 36 + 81 + 1 + 4 + 9 + 1)
    assert found.cosine == pytest.approx(product / (math.sqrt(signal) * norm))
    assert not found.passed


def test_equal_outputs() -> None:
    found = rung("onnx", BEFORE, BEFORE.copy())
    assert (found.worst, found.mean, found.cosine, found.sqnr_db, found.same_class) == (0, 0, 1, math.inf, 1)
    assert found.passed


@pytest.mark.parametrize("stage", ["onnx", "fp16", "int8"])
@pytest.mark.parametrize(("left", "right"), [(np.nan, 1.0), (1.0, np.nan), (np.nan, np.nan), (np.inf, np.inf)])
def test_what_is_no_number_agrees_with_nothing(stage: str, left: float, right: float) -> None:
    before, after = BEFORE.copy(), BEFORE.copy()
    before[0, 0], after[0, 0] = left, right
    found = rung(stage, before, after)
    assert found.worst == math.inf
    assert not found.passed


def test_other_shapes_agree_with_nothing() -> None:
    assert not rung("onnx", BEFORE, BEFORE[:, :2]).passed


@pytest.mark.parametrize(("stage", "error", "passes"), [
    ("onnx", 0.8e-3, True), ("onnx", 1.2e-3, False),  # 1e-4 of the largest output, 9
    ("fp16", 2e-2, True), ("fp16", 6e-2, False),  # 40 dB
    ("int8", 0.5, True), ("int8", 1.0, False),  # 15 dB
])  # fmt: skip
def test_each_precision_has_its_limit(stage: str, error: float, passes: bool) -> None:
    assert rung(stage, BEFORE, BEFORE + np.float32(error)).passed == passes


def test_the_first_stage_that_fails_is_named() -> None:
    good, bad = rung("onnx", BEFORE, BEFORE), rung("graph folded", BEFORE, BEFORE + np.float32(0.25))
    require_ladder([good, good], source="net")
    with pytest.raises(ParityError, match=r"net: the first stage that differs is 'graph folded': .* = 0\.25, allowed"):
        require_ladder([good, bad, rung("fp16", BEFORE, BEFORE + 1)], source="net")


def test_maps_are_compared_at_their_largest_output() -> None:
    maps = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)
    other = maps.copy()
    other[0, 0, 0, 0] = 99.0
    assert rung("onnx", maps, other).same_class == pytest.approx(2 / 3)


BOXES = np.array([[[3.0, -8.0], [2.0, 5.0]]], dtype=np.float32)
KINDS = np.array([[7, 0, 2, 5]])


def test_every_output_is_held_against_its_own_size() -> None:
    truth = {"boxes": 1000 * BOXES, "score": BOXES / 4}
    found = parity.rung("onnx", truth, {**truth, "score": truth["score"] + np.float32(1e-3)})
    assert [each.passed for each in found.outputs] == [True, False]
    assert not found.passed
    assert found.worst == pytest.approx(1e-3, rel=1e-3)
    assert found.limit.endswith(" in score")
    assert found.same_class is None
    assert parity.rung("onnx", truth, {**truth, "boxes": truth["boxes"] + np.float32(0.7)}).passed


def test_small_outputs_have_a_small_limit() -> None:
    small = BOXES * np.float32(2e-5)  # 1.6e-4 at most
    found = parity.rung("onnx", {"y": small}, {"y": small + np.float32(3e-6)})
    assert found.sqnr_db > 20
    assert not found.passed


@pytest.mark.parametrize(("others", "passes"), [(0, True), (1, True), (2, False)])
def test_of_integers_one_in_a_thousand_may_differ(others: int, passes: bool) -> None:
    truth = np.arange(1000).reshape(10, 100) % 7
    output = truth.copy()
    output.ravel()[:others] += 3
    assert parity.rung("onnx", {"mask": truth}, {"mask": output}).passed == passes


def test_an_output_that_is_missing_or_of_another_kind_agrees_with_nothing() -> None:
    assert not parity.rung("onnx", {"boxes": BOXES, "kinds": KINDS}, {"boxes": BOXES}).passed
    assert not parity.rung("int8", {"kinds": KINDS}, {"kinds": KINDS.astype(np.float32)}).passed


def test_nothing_found_is_the_same_as_nothing_found() -> None:
    assert parity.rung("onnx", {"boxes": BOXES[:0]}, {"boxes": BOXES[:0]}).passed


def test_a_stage_may_be_off_by_what_the_source_itself_loses_in_float32() -> None:
    truth = {"a": 1000 * BOXES, "b": BOXES}
    found = parity.rung("onnx", truth, {"a": truth["a"] + np.float32(3.0), "b": truth["b"]})
    assert not found.passed
    assert parity.allowing(found, {"a": 0.76, "b": 0.0}).passed
    assert "rounding" in parity.allowing(found, {"a": 0.76, "b": 0.0}).outputs[0].limit
    for lost in ({"a": 0.74, "b": 9.0}, {"b": 9.0}, {"a": math.inf}, {"a": math.nan}):
        assert not parity.allowing(found, lost).passed
    int8 = parity.rung("int8", truth, {"a": -truth["a"], "b": truth["b"]})
    assert not parity.allowing(int8, {"a": 1e9, "b": 1e9}).passed
