"""Lipschitz bounds against the dense matrices of small networks, and rule by rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.msn import MSNConv2d
from msn_deploy.msn.lipschitz import jacobian_norm, lipschitz
from msn_deploy.nets.blocks import Norm
from msn_deploy.nets.densenet_bc import densenet_bc

SIZE = (1, 3, 6, 6)


def _matrix(model: nn.Module, shape: tuple[int, ...] = SIZE) -> Tensor:
    """The Jacobian at zero of a model of one image, as a matrix."""
    jacobian: Tensor = torch.autograd.functional.jacobian(model, torch.zeros(shape, dtype=torch.float64))  # type: ignore[no-untyped-call]
    return jacobian.reshape(-1, math.prod(shape))


def _norm(model: nn.Module, shape: tuple[int, ...] = SIZE) -> float:
    return float(torch.linalg.matrix_norm(_matrix(model, shape), 2))


LINEAR: dict[str, Any] = {
    "conv": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=2),
    "grouped": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
    "msn": lambda: MSNConv2d(3, 4, 3, padding=1, init_gain=1.4),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 5)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_layer_has_the_norm_of_its_matrix(name: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(LINEAR[name]()).double().eval()
    found = lipschitz(model, torch.randn(2, *SIZE[1:], dtype=torch.float64))
    true = _norm(model)
    (layer,) = found.layers
    assert found.upper == layer.operator == pytest.approx(true, rel=5e-3)  # two values that are close take long to part
    assert found.lower == pytest.approx(true, rel=0.05)  # of fewer steps
    assert found.lower <= true * (1 + 1e-9)
    assert found.upper_by_matrix == pytest.approx(layer.matrix * layer.overlap)
    assert found.upper_by_matrix >= true * (1 - 1e-9)
    assert found.why == ""


def test_a_pixel_is_in_as_many_windows_as_the_stride_leaves() -> None:
    overlaps = [lipschitz(nn.Sequential(LINEAR[name]()).eval(), torch.randn(SIZE)).layers[0].overlap for name in LINEAR]
    assert [round(each**2) for each in overlaps] == [9, 4, 9, 9, 4, 9, 1]


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.gain = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(x) + x)
        return torch.cat([y, self.two(x) * self.gain.view(-1, 1, 1)], 1)


def test_sums_and_concatenations_have_their_rules() -> None:
    model = _Branches().eval()
    model.gain.data = torch.tensor([1.0, -4.0, 2.0])
    found = lipschitz(model, torch.randn(SIZE))
    one, two = (layer.operator for layer in found.layers)
    assert found.upper == pytest.approx(math.hypot(one + 1, 4 * two))
    assert found.lower < found.upper < found.upper_by_matrix  # type: ignore[operator]


def test_pooling_and_batchnorm_have_their_factors() -> None:
    norm = nn.BatchNorm2d(3)
    norm.weight.data, norm.running_var = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 0.25, 9.0])
    for layer, factor in ((nn.MaxPool2d(2), 1), (nn.MaxPool2d(3, 2), 2), (nn.AvgPool2d(2), 0.5), (norm, 4)):
        found = lipschitz(nn.Sequential(nn.ReLU(), layer).eval(), torch.randn(SIZE))
        assert found.upper == pytest.approx(factor, rel=1e-3), layer
        assert found.lower <= factor * (1 + 1e-6)


class _Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class _Overwrites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y.mul_(10)
        return y


@pytest.mark.parametrize(
    ("module", "why"), [(_Squares(), "mul"), (_Overwrites(), "overwrites"), (nn.Softmax(1), "softmax")]
)
def test_what_has_no_rule_has_no_upper_bound(module: nn.Module, why: str) -> None:
    found = lipschitz(module.eval(), torch.randn(SIZE))
    assert (found.upper, found.upper_by_matrix) == (None, None)
    assert why in found.why
    assert found.lower > 0


@pytest.mark.parametrize("norm", ["bn", "msn", "msn-affine", "sn"])
def test_a_dense_network_has_both_bounds(norm: str) -> None:
    torch.manual_seed(0)
    kind = Norm(name=norm, init="kaiming")
    model = densenet_bc(kind, in_channels=1, height_px=8, width_px=8, width=4, classes=3, classifier="linear", layers=1)
    found = lipschitz(model.eval(), torch.randn(4, 1, 8, 8))
    assert found.why == ""
    assert 0 < found.lower < found.upper < found.upper_by_matrix  # type: ignore[operator]


def test_the_jacobian_is_that_of_the_worst_input() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    inputs = torch.randn(5, 4, dtype=torch.float64)
    each = [torch.autograd.functional.jacobian(model, x[None]).reshape(3, 4) for x in inputs]  # type: ignore[no-untyped-call]
    wanted = max(float(torch.linalg.matrix_norm(one, 2)) for one in each)
    assert jacobian_norm(model, inputs) == pytest.approx(wanted, rel=1e-3)
