"""The GAN's two networks: shapes, where the discriminator takes the mean off, and what recipes can't be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import NORMS
from msn_deploy.core.recipes import Recipe, load_recipe
from msn_deploy.msn import MSNConv2d, SNConv2d, SNLinear
from msn_deploy.nets import build_discriminator, build_net


def _recipe(norm: str = "msn", channels: int = 1) -> Recipe:
    return replace(load_recipe("gan_msn"), width=4, input_shape=(1, channels, 32, 32)).override(norm=norm)


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_become_images_and_images_logits(channels: int) -> None:
    recipe = _recipe(channels=channels)
    torch.manual_seed(0)
    assert recipe.network_input == (128, 1, 1)
    images = build_net(recipe, classes=0)(torch.randn(5, *recipe.network_input))
    assert images.shape == (5, channels, 32, 32)
    assert float(images.detach().abs().max()) <= 1
    assert build_discriminator(recipe)(images).shape == (5,)


def test_msn_takes_the_mean_off_in_three_places_and_every_other_layer_has_sn() -> None:
    kinds = {
        norm: [type(layer) for layer in build_discriminator(_recipe(norm)).modules() if hasattr(layer, "weight")]
        for norm in ("msn", "sn")
    }
    assert kinds["sn"] == [SNConv2d] * 7 + [SNLinear]
    assert [at for at, kind in enumerate(kinds["msn"]) if kind is MSNConv2d] == [3, 5, 6]
    assert {kind for at, kind in enumerate(kinds["msn"]) if at not in (3, 5, 6)} == {SNConv2d, SNLinear}


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_makes_a_discriminator_that_learns(norm: str) -> None:
    torch.manual_seed(0)
    model = build_discriminator(_recipe(norm))
    model(torch.randn(4, 1, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    spectral = [layer for layer in model.modules() if isinstance(layer, (SNConv2d, SNLinear, MSNConv2d))]
    assert len(spectral) == (8 if norm in ("sn", "msn", "msn-affine") else 0)


def test_the_generator_has_batch_norm_after_all_but_its_last_convolution() -> None:
    layers = [type(layer) for layer in build_net(_recipe(), classes=0)]
    assert layers == [*[nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU] * 4, nn.ConvTranspose2d, nn.Tanh]


def test_recipes_that_are_half_a_gan() -> None:
    recipe = _recipe()
    for wrong in (replace(recipe, gan=None), replace(recipe, net="cnn3")):
        with pytest.raises(InputError, match=r'`net = "dcgan"` and a \[gan\] section need each other'):
            build_net(wrong, classes=10)
    with pytest.raises(InputError, match="makes images of 32x32 pixels, not 28x28"):
        build_net(replace(recipe, input_shape=(1, 1, 28, 28)), classes=0)
