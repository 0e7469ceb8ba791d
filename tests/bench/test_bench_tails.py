from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msn_deploy.bench.stats import MINIMUM_QUERIES, _early_stop, upper_bound


def at_most(t: int, n: int, percent: int) -> float:
    over = 1 - percent / 100
    return sum(comb(n, k) * over**k * (1 - over) ** (n - k) for k in range(t + 1))


@pytest.mark.parametrize(("percent", "smallest"), sorted(MINIMUM_QUERIES.items()))
def test_minimum_queries_are_those_of_the_early_stopping_rule(percent, smallest):
    assert at_most(1, smallest, percent) <= 0.01 < at_most(1, smallest - 1, percent)


@given(st.sampled_from(sorted(MINIMUM_QUERIES)), st.integers(0, 800))
def test_as_many_are_discarded_as_the_rule_allows(percent, more):
    queries = MINIMUM_QUERIES[percent] + more
    t = _early_stop(queries, percent)
    assert at_most(t, queries, percent) <= 0.01 < at_most(t + 1, queries, percent)


@pytest.mark.parametrize("percent", sorted(MINIMUM_QUERIES))
def test_bounds_are_refused_for_few_queries_and_are_observed_values(percent):
    smallest = MINIMUM_QUERIES[percent]
    values = np.random.default_rng(1).permutation(np.arange(1, 1001))
    assert upper_bound([values[: smallest - 1]], percent) is None
    assert upper_bound([values[:smallest]], percent) == values[:smallest].max()
    bound = upper_bound([values], percent)
    assert bound in values
    assert bound == 1001 - _early_stop(1000, percent) > 10 * percent


def test_equal_queries_have_that_bound():
    assert upper_bound([[7] * 100] * 20, 99) == 7
