"""What cannot be folded exactly is refused with the reason, or left where the caller allows it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fold_cases import EXACT, IN, OUT, apart, conv_bn, loosen, model_input
from torch import Tensor, nn
from torch.nn.utils import parametrize

from msn_deploy.core.errors import FoldError
from msn_deploy.msn import (
    MSNConv2d,
    MSNLinear,
    SNConv2d,
    fold,
    fold_bn_weights,
    fold_msn_weights,
)


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
    model = loosen(_Net(forward))
    with pytest.raises(FoldError, match=reason) as caught:
        fold(model)
    assert len(str(caught.value).splitlines()) <= 3
    with caplog.at_level(logging.WARNING, logger="msn_deploy.msn.fold"):
        left = fold(model, strict=False)
    assert isinstance(left.bn, nn.BatchNorm2d)
    assert any(record.getMessage().startswith("not folded: bn") for record in caplog.records)
    assert apart(model, left, model_input()) == 0


def test_a_norm_called_by_keyword_folds() -> None:
    torch.manual_seed(0)
    model = loosen(_Net(lambda net, x: net.bn(input=net.conv(x))))
    folded = fold(model)
    assert isinstance(folded.bn, nn.Identity)


def test_what_can_be_folded_beside_what_cannot() -> None:
    torch.manual_seed(0)
    model = loosen(nn.Sequential(nn.BatchNorm2d(IN), MSNConv2d(IN, IN, 1), nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT)))
    left = fold(model, strict=False)
    kinds = [type(module).__name__ for module in left]
    assert kinds == ["BatchNorm2d", "Conv2d", "Conv2d", "Identity"]
    assert apart(model, left, model_input()) < EXACT


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


class _Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_a_parametrisation_of_somebody_elses_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(IN, OUT, 3))
    parametrize.register_parametrization(model[0], "weight", _Halved())
    model.eval()
    with pytest.raises(FoldError, match="0: _Halved is not a parametrisation that can be folded"):
        fold(model)


def test_hooks_are_refused() -> None:
    model = loosen(conv_bn(2))
    handle = model[0].register_forward_hook(lambda module, args, output: output.relu())
    with pytest.raises(FoldError, match="0: forward hooks may change what it computes"):
        fold(model)
    handle.remove()
    model[1].register_forward_pre_hook(lambda module, args: (args[0].abs(),))
    with pytest.raises(FoldError, match="1: forward hooks may change what it computes"):
        fold(model)


class _Rectified(MSNConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_a_subclass_with_a_forward_of_its_own_is_refused() -> None:
    with pytest.raises(FoldError, match="0: _Rectified has a forward of its own"):
        fold(nn.Sequential(_Rectified(IN, OUT, 3)).eval())


class _Listed(nn.Module):
    """Registers its layers, and calls them through a plain list that a replacement does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT)
        self.steps = [self.conv, self.bn]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def test_layers_called_through_a_plain_list_are_refused() -> None:
    with pytest.raises(FoldError, match=r"does not hold as submodules[\s\S]*ModuleList"):
        fold(loosen(_Listed()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("wrong", ["bias", "mean", "gain", "shift"])
def test_terms_that_are_not_finite_are_refused(wrong: str, value: float) -> None:
    terms = dict.fromkeys(("bias", "mean", "gain", "shift"), torch.full((OUT,), 0.5))
    terms[wrong] = torch.full((OUT,), value)
    bias = terms.pop("bias")
    with pytest.raises(FoldError, match="not finite"):
        fold_msn_weights(torch.ones(OUT, IN), bias, sigma=torch.tensor(2.0), **terms)
    with pytest.raises(FoldError, match="not finite"):
        fold_bn_weights(torch.ones(OUT, IN), bias, var=torch.ones(OUT), eps=1e-5, **terms)
