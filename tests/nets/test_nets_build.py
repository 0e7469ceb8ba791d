"""Every recipe builds the network that its name promises; the twins differ in their norm and in nothing else."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import builtin_folder
from msn_deploy.core.model_info import NORMS
from msn_deploy.core.recipes import Recipe, load_recipe
from msn_deploy.data import load_split, to_input
from msn_deploy.data.preprocess import measured_preprocess
from msn_deploy.msn import MSNConv2d, SNConv2d, SNLinear, WSConv2d
from msn_deploy.nets import build_net
from msn_deploy.nets.blocks import Norm, classifier_layer, conv_norm, group_norm
from msn_deploy.training.runner import logits_of

BUILT_IN = sorted(path.stem for path in builtin_folder("models").glob("*.toml"))
CONVS = {"cnn3": 3, "vgg7": 7}
WIDE = ("in_channels", "out_channels", "kernel_size", "stride", "padding")


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_recipe_builds_and_runs_on_its_input(name: str) -> None:
    recipe = load_recipe(name)
    torch.manual_seed(0)
    model = build_net(recipe, classes=7)
    batch = torch.rand(3, *recipe.network_input, generator=torch.Generator().manual_seed(1))
    wanted = (3, 7) if recipe.gan is None else (3, *recipe.input_shape[1:])
    if recipe.task != "classification":
        high, wide = recipe.input_shape[2:]
        wanted = {"segmentation": (3, 7, high, wide), "detection": (3, 7 + 4, high // 4, wide // 4)}[recipe.task]
    for training in (True, False):
        logits = model.train(training)(batch)
        assert logits.shape == wanted
        assert torch.isfinite(logits).all()
        assert logits.std(0).min() > 0  # it looks at its input


@pytest.mark.parametrize("net", CONVS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_layers_are_those_of_the_norm(small_recipe: Callable[..., Recipe], net: str, norm: str) -> None:
    model = build_net(small_recipe(net, norm, power_iterations=3), classes=10)
    convs = [module for module in model if isinstance(module, nn.Conv2d)]
    kinds = Counter(type(module) for module in model)
    plain = dict.fromkeys(("bn", "gn", "none"), nn.Conv2d)
    kind = {**plain, "sn": SNConv2d, "ws": WSConv2d, "gn-ws": WSConv2d}.get(norm, MSNConv2d)
    assert kinds[kind] == len(convs) == CONVS[net]
    assert kinds[nn.BatchNorm2d] == (CONVS[net] if norm == "bn" else 0)
    assert kinds[nn.GroupNorm] == (CONVS[net] if norm.startswith("gn") else 0)
    assert kinds[nn.Linear] == 1
    for conv in convs:
        names = {name for name, _ in conv.named_parameters()}
        assert (
            names
            == {
                "bn": {"weight"},
                "gn": {"weight"},
                "gn-ws": {"weight"},
                "ws": {"weight", "gain", "bias"},
                "none": {"weight", "bias"},
                "sn": {"weight", "bias"},
                "msn": {"weight", "shift"},
                "msn-affine": {"weight", "shift", "gain"},
            }[norm]
        )
        if norm in ("sn", "msn", "msn-affine"):
            assert conv.power_iterations == 3


@pytest.mark.parametrize("net", CONVS)
def test_twins_share_every_shape_but_those_of_the_norm(small_recipe: Callable[..., Recipe], net: str) -> None:
    def skeleton(norm: str) -> list[object]:
        shapes: list[object] = []
        for module in build_net(small_recipe(net, norm), classes=10):
            if isinstance(module, nn.Conv2d):
                shapes.append(tuple(getattr(module, key) for key in WIDE))
            elif not isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                shapes.append(repr(module))
        return shapes

    assert all(skeleton(norm) == skeleton("bn") for norm in NORMS)


@pytest.mark.parametrize("net", CONVS)
def test_msn_has_fewer_parameters_than_bn_by_one_per_channel(small_recipe: Callable[..., Recipe], net: str) -> None:
    counts, channels = {}, 0
    for norm in NORMS:
        model = build_net(small_recipe(net, norm), classes=10)
        counts[norm] = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        channels = sum(module.out_channels for module in model if isinstance(module, nn.Conv2d))
    assert counts["bn"] - counts["msn"] == channels > 0
    assert counts["msn-affine"] == counts["gn"] == counts["ws"] == counts["gn-ws"] == counts["bn"]
    assert counts["sn"] == counts["none"] == counts["msn"]


def test_cnn3_is_the_papers() -> None:
    model = build_net(load_recipe("cnn3_msn"), classes=10)
    convs = [module for module in model if isinstance(module, nn.Conv2d)]
    assert [(conv.kernel_size[0], conv.stride[0], conv.padding[0]) for conv in convs] == [
        (5, 1, 2),
        (3, 1, 2),
        (4, 2, 2),
    ]
    assert [conv.out_channels for conv in convs] == [16, 32, 32]
    assert {module.negative_slope for module in model if isinstance(module, nn.LeakyReLU)} == {0.1}


def test_vgg7_is_the_papers() -> None:
    model = build_net(load_recipe("vgg7_msn"), classes=10)
    convs = [module for module in model if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [32, 32, 64, 64, 128, 128, 256]
    assert [conv.padding[0] for conv in convs] == [1, 1, 1, 1, 1, 1, 0]
    assert sum(isinstance(module, nn.MaxPool2d) for module in model) == 4
    assert model[-1].in_features == 256


def test_vgg7_svhn_is_vgg7_with_one_convolution_in_the_third_stage(small_recipe: Callable[..., Recipe]) -> None:
    recipe = replace(small_recipe("vgg7", "bn", width=32), net="vgg7_svhn", input_shape=(1, 3, 32, 32))
    model = build_net(recipe, classes=10)
    six = [f"{type(each).__name__} {getattr(each, 'padding', '')}" for each in model]
    seven = [
        f"{type(each).__name__} {getattr(each, 'padding', '')}"
        for each in build_net(load_recipe("vgg7_bn"), classes=10)
    ]
    stage = ["Conv2d (1, 1)", "BatchNorm2d ", "ReLU "]
    assert six == [*stage * 2, "MaxPool2d 0", *stage * 2, "MaxPool2d 0", *stage, "MaxPool2d 0", *six[-6:]]
    assert six[:17] == seven[:17]
    assert six[-6:] == seven[-6:] == ["Conv2d (0, 0)", "BatchNorm2d ", "ReLU ", "MaxPool2d 0", "Flatten ", "Linear "]
    assert [module.out_channels for module in model if isinstance(module, nn.Conv2d)] == [32, 32, 64, 64, 128, 256]
    assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("norm", NORMS)
def test_cnn3_relu_differs_from_cnn3_in_its_activations(small_recipe: Callable[..., Recipe], norm: str) -> None:
    ours = build_net(replace(small_recipe("cnn3", norm), net="cnn3_relu"), classes=10)
    twin = build_net(small_recipe("cnn3", norm), classes=10)
    assert [repr(each).replace("LeakyReLU(negative_slope=0.1)", "ReLU()") for each in twin] == list(map(repr, ours))
    assert sum(isinstance(each, nn.ReLU) for each in ours) == 3


@pytest.mark.parametrize("net", ["cnn3", "cnn3_relu", "vgg7", "vgg7_svhn"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_classifier_is_the_recipes(small_recipe: Callable[..., Recipe], net: str, norm: str) -> None:
    recipe = replace(small_recipe(net.partition("_")[0], norm, power_iterations=3), net=net)
    *body, linear = build_net(recipe, classes=10)
    *spectral_body, spectral = build_net(replace(recipe, classifier="sn"), classes=10)
    assert (type(linear), type(spectral)) == (nn.Linear, SNLinear)
    assert (linear.weight.shape, spectral.power_iterations) == (spectral.weight.shape, 3)
    assert repr(body) == repr(spectral_body)


@pytest.mark.parametrize("size", [(28, 20), (17, 31), (5, 5)])
def test_cnn3_takes_any_size(small_recipe: Callable[..., Recipe], size: tuple[int, int]) -> None:
    recipe = replace(small_recipe("cnn3", "msn"), input_shape=(1, 3, *size))
    assert build_net(recipe, classes=4).eval()(torch.rand(2, 3, *size)).shape == (2, 4)


@pytest.mark.parametrize("size", [(32, 32), (40, 33), (64, 48)])
def test_vgg7_takes_any_size_from_32(small_recipe: Callable[..., Recipe], size: tuple[int, int]) -> None:
    recipe = replace(small_recipe("vgg7", "bn"), input_shape=(1, 3, *size))
    assert build_net(recipe, classes=4).eval()(torch.rand(2, 3, *size)).shape == (2, 4)


def test_vgg7_refuses_what_is_too_small(small_recipe: Callable[..., Recipe]) -> None:
    recipe = replace(small_recipe("vgg7", "bn"), input_shape=(1, 1, 32, 31))
    with pytest.raises(InputError, match="at least 32x32 pixels, got 32x31"):
        build_net(recipe, classes=10)


@pytest.mark.parametrize(
    ("channels", "groups"), [(2, 1), (8, 1), (16, 2), (24, 3), (36, 4), (60, 6), (64, 8), (256, 32), (1024, 32)]
)
def test_a_group_norm_has_equal_groups_of_at_least_8_channels(channels: int, groups: int) -> None:
    assert (group_norm(channels).num_groups, group_norm(channels).num_channels) == (groups, channels)


@pytest.mark.parametrize("norm", ["ws", "gn-ws"])
def test_the_gain_of_standardised_weights_starts_where_init_says(norm: str) -> None:
    for init, wanted in (("plain", 1.0), ("kaiming", 2.0**0.5)):
        conv = conv_norm(Norm(name=norm, init=init), 4, 8, 3)[0]
        assert (conv.gain is None) == (norm == "gn-ws")
        assert conv.gain is None or conv.gain.tolist() == pytest.approx([wanted] * 8)


def test_unknown_nets_and_norms(small_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(InputError, match="recipe cnn3_msn: unknown net 'vgg77'; did you mean 'vgg7'"):
        build_net(replace(small_recipe(), net="vgg77"), classes=10)
    with pytest.raises(ValueError, match="unknown norm 'layer'"):
        conv_norm(Norm(name="layer"), 1, 2, 3)
    with pytest.raises(ValueError, match="unknown classifier 'svm'"):
        classifier_layer("svm", Norm(name="bn"), 3, 2)


@pytest.mark.parametrize("training", [True, False])
def test_logits_of_is_chunked_evaluation_and_leaves_no_trace(
    small_net: Callable[..., nn.Module], digits: Callable[..., np.ndarray], training: bool
) -> None:
    model, batch = small_net("cnn3", "msn-affine").train(training), digits(11)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    got = logits_of(model, batch, chunk=4)
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert got.dtype == np.float32


def test_without_kaimings_deviation_every_layer_of_vgg7_more_than_halves_its_input() -> None:
    """Why recipes have `init = "kaiming"`: seven such layers leave less than a hundredth."""
    recipe = load_recipe("vgg7_msn")
    split = load_split("digits", "train", height_px=32, width_px=32, channels=1).first(64)
    batch = torch.from_numpy(to_input(split.images, measured_preprocess(split.images)))
    last = {}
    for init in ("plain", "kaiming"):
        torch.manual_seed(0)
        model = build_net(replace(recipe, init=init), classes=10)
        sizes = [1.0]
        for layer in model:
            if isinstance(layer, MSNConv2d):
                layer.register_forward_hook(
                    lambda _, __, output, sizes=sizes: sizes.append(float(output.detach().std()))
                )
        model(batch)
        assert len(sizes) == 8
        if init == "plain":
            assert all(after < before / 2 for before, after in itertools.pairwise(sizes))
        last[init] = sizes[-1]
    assert last["plain"] < 0.01 < 0.1 < last["kaiming"]
