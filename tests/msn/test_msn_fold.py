"""Folding is exact, every term of it matters, and what cannot be folded exactly is refused with the reason."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from msn_deploy.core.errors import FoldError
from msn_deploy.msn import (
    MSNConv1d,
    MSNConv2d,
    MSNConv3d,
    MSNLinear,
    SNConv1d,
    SNConv2d,
    SNConv3d,
    SNLinear,
    fold,
    fold_bn_weights,
    fold_msn_weights,
)

EXACT, MATTERS = 1e-12, 1e-2
IN, OUT, EPS = 4, 8, 0.02
NEUTRAL = {"sigma": 1.0, "var": 1.0 - EPS, "mean": 0.0, "gain": 1.0, "shift": 0.0, "bias": 0.0}


def _uniform(shape: tuple[int, ...], rng: torch.Generator, low: float = 0.5, high: float = 2.5) -> Tensor:
    """Float64 values none of which is 0 or 1 in effect: in [low, 0.9] or [1.2, high]."""
    values = torch.rand(shape, generator=rng, dtype=torch.float64)
    small, large = low + values * (0.9 - low), 1.2 + values * (high - 1.2)
    return torch.where(torch.rand(shape, generator=rng) < 0.5, small, large)


def _random_layer(rank: int, groups: int, terms: tuple[str, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(7)
    x = torch.randn((3, IN, *(6, 5, 4)[:rank]), generator=rng, dtype=torch.float64)
    weight = torch.randn((OUT, IN // groups, *(3, 2, 2)[:rank]), generator=rng, dtype=torch.float64)
    chosen = {name: _uniform(() if name == "sigma" else (OUT,), rng) for name in terms}
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


def _loosen(model: nn.Module, seed: int = 3) -> nn.Module:
    """Give every parameter and statistic of a norm a value that is not neutral; float64, evaluation mode."""
    rng = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for module in model.modules():
            for name in ("running_mean", "running_var", "gain", "shift", "bias"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor):
                    tensor.copy_(_uniform(tuple(tensor.shape), rng))
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.affine:
                module.weight.copy_(_uniform(tuple(module.weight.shape), rng))
    return model.eval()


def _input(rank: int = 2) -> Tensor:
    return torch.randn((3, IN, *(7, 6, 5)[:rank]), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def _apart(model: nn.Module, folded: nn.Module, x: Tensor) -> float:
    before = model(x)
    assert before.abs().max() > MATTERS
    return (folded(x) - before).abs().max().item()


LAYERS: list[tuple[str, Callable[[], nn.Module], type[nn.Module], int]] = [
    ("msn1", lambda: MSNConv1d(IN, OUT, 3, stride=2, padding=1), nn.Conv1d, 1),
    ("msn2", lambda: MSNConv2d(IN, OUT, (3, 2), dilation=(1, 2), groups=2, affine=True), nn.Conv2d, 2),
    ("msn2-reflect", lambda: MSNConv2d(IN, OUT, 3, padding="same", padding_mode="reflect"), nn.Conv2d, 2),
    ("msn2-no-shift", lambda: MSNConv2d(IN, OUT, 3, bias=False), nn.Conv2d, 2),
    ("msn3", lambda: MSNConv3d(IN, OUT, 2, padding=1, affine=True), nn.Conv3d, 3),
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
    layer = _loosen(make())
    model = nn.Sequential(nn.Sequential(layer), nn.Tanh()).eval() if nested else layer
    folded = fold(model)
    assert type(folded[0][0] if nested else folded) is plain
    assert not folded.training
    assert _apart(model, folded, _input(rank)) < EXACT


def _conv_bn(rank: int, *, groups: int = 1, bias: bool = True, affine: bool = True) -> nn.Module:
    if rank == 0:
        return nn.Sequential(nn.Linear(IN, OUT, bias=bias), nn.BatchNorm1d(OUT, affine=affine, eps=EPS))
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](IN, OUT, 3, padding=1, groups=groups, bias=bias)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](OUT, affine=affine, eps=EPS)
    return nn.Sequential(conv, norm)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rank", "groups"), SHAPES)
def test_a_batch_norm_goes_into_its_convolution(rank: int, groups: int, bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    model = _loosen(_conv_bn(rank, groups=groups, bias=bias, affine=affine))
    folded = fold(model)
    assert not any("BatchNorm" in type(module).__name__ for module in folded.modules())
    assert _apart(model, folded, _input(rank)) < EXACT


def test_a_mixed_network_folds_whole() -> None:
    torch.manual_seed(0)
    model = _loosen(
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
    assert _apart(model, folded, _input()) < EXACT


def test_the_model_itself_is_untouched() -> None:
    torch.manual_seed(0)
    model = _loosen(nn.Sequential(MSNConv2d(IN, OUT, 3, affine=True), nn.Conv2d(OUT, 5, 1), nn.BatchNorm2d(5)))
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
    folded = fold(_loosen(nn.Sequential(MSNConv2d(IN, OUT, 3), nn.Conv2d(OUT, 5, 1), nn.BatchNorm2d(5))))
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
    layer = _loosen(layer, seed=draw(0, 1000))
    x = torch.randn(draw(1, 3), shape["in_channels"], height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fold(layer)(x), layer(x), rtol=EXACT, atol=1e-11)


class _Net(nn.Module):
    """A convolution, a norm, and a forward that a test chooses."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(IN, IN, 3, padding=1)
        self.bn = nn.BatchNorm2d(IN)
        self.relu = nn.ReLU()
        self.chosen = [forward]

    def forward(self, x: Tensor) -> Tensor:
        return self.chosen[0](self, x)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "after-a-nonlinearity": (lambda net, x: net.bn(net.relu(net.conv(x))), r"bn: relu \(ReLU\) stands between"),
    "after-a-function": (lambda net, x: net.bn(torch.relu(net.conv(x))), "bn: no layer feeds it directly"),
    "before-the-convolution": (lambda net, x: net.conv(net.bn(x)), "bn: no layer feeds it directly"),
    "convolution-used-twice": (lambda net, x: net.bn(net.conv(x)) + net.conv(x), "conv or the norm itself is used"),
    "norm-used-twice": (lambda net, x: net.bn(net.bn(net.conv(x))), "used more than once|stands between"),
    "output-used-elsewhere": (lambda net, x: (lambda y: net.bn(y) + y)(net.conv(x)), "also used without the norm"),
    "weight-used-directly": (lambda net, x: net.bn(net.conv(x)) * net.conv.weight.mean(), "also used directly"),
    "statistics-used-directly": (lambda net, x: net.bn(net.conv(x)) * net.bn.running_var[0], "also used directly"),
    "never-reached": (lambda net, x: net.conv(x), "bn: the data flow never reaches it"),
    "data-dependent": (lambda net, x: net.bn(net.conv(x)) if x.sum() > 0 else x, "could not be traced"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_batch_norm_that_cannot_be_folded_is_refused_or_left(case: str, caplog: pytest.LogCaptureFixture) -> None:
    forward, reason = REFUSED[case]
    torch.manual_seed(0)
    model = _loosen(_Net(forward))
    with pytest.raises(FoldError, match=reason) as caught:
        fold(model)
    assert len(str(caught.value).splitlines()) <= 3
    with caplog.at_level(logging.WARNING, logger="msn_deploy.msn.fold"):
        left = fold(model, strict=False)
    assert isinstance(left.bn, nn.BatchNorm2d)
    assert any(record.getMessage().startswith("not folded: bn") for record in caplog.records)
    assert _apart(model, left, _input()) == 0


def test_a_norm_called_by_keyword_folds() -> None:
    torch.manual_seed(0)
    model = _loosen(_Net(lambda net, x: net.bn(input=net.conv(x))))
    folded = fold(model)
    assert isinstance(folded.bn, nn.Identity)


def test_what_can_be_folded_beside_what_cannot() -> None:
    torch.manual_seed(0)
    model = _loosen(nn.Sequential(nn.BatchNorm2d(IN), MSNConv2d(IN, IN, 1), nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT)))
    left = fold(model, strict=False)
    kinds = [type(module).__name__ for module in left]
    assert kinds == ["BatchNorm2d", "Conv2d", "Conv2d", "Identity"]
    assert _apart(model, left, _input()) < EXACT


