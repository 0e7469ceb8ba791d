"""Every rule of the graph fold on a network that is made for it, and every reason to keep a norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fold_nets import C, a_norm, folded_and_held
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.slow


class _Net(nn.Module):
    """Layers by name, and a forward that is given as a function of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.steps = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


def _conv(out: int = C, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(C, out, kernel, **options)


def _chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


FOLDED = {
    "conv-norm": lambda: _chain(_conv(padding=1), a_norm(gains="mixed"), nn.ReLU()),
    "transposed-norm": lambda: _chain(
        nn.ConvTranspose2d(C, 2 * C, 3, 2, groups=2, output_padding=1), a_norm(2 * C, "zero")
    ),
    "conv-norm-without-gain": lambda: _chain(_conv(), _filled(nn.BatchNorm2d(C, affine=False))),
    "linear-norm": lambda: _chain(nn.Flatten(), nn.Linear(C * 64, 3), _filled(nn.BatchNorm1d(3))),
    "norm-conv": lambda: _chain(a_norm(gains="mixed"), _conv(8, groups=2)),
    "norm-relu-conv": lambda: _chain(nn.Sigmoid(), a_norm(), nn.ReLU(), _conv()),
    "dead-channel-relu-conv": lambda: _chain(nn.Sigmoid(), a_norm(gains="zero"), nn.ReLU(), _conv()),
    "norm-relu-pool-linear": lambda: _chain(
        nn.Sigmoid(), a_norm(), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(C * 4, 3)
    ),
    "conv-pools-norm": lambda: _chain(_conv(padding=1), nn.MaxPool2d(2), nn.AvgPool2d(2), a_norm(), nn.Sigmoid()),
    "conv-leaky-scale": lambda: _Net(
        lambda m, x: F.leaky_relu(m.conv(x), 0.125) * m.scale["value"], conv=_conv(), scale=_positive()
    ),
    "conv-prelu-scale": lambda: _Net(
        lambda m, x: m.prelu(m.conv(x)) * m.scale["value"],
        conv=_conv(), prelu=nn.PReLU(C), scale=_positive(),
    ),
    "scale-prelu-conv": lambda: _Net(
        lambda m, x: m.conv(m.prelu(m.scale["value"] * x)),
        conv=_conv(padding=1), prelu=nn.PReLU(C), scale=_positive(),
    ),
    "concat-norm": lambda: _Net(
        lambda m, x: torch.sigmoid(m.norm(torch.cat([m.a(x), m.b(x)], 1))),
        a=_conv(6), b=_conv(2), norm=a_norm(8, "mixed"),
    ),
    "add-norm": lambda: _Net(lambda m, x: m.norm(m.a(x) + m.b(x)), a=_conv(), b=_conv(), norm=a_norm(gains="mixed")),
    "norm-twice-read": lambda: _Net(
        lambda m, x: torch.cat([m.a(m.norm(torch.sigmoid(x))), m.b(m.norm(torch.sigmoid(x)))], 1),
        a=_conv(), b=_conv(), norm=a_norm(),
    ),
    "shared-conv": lambda: _Net(
        lambda m, x: m.norm(m.conv(x)) + m.conv(torch.sigmoid(x)), conv=_conv(), norm=a_norm(gains="mixed")
    ),
    "upsampled": lambda: _chain(_conv(padding=1), nn.Upsample(scale_factor=2, mode="bilinear"), a_norm()),
    "factor-behind-relu": lambda: _chain(_conv(), a_norm(), nn.ReLU(), _Times(0.5), nn.AvgPool2d(2)),
    "factor-before-max-pool": lambda: _chain(_conv(), a_norm(), nn.ReLU(), _Times(2.0), nn.MaxPool2d(2)),
    "temperature": lambda: _Net(
        lambda m, x: m.linear(m.norm(m.conv(x)).relu().mean((2, 3)) / 8),
        conv=_conv(), norm=a_norm(), linear=nn.Linear(C, 3),
    ),
    "sum-as-four-means": lambda: _Net(
        lambda m, x: m.after(m.last(4 * F.avg_pool2d(m.norm(m.conv(x)).relu(), 2))),
        conv=_conv(), norm=a_norm(), last=_conv(), after=_filled(nn.BatchNorm2d(C, affine=False)),
    ),
    "norm-behind-global-pool": lambda: _Net(
        lambda m, x: m.linear(m.neck(m.norm(m.conv(x)).relu().mean((2, 3)))),
        conv=_conv(), norm=a_norm(), neck=nn.BatchNorm1d(C), linear=nn.Linear(C, 3),
    ),
    "scaled-residual-branch": lambda: _Net(
        lambda m, x: (lambda y: torch.sigmoid(y + m.second(m.b(y)).relu() * 0.125))(m.first(m.a(x)).relu()),
        a=_conv(), b=_conv(padding=1), first=a_norm(), second=a_norm(),
    ),
    "scaled-parts-of-a-concat": lambda: _Net(
        lambda m, x: torch.sigmoid(torch.cat([m.first(m.a(x)).relu() * 0.5, m.second(m.b(x)).relu()], 1) * 4),
        a=_conv(), b=_conv(), first=a_norm(), second=a_norm(),
    ),
    "division-and-subtraction": lambda: _Net(
        lambda m, x: (m.a["value"] - m.conv(x)) / m.b["value"],
        conv=_conv(), a=_vector(), b=_positive(),
    ),
}  # fmt: skip


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _vector() -> nn.Module:
    return nn.ParameterDict({"value": torch.randn(C, 1, 1)})


def _positive() -> nn.Module:
    return nn.ParameterDict({"value": torch.rand(C, 1, 1) + 0.1})


def _filled(norm: Any) -> Any:
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn(norm.num_features))
        norm.running_var.copy_(torch.rand(norm.num_features) + 0.3)
    return norm


