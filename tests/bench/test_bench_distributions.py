"""Own distribution functions against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from msn_deploy.bench.bootstrap import (
    binomial_cdf,
    incomplete_beta,
    rank_sum_p_value,
    student_cdf,
    student_quantile,
)

_CHANCES = st.floats(1e-6, 1 - 1e-6)


@given(st.floats(0.05, 5e4), st.floats(0.05, 5e4), st.floats(0, 1))
def test_incomplete_beta(a: float, b: float, x: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-8, abs=1e-12)


@given(st.integers(1, 1_000_000), st.floats(0, 1), st.floats(1e-4, 1 - 1e-4))
def test_binomial_cdf(trials: int, part: float, chance: float) -> None:
    # Around the mean, where it is neither 0 nor 1.
    spread = (trials * chance * (1 - chance)) ** 0.5
    count = int(np.clip(trials * chance + (8 * part - 4) * spread, 0, trials))
    assert binomial_cdf(count, trials, chance) == pytest.approx(special.bdtr(count, trials, chance), rel=1e-7, abs=1e-9)


def test_binomial_cdf_at_its_end() -> None:
    assert binomial_cdf(7, 7, 0.3) == 1.0
    assert binomial_cdf(0, 7, 0.3) == pytest.approx(0.7**7)


@given(st.floats(-60, 60), st.floats(0.5, 3000))
def test_student_cdf(value: float, freedom: float) -> None:
    assert student_cdf(value, freedom) == pytest.approx(special.stdtr(freedom, value), rel=1e-8, abs=1e-14)


def test_student_cdf_beside_its_middle() -> None:
    assert student_cdf(3e-8, 8.0) - 0.5 == pytest.approx(special.stdtr(8.0, 3e-8) - 0.5, rel=1e-6)
    assert student_cdf(-3e-8, 8.0) < 0.5 == student_cdf(0.0, 8.0)


@given(_CHANCES, st.floats(0.5, 3000))
def test_student_quantile(chance: float, freedom: float) -> None:
    assert student_quantile(chance, freedom) == pytest.approx(special.stdtrit(freedom, chance), rel=1e-7, abs=1e-9)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.floats(0, 2))
def test_rank_sum_p_value(n: int, m: int, seed: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=n), generator.normal(size=m) + shift
    expected = stats.mannwhitneyu(first, second, method="exact").pvalue
    assert rank_sum_p_value(first.tolist(), second.tolist()) == pytest.approx(expected, rel=1e-12)


def test_a_tie_is_evidence_for_neither_side() -> None:
    # U is 1.5 of 9, taken as 2: 1 + 1 + 2 orders of 20 are as extreme, on either side.
    assert rank_sum_p_value([1, 2, 4], [2, 5, 6]) == pytest.approx(2 * 4 / 20)
    assert rank_sum_p_value([3.0, 3.0], [3.0, 3.0]) == 1.0