def test_training_mode_is_refused_wherever_it_hides() -> None:
    model = nn.Sequential(nn.Sequential(MSNConv2d(IN, OUT, 3)), nn.ReLU())
    with pytest.raises(FoldError, match="the model is in training mode"):
        fold(model)
    model.eval()
    model[0][0].train()
    with pytest.raises(FoldError, match=r"0\.0 is in training mode[\s\S]*eval\(\)"):
        fold(model)


@pytest.mark.parametrize("make", [lambda: MSNConv2d(IN, IN, 3), lambda: nn.Conv2d(IN, IN, 3)])
def test_shared_modules_are_refused(make: Callable[[], nn.Module]) -> None:
    layer = make()
    with pytest.raises(FoldError, match=r"0\.weight and 2\.weight are one parameter"):
        fold(nn.Sequential(layer, nn.ReLU(), layer).eval())


def test_shared_weights_are_refused() -> None:
    first, second = nn.Linear(4, 4), MSNLinear(4, 4)
    second.weight = first.weight
    with pytest.raises(FoldError, match=r"0\.weight and 1\.weight are one parameter"):
        fold(nn.Sequential(first, second).eval())


@pytest.mark.parametrize(("value", "shown"), [(0.0, "sigma is 0.0"), (float("nan"), "sigma is nan")])
@pytest.mark.parametrize("kind", [MSNConv2d, SNConv2d])
def test_a_weight_without_a_spectral_norm_is_refused(kind: Any, value: float, shown: str) -> None:
    model = nn.Sequential(kind(IN, OUT, 3))
    nn.init.constant_(model[0].weight, value)
    for strict in (True, False):
        with pytest.raises(FoldError, match=f"0: {shown}"):
            fold(model.eval(), strict=strict)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_sigma_has_to_be_positive_and_finite(sigma: float) -> None:
    ones = torch.ones(OUT)
    with pytest.raises(FoldError, match="not a positive finite number"):
        fold_msn_weights(torch.ones(OUT, IN), ones, sigma=torch.tensor(sigma), mean=ones, gain=ones, shift=ones)


