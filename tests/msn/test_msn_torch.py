"""MSN layers beside the rest of torch: transposed twins, statistics, checkpointing, torch.func, compile, autocast."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from msn_deploy.core.errors import FoldError
from msn_deploy.msn import MSNConv2d, MSNConvTranspose1d, MSNConvTranspose2d, MSNConvTranspose3d, MSNLinear, fold

TRANSPOSED = [
    (1, {"kernel_size": 3, "stride": 2, "output_padding": 1, "padding": 1}),
    (2, {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2)}),
    (2, {"kernel_size": 3, "groups": 4, "padding": 2}),
    (3, {"kernel_size": 2, "stride": 2, "groups": 2}),
]


def images(rank: int = 2, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, *(7, 6, 5)[:rank], generator=rng, dtype=torch.float64) * 1.5 + 0.7


def transposed(rank: int, args: dict[str, Any], **options: Any) -> nn.Module:
    kind = (MSNConvTranspose1d, MSNConvTranspose2d, MSNConvTranspose3d)[rank - 1]
    torch.manual_seed(3)
    layer: nn.Module = kind(4, 8, **args, **options, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.3).add_(0.2)
    return layer


@pytest.mark.parametrize("affine", [False, True], ids=["msn", "msn-affine"])
@pytest.mark.parametrize(("rank", "args"), TRANSPOSED)
def test_a_transposed_convolution_in_training_is_its_definition(rank: int, args: dict[str, Any], affine: bool) -> None:
    layer, x = transposed(rank, args, affine=affine), images(rank)
    leaves = {name: each.detach().clone().requires_grad_() for name, each in layer.named_parameters()}
    matrix = leaves["weight"].transpose(0, 1).flatten(1)
    v = F.normalize(matrix.detach().T @ layer.u, dim=0)
    u = F.normalize(matrix.detach() @ v, dim=0)
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    theirs = x.clone().requires_grad_()
    options = [layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation]
    y = convolve(theirs, leaves["weight"] / (u @ matrix @ v), None, *options)
    dims = [0, *range(2, y.dim())]
    mean = y.mean(dims, keepdim=True)
    expected = y - mean
    if affine:
        expected = leaves["gain"].view(mean.shape) * expected
    expected = expected + leaves["shift"].view(mean.shape)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, [theirs, *leaves.values()], upstream)
    ours = x.clone().requires_grad_()
    got = layer(ours)
    found = torch.autograd.grad(got, [ours, *layer.parameters()], upstream)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean.detach().flatten(), rtol=1e-12, atol=1e-12)
    for ours_grad, their_grad in zip(found, wanted, strict=True):
        assert their_grad.abs().max() > 1e-3
        torch.testing.assert_close(ours_grad, their_grad, rtol=1e-10, atol=1e-11)


def test_sigma_of_a_transposed_convolution_converges() -> None:
    layer = transposed(2, {"kernel_size": 3})
    for _ in range(50):
        layer(images())
    singular = torch.linalg.svdvals(layer.weight.detach().transpose(0, 1).flatten(1))
    torch.testing.assert_close(layer.sigma().detach(), singular[0], rtol=1e-3, atol=0)


def test_the_output_size_of_a_transposed_convolution_can_be_asked_for() -> None:
    layer = transposed(2, {"kernel_size": 3, "stride": 2})
    assert layer(images(), output_size=[16, 14]).shape == (5, 8, 16, 14)


def test_no_momentum_is_the_plain_average() -> None:
    layer = MSNConv2d(4, 6, 3, momentum=None, dtype=torch.float64)
    layer.power_iterations = 0  # so that only the batches differ
    means = []
    for seed in range(3):
        x = images(seed=seed)
        means.append(F.conv2d(x, layer.weight / layer.sigma()).mean((0, 2, 3)).detach())
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.stack(means).mean(0), rtol=1e-12, atol=1e-12)


def test_without_running_statistics_evaluation_centres_the_batch() -> None:
    layer = MSNConv2d(4, 6, 3, track_running_stats=False, dtype=torch.float64)
    with torch.no_grad():
        layer.shift.add_(torch.arange(6))
    layer.eval()
    assert "running_mean" not in layer.state_dict()
    torch.testing.assert_close(layer(images()).mean((0, 2, 3)), torch.arange(6, dtype=torch.float64))
    with pytest.raises(FoldError, match="it keeps no running mean"):
        fold(nn.Sequential(layer).eval())


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_a_momentum_that_is_none_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum must lie between 0 and 1"):
        MSNLinear(4, 2, momentum=momentum)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    torch.manual_seed(5)
    plain = nn.Sequential(MSNConv2d(4, 6, 3, affine=True), nn.ReLU(), MSNConv2d(6, 5, 3)).double()
    saving = copy.deepcopy(plain)
    x = images().requires_grad_()
    expected = torch.autograd.grad(plain(x).square().sum(), [x, *plain.parameters()])
    checkpointed = checkpoint(saving, x, use_reentrant=reentrant)
    if reentrant:  # reaches the parameters through backward() alone
        checkpointed.square().sum().backward()
        found = [x.grad, *(parameter.grad for parameter in saving.parameters())]
    else:
        found = list(torch.autograd.grad(checkpointed.square().sum(), [x, *saving.parameters()]))
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, saving.get_buffer(name)), name


def test_torch_func_gives_the_same_gradients() -> None:
    torch.manual_seed(6)
    model = nn.Sequential(MSNConv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(120, 2)).double().eval()
    x = images()
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = torch.func.grad(lambda each: torch.func.functional_call(model, each, (x,)).square().sum())(parameters)
    for got, expected in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_torch_compile_computes_the_same(training: bool) -> None:
    torch.manual_seed(7)
    model = nn.Sequential(MSNConv2d(4, 6, 3, affine=True), nn.ReLU(), MSNConv2d(6, 5, 3)).double().train(training)
    twin = copy.deepcopy(model)
    x = images()
    compiled = torch.compile(twin, backend="aot_eager")
    got, wanted = compiled(x), model(x)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(got.square().sum(), list(twin.parameters())),
        torch.autograd.grad(wanted.square().sum(), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_autocast_stays_near_float32() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(MSNConv2d(4, 6, 3, affine=True), nn.ReLU(), MSNConv2d(6, 5, 3))
    twin = copy.deepcopy(model)
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        low = twin(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), model(x), rtol=0.05, atol=0.05)
    low.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in twin.parameters())
    assert twin[0].running_mean.dtype == torch.float32
