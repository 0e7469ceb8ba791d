"""Weight standardisation is the published one, folds exactly, and refuses where it could be something else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fold_cases import EXACT, IN, MATTERS, OUT, apart, loosen, model_input
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.core.errors import FoldError
from msn_deploy.msn import WSConv2d, convert, fold, fold_layers

SHAPES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "groups": 2, "stride": 2},
    {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 2, "dilation": 2, "bias": False},
    {"kernel_size": 1, "affine": False},
]


def _layer(**options: Any) -> nn.Module:
    torch.manual_seed(5)
    return loosen(WSConv2d(IN, OUT, **{"kernel_size": 3, "eps": 0.02, **options}))


def test_it_is_the_published_form_but_for_the_root_of_the_inputs() -> None:
    conv = _layer(affine=False, bias=False, eps=0.0)
    weight = conv.weight
    deviation, mean = torch.std_mean(weight, (1, 2, 3), correction=0, keepdim=True)
    published = (weight - mean) / deviation
    wanted = F.conv2d(model_input(), published / weight[0].numel() ** 0.5)
    torch.testing.assert_close(conv(model_input()), wanted, rtol=1e-12, atol=1e-12)


def test_it_keeps_the_deviation_of_white_noise_where_the_weights_come_from() -> None:
    conv = WSConv2d(64, 256, 3, bias=False).requires_grad_(False)
    x = torch.randn(4, 64, 9, 9, generator=torch.Generator().manual_seed(0))
    assert float(conv(x).std()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("options", SHAPES)
def test_it_folds_exactly(options: dict[str, Any]) -> None:
    conv = _layer(**options)
    folded = fold(conv)
    assert type(folded) is nn.Conv2d
    assert apart(conv, folded, model_input()) < EXACT
    assert conv(model_input().float().double()).requires_grad  # the original is as it was


@pytest.mark.parametrize("forget", ["gain", "bias", "mean", "eps"])
def test_every_term_matters(forget: str) -> None:
    conv, changed = _layer(), _layer()
    with torch.no_grad():
        if forget == "mean":
            changed.weight -= changed.weight.mean((1, 2, 3), keepdim=True)
            changed.weight += conv.weight.mean()
            assert apart(conv, fold(changed), model_input()) < EXACT  # any mean is taken off
            plain = fold(conv)
            plain.weight += conv.weight.mean((1, 2, 3), keepdim=True)
            changed = plain
        elif forget == "eps":
            changed.eps = 0.0
        else:
            getattr(changed, forget).fill_(1.0 if forget == "gain" else 0.0)
    assert apart(conv, fold(changed), model_input()) > (1e-3 if forget == "eps" else MATTERS)


def test_what_float32_holds_is_rounded_once() -> None:
    conv = _layer().float()
    wanted = fold(copy.deepcopy(conv).double()).weight.float()
    assert torch.equal(fold(conv).weight, wanted)


def test_a_norm_behind_it_folds_as_well_and_convert_leaves_it() -> None:
    net = loosen(nn.Sequential(WSConv2d(IN, OUT, 3), nn.BatchNorm2d(OUT), nn.ReLU()))
    folded = fold(net)
    assert [type(each) for each in folded] == [nn.Conv2d, nn.Identity, nn.ReLU]
    assert apart(net, folded, model_input()) < EXACT
    kept = convert(net, "msn")
    assert not kept.converted
    assert kept.kept["1"].endswith("0 (WSConv2d) is normalised already")


def test_the_fold_says_what_it_was() -> None:
    _, (layer,) = fold_layers(nn.Sequential(_layer()).eval())
    assert (layer.name, layer.kind, layer.sigma) == ("0", "WSConv2d", None)


class _Own(WSConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, given, made: made + 1)
    return layer


def _endless(layer: nn.Module) -> nn.Module:
    layer.weight.data[0, 0, 0, 0] = float("inf")
    return layer


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: _Own(IN, OUT, 3).eval(), "_Own has a forward of its own"),
        (lambda: _hooked(_layer()), "forward hooks may change"),
        (lambda: _endless(_layer()), "not finite"),
        (lambda: _layer().train(), "in training mode"),
    ],
)
def test_a_fold_refuses(make: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(FoldError, match=why):
        fold(make())