@pytest.mark.parametrize("var", [-1.0, float("nan")])
def test_a_diverged_batch_norm_is_refused_by_name(var: float) -> None:
    model = nn.Sequential(nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT)).eval()
    model[1].running_var[3] = var
    with pytest.raises(FoldError, match="1: a BatchNorm has a variance that is negative or not finite"):
        fold(model)


def test_a_batch_norm_without_running_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT, track_running_stats=False)).eval()
    with pytest.raises(FoldError, match="1: it keeps no running statistics"):
        fold(model)


@pytest.mark.parametrize("parametrise", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_parametrised_weights_are_refused_or_left(parametrise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = _loosen(nn.Sequential(parametrise(nn.Conv2d(IN, OUT, 3)), nn.BatchNorm2d(OUT)))
    with pytest.raises(FoldError, match="0: ParametrizedConv2d computes its weight by a parametrisation"):
        fold(model)
    assert _apart(model, fold(model, strict=False), _input()) == 0
    with pytest.raises(FoldError, match="parametrisation"):
        fold(nn.Sequential(parametrise(MSNConv2d(IN, OUT, 3))).eval())


def test_hooks_are_refused() -> None:
    model = _loosen(_conv_bn(2))
    handle = model[0].register_forward_hook(lambda module, args, output: output.relu())
    with pytest.raises(FoldError, match="0: forward hooks may change what it computes"):
        fold(model)
    handle.remove()
    model[1].register_forward_pre_hook(lambda module, args: (args[0].abs(),))
    with pytest.raises(FoldError, match="1: forward hooks may change what it computes"):
        fold(model)


def test_the_old_weight_norm_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(IN, OUT, 3)), nn.BatchNorm2d(OUT)).eval()
    with pytest.raises(FoldError, match="the model cannot be copied"):
        fold(model)


class _Rectified(MSNConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_a_subclass_with_a_forward_of_its_own_is_refused() -> None:
    with pytest.raises(FoldError, match="0: _Rectified has a forward of its own"):
        fold(nn.Sequential(_Rectified(IN, OUT, 3)).eval())
