"""Variants of networks that are tried in tables: they train, do what they are called, and fold where they should."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.core.recipes import load_recipe
from msn_deploy.msn import MSNConv2d, fold
from msn_deploy.nets import build_net
from msn_deploy.nets.densenet_bc import Shift
from msn_deploy.nets.registry import NETS
from msn_deploy.training import train

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
FOLD = [
    *("layer_gain", "feature_gain", "consumer_gain", "consumer_start", "shift_decay", "momentum_002", "unit_start"),
    *("unit_scale", "unit_channels", "bn_bottlenecks", "gain_noise", "columns_start"),
    "affine_start",
]
OTHERS = ["bn_readers", "bn_last", "row_norm", "bn_constant_deviation", "bn_no_gain"]


@pytest.fixture(scope="module")
def gap_nets() -> Iterator[Any]:
    before = dict(NETS)
    sys.path.insert(0, str(BENCHMARKS))
    import gap_nets

    gap_nets.register()
    yield gap_nets
    sys.path.remove(str(BENCHMARKS))
    NETS.clear()
    NETS.update(before)


def _trained(variant: str, steps: int = 2) -> tuple[nn.Module, Tensor]:
    norm = {"bn_constant_deviation": "bn", "bn_no_gain": "bn", "affine_start": "msn_affine"}.get(variant, "msn")
    recipe = replace(load_recipe(f"densenet_bc_22_{norm}"), net=f"densenet_bc_22_{variant}", width=4)
    torch.manual_seed(0)
    model = build_net(replace(recipe, input_shape=(1, 1, 8, 8)), classes=10).double()
    x, labels = torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.arange(8)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), labels))
        optimizer.step()
    return model, x


def test_all_variants_are_here(gap_nets: Any) -> None:
    assert sorted(gap_nets.DENSE) == sorted([*FOLD, *OTHERS])


@pytest.mark.parametrize("variant", OTHERS)
def test_a_variant_trains(gap_nets: Any, variant: str) -> None:
    model, x = _trained(variant)
    with torch.no_grad():
        assert torch.isfinite(model.eval()(x)).all()


@pytest.mark.parametrize("variant", FOLD)
def test_a_variant_folds_exactly(gap_nets: Any, variant: str) -> None:
    model, x = _trained(variant)
    for module in model.modules():
        (
            module._forward_hooks.clear(),
            module._forward_pre_hooks.clear(),
        )  # which do nothing in evaluation, but a fold can't know
    with torch.no_grad():
        folded = fold(model.eval())
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    assert not [each for each in folded.modules() if isinstance(each, MSNConv2d | nn.BatchNorm2d)]


@pytest.mark.parametrize(("variant", "near"), [("unit_start", 1e-5), ("unit_scale", 1e-5), ("unit_channels", 1e-5)])
def test_deviations_start_at_one(gap_nets: Any, variant: str, near: float) -> None:
    model, x = _trained(variant, steps=0)
    seen: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, MSNConv2d):
            layer.register_forward_hook(lambda _m, _i, y, at=name: seen.update({at: y.var((0, 2, 3), correction=0)}))
    with torch.no_grad():
        model.train()(x)
        assert len(seen) == 21
        for variances in seen.values():
            each = variances if variant == "unit_channels" else variances.mean()
            torch.testing.assert_close(each, torch.ones_like(each), rtol=near, atol=near)
        own = ".gain" if variant == "unit_channels" else ".scale"
        before = {name: value.clone() for name, value in model.state_dict().items() if name.endswith(own)}
        model(2 * x)
        moved = [not torch.equal(value, model.state_dict()[name]) for name, value in before.items()]
    assert all(moved) if variant != "unit_start" else not any(moved)


@pytest.mark.parametrize("variant", ["layer_gain", "feature_gain", "consumer_gain", "consumer_start"])
def test_what_a_variant_adds_is_trained(gap_nets: Any, variant: str) -> None:
    own = ".scale" if variant == "layer_gain" else ".gain"
    start, model = (_trained(variant, steps=steps)[0] for steps in (0, 2))
    before = {name: value for name, value in start.named_parameters() if name.endswith(own)}
    assert len(before) == {"layer_gain": 21, "feature_gain": 12}.get(variant, 12)
    for name, value in model.named_parameters():
        assert name not in before or not torch.equal(value, before[name]), name


def test_weights_start_as_if_they_read_unit_deviations(gap_nets: Any) -> None:
    (start, x), (model, _) = _trained("columns_start", steps=0), _trained("columns_start", steps=0)
    layer, seen = model.blocks[1][2], []
    layer.before[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].std((0, 2, 3))))
    with torch.no_grad():
        model.train()(x)
        size = seen[0]  # before the second pass, in which nothing is divided any more
        new = model.eval().blocks[1][2].bottleneck[0]._normalised_weight()
        old = start.eval().blocks[1][2].bottleneck[0]._normalised_weight()
        torch.testing.assert_close(new * size.view(1, -1, 1, 1), old, rtol=1e-4, atol=1e-6)
        model.train()(x)
        torch.testing.assert_close(model.eval().blocks[1][2].bottleneck[0]._normalised_weight(), new)
    assert size.max() > 1.2 * size.min()


def test_readers_start_at_unit_deviation_and_learn(gap_nets: Any) -> None:
    model, x = _trained("consumer_start", steps=0)
    inner = [module for module in model.modules() if isinstance(module, Shift)]
    assert len(inner) == 12
    seen = []
    inner[3].register_forward_hook(lambda _m, _i, y: seen.append(y.detach().clone()))
    model.train()(x)
    torch.testing.assert_close(seen[0].std((0, 2, 3)), torch.ones(seen[0].shape[1], dtype=torch.float64))
    assert all(module.gain.requires_grad for module in inner)


def test_the_gradient_of_a_batch_normalisation_misses_its_deviation(gap_nets: Any) -> None:
    torch.manual_seed(0)
    plain, other = nn.BatchNorm2d(3), gap_nets._ConstantDeviation(3)
    x = torch.randn(4, 3, 5, 5)
    weights = torch.randn_like(x)
    grads = []
    for norm in (plain, other):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        torch.autograd.backward((y * weights).sum())
        grads.append((y.detach(), leaf.grad, norm.running_mean, norm.running_var))
    for at in (0, 2, 3):
        torch.testing.assert_close(grads[0][at], grads[1][at])
    centred = weights - weights.mean((0, 2, 3), keepdim=True)
    deviation = (x.var((0, 2, 3), correction=0) + 1e-5).sqrt().view(-1, 1, 1)
    torch.testing.assert_close(grads[1][1], centred / deviation)
    assert not torch.allclose(grads[0][1], grads[1][1])


@pytest.mark.parametrize("norm", ["bn", "msn"])
def test_deviations_are_those_of_what_is_read(gap_nets: Any, norm: str, tmp_path: Path) -> None:
    import deviation

    recipe = replace(load_recipe(f"densenet_bc_22_{norm}"), input_shape=(1, 1, 8, 8), fit="resize", width=2)
    recipe = recipe.override(data="digits", epochs=1, batch_size=32)
    result = train(recipe, out=tmp_path, device="cpu", limit_train=64)
    rows = deviation.deviations(result.checkpoint, recipe)
    layers = [f"layer {at}" for at in (1, 2, 3)]
    assert [row["reader"] for row in rows] == [
        *(f"block 1, {each}" for each in layers), "transition 1",
        *(f"block 2, {each}" for each in layers), "transition 2",
        *(f"block 3, {each}" for each in layers), "last",
    ]  # fmt: skip
    for row in rows:
        low, middle, high = row["read"]
        assert 0 < low <= middle <= high
        assert (row["before the ReLU"] == row["read"]) is (norm == "msn")  # a shift moves no deviation
    assert rows[1]["read"][0] <= rows[0]["read"][0]  # what the first reads, the second reads too
    assert rows[1]["read"][2] >= rows[0]["read"][2]
