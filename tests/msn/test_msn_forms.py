"""Whichever way a layer computes its output: derivatives, memory and state are those of plain operations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from msn_deploy.msn import MSNConv1d, MSNConv2d, MSNConv3d, MSNConvTranspose2d, MSNLinear, layers
from msn_deploy.msn.spectral import sigma_of


def _step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients of the input and of every parameter, and the running mean after one training step."""
    x = x.clone().requires_grad_()
    y = layer(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
    return [y.detach(), *gradients, layer.running_mean]


@pytest.mark.parametrize(
    ("layer", "shape", "later"),
    [
        (MSNConv2d(4, 8, 3), (1, 4, 5, 5), True),  # 288 weights, an output of about 200
        (MSNConv2d(4, 8, 3), (2, 4, 5, 5), False),
        (MSNConv2d(4, 8, 3, stride=2), (5, 4, 5, 5), True),
        (MSNConv2d(4, 8, 3, affine=True), (1, 4, 5, 5), False),
        (MSNConv2d(4, 8, 3, padding=1, padding_mode="reflect"), (1, 4, 5, 5), False),
        (MSNConv2d(4, 8, 3, padding="same"), (1, 4, 5, 5), False),
        (MSNConv2d(4, 8, 3), (4, 5, 5), False),
        (MSNConvTranspose2d(4, 8, 3), (1, 4, 1, 1), False),
        (MSNLinear(40, 20), (2, 40), False),
    ],
)
def test_the_smaller_of_weight_and_output_is_divided(
    layer: nn.Module, shape: tuple[int, ...], later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    exact = layers.conv_over_sigma
    monkeypatch.setattr(layers, "conv_over_sigma", lambda *given, **named: calls.append(1) or exact(*given, **named))
    layer(torch.randn(shape))
    assert bool(calls) == later


def test_a_layer_saves_no_more_than_a_bare_convolution() -> None:
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
        assert saved_bytes(layer) - bare < 16_384  # W / sigma, u and v; the output has 123,904 floats


FORMS: dict[str, tuple[nn.Module, Tensor]] = {
    "grouped": (MSNConv2d(4, 6, 3, padding=1, groups=2), torch.randn(16, 4, 9, 8)),
    "channels_last": (MSNConv2d(8, 4, 1), torch.randn(8, 8, 6, 7).to(memory_format=torch.channels_last)),
    "replicated border": (MSNConv1d(4, 8, 4, stride=2, padding=1, padding_mode="replicate"), torch.randn(16, 4, 40)),
    "three dimensions": (MSNConv3d(4, 8, 2, padding=1, dilation=(1, 2, 1)), torch.randn(8, 4, 7, 6, 5)),
    "undivided": (MSNConv2d(8, 9, 3, stride=2, init_gain=1.4), torch.randn(2, 8, 6, 6)),
    "undivided, channels_last": (
        MSNConv2d(3, 9, 3).to(memory_format=torch.channels_last),
        torch.randn(1, 3, 5, 5).to(memory_format=torch.channels_last),
    ),
    "undivided, channels_last input": (
        MSNConv2d(6, 9, 3, groups=3),
        torch.randn(1, 6, 4, 4).to(memory_format=torch.channels_last),
    ),
    "undivided, channels_last weight": (
        MSNConv2d(8, 9, 3).to(memory_format=torch.channels_last),
        torch.randn(2, 8, 4, 5),
    ),
    "undivided, channels_last input, three dimensions": (
        MSNConv3d(4, 9, 3),
        torch.randn(1, 4, 4, 4, 3).to(memory_format=torch.channels_last_3d),
    ),
    "transposed": (MSNConvTranspose2d(8, 6, 3), torch.randn(2, 8, 2, 2)),
    "linear": (MSNLinear(30, 20), torch.randn(4, 30)),
}


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_the_derivatives_of_plain_operations(
    form: str, dtype: torch.dtype, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32, too: its gradients come from other kernels, which lay them out in other ways."""
    layer, x = FORMS[form]
    layer, x = copy.deepcopy(layer).to(dtype), x.to(dtype) + 0.3
    plain = copy.deepcopy(layer)
    found = _derivatives(layer, x)
    monkeypatch.setattr(layers, "traced", lambda: True)
    monkeypatch.setattr(layers, "over_sigma", lambda weight, u, v, _: weight / sigma_of(weight.flatten(1), u, v))
    for one, other in zip(found, _derivatives(plain, x), strict=True):
        assert torch.allclose(one, other, rtol=close, atol=close * float(other.abs().max()))


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