@pytest.mark.parametrize("name", FOLDED)
def test_what_can_be_folded_is(name: str) -> None:
    folded, operators = folded_and_held(FOLDED[name]())
    assert folded.folds
    assert [fold.rule for fold in folded.folds if fold.rule == "kept"] == []
    assert not operators.keys() & {"BatchNormalization", "Mul", "Sub", "Div"}
    assert operators["Add"] == (name in ("shared-conv", "scaled-residual-branch"))


KEPT = {
    "PADDED_BORDER": lambda: _chain(nn.Sigmoid(), a_norm(), nn.ReLU(), _conv(padding=1)),
    "NEGATIVE_GAIN": lambda: _chain(nn.Sigmoid(), a_norm(gains="mixed"), nn.ReLU(), _conv()),
    "NONLINEAR_BETWEEN": lambda: _chain(nn.Sigmoid(), a_norm(), nn.LeakyReLU(0.125), _conv()),
    "GRAPH_OUTPUT": lambda: _Net(lambda m, x: m.norm(F.relu(x)), norm=a_norm()),
    "INPUT_DEPENDENT": lambda: _chain(_conv(), nn.InstanceNorm2d(C), nn.ReLU()),
    "TINY_GAIN": lambda: _Net(
        lambda m, x: m.conv(F.relu(m.norm(torch.sigmoid(x)))), conv=_conv(), norm=_tiny(a_norm())
    ),
}  # fmt: skip


def _tiny(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        norm.weight[2] = 1e-7
        norm.bias[2] = 1.0
    return norm


@pytest.mark.parametrize("code", KEPT)
def test_what_cannot_is_kept_and_told(code: str) -> None:
    folded, _ = folded_and_held(KEPT[code]())
    (kept,) = folded.folds
    assert (kept.rule, kept.code) == ("kept", code)
    assert kept.why
    assert kept.same == ()


def test_a_layer_and_two_norms_do_not_mix_up_length_and_channels() -> None:
    """A Linear on (N, L, C) followed by BatchNorm1d normalises axis 1, which is not what the layer writes."""
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64, C), _filled(nn.BatchNorm1d(C)))
    folded, operators = folded_and_held(model)
    assert [fold.rule for fold in folded.folds] == ["kept"]
    assert operators["BatchNormalization"] == 1


def test_a_sum_of_one_channel_and_many_is_kept() -> None:
    """The norm has a number per channel of the sum, which the single channel can't take."""
    torch.manual_seed(0)
    net = _Net(lambda m, x: m.norm(m.one(x) + m.many(x)), one=_conv(1), many=_conv(), norm=a_norm())
    folded, _ = folded_and_held(net)
    assert [fold.code for fold in folded.folds] == ["UNKNOWN_OPERATOR"]


def test_names_are_those_of_the_modules() -> None:
    net = _Net(lambda m, x: m.first(m.conv(x)), conv=_conv(), first=a_norm())
    folded, _ = folded_and_held(net)
    assert [(fold.norm, fold.operator) for fold in folded.folds] == [("first", "BatchNormalization")]


def test_a_range_between_constants_is_computed() -> None:
    net = _Net(lambda m, x: m.conv(x) + torch.arange(6, dtype=x.dtype), conv=_conv())
    _, operators = folded_and_held(net)
    assert "Range" not in operators


def test_average_pooling_goes_before_a_pointwise_convolution() -> None:
    folded, _ = folded_and_held(_chain(_conv(8, 1), nn.AvgPool2d(2), nn.Sigmoid()))
    assert [node.op_type for node in folded.model.graph.node] == ["AveragePool", "Conv", "Sigmoid"]
    assert folded.pooled_first == ("avg_pool2d",)


def _both_ways(y: Tensor) -> Tensor:
    return F.avg_pool2d(y, 2) + y[:, :, ::2, ::2]


@pytest.mark.parametrize(
    "net",
    [
        lambda: _chain(_conv(8, 1), nn.AvgPool2d(3, 2, 1), nn.Sigmoid()),  # zeros of the padding would get the bias
        lambda: _chain(_conv(8, 3), nn.AvgPool2d(2), nn.Sigmoid()),
        lambda: _chain(_conv(8, 1, stride=2), nn.AvgPool2d(2), nn.Sigmoid()),
        lambda: _Net(lambda m, x: _both_ways(m.conv(x)), conv=_conv(8, 1)),
    ],
)
def test_and_not_where_it_would_change_anything(net: Callable[[], nn.Module]) -> None:
    folded, _ = folded_and_held(net())
    assert folded.pooled_first == ()
