from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from msn_deploy.bench.bootstrap import (
    binomial_cdf,
    build_variance,
    incomplete_beta,
    paired_draws,
    rank_sum_p_value,
    satterthwaite,
    single_draws,
    student_cdf,
    student_quantile,
    widened,
)


@pytest.mark.parametrize("rounds", [2, 5, 10, 41])
def test_medians_are_drawn_as_from_rounds_picked_one_by_one(rounds):
    values = np.random.default_rng(3).normal(size=(1, rounds))
    ours = single_draws(values, 20_000, seed=1)
    picks = np.random.default_rng(2).integers(rounds, size=(20_000, rounds))
    slow = np.median(values[0][picks], axis=1)
    for percent in (2.5, 25, 50, 75, 97.5):
        near = np.percentile(slow, [max(0, percent - 1), min(100, percent + 1)])
        assert near[0] - 1e-9 <= np.percentile(ours, percent) <= near[1] + 1e-9


def test_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch):
    values = np.random.default_rng(3).normal(size=(1, 30))
    whole = single_draws(values, 5000, seed=1)
    monkeypatch.setattr("msn_deploy.bench.bootstrap._CHUNK_VALUES", 3000)
    parts = single_draws(values, 5000, seed=1)
    assert len(parts) == 5000
    assert parts.std() == pytest.approx(whole.std(), rel=0.05)


def test_builds_are_drawn_apart_for_each_arm_and_spread_as_their_means_do():
    random = np.random.default_rng(5)
    arm, baseline = (random.normal(size=(builds, 1)) + np.zeros((1, 20)) for builds in (3, 4))
    expected = sum(each[:, 0].var(ddof=1) / len(each) for each in (arm, baseline))
    assert paired_draws(arm, baseline, 40_000, seed=0).var() == pytest.approx(expected, rel=0.03)


def test_what_both_arms_share_in_a_round_leaves_the_ratio():
    common = np.random.default_rng(5).normal(size=(1, 20))
    assert paired_draws(common + 0.3, common, 100, seed=0) == pytest.approx(0.3)


@pytest.mark.parametrize(("freedom", "student_t"), [(2.0, 4.302653), (9.0, 2.262157), (99.0, 1.984217)])
def test_an_interval_is_that_of_students_t_with_the_missing_degree_of_freedom(freedom, student_t):
    draws = np.random.default_rng(1).normal(2.0, 0.5, 400_000)
    units = int(freedom) + 1
    low, high, p_value = widened(draws, centre=2.0, freedom=freedom, units=units, alpha=0.05)
    half = student_t * 0.5 * (units / freedom) ** 0.5
    assert (2 - low, high - 2) == pytest.approx((half, half), rel=0.01)
    assert (p_value < 0.05) == (low > 0)


def test_draws_that_do_not_differ_are_sure():
    same = np.full(10, 0.2)
    assert widened(same, centre=0.2, freedom=9, units=10, alpha=0.05) == (0.2, 0.2, 0.0)
    assert widened(0 * same, centre=0.0, freedom=9, units=10, alpha=0.05) == (0.0, 0.0, 1.0)


def test_degrees_of_freedom_lie_between_those_of_the_parts():
    assert satterthwaite([(1.0, 2), (0.0, 50)]) == pytest.approx(2)
    assert satterthwaite([(0.0, 0), (1.0, 50)]) == pytest.approx(50)
    assert satterthwaite([(1.0, 2), (1.0, 2)]) == pytest.approx(4)
    assert satterthwaite([(0.0, 2), (0.0, 50)]) == 50


def test_variance_of_builds_is_that_of_their_mean():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [6.0, 7.0, 8.0]])
    assert build_variance(values, np.array([1.0, 2.0, 3.0])) == (pytest.approx(7 / 3), 2)
    assert build_variance(values[:1], 0.0) == (0.0, 0)


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
