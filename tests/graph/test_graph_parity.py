"""Two stages agree, or they do not."""

from __future__ import annotations

import numpy as np
import pytest

from msn_deploy.core.errors import ParityError
from msn_deploy.graph.parity import compare_logits, require_parity

BEFORE = np.array([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0], [0.0, 9.0, 1.0], [2.0, 3.0, 1.0]], dtype=np.float32)


def test_by_hand() -> None:
    after = BEFORE.copy()
    after[0, 0] += 0.5
    after[1] = [4.0, 5.0, 6.0]  # another class
    parity = compare_logits(BEFORE, after)
    assert parity.samples == 4
    assert parity.worst == 2.0
    assert parity.mean == pytest.approx((0.5 + 2 + 0 + 2) / 12)
    assert parity.same_class == 0.75


def test_equal_logits() -> None:
    parity = compare_logits(BEFORE, BEFORE.copy())
    assert (parity.worst, parity.mean, parity.same_class) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("left", "right"), [(np.nan, 1.0), (1.0, np.nan), (np.nan, np.nan), (np.inf, np.inf)])
def test_what_is_no_number_is_an_infinite_difference(left: float, right: float) -> None:
    before, after = BEFORE.copy(), BEFORE.copy()
    before[2, 1], after[2, 1] = left, right
    parity = compare_logits(before, after)
    assert parity.worst == np.inf
    with pytest.raises(ParityError):
        require_parity(parity, before="a", after="b", atol=1e30)


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (4, 3, 1, 1), (12,)])
def test_another_shape_is_an_infinite_difference(shape: tuple[int, ...]) -> None:
    parity = compare_logits(BEFORE, np.resize(BEFORE, shape))
    assert (parity.samples, parity.worst, parity.same_class) == (4, np.inf, 0.0)


def test_outputs_that_are_maps_are_compared_too() -> None:
    maps = np.random.default_rng(0).random((3, 2, 4, 4)).astype(np.float32)
    other = maps.copy()
    other[1] = maps[1].max() + 1 - maps[1]
    assert compare_logits(maps, other).same_class == pytest.approx(2 / 3)


def test_the_tolerance_itself_is_allowed() -> None:
    parity = compare_logits(BEFORE, BEFORE + np.float32(0.5))
    require_parity(parity, before="a", after="b", atol=0.5)
    with pytest.raises(ParityError, match=r"b differs from a: .* = 0\.5, allowed 0\.499") as caught:
        require_parity(parity, before="a", after="b", atol=0.499)
    assert caught.value.worst == 0.5
    assert caught.value.exit_code == 1
