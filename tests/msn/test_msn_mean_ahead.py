"""The mean through the bias is the mean of the output, with its gradient, and is taken where it was measured to pay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from msn_deploy.msn import MSNConv1d, MSNConv2d, MSNConv3d, MSNConvTranspose2d, MSNLinear, layers
from msn_deploy.msn.layers import _MSN
from msn_deploy.msn.spectral import sigma_of

CASES: list[tuple[int, dict[str, Any]]] = [
    (1, {"kernel_size": 3, "padding": 2, "dilation": 2}),
    (1, {"kernel_size": 4, "stride": 2, "padding": 1, "padding_mode": "replicate"}),
    (2, {"kernel_size": 1}),
    (2, {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 1)}),
    (2, {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"}),
    (2, {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 2, "affine": True}),
    (2, {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False}),
    (3, {"kernel_size": 2, "padding": 1, "dilation": (1, 2, 1), "affine": True}),
]
CONVS = (MSNConv1d, MSNConv2d, MSNConv3d)


def _layer(rank: int, args: dict[str, Any]) -> nn.Module:
    torch.manual_seed(rank)
    layer = CONVS[rank - 1](4, 8, **args).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.4).add_(0.1 * torch.arange(parameter.shape[0]).view(-1, *[1] * (parameter.dim() - 1)))
    return layer


def _images(rank: int, batch: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    sizes = ((40,), (9, 8), (7, 6, 5))[rank - 1]
    x = torch.randn(batch, 4, *sizes, generator=rng, dtype=torch.float64)
    return x + torch.arange(4.0).view(-1, *[1] * rank)


def _step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients of the input and of every parameter, and the running mean after one training step."""
    x = x.clone().requires_grad_()
    y = layer(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
    return [y.detach(), *gradients, layer.running_mean]


def _apart(layer: nn.Module, rank: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """How far the two forms are from each other, relative to the largest value of each result."""
    in_place = copy.deepcopy(layer)
    found = _step(layer, _images(rank))
    monkeypatch.setattr(_MSN, "_goes_ahead", lambda *_: False)
    wanted = _step(in_place, _images(rank))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("rank", "args"), CASES)
def test_both_forms_are_one_function(rank: int, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _apart(_layer(rank, args), rank, monkeypatch) < 1e-12


@pytest.mark.parametrize(("rank", "args"), CASES)
def test_the_gradient_of_the_mean_matters(rank: int, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = layers.mean_ahead
    monkeypatch.setattr(layers, "mean_ahead", lambda *given, **named: exact(*given, **named).detach())
    assert _apart(_layer(rank, args), rank, monkeypatch) > 1e-3


@pytest.mark.parametrize(
    ("layer", "x", "ahead"),
    [
        (MSNConv2d(4, 4, 3, padding=1), torch.randn(8, 4, 9, 9), True),
        (MSNConv2d(4, 4, 3, padding=1), torch.randn(8, 4, 9, 9).to(memory_format=torch.channels_last), False),
        (MSNConv2d(4, 4, 3, padding=1), torch.randn(6, 4, 9, 9), False),  # the window mean is of one image of few
        (MSNConv2d(4, 4, 1), torch.randn(4, 4, 9, 9), True),
        (MSNConv2d(64, 64, 3, padding=1), torch.randn(8, 64, 5, 5), False),  # the weight is as large as the input
        (MSNConv2d(8, 4, 3, padding=1), torch.randn(16, 8, 9, 9), False),  # the input is larger than the output
        (MSNConv2d(4, 8, 3, stride=(1, 2)), torch.randn(16, 4, 9, 9), True),
        (MSNConv2d(4, 8, 3, stride=2), torch.randn(16, 4, 9, 9), False),
        (MSNConv2d(16, 16, 3, padding=1, groups=16), torch.randn(8, 16, 9, 9), True),
        (MSNConv2d(4, 8, 3, sync_mean=True), torch.randn(8, 4, 9, 9), False),
        (MSNConv2d(8, 8, 3), torch.randn(8, 9, 9), False),
        (MSNConvTranspose2d(4, 8, 3), torch.randn(8, 4, 9, 9), False),
        (MSNLinear(4, 8), torch.randn(8, 4), False),
    ],
)
def test_which_form_is_taken(layer: nn.Module, x: Tensor, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    exact = layers.mean_ahead
    monkeypatch.setattr(layers, "mean_ahead", lambda *given, **named: calls.append(1) or exact(*given, **named))
    layer(x)
    assert bool(calls) == ahead
    layer.eval()(x)
    assert len(calls) == ahead  # evaluation uses the running mean


def test_neither_form_saves_what_a_bare_convolution_does_not() -> None:
    def saved_bytes(layer: nn.Module) -> int:
        kept: dict[int, int] = {}
        own = {each.untyped_storage().data_ptr() for each in layer.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        x = torch.randn(16, 8, 24, 24, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = layer(x)
        assert y.requires_grad
        return sum(kept.values())

    bare = saved_bytes(nn.Conv2d(8, 8, 3))
    for layer in (MSNConv2d(8, 8, 3), MSNConv2d(8, 8, 3).to(memory_format=torch.channels_last)):
        assert saved_bytes(layer) - bare < 16_384  # W / sigma, u, v and the window mean; the output has 123,904 floats


FORMS: dict[str, tuple[nn.Module, Tensor]] = {
    "ahead": (MSNConv2d(4, 6, 3, padding=1, groups=2), torch.randn(16, 4, 9, 8)),
    "in place, channels_last": (MSNConv2d(8, 4, 1), torch.randn(8, 8, 6, 7).to(memory_format=torch.channels_last)),
    "undivided": (MSNConv2d(8, 9, 3, stride=2, init_gain=1.4), torch.randn(2, 8, 6, 6)),
    "undivided, channels_last": (
        MSNConv2d(3, 9, 3).to(memory_format=torch.channels_last),
        torch.randn(1, 3, 5, 5).to(memory_format=torch.channels_last),
    ),
    "transposed": (MSNConvTranspose2d(8, 6, 3), torch.randn(2, 8, 2, 2)),
    "linear": (MSNLinear(30, 20), torch.randn(4, 30)),
    "in place": (MSNConv2d(8, 4, 3), torch.randn(8, 8, 9, 9).to(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_the_derivatives_of_plain_operations(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = FORMS[form]
    layer, x = copy.deepcopy(layer).double(), x.double() + 0.3
    plain = copy.deepcopy(layer)
    found = _derivatives(layer, x)
    monkeypatch.setattr(layers, "traced", lambda: True)
    monkeypatch.setattr(_MSN, "_goes_ahead", lambda *_: False)
    monkeypatch.setattr(layers, "over_sigma", lambda weight, u, v, _: weight / sigma_of(weight.flatten(1), u, v))
    for one, other in zip(found, _derivatives(plain, x), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10 * float(other.abs().max()))


def _derivatives(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, running mean, gradients, and gradients of the length of the gradients."""
    x = x.clone().requires_grad_()
    inputs = [x, layer.weight, layer.shift]
    y = layer(x)
    first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(each.square().sum() for each in first), inputs)
    third = _step(copy.deepcopy(layer), x.detach())  # the way without a graph of the gradient
    return [y.detach(), layer.running_mean, *(each.detach() for each in first), *second, *third]


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_gives_an_empty_output_and_moves_no_mean(form: str) -> None:
    """As with BatchNorm: such as the crops of an image in which nothing was found."""
    layer, x = FORMS[form]
    layer = copy.deepcopy(layer)
    layer.running_mean.fill_(0.5)
    y = layer(x[:0].requires_grad_())
    y.sum().backward()
    assert y.shape == (0, *copy.deepcopy(layer)(x).shape[1:])
    assert bool((layer.running_mean == 0.5).all())
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_recomputed_under_gradient_checkpointing(form: str) -> None:
    layer, x = FORMS[form]
    layer, x = copy.deepcopy(layer).bfloat16(), x.bfloat16().requires_grad_()
    checkpoint(layer, x, use_reentrant=False).float().square().sum().backward()
    assert bool(layer.weight.grad.isfinite().all())
