"""What convert leaves alone for the way its data flows, in training and in evaluation, and the reason it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from example_nets import ChosenFlow
from fold_cases import loosen, model_input
from torch import Tensor, nn

from msn_deploy.core.errors import InputError
from msn_deploy.msn import convert


def _raising(net: Any, x: Tensor) -> Tensor:
    assert x.shape[0] == 3
    return net.bn(net.conv(x))


FLOWS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "after-a-nonlinearity": (
        lambda net, x: net.bn(net.relu(net.conv(x))),
        "relu (ReLU) stands between it and the convolution before it",
    ),
    "after-a-function": (lambda net, x: net.bn(net.conv(x).relu()), "no layer feeds it directly"),
    "changed-in-place": (
        lambda net, x: (lambda y: (y.add_(1), net.bn(y))[1])(net.conv(x)),
        "the output of conv is also used without the norm",
    ),
    "before-the-convolution": (lambda net, x: net.conv(net.bn(x)), "no layer feeds it directly"),
    "convolution-used-twice": (
        lambda net, x: net.bn(net.conv(x)) + net.conv(x),
        "conv or the norm itself is used more than once",
    ),
    "norm-used-twice": (
        lambda net, x: net.bn(net.conv(x)) + net.bn(net.other(x)),
        "other or the norm itself is used more than once",
    ),
    "output-used-elsewhere": (
        lambda net, x: (lambda y: net.bn(y) + y)(net.conv(x)),
        "the output of conv is also used without the norm",
    ),
    "weight-used-directly": (
        lambda net, x: net.bn(net.conv(x)) * net.conv.weight.mean(),
        "the weights of conv or of the norm are also used directly",
    ),
    "never-reached": (lambda net, x: net.conv(x), "the data flow never reaches it"),
    "untraceable": (
        _raising,
        "the data flow could not be traced (TraceError: symbolically traced variables cannot be used as inputs to "
        "control flow); with an `example`, torch.export is asked",
    ),
    "norm-only-in-training": (
        lambda net, x: net.bn(net.conv(x)) if net.training else net.conv(x),
        "in evaluation, the data flow never reaches it",
    ),
    "output-used-in-training": (
        lambda net, x: (lambda y: net.bn(y) + y if net.training else net.bn(y))(net.conv(x)),
        "in training, the output of conv is also used without the norm",
    ),
    "norm-only-in-evaluation": (
        lambda net, x: net.conv(x) if net.training else net.bn(net.conv(x)),
        "in training, the data flow never reaches it",
    ),
    "fed-by-two": (
        lambda net, x: net.bn(net.other(x) if net.training else net.conv(x)),
        "in training, another layer feeds it",
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", FLOWS)
def test_the_data_flow_decides(case: str, training: bool) -> None:
    forward, reason = FLOWS[case]
    torch.manual_seed(0)
    model = loosen(ChosenFlow(forward)).train(training)
    new, converted, kept = convert(model, "msn")
    assert (converted, kept) == ({}, {"bn": reason})
    assert type(new.conv) is nn.Conv2d
    assert all(module.training == training for module in new.modules())
    with torch.no_grad():
        assert torch.equal(new.eval()(model_input()), model.eval()(model_input()))


def test_an_auxiliary_head_that_only_training_has_converts() -> None:
    model = loosen(ChosenFlow(lambda net, x: net.other(x) + (net.bn(net.conv(x)) if net.training else 0)))
    assert convert(model, "msn").converted == {"conv": "MSNConv2d"}


def test_layers_in_a_plain_list_are_refused() -> None:
    model = ChosenFlow(lambda net, x: net.layers[1](net.layers[0](x)))
    model.layers = [model.conv, model.bn]
    with pytest.raises(InputError, match=r"calls layers that it does not hold as submodules[\s\S]*ModuleList"):
        convert(model, "msn")


def test_an_error_without_words_is_shown_by_its_name() -> None:
    def fail(net: Any, x: Tensor) -> Tensor:
        raise NotImplementedError

    kept = convert(ChosenFlow(fail), "msn").kept
    assert kept == {
        "bn": "the data flow could not be traced (NotImplementedError: ); with an `example`, torch.export is asked"
    }
