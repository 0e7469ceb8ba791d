"""A converted network trains on: modes, gradients, frozen parameters, statistics, and a BN network of digits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from example_nets import DenseNetBC, ResNet18, images, trained
from fold_cases import IN, OUT, conv_bn, loosen, model_input
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.data import load_split, to_input
from msn_deploy.data.preprocess import measured_preprocess
from msn_deploy.msn import MSNConv2d, convert, fold

pytestmark = pytest.mark.slow

SPECTRAL = ("msn", "msn-affine", "sn")
NORMS = (*SPECTRAL, "none")


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("make", [ResNet18, DenseNetBC])
def test_msn_has_one_parameter_per_channel_less_than_bn(make: type[nn.Module]) -> None:
    model = trained(make)
    new, converted, _ = convert(model, "msn")
    channels = sum(model.get_submodule(name).out_channels for name in converted)
    assert channels > 0
    assert trainable(new) == trainable(model) - channels
    assert trainable(convert(model, "msn-affine").model) == trainable(model)


@pytest.mark.parametrize("norm", SPECTRAL)
def test_training_moves_what_it_should(norm: str) -> None:
    torch.manual_seed(0)
    layer: Any = convert(loosen(conv_bn(2)).train(), norm).model[0]
    before = copy.deepcopy(layer.state_dict())
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(2):  # the second forward is the first to see a weight whose singular pair is another one
        optimiser.zero_grad()
        layer(model_input()).pow(3).sum().backward()
        assert all(parameter.grad.abs().max() > 1e-3 for parameter in layer.parameters())
        optimiser.step()
    after = layer.state_dict()
    moved = {name for name, tensor in after.items() if (tensor - before[name]).abs().max() > 1e-6}
    assert (
        moved
        == {
            "msn": {"weight", "shift", "u", "v", "running_mean", "num_batches_tracked"},
            "msn-affine": {"weight", "shift", "gain", "u", "v", "running_mean", "num_batches_tracked"},
            "sn": {"weight", "bias", "u", "v"},
        }[norm]
    )


@pytest.mark.parametrize("norm", ["msn", "msn-affine"])
def test_the_statistics_go_on_from_where_they_were(norm: str) -> None:
    """One batch in training moves the running mean as it would have moved that of the norm."""
    torch.manual_seed(0)
    model = loosen(conv_bn(2))
    model[1].num_batches_tracked.fill_(7)
    model[1].momentum = 0.25
    new = convert(model.train(), norm).model
    assert new[0].num_batches_tracked == 7
    assert new[0].momentum == 0.25
    with torch.no_grad():
        model[1].running_mean.lerp_(model[0](model_input()).mean((0, 2, 3)), 0.25)
        new(model_input())
        assert new[0].num_batches_tracked == 8
        wanted = model.eval()(model_input())
        torch.testing.assert_close(new.eval()(model_input()), wanted, rtol=1e-11, atol=1e-11)
    model[1].momentum = None
    assert convert(model, norm).model[0].momentum is None


@pytest.mark.parametrize("norm", NORMS)
def test_frozen_parameters_stay_frozen(norm: str) -> None:
    model = trained(ResNet18)
    model.conv1.weight.requires_grad_(False)
    model.blocks[0].bn1.weight.requires_grad_(False)
    model.blocks[0].bn1.bias.requires_grad_(False)
    model.blocks[1].requires_grad_(False)
    new = convert(model, norm).model
    second = "bias" if norm in ("sn", "none") else "shift"
    frozen = {name for name, parameter in new.named_parameters() if not parameter.requires_grad}
    per_layer = ["weight", second, *(["gain"] if norm == "msn-affine" else [])]
    assert frozen == {
        "conv1.weight",
        *(f"blocks.0.conv1.{name}" for name in per_layer if name != "weight"),
        *(f"blocks.1.conv{at}.{name}" for at in (1, 2) for name in per_layer),
    }


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_without_parameters_takes_after_the_weight(norm: str) -> None:
    for frozen in (True, False):
        model = loosen(conv_bn(2, bias=False, affine=False)).requires_grad_(not frozen)
        assert all(parameter.requires_grad is not frozen for parameter in convert(model, norm).model.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_every_mode_stays(norm: str) -> None:
    model = trained(ResNet18).train()
    model.blocks[0].bn1.eval()  # a frozen norm: its mode is what counts
    model.blocks[1].eval()
    new = convert(model, norm).model
    modes = {name: module.training for name, module in model.named_modules()}
    modes["blocks.0.conv1"] = False
    assert {name: module.training for name, module in new.named_modules()} == modes


def _digits(split: str) -> tuple[Tensor, Tensor]:
    data = load_split("digits", split, height_px=12, width_px=12, channels=1)
    return torch.from_numpy(to_input(data.images, measured_preprocess(data.images))), torch.from_numpy(data.labels)


def _fit(model: nn.Module, x: Tensor, labels: Tensor, *, epochs: int, lr: float) -> float:
    """Train in batches of 64, seeded; return the last loss."""
    rng = torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=rng).split(64):
            optimiser.zero_grad()
            loss = F.cross_entropy(model(x[batch]), labels[batch])
            loss.backward()
            optimiser.step()
    return loss.item()


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    return (model.eval()(x).argmax(1) == labels).float().mean().item() * 100


@pytest.fixture(scope="module")
def digits_net() -> tuple[nn.Module, list[Tensor]]:
    """A BN network trained on the digits for four epochs, and images and labels of both splits."""
    data = [*_digits("train"), *_digits("test")]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 9, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)),
    )
    _fit(model, *data[:2], epochs=4, lr=0.05)
    return model, data


@pytest.mark.parametrize("norm", SPECTRAL)
def test_a_network_of_digits_is_fine_tuned(norm: str, digits_net: tuple[nn.Module, list[Tensor]]) -> None:
    model, (x, labels, test_x, test_labels) = digits_net
    before = _accuracy(model, test_x, test_labels)
    assert before > 95
    new, converted, _ = convert(model, norm)
    assert len(converted) == 3
    assert _accuracy(new, test_x, test_labels) == before

    layers: list[Any] = [module for module in new.modules() if hasattr(module, "running_mean")]
    for layer in layers:
        layer.momentum = None
        layer.num_batches_tracked.zero_()
    with torch.no_grad():
        for batch in x.split(64):
            new.train()(batch)
    assert _accuracy(new, test_x, test_labels) > before - 1

    for layer in layers:
        layer.momentum = 0.1
    loss = _fit(new, x, labels, epochs=2, lr=0.01)
    assert np.isfinite(loss)
    after = _accuracy(new, test_x, test_labels)
    assert after > before - 1
    assert _accuracy(fold(new), test_x, test_labels) == after


def test_a_network_trains_after_conversion_without_a_step() -> None:
    """The first batches in training see sigma as it is: no jump from a singular pair that has yet to be found."""
    model = trained(ResNet18)
    new = convert(model, "sn").model
    with torch.no_grad():
        calm = new(images())
        torch.testing.assert_close(new.train()(images()), calm, rtol=1e-9, atol=1e-9)


def test_repr_and_copies_of_a_converted_network() -> None:
    new = convert(loosen(conv_bn(2)), "msn").model
    assert isinstance(new[0], MSNConv2d)
    assert f"{IN}, {OUT}" in repr(new[0])
    twin = copy.deepcopy(new)
    assert torch.equal(twin[0].scale, new[0].scale)
    assert twin[0].scale.data_ptr() != new[0].scale.data_ptr()
