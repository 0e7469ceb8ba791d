"""The learning rate: every schedule against torch's own, and the warm-up before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from msn_deploy.core.recipes import Schedule, TrainOptions
from msn_deploy.training.optimizer import learning_rate


def _options(schedule: Schedule, warm_up: float) -> TrainOptions:
    return TrainOptions(epochs=1, batch_size=1, learning_rate=0.4, schedule=schedule, warm_up=warm_up)


def _curve(options: TrainOptions) -> list[float]:
    return [learning_rate(at / 1000, options) for at in range(1001)]


def _of_torch(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], peak: float = 0.4) -> list[float]:
    scheduler = make(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak))
    rates = []
    for _ in range(1001):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        if len(rates) < 1001:
            scheduler.step()
    return rates


def test_one_cycle_is_torchs() -> None:
    got = _curve(_options("one-cycle", 0.3))
    wanted = _of_torch(lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=1001))
    assert got[300] == max(got) == pytest.approx(0.4)
    assert (got[0], got[1000]) == (pytest.approx(0.4 / 25), pytest.approx(0.4 / 1e4))
    np.testing.assert_allclose(got, wanted, atol=2e-3)


def test_cosine_without_warm_up_is_torchs() -> None:
    wanted = _of_torch(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000, eta_min=0.4e-4))
    np.testing.assert_allclose(_curve(_options("cosine", 0.0)), wanted, atol=1e-6)


def test_step_without_warm_up_is_torchs() -> None:
    wanted = _of_torch(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [500, 750], gamma=0.1))
    np.testing.assert_allclose(_curve(_options("step", 0.0)), wanted, rtol=1e-9)


def test_constant_stays_at_its_peak_after_the_warm_up() -> None:
    assert set(_curve(_options("constant", 0.2))[200:]) == {0.4}


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_every_schedule_warms_up_alike_and_never_leaves_its_range(schedule: Schedule) -> None:
    got = _curve(_options(schedule, 0.2))
    assert got[:200] == _curve(_options("constant", 0.2))[:200] == sorted(got[:200])
    assert got[200] == pytest.approx(0.4)
    assert got[200:] == sorted(got[200:], reverse=True)
    assert min(got) > 0
