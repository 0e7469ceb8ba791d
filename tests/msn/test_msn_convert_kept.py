"""What convert leaves alone for what it is, and the reason it gives."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from example_nets import ChosenFlow
from fold_cases import IN, OUT, conv_bn, loosen, model_input
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from msn_deploy.core.errors import FoldError, InputError
from msn_deploy.msn import convert, fold

NORMS = ("msn", "msn-affine", "sn", "none")


def _with_gains(value: float) -> nn.Module:
    model = conv_bn(2)
    nn.init.constant_(model[1].weight, value)
    return model


def _with_weight(value: float) -> nn.Module:
    model = conv_bn(2)
    nn.init.constant_(model[0].weight, value)
    return model


def _with_variance(value: float) -> nn.Module:
    model = conv_bn(2)
    model[1].running_var[3] = value
    return model


VALUES: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "no-gain": (
        lambda: _with_gains(0.0),
        dict.fromkeys(("msn", "sn"), "the weight to be normalised has the spectral norm 0"),
    ),
    "no-gain-to-speak-of": (
        lambda: _with_gains(1e-12),
        dict.fromkeys(("msn", "sn"), "the weight to be normalised has the spectral norm [0-9.]+e-1[0-9]"),
    ),
    "no-weight": (
        lambda: _with_weight(0.0),
        dict.fromkeys(("msn", "msn-affine", "sn"), "the weight to be normalised has the spectral norm 0"),
    ),
    "weight-not-finite": (
        lambda: _with_weight(float("nan")),
        dict.fromkeys(("msn", "msn-affine", "sn"), "the weight to be normalised is not finite"),
    ),
    "variance-not-positive": (
        lambda: _with_variance(-1.0),
        dict.fromkeys(NORMS, "a BatchNorm has a variance that is negative or not finite"),
    ),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", VALUES)
def test_the_values_decide(case: str, norm: str) -> None:
    make, reasons = VALUES[case]
    torch.manual_seed(0)
    model = make().double()
    new, converted, kept = convert(model, norm)
    if norm not in reasons:
        assert list(converted) == ["0"]
        return
    assert converted == {}
    assert list(kept) == ["1"]
    assert re.fullmatch(reasons[norm], kept["1"])
    assert [type(module) for module in new] == [nn.Conv2d, nn.BatchNorm2d]
    for name, tensor in model.state_dict().items():
        assert torch.equal(new.state_dict()[name].nan_to_num(), tensor.nan_to_num())


def _shared_weight() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(IN, IN, 1), nn.BatchNorm2d(IN), nn.Conv2d(IN, IN, 1), nn.BatchNorm2d(IN))
    model[2].weight = model[0].weight
    return model


def _shared_norm_weight() -> nn.Module:
    model = conv_bn(2)
    model.append(nn.BatchNorm2d(OUT))
    model[2].weight = model[1].weight
    return model


def _registered_twice() -> nn.Module:
    model = ChosenFlow(lambda net, x: net.bn(net.conv(x)))
    model.alias = model.conv
    return model


def _hooked(register: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = conv_bn(2)
        register(model)
        return model

    return make


class _Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


OTHERS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "shared-weight": (_shared_weight, dict.fromkeys("13", "0.weight and 2.weight are one tensor")),
    "shared-gains": (
        _shared_norm_weight,
        {
            "1": "1.weight and 2.weight are one tensor",
            "2": "1 (BatchNorm2d) stands between it and the convolution before it",
        },
    ),
    "registered-twice": (_registered_twice, {"bn": "conv.weight and alias.weight are one tensor"}),
    "no-statistics": (
        lambda: nn.Sequential(nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT, track_running_stats=False)),
        {"1": "it keeps no running statistics"},
    ),
    "forward-hook": (
        _hooked(lambda model: model[0].register_forward_hook(lambda *_: None)),
        {"1": "0: forward hooks may change what it computes"},
    ),
    "backward-hook": (
        _hooked(lambda model: model[1].register_full_backward_hook(lambda *_: None)),
        {"1": "backward hooks on its BatchNorm2d would be lost"},
    ),
    "forward-replaced": (
        _hooked(lambda model: setattr(model[0], "forward", model[0].forward)),
        {"1": "0: its forward has been replaced"},
    ),
    "parametrised": (
        _hooked(lambda model: parametrizations.weight_norm(model[0])),
        {"1": "0: ParametrizedConv2d computes its weight by a parametrisation"},
    ),
    "subclass-of-a-convolution": (
        lambda: nn.Sequential(_Doubled(IN, OUT, 3), nn.BatchNorm2d(OUT)),
        {"1": "no layer feeds it directly"},
    ),
    "subclass-of-a-norm": (
        lambda: nn.Sequential(nn.Conv2d(IN, OUT, 3), _Activated(OUT)),
        {"1": "it (_Activated) has a forward of its own"},
    ),
    "another-axis": (
        lambda: nn.Sequential(nn.Linear(IN, OUT), nn.BatchNorm1d(5)),
        {"1": "BatchNorm1d(5) does not act on the 8 output channels of 0 (Linear)"},
    ),
    "another-rank": (
        lambda: nn.Sequential(nn.Conv2d(IN, 6, 1), nn.BatchNorm1d(6)),
        {"1": "BatchNorm1d(6) does not act on the 6 output channels of 0 (Conv2d)"},
    ),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", OTHERS)
def test_what_hangs_on_a_layer_decides(case: str, norm: str) -> None:
    make, reasons = OTHERS[case]
    torch.manual_seed(0)
    model = loosen(make())
    new, converted, kept = convert(model, norm)
    assert (converted, kept) == ({}, reasons)
    assert [type(module) for module in new.modules()] == [type(module) for module in model.modules()]


class _Narrow(nn.Conv2d):
    """Differs from its base in the constructor alone."""

    def __init__(self, inside: int) -> None:
        super().__init__(inside, 2, 1)


def test_a_subclass_with_the_forward_of_its_base_converts() -> None:
    model = loosen(nn.Sequential(_Narrow(IN), nn.BatchNorm2d(2)))
    for norm, kind in (("msn", "MSNConv2d"), ("none", "_Narrow")):
        new, converted, _ = convert(model, norm)
        assert converted == {"0": kind}
        with torch.no_grad():
            torch.testing.assert_close(new(model_input()), model(model_input()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [OTHERS["another-axis"][0], OTHERS["another-rank"][0]])
def test_a_norm_of_another_axis_is_not_folded_either(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(FoldError, match=r"does not act on the \d output channels of 0"):
        fold(make().eval())


def test_a_model_without_batch_norm_has_nothing_to_convert() -> None:
    assert convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), "msn")[1:] == ({}, {})


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="no norm called 'msm' to convert to; did you mean 'msn'"):
        convert(conv_bn(2), "msm")
    with pytest.raises(InputError, match="known are: msn, msn-affine, sn, none"):
        convert(conv_bn(2), "bn2d!")
    with pytest.raises(InputError, match="power_iterations must be at least 1, got 0"):
        convert(conv_bn(2), "msn", power_iterations=0)
