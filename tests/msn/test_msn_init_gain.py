"""init_gain: a constant factor with which a layer starts at Kaiming's deviation, and which no other part forgets."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from msn_deploy import fold
from msn_deploy.msn import MSNConv2d, MSNConvTranspose2d, MSNLinear, SNConv1d, SNLinear

KINDS = {
    "conv": (lambda **more: MSNConv2d(6, 8, 3, groups=2, **more), (4, 6, 9, 9)),
    "transposed": (lambda **more: MSNConvTranspose2d(6, 8, 3, **more), (4, 6, 9, 9)),
    "linear": (lambda **more: MSNLinear(12, 7, **more), (30, 12)),
    "sn": (lambda **more: SNConv1d(6, 8, 3, **more), (4, 6, 9)),
    "sn-linear": (lambda **more: SNLinear(12, 7, **more), (30, 12)),
}


def _layer(kind: str, **more: object) -> tuple[nn.Module, torch.Tensor]:
    make, shape = KINDS[kind]
    torch.manual_seed(3)
    layer = make(dtype=torch.float64, **more)
    return layer, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init_gain", [1.0, math.sqrt(2), 3.7])
def test_the_weight_that_is_applied_starts_at_the_deviation_asked_for(kind: str, init_gain: float) -> None:
    layer, _ = _layer(kind, init_gain=init_gain)
    applied = fold(nn.Sequential(layer).eval())[0].weight.detach()
    columns = layer._matrix().shape[1]
    assert float(applied.square().mean().sqrt()) == pytest.approx(init_gain / math.sqrt(columns), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_without_it_the_layer_is_the_papers(kind: str) -> None:
    layer, _ = _layer(kind)
    assert layer.scale is None
    assert "scale" not in layer.state_dict()
    layer.settle()
    torch.testing.assert_close(fold(nn.Sequential(layer).eval())[0].weight, layer.weight / layer.sigma())


@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_what_it_was_at_birth(kind: str) -> None:
    layer, x = _layer(kind, init_gain=1.5)
    born = layer.scale.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer.scale, born)
    assert "scale" not in dict(layer.named_parameters())
    other, _ = _layer(kind, init_gain=9.0)
    other.load_state_dict(layer.state_dict())
    layer.eval(), other.eval(), copy.deepcopy(layer)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    torch.testing.assert_close(fold(nn.Sequential(layer).eval())(x), layer(x), rtol=0, atol=1e-12)


def test_activations_keep_their_size_through_many_layers_with_it_and_vanish_without() -> None:
    def deviation(init_gain: float | None) -> float:
        torch.manual_seed(0)
        layers = [part for _ in range(8) for part in (MSNConv2d(32, 32, 3, padding=1, init_gain=init_gain), nn.ReLU())]
        return float(nn.Sequential(*layers)(torch.randn(4, 32, 12, 12)).detach().std())

    assert 0.1 < deviation(math.sqrt(2)) < 1.5
    assert deviation(None) < 1e-2


def test_between_homogeneous_layers_it_is_the_papers_function_in_other_units() -> None:
    """Scales c1, c2: the paper's network with shifts divided by c1 and c1 * c2, and a classifier multiplied by both."""
    torch.manual_seed(1)
    first, second = (MSNConv2d(3, 8, 3, init_gain=1.4).double(), MSNConv2d(8, 8, 3, init_gain=1.4).double())
    last = nn.Linear(8 * 9, 5).double()
    with torch.no_grad():
        first.shift.uniform_(-1, 1), second.shift.uniform_(-1, 1)
    scaled = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), last)
    plain = copy.deepcopy(scaled)
    c1, c2 = first.scale, second.scale
    plain[0].scale = plain[2].scale = None
    with torch.no_grad():
        plain[0].shift /= c1
        plain[2].shift /= c1 * c2
        plain[6].weight *= c1 * c2
    x = torch.randn(5, 3, 10, 10, dtype=torch.float64)
    torch.testing.assert_close(plain(x), scaled(x), rtol=0, atol=1e-12)


def test_settle_makes_the_pair_that_of_the_weight() -> None:
    layer, _ = _layer("transposed")
    with torch.no_grad():
        layer.weight.normal_()
    true = torch.linalg.matrix_norm(layer._matrix().detach(), 2)
    assert float((layer.sigma().detach() / true - 1).abs()) > 0.05
    layer.settle()
    assert float(layer.sigma().detach()) == pytest.approx(float(true), rel=1e-6)
