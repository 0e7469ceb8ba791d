"""DenseNet-BC: MSN in every dense layer is what taking the mean off each feature once gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import NORMS
from msn_deploy.msn import MSNConv2d
from msn_deploy.nets.blocks import Norm
from msn_deploy.nets.densenet_bc import DenseNetBC, Shift, densenet_bc


def _small(norm: str, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    model = densenet_bc(
        Norm(name=norm), in_channels=3, height_px=12, width_px=16, width=4, classes=5, layers=2, **options
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("shift", "gain")):
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.6 - 0.2)
    return model.double()


def _images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 12, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.4


def _plain_weight(conv: nn.Module) -> Tensor:
    matrix = conv.weight.flatten(1)
    v = F.normalize(matrix.detach().T @ conv.u, dim=0)
    u = F.normalize(matrix.detach() @ v, dim=0)
    return conv.weight / (u @ matrix @ v)


def _centred(x: Tensor, shift: Tensor, gain: Tensor | None) -> Tensor:
    x = x - x.mean((0, 2, 3), keepdim=True)
    return (x if gain is None else gain.view(-1, 1, 1) * x) + shift.view(-1, 1, 1)


def _definition(model: Any, x: Tensor) -> Tensor:
    """MSN as the paper has BatchNorm: mean norm of the concatenation, ReLU, spectrally normalised convolution."""

    def conv(layer: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, _plain_weight(layer), None, padding=layer.padding)

    def norm(before: Any, x: Tensor) -> Tensor:
        return F.relu(_centred(x, before.shift, before.gain))

    x = conv(model.stem, x)
    for at, block in enumerate(model.blocks):
        if at:
            transition = model.transitions[at - 1]
            x = F.avg_pool2d(conv(transition.feature, norm(transition.before[0], x)), 2)
        for layer in block:
            inner = layer.bottleneck[0]
            y = F.relu(_centred(conv(inner, norm(layer.before[0], x)), inner.shift, inner.gain))
            x = torch.cat([x, conv(layer.feature, y)], 1)
    return model.classifier(norm(model.last[0], x).mean((2, 3)))


@pytest.mark.parametrize("name", ["msn", "msn-affine"])
def test_training_is_msn_before_every_convolution_of_the_paper(name: str) -> None:
    model = _small(name)
    plain = copy.deepcopy(model)
    ours, theirs = _images().requires_grad_(), _images().requires_grad_()
    expected, got = _definition(plain, theirs), model(ours)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, [theirs, *plain.parameters()], upstream)
    found = torch.autograd.grad(got, [ours, *model.parameters()], upstream)
    largest = max(each.abs().max() for each in wanted)
    for got_gradient, wanted_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(got_gradient, wanted_gradient, rtol=1e-9, atol=1e-11 * float(largest))


def test_a_feature_that_is_not_centred_makes_another_network() -> None:
    model = _small("msn")
    expected = _definition(copy.deepcopy(model), _images())
    conv = model.blocks[0][1].feature
    conv.forward = lambda x: conv._conv_forward(x, conv._normalised_weight(), None)
    assert (model(_images()) - expected).abs().max() > 1e-6  # against 1e-11 above


@pytest.mark.parametrize("norm", NORMS)
def test_each_norm_has_its_parameters_and_trains(norm: str) -> None:
    model = _small(norm)
    model(_images()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("BatchNorm2d" in kinds) == (norm == "bn")
    assert ("GroupNorm" in kinds) == norm.startswith("gn")
    assert ("WSConv2d" in kinds) == norm.endswith("ws")
    assert ("MSNConv2d" in kinds) == norm.startswith("msn")
    assert ("Shift" in kinds) == norm.startswith("msn")


def test_msn_has_fewer_parameters_than_bn() -> None:
    count = {norm: sum(each.numel() for each in _small(norm).parameters()) for norm in ("bn", "msn")}
    shifts = sum(module.shift.numel() for module in _small("msn").modules() if isinstance(module, Shift))
    shifts += sum(
        module.shift.numel()
        for module in _small("msn").modules()
        if isinstance(module, MSNConv2d) and module.shift is not None
    )
    assert count["bn"] - count["msn"] == shifts  # one number per channel where BatchNorm has two


def test_the_size_is_that_of_the_paper() -> None:
    model = densenet_bc(Norm(name="bn"), in_channels=3, height_px=32, width_px=32, width=12, classes=10)
    assert isinstance(model, DenseNetBC)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 99
    assert round(sum(each.numel() for each in model.parameters()) / 1e6, 1) == 0.8  # arXiv 1608.06993, table 2


def test_sides_that_do_not_halve_twice_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 4 pixels, got 30x32"):
        densenet_bc(Norm(name="msn"), in_channels=3, height_px=30, width_px=32, width=4, classes=5)
