"""The numbers of a study: against direct computation on every stored gradient and activation of a small training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from msn_deploy import fold
from msn_deploy.core.recipes import Recipe
from msn_deploy.msn import MSNConv2d, SNConv2d, WSConv2d
from msn_deploy.training import train
from msn_deploy.training.dynamics import Dynamics, applied_weight

pytestmark = pytest.mark.slow

LOOKS = 4


def _trained(model: nn.Module, probe: Dynamics, steps: int, every: int = 1) -> list[dict[str, Any]]:
    """Train on noise, watched; return what there was to see at each step, computed the plain way."""
    probe.begin(model)
    first = model[0]
    seen: list[dict[str, Any]] = []
    outputs: list[torch.Tensor] = []
    watched = model[1] if isinstance(model[1], nn.BatchNorm2d | nn.GroupNorm) else first
    watched.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach().clone()))
    rng = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(6, 3, 8, 8, generator=rng) + 0.7
        model(x).square().mean().backward()
        shift = watched.shift if isinstance(watched, MSNConv2d) else watched.bias
        seen.append({"grad": first.weight.grad.clone(), "output": outputs[-1], "shift": shift.detach().clone()})
        probe.before_step(step)
        optimizer.step()
    return seen


def _model(norm: str) -> nn.Sequential:
    torch.manual_seed(0)
    first: list[nn.Module] = {
        "msn": [MSNConv2d(3, 5, 3, init_gain=1.4)],
        "sn": [SNConv2d(3, 5, 3)],
        "none": [nn.Conv2d(3, 5, 3)],
        "bn": [nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)],
        "gn": [nn.Conv2d(3, 5, 3, bias=False), nn.GroupNorm(1, 5)],
        "ws": [WSConv2d(3, 5, 3, init_gain=1.4)],
    }[norm]
    model = nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4))
    for module in model:
        for parameter in (getattr(module, "shift", None), getattr(module, "bias", None)):
            if isinstance(parameter, nn.Parameter):
                nn.init.uniform_(parameter, 0.2, 0.6)
    return model


def _drift(output: torch.Tensor, shift: torch.Tensor | None) -> float:
    each = output.double().numpy().transpose(1, 0, 2, 3).reshape(output.shape[1], -1)
    mean = each.mean(1) - (0 if shift is None else shift.double().numpy())
    return float((np.abs(mean) / each.std(1, ddof=1)).mean())


@pytest.mark.parametrize("norm", ["msn", "sn", "none", "bn", "gn", "ws"])
def test_a_window_is_what_was_there(norm: str) -> None:
    probe, model = Dynamics(every=1), _model(norm)
    seen = _trained(model, probe, LOOKS)
    (window,) = probe.windows
    grads = np.stack([each["grad"].double().numpy() for each in seen])
    flat = grads.reshape(LOOKS, -1)
    root = flat.shape[1] ** 0.5
    hoyer = (root - np.abs(flat).sum(1) / np.linalg.norm(flat, axis=1)) / (root - 1)
    small = (np.abs(flat) < np.abs(flat).max(1, keepdims=True) / 100).mean(1)
    wanted = {
        "sparsity": hoyer.mean(),
        "small": small.mean(),
        "variance": grads.var(0, ddof=1).mean(),
        "drift": np.mean([_drift(each["output"], each["shift"]) for each in seen]),
        "shifted": np.mean([_drift(each["output"], None) for each in seen]),
    }
    assert window["step"] == (LOOKS - 1) / 2
    for key, value in wanted.items():
        assert window[key] == pytest.approx([value], rel=2e-4, abs=2e-6), key
    if norm in ("msn", "bn"):
        assert window["drift"][0] < 1e-5 < 0.1 < window["shifted"][0]
    else:
        assert window["drift"][0] > (0.01 if norm == "ws" else 0.05)  # standardised weights have no mean to add to it


@pytest.mark.parametrize("norm", ["msn", "sn", "none", "ws"])
def test_singular_values_are_those_of_the_weight_that_is_applied(norm: str) -> None:
    probe, model = Dynamics(every=1), _model(norm)
    probe.begin(model)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    probe.before_step(0)
    probe._close()
    window = probe.windows[0]
    model[0]._forward_hooks.clear()  # which fold refuses, rightly
    plain = fold(model.eval())[0].weight.detach() if norm != "none" else model[0].weight.detach()
    values = np.linalg.svd(plain.flatten(1).double().numpy(), compute_uv=False)
    np.testing.assert_allclose(window["singular"][0], values[:5], rtol=1e-5)
    share = values / values.sum()
    assert window["rank"][0] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    torch.testing.assert_close(applied_weight(model[0]), plain)
    true = np.linalg.norm(model[0].weight.detach().flatten(1).numpy(), 2)
    tracked = None if norm in ("none", "ws") else float(model[0].sigma().detach()) / true
    assert window["sigma"] == [pytest.approx(tracked, rel=1e-5) if tracked else None]


def test_eigenvalues_tell_one_direction_from_many() -> None:
    conv = nn.Conv2d(3, 5, 3, bias=False)
    results = []
    for spread in (0.0, 1.0):
        probe = Dynamics(every=1)
        probe.begin(nn.Sequential(conv))
        rng = torch.Generator().manual_seed(0)
        common = torch.randn(conv.weight.shape, generator=rng)
        for step in range(LOOKS):
            noise = torch.randn(conv.weight.shape, generator=rng)
            conv.weight.grad = (1 + step) * common * (1 - spread) + spread * noise
            probe.before_step(step)
        results.append(probe.windows[0])
    one, many = results
    assert (one["eigenvalues"][0][0], one["directions"][0]) == (pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-4))
    assert many["eigenvalues"][0][0] < 0.6
    assert 2 < many["directions"][0] <= LOOKS
    assert sum(many["eigenvalues"][0]) == pytest.approx(1, abs=1e-5)  # four gradients, so four eigenvalues


def test_only_every_kth_step_is_looked_at() -> None:
    probe = Dynamics(every=3)
    seen = _trained(_model("sn"), probe, 3 * LOOKS)
    (window,) = probe.windows
    looked = [each for step, each in enumerate(seen) if step % 3 == 0]
    assert window["step"] == np.mean([0, 3, 6, 9])
    assert window["shifted"][0] == pytest.approx(np.mean([_drift(each["output"], None) for each in looked]), rel=1e-4)


def test_memory_does_not_grow_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from msn_deploy.training import dynamics

    monkeypatch.setattr(dynamics, "_WINDOWS", 6)
    probe, model = Dynamics(every=1), _model("msn")
    seen = _trained(model, probe, 29 * LOOKS)
    probe.finish()
    assert [window["step"] for window in probe.windows] == [15.5, 47.5, 79.5, 105.5]
    mean = np.mean([_drift(each["output"], None) for each in seen[:32]])
    assert probe.windows[0]["shifted"][0] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("norm", ["msn", "bn"])
def test_a_studied_training_has_the_bits_of_an_unstudied_one(
    small_recipe: Callable[..., Recipe], tmp_path: Path, norm: str
) -> None:
    recipe = small_recipe("cnn3", norm, epochs=2, batch_size=16)
    probe = Dynamics(every=2)
    watched = train(recipe, out=tmp_path / "a", device="cpu", limit_train=160, observer=probe)
    alone = train(recipe, out=tmp_path / "b", device="cpu", limit_train=160)
    assert watched.checkpoint.read_bytes() == alone.checkpoint.read_bytes()
    assert probe.layers == (["0", "2", "4"] if norm == "msn" else ["0", "3", "6"])
    assert len(probe.windows) == 20 // 2 // LOOKS
    assert all(len(window[key]) == 3 for window in probe.windows for key in window if key != "step")


def test_dense_networks_are_watched_too(small_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = small_recipe("densenet_bc_22", "msn", epochs=1, batch_size=4, channels_last=False, amp=False)
    probe = Dynamics(every=1)
    train(recipe.override(data="digits"), out=tmp_path, device="cpu", limit_train=16, observer=probe)
    assert len(probe.layers) == 21  # the stem, 9 layers of two, 2 transitions
    assert np.isfinite([window["variance"] for window in probe.windows]).all()
