from __future__ import annotations

import numpy as np
import pytest

from msn_deploy.bench.bootstrap import build_variance, paired_draws, satterthwaite, single_draws, widened


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
