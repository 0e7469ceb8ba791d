"""Rounding in training: the numbers of Q/DQ, the gradients of LSQ, steps of few bits."""

from __future__ import annotations

import math

import pytest
import torch

from msn_deploy.training.fake_quant import LARGEST, Activation, Learned, Weight, fine_unit, on_grid, rounded_step


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_step_is_the_nearest_number_of_so_many_bits() -> None:
    given = torch.tensor([1.0, 1.06, 1.07, 15.4, 15.6, 0.0123, 3e-9])
    made = rounded_step(given, 4)
    assert made[:5].tolist() == [1.0, 1.0, 1.125, 15.0, 16.0]
    mantissa, _ = torch.frexp(made)
    assert torch.equal(mantissa * 16, (mantissa * 16).round())
    assert bool(((made / given - 1).abs() <= 1 / 16).all())
    assert torch.equal(rounded_step(made, 4), made)
    assert rounded_step(torch.tensor([1.4, 1.6, 2.9, 3.1]), 1).tolist() == [1, 2, 2, 4]
    for averaged, step in ((False, 1.125), (True, 1.0)):  # where the sums are longer, the step has fewer bits
        assert Activation(torch.tensor(1.13), averaged=averaged).step().item() == step


def test_the_unit_of_a_constant_is_far_finer_than_int8() -> None:
    assert fine_unit(torch.tensor([1.0, 1.9, 2.0])).tolist() == [2.0**-12, 2.0**-12, 2.0**-11]


def test_a_bias_is_a_multiple_of_the_unit_and_passes_gradients() -> None:
    bias = torch.tensor([0.31, -0.07], requires_grad=True)
    made = on_grid(bias, torch.tensor([0.125, 0.0625]))
    assert made.tolist() == [0.25, -0.0625]
    made.sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [1.0, 1.0]


def test_the_gradients_are_those_of_the_paper() -> None:
    """Equation 3 of arXiv 1902.08153 and its section 2.2, written down anew; the step is learned as its logarithm."""
    step = 0.125
    x = (40 * step * _random(8, 3, 5, 5)).requires_grad_()
    with torch.no_grad():
        x[0, 0, 0, :3] = torch.tensor([300.0, -300.0, -128 * step])
    module = Activation(torch.tensor(step))
    upstream = _random(8, 3, 5, 5, seed=1)
    made = module(x)
    made.backward(upstream)
    level = (x / step).detach()
    kept = level.round().clamp(-128, 127)
    assert torch.equal(made.detach(), kept * step)
    inside = (level >= -128) & (level <= 127)
    assert 0 < int((~inside).sum()) < 100
    assert x.grad is not None
    assert torch.equal(x.grad, upstream * inside)
    of_step = torch.where(inside, kept - level, kept)
    wanted = float((upstream * of_step).sum()) / math.sqrt(75 * 127) * step
    assert module.step.log.grad is not None
    assert float(module.step.log.grad) == pytest.approx(wanted, rel=1e-4)


def test_a_weight_starts_unclipped_and_each_channel_has_its_step() -> None:
    weight = _random(4, 3, 3, 3) * torch.tensor([1.0, 1e-3, 50.0, 0.0]).reshape(-1, 1, 1, 1)
    scale = (weight.abs().amax((1, 2, 3), keepdim=True) / LARGEST).clamp_min(1e-6)
    module = Weight(weight, scale)
    step = module.step()
    assert step.shape == (4, 1, 1, 1)
    assert bool((step >= scale * (1 - 1e-6)).all())
    assert bool((step < scale * 2).all())
    assert torch.equal(step.log2(), step.log2().round())
    made = module()
    assert bool(((made - weight).abs() <= step / 2 * (1 + 1e-5)).all())
    assert torch.equal(module.stored().float() * step, made)
    made.sum().backward()
    learned = module.exact.value.grad
    assert learned is not None
    assert learned.abs().amax((1, 2, 3)).tolist() == pytest.approx(
        [float(each) for each in module.exact.size.flatten()], rel=1e-6
    )  # all inside: the gradient of each number is the size of its channel


def test_what_learns_has_the_unit_of_its_own_size() -> None:
    constant = Learned(torch.tensor([0.5, -4.0]))
    assert constant.value.tolist() == [0.125, -1.0]
    assert constant().tolist() == [0.5, -4.0]
    assert Learned(torch.zeros(3))().tolist() == [0.0, 0.0, 0.0]
