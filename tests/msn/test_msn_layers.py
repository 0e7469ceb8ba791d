"""The layers against their plain definition, in float64: y = gain * (layer(x, W / sigma) - mean) + shift."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layer_cases import conv_input, loosen
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.msn import (
    MSNConv1d,
    MSNConv2d,
    MSNConv3d,
    MSNLinear,
    SNConv1d,
    SNConv2d,
    SNConv3d,
    SNLinear,
)
from msn_deploy.msn.centring import centre_

EXACT = 1e-12
CONVS: list[tuple[int, dict[str, Any]]] = [
    (1, {"kernel_size": 3}),
    (1, {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "groups": 2}),
    (2, {"kernel_size": 1}),
    (2, {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    (2, {"kernel_size": 3, "padding": 1, "groups": 4}),
    (2, {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"}),
    (3, {"kernel_size": 2, "stride": 2, "groups": 2}),
    (3, {"kernel_size": 3, "padding": 1}),
]
IDS = [f"conv{rank}d-{'-'.join(f'{key}={value}' for key, value in args.items())}" for rank, args in CONVS]


def _msn_conv(rank: int, args: dict[str, Any], **options: Any) -> nn.Module:
    return (MSNConv1d, MSNConv2d, MSNConv3d)[rank - 1](4, 8, **args, **options, dtype=torch.float64)


def _plain(layer: nn.Module, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The definition, written with autograd alone: output in training, batch mean, and the leaves it depends on."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in layer.named_parameters()}
    weight = leaves["weight"]
    matrix = weight.flatten(1)
    for _ in range(layer.power_iterations):
        v = F.normalize(matrix.detach().T @ u, dim=0)
        u = F.normalize(matrix.detach() @ v, dim=0)
    scaled = weight / (u @ matrix @ v)
    if isinstance(layer, nn.Linear):
        y, channel = F.linear(x, scaled), x.dim() - 1
    else:
        y, channel = _conv(layer, x, scaled), 1
    dims = [dim for dim in range(y.dim()) if dim != channel]
    mean = y.mean(dims, keepdim=True)
    view = mean.shape
    y = leaves["gain"].view(view) * (y - mean) if "gain" in leaves else y - mean
    if "shift" in leaves:
        y = y + leaves["shift"].view(view)
    return y, mean.detach().flatten(), list(leaves.values())


def _conv(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    rank = weight.dim() - 2
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    padding = layer.padding
    if layer.padding_mode != "zeros":  # only "same" with odd kernels, stride 1, is asked of this
        sides = [side for size in reversed(layer.kernel_size) for side in (size // 2, size // 2)]
        x, padding = F.pad(x, sides, mode=layer.padding_mode), 0
    return convolve(x, weight, None, layer.stride, padding, layer.dilation, layer.groups)


def _compare_in_training(layer: nn.Module, x: Tensor) -> None:
    u, v, running = layer.u.clone(), layer.v.clone(), layer.running_mean.clone()
    theirs = x.clone().requires_grad_()
    expected, mean, leaves = _plain(layer, theirs, u, v)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, [theirs, *leaves], upstream)

    ours = x.clone().requires_grad_()
    got = layer(ours)
    found = torch.autograd.grad(got, [ours, *layer.parameters()], upstream)

    torch.testing.assert_close(got, expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(layer.running_mean, 0.9 * running + 0.1 * mean, rtol=EXACT, atol=EXACT)
    assert len(found) == len(wanted) == 2 + ("shift" in dict(layer.named_parameters())) + (layer.gain is not None)
    for ours_grad, their_grad in zip(found, wanted, strict=True):
        assert their_grad.abs().max() > 1e-3
        torch.testing.assert_close(ours_grad, their_grad, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("affine", [False, True], ids=["msn", "msn-affine"])
@pytest.mark.parametrize("bias", [True, False], ids=["shift", "no-shift"])
@pytest.mark.parametrize(("rank", "args"), CONVS, ids=IDS)
def test_a_convolution_in_training_is_its_definition(rank: int, args: dict[str, Any], bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    layer = _msn_conv(rank, args, bias=bias, affine=affine)
    loosen(layer)
    _compare_in_training(layer, conv_input(rank))


@pytest.mark.parametrize("affine", [False, True], ids=["msn", "msn-affine"])
@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4), (2, 3, 5, 4)])
def test_a_linear_layer_in_training_is_its_definition(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    layer = MSNLinear(4, 8, affine=affine, power_iterations=3, dtype=torch.float64)
    loosen(layer)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.7
    _compare_in_training(layer, x)


def test_channels_last_gives_the_same() -> None:
    torch.manual_seed(0)
    layer = _msn_conv(2, {"kernel_size": 3, "padding": 1}, affine=True)
    loosen(layer)
    _compare_in_training(
        layer.to(memory_format=torch.channels_last), conv_input(2).to(memory_format=torch.channels_last)
    )


def test_one_image_without_a_batch_is_centred_per_channel() -> None:
    torch.manual_seed(0)
    layer = _msn_conv(2, {"kernel_size": 3})
    loosen(layer)
    y = layer(conv_input(2)[0])
    torch.testing.assert_close(y.mean((1, 2)), layer.shift.detach(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("affine", [False, True], ids=["msn", "msn-affine"])
@pytest.mark.parametrize(("rank", "args"), CONVS, ids=IDS)
def test_a_convolution_in_evaluation_uses_the_running_mean(rank: int, args: dict[str, Any], affine: bool) -> None:
    torch.manual_seed(0)
    layer = _msn_conv(rank, args, affine=affine).eval()
    loosen(layer)
    x = conv_input(rank)
    sigma = layer.u @ layer.weight.flatten(1) @ layer.v
    view = (1, -1, *[1] * rank)
    y = _conv(layer, x, layer.weight / sigma) - layer.running_mean.view(view)
    if affine:
        y = y * layer.gain.view(view)
    torch.testing.assert_close(layer(x), y + layer.shift.view(view), rtol=EXACT, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rank", "kind"), [(0, SNLinear), (1, SNConv1d), (2, SNConv2d), (3, SNConv3d)])
def test_sn_is_the_layer_with_its_weight_over_sigma(rank: int, kind: Any, bias: bool, training: bool) -> None:
    torch.manual_seed(0)
    layer = kind(4, 8, *([3] if rank else []), bias=bias, dtype=torch.float64).train(training)
    loosen(layer)
    x = conv_input(rank) if rank else torch.randn(6, 4, dtype=torch.float64)
    u, v = layer.u.clone(), layer.v.clone()
    got = layer(x)
    matrix = layer.weight.detach().flatten(1)
    if training:
        v = F.normalize(matrix.T @ u, dim=0)
        u = F.normalize(matrix @ v, dim=0)
    scaled = layer.weight / (u @ matrix @ v)
    wanted = _conv(layer, x, scaled) if rank else F.linear(x, scaled)
    if bias:
        wanted = wanted + layer.bias.view(-1, *[1] * rank)
    torch.testing.assert_close(got, wanted, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("kind", ["msn", "sn"])
def test_a_second_forward_before_the_backward(kind: str) -> None:
    """As in a network that sees real and generated images before one backward."""
    torch.manual_seed(0)
    layer = (MSNConv2d if kind == "msn" else SNConv2d)(4, 8, 3, dtype=torch.float64)
    loosen(layer)
    apart = copy.deepcopy(layer)
    first, second = conv_input(2, seed=1), conv_input(2, seed=2)
    (layer(first).pow(3).sum() + layer(second).pow(3).sum()).backward()
    total = torch.zeros_like(layer.weight)
    for x in (first, second):
        total += torch.autograd.grad(apart(x).pow(3).sum(), apart.weight)[0]
    torch.testing.assert_close(layer.weight.grad, total, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_the_gradient_is_right() -> None:
    """A gradient penalty differentiates through the backward of the centring."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(3, 2, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(2, generator=rng, dtype=torch.float64, requires_grad=True)

    def centred(y: Tensor, shift: Tensor) -> Tensor:
        return centre_(y.pow(3), shift, channel_dim=1)[0]

    assert torch.autograd.gradcheck(centred, (y, shift))
    assert torch.autograd.gradgradcheck(centred, (y, shift))


