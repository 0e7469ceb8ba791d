"""The start from data; the learning rate: every schedule against torch's own, and the warm-up before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from msn_deploy.core.recipes import Recipe, Schedule, TrainOptions
from msn_deploy.msn.layers import SpectralLayer
from msn_deploy.nets import build_net
from msn_deploy.training import train
from msn_deploy.training.checkpoint import read_tensors
from msn_deploy.training.optimizer import learning_rate, start_from_data


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


@pytest.mark.parametrize("norm", ["msn", "msn-affine", "sn", "bn"])
def test_a_start_from_data_divides_by_the_size_of_what_is_read(small_recipe: Callable[..., Recipe], norm: str) -> None:
    recipe = replace(small_recipe("densenet_bc_22", norm, width=4), input_shape=(1, 1, 8, 8), init="data")
    torch.manual_seed(0)
    model = build_net(recipe, classes=10).double().eval()
    images = 3 * torch.randn(16, 1, 8, 8, dtype=torch.float64)
    layers = {name: each for name, each in model.named_modules() if isinstance(each, SpectralLayer | nn.Linear)}
    old = {name: _effective(each).clone() for name, each in layers.items()}
    buffers = {name: value.clone() for name, value in model.named_buffers() if "running" in name or "num_" in name}
    read: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _m, inputs, name=name: read.setdefault(name, inputs[0].clone()))
    start_from_data(model, images)
    assert not model.training
    assert len(layers) == (1 if norm == "bn" else 22)
    for name, layer in layers.items():
        dims = [dim for dim in range(read[name].dim()) if dim != 1]
        size = (2 * read[name].square().mean(dims)).sqrt().clamp_min(1e-3)
        now = _effective(layer) * size.view(1, -1, *[1] * (old[name].dim() - 2))
        torch.testing.assert_close(now, old[name], rtol=1e-3, atol=1e-5)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers() if name in buffers)
    with torch.no_grad():
        once = model(images)
    assert torch.isfinite(once).all()


def _effective(layer: Any) -> Tensor:
    with torch.no_grad():
        return layer._normalised_weight() if isinstance(layer, SpectralLayer) else layer.weight


def test_a_recipe_that_starts_from_data_repeats_itself(small_recipe: Callable[..., Recipe], tmp_path: Any) -> None:
    recipe = replace(small_recipe("cnn3", "msn", epochs=1, batch_size=32), init="data")
    one, two, other = (
        read_tensors(train(each, out=tmp_path / name, device="cpu", limit_train=64).checkpoint)[0]
        for name, each in (("a", recipe), ("b", recipe), ("c", replace(recipe, init="kaiming")))
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["0.weight"], other["0.weight"])
