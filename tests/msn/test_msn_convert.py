"""A converted network is the same function in evaluation, folded or not, and every number in it is needed for that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from example_nets import DenseNetBC, MobileNetV2, Recurrent, ResNet18, UNet, images, trained
from fold_cases import EPS, IN, MATTERS, OUT, conv_bn, loosen, model_input
from torch import Tensor, nn

import msn_deploy
from msn_deploy.core.errors import FoldError
from msn_deploy.msn import MSNConvTranspose2d, MSNLinear, SNConv2d, convert, fold
from msn_deploy.msn import layers as ours

NORMS = ("msn", "msn-affine", "sn", "none")
SAME = 1e-12  # relative to the largest output

DENSENET_KEEPS = {
    "features.1.norm1": "the output of features.0 is also used without the norm",
    "features.2.norm1": "no layer feeds it directly",
    "features.3": "no layer feeds it directly",
    "features.7.norm1": "features.6 (AvgPool2d) stands between it and the convolution before it",
    "features.8.norm1": "no layer feeds it directly",
    "features.9": "no layer feeds it directly",
}
# Every network with the number of layers that are converted, and what stays.
NETS: dict[type[nn.Module], tuple[int, dict[str, str]]] = {
    ResNet18: (20, {}),
    MobileNetV2: (16, {}),
    DenseNetBC: (4, DENSENET_KEEPS),
    UNet: (12, {}),
    Recurrent: (1, {"bn": "again or the norm itself is used more than once"}),
}


@torch.no_grad()
def relative(before: nn.Module, after: nn.Module, x: Tensor) -> float:
    wanted = before(x)
    scale = wanted.abs().max()
    assert (wanted - wanted.flip(0)).abs().max() > MATTERS * scale  # of outputs that depend on the input
    return ((after(x) - wanted).abs().max() / scale).item()


def kind_of(layer: nn.Module, norm: str) -> str:
    return {"msn": "MSN", "msn-affine": "MSN", "sn": "SN", "none": ""}[norm] + type(layer).__name__


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", NETS)
def test_a_network_stays_the_function_that_it_was(make: type[nn.Module], norm: str) -> None:
    model = trained(make)
    count, keeps = NETS[make]
    new, converted, kept = convert(model, norm)
    assert kept == keeps
    assert len(converted) == count
    for name, kind in converted.items():
        assert kind == type(new.get_submodule(name)).__name__ == kind_of(model.get_submodule(name), norm)
    left = {name for name, module in new.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert left == set(keeps)
    assert relative(model, new, images()) < SAME
    folded = fold(new, strict=not keeps)
    assert not any(isinstance(module, ours.SpectralLayer) for module in folded.modules())
    assert relative(model, folded, images()) < SAME


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rank", "groups"), [(0, 1), (1, 4), (2, 1), (2, 2), (3, 1)])
def test_every_layer_converts(rank: int, groups: int, bias: bool, affine: bool, norm: str) -> None:
    torch.manual_seed(0)
    model = loosen(conv_bn(rank, groups=groups, bias=bias, affine=affine))
    new, converted, kept = convert(model, norm)
    assert (converted, kept) == ({"0": kind_of(model[0], norm)}, {})
    assert type(new[1]) is nn.Identity
    assert relative(model, new, model_input(rank)) < SAME
    assert relative(model, fold(new), model_input(rank)) < SAME


def transposed_bn(rank: int, groups: int) -> nn.Module:
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    torch.manual_seed(rank)
    return loosen(nn.Sequential(conv(IN, OUT, 3, stride=2, output_padding=1, groups=groups), norm(OUT, eps=EPS)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("rank", "groups"), [(1, 1), (1, 2), (2, 2), (2, 4), (3, 2)])
def test_transposed_convolutions_convert(rank: int, groups: int, norm: str) -> None:
    model = transposed_bn(rank, groups)
    new, converted, kept = convert(model, norm)
    assert (converted, kept) == ({"0": kind_of(model[0], norm)}, {})
    assert relative(model, new, model_input(rank)) < SAME
    assert relative(model, fold(new), model_input(rank)) < SAME


TERMS = {
    "msn": ("scale", "running_mean", "shift", "u", "v"),
    "msn-affine": ("gain", "running_mean", "shift", "u", "v"),
    "sn": ("scale", "bias", "u", "v"),
    "none": ("weight", "bias"),
}


@pytest.mark.parametrize(("norm", "term"), [(norm, term) for norm, terms in TERMS.items() for term in terms])
@pytest.mark.parametrize("make", [lambda: conv_bn(2), lambda: transposed_bn(2, 2)], ids=["conv", "transposed"])
def test_every_term_matters(make: Callable[[], nn.Module], norm: str, term: str) -> None:
    """So that the tests above cannot pass with a term that is neutral."""
    torch.manual_seed(0)
    model = loosen(make())
    new = convert(model, norm).model
    neutral = 1.0 if term in ("scale", "gain") else 0.1
    getattr(new[0], term).data.fill_(neutral)
    assert relative(model, new, model_input()) > MATTERS


@pytest.mark.parametrize("norm", NORMS)
def test_the_eps_of_the_norm_counts(norm: str) -> None:
    model = loosen(conv_bn(2))
    other = copy.deepcopy(model)
    other[1].eps = 0.0
    assert relative(model, convert(model, norm).model, model_input()) < SAME
    assert relative(model, convert(other, norm).model, model_input()) > 1e-3


@pytest.mark.parametrize("norm", ["msn", "msn-affine", "sn"])
@pytest.mark.parametrize("make", [lambda: conv_bn(2), lambda: conv_bn(0), lambda: transposed_bn(2, 2)])
def test_u_and_v_are_the_first_singular_pair(make: Callable[[], nn.Module], norm: str) -> None:
    torch.manual_seed(0)
    layer: Any = convert(loosen(make()), norm).model[0]
    left, singular, right = torch.linalg.svd(layer._matrix().detach())
    torch.testing.assert_close(layer.sigma().detach(), singular[0], rtol=1e-13, atol=0)
    torch.testing.assert_close((layer.u @ left[:, 0]).abs().item(), 1.0, rtol=1e-12, atol=0)
    torch.testing.assert_close((layer.v @ right[0]).abs().item(), 1.0, rtol=1e-12, atol=0)
    if norm == "msn-affine":
        assert layer.scale is None
    else:
        assert layer.scale.shape == ()
        torch.testing.assert_close(layer.scale, singular[0], rtol=1e-13, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_channel_without_gain_converts(norm: str) -> None:
    torch.manual_seed(0)
    model = loosen(conv_bn(2))
    with torch.no_grad():
        model[1].weight[3] = 0
    new = convert(model, norm).model
    assert relative(model, new, model_input()) < SAME
    assert relative(model, fold(new), model_input()) < SAME


@pytest.mark.parametrize("norm", NORMS)
def test_a_state_dict_loads_into_another_converted_copy(norm: str) -> None:
    first, second = convert(trained(UNet, seed=0), norm).model, convert(trained(UNet, seed=1), norm).model
    state = first.state_dict()
    assert any(name.endswith(".scale") for name in state) == (norm in ("msn", "sn"))
    second.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(first(images()), second(images()))


@pytest.mark.parametrize("norm", NORMS)
def test_the_original_and_the_random_numbers_are_untouched(norm: str) -> None:
    model = trained(UNet)
    kinds, before = [type(module) for module in model.modules()], copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    new = convert(model, norm).model
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        for tensor in new.state_dict().values():
            tensor.zero_()
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [lambda: conv_bn(2), lambda: transposed_bn(2, 2)], ids=["conv", "transposed"])
def test_dtype_and_memory_format_stay(make: Callable[[], nn.Module], norm: str) -> None:
    model = loosen(make()).float().to(memory_format=torch.channels_last)
    new = convert(model, norm).model
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in new.state_dict().values())
    assert new[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not new[0].weight.is_contiguous()
    x = model_input().float().to(memory_format=torch.channels_last)
    assert relative(model, new, x) < 2e-6
    assert new(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", NORMS)
def test_half_precision_stays_as_exact_as_its_weights(norm: str) -> None:
    model = loosen(conv_bn(2)).bfloat16()
    new = convert(model, norm).model
    assert new[0].weight.dtype == torch.bfloat16
    assert relative(model, new, model_input().bfloat16()) < 0.02


def test_the_arguments_of_a_layer_stay() -> None:
    conv = nn.ConvTranspose2d(IN, OUT, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    padded = nn.Conv2d(OUT, 5, 3, padding="same", padding_mode="reflect")
    model = loosen(nn.Sequential(conv, nn.BatchNorm2d(OUT), nn.ReLU(), padded, nn.BatchNorm2d(5)))
    new, converted, _ = convert(model, "msn", power_iterations=3)
    assert converted == {"0": "MSNConvTranspose2d", "3": "MSNConv2d"}
    assert [new[0].power_iterations, new[3].power_iterations] == [3, 3]
    assert relative(model, new, model_input()) < SAME


def test_a_synchronised_norm_becomes_a_synchronised_mean() -> None:
    model = nn.Sequential(nn.Conv2d(IN, OUT, 3), nn.SyncBatchNorm(OUT), nn.Conv2d(OUT, 5, 1), nn.BatchNorm2d(5))
    new = convert(loosen(model), "msn").model
    assert [new[0].sync_mean, new[2].sync_mean] == [True, False]
    assert relative(model, new, model_input()) < SAME


def test_a_network_that_has_msn_already_converts_the_rest() -> None:
    torch.manual_seed(0)
    half = nn.Sequential(MSNConvTranspose2d(IN, 6, 2), nn.ReLU(), SNConv2d(6, 5, 1), nn.BatchNorm2d(5), nn.Flatten())
    model = loosen(nn.Sequential(*half, nn.Linear(5 * 8 * 7, 4), nn.BatchNorm1d(4)))
    new, converted, kept = convert(model.train(), "msn")
    assert converted == {"5": "MSNLinear"}
    assert kept == {"3": "2 (SNConv2d) is normalised already"}
    assert isinstance(new[5], MSNLinear)
    assert relative(model.eval(), new.eval(), model_input()) < SAME
    again, converted, kept = convert(new, "msn")
    assert (converted, kept) == ({}, {"3": "2 (SNConv2d) is normalised already"})
    assert relative(model, again, model_input()) < SAME


def test_the_convolution_that_is_used_twice_is_not_folded_either() -> None:
    for model in (trained(Recurrent), convert(trained(Recurrent), "msn").model):
        with pytest.raises(FoldError, match="bn: again or the norm itself is used more than once"):
            fold(model)


def test_convert_is_a_public_name() -> None:
    assert msn_deploy.convert is convert