def test_centring_saves_nothing_for_the_backward() -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    y = (torch.randn(3, 2, 4, requires_grad=True) + 0).clone()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        centred, _ = centre_(y, torch.zeros(2, requires_grad=True), channel_dim=1)
    assert saved == []
    assert centred.data_ptr() == y.data_ptr()


def test_a_mean_over_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a batch: the output has shape \(8,\)"):
        MSNLinear(4, 8)(torch.ones(4))


@pytest.mark.parametrize(("rank", "args"), CONVS, ids=IDS)
def test_sigma_converges_to_the_largest_singular_value(rank: int, args: dict[str, Any]) -> None:
    torch.manual_seed(3)
    layer = _msn_conv(rank, args)
    x = conv_input(rank)
    largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
    assert abs(layer.sigma().detach() / largest - 1) < 0.15  # the warm-up at birth
    with torch.no_grad():
        for _ in range(200):
            layer(x)
    torch.testing.assert_close(layer.sigma().detach(), largest, rtol=1e-6, atol=0)
    assert layer.sigma() <= largest * (1 + EXACT)


def test_more_power_iterations_per_step_converge_sooner() -> None:
    errors = {}
    for steps in (1, 5):
        torch.manual_seed(3)
        layer = MSNConv2d(4, 8, 3, power_iterations=steps, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(4)))
            layer(conv_input(2))
        errors[steps] = float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0] - layer.sigma().detach())
    assert 0 <= errors[5] < errors[1] * 0.7
    with pytest.raises(ValueError, match="power_iterations must be at least 1, got 0"):
        MSNConv2d(4, 8, 3, power_iterations=0)


def test_what_a_layer_says_of_itself() -> None:
    assert "affine=True, momentum=0.2" in repr(MSNConv2d(1, 2, 3, affine=True, momentum=0.2))
    assert dict(MSNConv2d(1, 2, 3).named_parameters()).keys() == {"weight", "shift"}
    assert dict(MSNConv2d(1, 2, 3, affine=True, bias=False).named_parameters()).keys() == {"weight", "gain"}
