"""Scores of generated images: against closed forms, and with a classifier that is known through and through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.training.gan_score import frechet_distance, look

pytestmark = pytest.mark.slow


def _sample(seed: int, count: int = 60, size: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size)) @ rng.standard_normal((size, size)) + rng.standard_normal(size)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_the_distance_is_a_distance(one: int, other: int) -> None:
    first, second = _sample(one), _sample(other, count=45)
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-7, abs=1e-7)
    assert there >= 0
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-7 * float(np.trace(np.cov(first.T))))
    assert frechet_distance(first + 3, first) == pytest.approx(9 * first.shape[1], rel=1e-6)


def test_against_the_matrix_root_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    first, second = _sample(1), _sample(2)
    one, other = np.cov(first.T), np.cov(second.T)
    means = first.mean(0) - second.mean(0)
    wanted = means @ means + np.trace(one + other - 2 * linalg.sqrtm(one @ other).real)
    assert frechet_distance(first, second) == pytest.approx(float(wanted), rel=1e-8)


def test_scaling_a_gaussian_has_a_closed_form() -> None:
    first = _sample(3)
    centred = first - first.mean(0)
    wanted = float(np.trace(np.cov(first.T))) * (1 - 2.5) ** 2  # Tr(C + s^2 C - 2 s C)
    assert frechet_distance(centred, 2.5 * centred) == pytest.approx(wanted, rel=1e-9)


def test_features_that_do_not_vary_and_too_few_images() -> None:
    flat = np.concatenate([_sample(4), np.zeros((60, 2))], axis=1)
    assert np.isfinite(frechet_distance(flat, flat[::-1] + 1))
    with pytest.raises(InputError, match="at least two images"):
        frechet_distance(flat[:1], flat)


def test_what_a_classifier_sees() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3))
        model[1].bias.zero_()
    sure = 60 * np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]].reshape(6, 3, 1, 1)
    looks, features = look(model, sure, chunk=4)
    assert (looks.confidence, looks.image_entropy) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert (looks.class_entropy, looks.score) == (pytest.approx(np.log(3)), pytest.approx(3))
    np.testing.assert_allclose(features, sure.reshape(6, 3))
    collapsed, _ = look(model, sure[[0, 0, 3, 3]])
    assert (collapsed.confidence, collapsed.class_entropy, collapsed.score) == (
        pytest.approx(1), pytest.approx(0, abs=1e-9), pytest.approx(1),
    )  # fmt: skip
    blank, _ = look(model, 0 * sure)
    assert (blank.confidence, blank.image_entropy) == (pytest.approx(1 / 3), pytest.approx(np.log(3)))
    assert blank.score == pytest.approx(1)


def test_a_judge_without_a_linear_layer() -> None:
    with pytest.raises(InputError, match="no linear layer"):
        look(nn.Sequential(nn.Flatten()), np.zeros((2, 1, 2, 2), dtype=np.float32))
