"""Folding is exact, every term of it matters, and what is not folded is untouched."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from fold_cases import EPS, EXACT, IN, MATTERS, OUT, apart, conv_bn, loosen, model_input, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from msn_deploy.msn import (
    MSNConv1d,
    MSNConv2d,
    MSNConv3d,
    MSNConvTranspose1d,
    MSNConvTranspose2d,
    MSNConvTranspose3d,
    MSNLinear,
    SNConv1d,
    SNConv2d,
    SNConv3d,
    SNConvTranspose2d,
    SNLinear,
    fold,
    fold_bn_weights,
    fold_msn_weights,
)

NEUTRAL = {"sigma": 1.0, "var": 1.0 - EPS, "mean": 0.0, "gain": 1.0, "shift": 0.0, "bias": 0.0}


def _random_layer(rank: int, groups: int, terms: tuple[str, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(7)
    x = torch.randn((3, IN, *(6, 5, 4)[:rank]), generator=rng, dtype=torch.float64)
    weight = torch.randn((OUT, IN // groups, *(3, 2, 2)[:rank]), generator=rng, dtype=torch.float64)
    chosen = {name: uniform(() if name == "sigma" else (OUT,), rng) for name in terms}
    return x, weight, chosen


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3](x, weight, bias, groups=groups)


def _per_channel(term: Tensor, like: Tensor) -> Tensor:
    return term.view(1, -1, *[1] * (like.dim() - 2))


# A rank of 0 is a linear layer, which has no groups.
SHAPES = [(0, 1), (1, 1), (1, 4), (2, 1), (2, 2), (2, 4), (3, 1), (3, 2)]
NORMS = {"msn": ("sigma", "mean", "shift"), "msn-affine": ("sigma", "mean", "gain", "shift"), "sn": ("sigma", "bias")}
MSN_CASES = [(norm, forget) for norm, terms in NORMS.items() for forget in (None, *terms)]


@pytest.mark.parametrize(("rank", "groups"), SHAPES)
@pytest.mark.parametrize(("norm", "forget"), MSN_CASES)
def test_msn_weights_fold_exactly_and_every_term_matters(norm: str, forget: str | None, rank: int, groups: int) -> None:
    x, weight, given_terms = _random_layer(rank, groups, NORMS[norm])
    neutral = {
        name: torch.full(() if name == "sigma" else (OUT,), NEUTRAL[name], dtype=torch.float64)
        for name in ("sigma", "mean", "gain", "shift", "bias")
    }
    terms = {**neutral, **given_terms}
    y = _layer(x, weight / terms["sigma"], terms["bias"], groups)
    expected = _per_channel(terms["gain"], y) * (y - _per_channel(terms["mean"], y)) + _per_channel(terms["shift"], y)
    if forget:
        terms[forget] = neutral[forget]
    folded = fold_msn_weights(weight, terms.pop("bias"), **terms)
    worst = (_layer(x, *folded, groups) - expected).abs().max().item()
    assert worst < EXACT if forget is None else worst > MATTERS


@pytest.mark.parametrize(("rank", "groups"), SHAPES)
@pytest.mark.parametrize("forget", [None, "var", "eps", "mean", "gain", "shift", "bias"])
def test_bn_weights_fold_exactly_and_every_term_matters(forget: str | None, rank: int, groups: int) -> None:
    x, weight, terms = _random_layer(rank, groups, ("var", "mean", "gain", "shift", "bias"))
    y = _layer(x, weight, terms["bias"], groups)
    expected = F.batch_norm(y, terms["mean"], terms["var"], terms["gain"], terms["shift"], eps=EPS)
    eps = EPS
    if forget == "eps":
        eps = 0.0
    elif forget:
        terms[forget] = torch.full_like(terms[forget], NEUTRAL[forget])
    folded = fold_bn_weights(weight, terms.pop("bias"), eps=eps, **terms)
    worst = (_layer(x, *folded, groups) - expected).abs().max().item()
    assert worst < EXACT if forget is None else worst > MATTERS


def test_the_inputs_of_the_pure_functions_are_untouched() -> None:
    _, weight, terms = _random_layer(2, 1, ("sigma", "mean", "gain", "shift", "bias"))
    before = copy.deepcopy((weight, terms))
    folded, offset = fold_msn_weights(weight, terms["bias"], **{k: v for k, v in terms.items() if k != "bias"})
    folded.zero_()
    offset.zero_()
    assert torch.equal(weight, before[0])
    assert all(torch.equal(terms[name], before[1][name]) for name in terms)


def test_float32_weights_are_rounded_once() -> None:
    _, weight, terms = _random_layer(2, 1, ("sigma", "mean", "gain", "shift", "bias"))
    single = {name: term.float() for name, term in terms.items()}
    bias = single.pop("bias")
    folded, offset = fold_msn_weights(weight.float(), bias, **single)
    exact = single["gain"].double() / single["sigma"].double() * weight.float().double().permute(1, 2, 3, 0)
    assert folded.dtype == offset.dtype == torch.float32
    assert torch.equal(folded, exact.permute(3, 0, 1, 2).float())


LAYERS: list[tuple[str, Callable[[], nn.Module], type[nn.Module], int]] = [
    ("msn1", lambda: MSNConv1d(IN, OUT, 3, stride=2, padding=1), nn.Conv1d, 1),
    ("msn2", lambda: MSNConv2d(IN, OUT, (3, 2), dilation=(1, 2), groups=2, affine=True), nn.Conv2d, 2),
    ("msn2-reflect", lambda: MSNConv2d(IN, OUT, 3, padding="same", padding_mode="reflect"), nn.Conv2d, 2),
    ("msn2-no-shift", lambda: MSNConv2d(IN, OUT, 3, bias=False), nn.Conv2d, 2),
    ("msn3", lambda: MSNConv3d(IN, OUT, 2, padding=1, affine=True), nn.Conv3d, 3),
    ("msn-t1", lambda: MSNConvTranspose1d(IN, OUT, 3, stride=2, output_padding=1, affine=True), nn.ConvTranspose1d, 1),
    ("msn-t2", lambda: MSNConvTranspose2d(IN, OUT, (3, 2), groups=2, affine=True), nn.ConvTranspose2d, 2),
    ("msn-t3", lambda: MSNConvTranspose3d(IN, OUT, 2, dilation=2, padding=1), nn.ConvTranspose3d, 3),
    ("sn-t2", lambda: SNConvTranspose2d(IN, OUT, 3, groups=4), nn.ConvTranspose2d, 2),
    ("msn-linear", lambda: MSNLinear(IN, OUT, affine=True), nn.Linear, 0),
    ("sn1", lambda: SNConv1d(IN, OUT, 3, groups=4), nn.Conv1d, 1),
    ("sn2", lambda: SNConv2d(IN, OUT, 3, bias=False), nn.Conv2d, 2),
    ("sn3", lambda: SNConv3d(IN, OUT, 2, stride=2), nn.Conv3d, 3),
    ("sn-linear", lambda: SNLinear(IN, OUT), nn.Linear, 0),
]


@pytest.mark.parametrize(("make", "plain", "rank"), [case[1:] for case in LAYERS], ids=[case[0] for case in LAYERS])
@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_becomes_its_plain_twin(
    make: Callable[[], nn.Module], plain: type[nn.Module], rank: int, nested: bool
) -> None:
    torch.manual_seed(0)
    layer = loosen(make())
    model = nn.Sequential(nn.Sequential(layer), nn.Tanh()).eval() if nested else layer
    folded = fold(model)
    assert type(folded[0][0] if nested else folded) is plain
    assert not folded.training
    assert apart(model, folded, model_input(rank)) < EXACT


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rank", "groups"), SHAPES)
def test_a_batch_norm_goes_into_its_convolution(rank: int, groups: int, bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    model = loosen(conv_bn(rank, groups=groups, bias=bias, affine=affine))
    folded = fold(model)
    assert not any("BatchNorm" in type(module).__name__ for module in folded.modules())
    assert apart(model, folded, model_input(rank)) < EXACT


def test_a_mixed_network_folds_whole() -> None:
    torch.manual_seed(0)
    model = loosen(
        nn.Sequential(
            MSNConv2d(IN, 6, 3, affine=True),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(6, 5, 2, bias=False), nn.BatchNorm2d(5), nn.LeakyReLU(0.1)),
            MSNConv2d(5, 5, 1),
            nn.BatchNorm2d(5),  # on top of MSN: both fold into one convolution
            SNConv2d(5, 4, 2),
            nn.Flatten(),
            SNLinear(4 * 3 * 2, 3),
        )
    )
    folded = fold(model)
    kinds = {type(module).__name__ for module in folded.modules()}
    assert kinds == {"Sequential", "Conv2d", "ReLU", "LeakyReLU", "Identity", "Flatten", "Linear"}
    assert apart(model, folded, model_input()) < EXACT


def test_the_model_itself_is_untouched() -> None:
    torch.manual_seed(0)
    model = loosen(nn.Sequential(MSNConv2d(IN, OUT, 3, affine=True), nn.Conv2d(OUT, 5, 1), nn.BatchNorm2d(5)))
    kinds = [type(module) for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_second_fold_changes_nothing() -> None:
    torch.manual_seed(0)
    folded = fold(loosen(nn.Sequential(MSNConv2d(IN, OUT, 3), nn.Conv2d(OUT, 5, 1), nn.BatchNorm2d(5))))
    again = fold(folded)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in folded.state_dict().items())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_conv2d_folds_exactly(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups = draw(1, 3)
    height, width = draw(5, 9), draw(5, 9)
    shape = {
        "in_channels": groups * draw(1, 3),
        "out_channels": groups * draw(1, 3),
        "kernel_size": (draw(1, 3), draw(1, 3)),
        "stride": (draw(1, 3), draw(1, 3)),
        "padding": (draw(0, 2), draw(0, 2)),
        "dilation": (draw(1, 2), draw(1, 2)),
        "groups": groups,
        "bias": data.draw(st.booleans()),
    }
    kind = data.draw(st.sampled_from(["msn", "msn-affine", "sn", "bn"]))
    torch.manual_seed(draw(0, 1000))
    if kind == "bn":
        layer: nn.Module = nn.Sequential(nn.Conv2d(**shape), nn.BatchNorm2d(shape["out_channels"]))
    elif kind == "sn":
        layer = SNConv2d(**shape)
    else:
        layer = MSNConv2d(**shape, affine=kind == "msn-affine")
    layer = loosen(layer, seed=draw(0, 1000))
    x = torch.randn(draw(1, 3), shape["in_channels"], height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fold(layer)(x), layer(x), rtol=EXACT, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_batch_norm_goes_into_a_transposed_convolution(rank: int, groups: int) -> None:
    torch.manual_seed(rank)
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    model = loosen(nn.Sequential(conv(IN, OUT, 3, stride=2, output_padding=1, groups=groups), norm(OUT, eps=EPS)))
    folded = fold(model)
    assert [type(layer) for layer in folded] == [conv, nn.Identity]
    assert apart(model, folded, model_input(rank)) < EXACT


def _old(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def made(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates the hooks
            return wrap(layer)

    return made


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        _old(nn.utils.spectral_norm),
        _old(nn.utils.weight_norm),
    ],
    ids=["spectral_norm", "weight_norm", "old-spectral_norm", "old-weight_norm"],
)
def test_norms_of_torch_fold_too(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """A few training steps first, so that the singular vectors have moved and sigma is not what it was at birth."""
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Conv2d(IN, OUT, 3)), nn.BatchNorm2d(OUT), nn.ReLU(), wrap(nn.Linear(4, 3))).double()
    x = model_input()
    for _ in range(3):
        model(x)
    model = loosen(model)
    folded = fold(model)
    assert [type(layer) for layer in folded] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Linear]
    assert not folded[0]._forward_pre_hooks
    assert apart(model, folded, x) < EXACT
