"""From a recipe to the network it names."""

from __future__ import annotations

from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.core.recipes import Recipe, did_you_mean
from msn_deploy.nets.blocks import Norm
from msn_deploy.nets.cnn3 import cnn3
from msn_deploy.nets.vgg7 import vgg7

NETS = {"cnn3": cnn3, "vgg7": vgg7}


def build_net(recipe: Recipe, *, classes: int) -> nn.Module:
    """Build the untrained network of a recipe: (N, C, H, W) to logits (N, classes). Raises InputError."""
    if recipe.net not in NETS:
        raise InputError(f"recipe {recipe.name}: unknown net {recipe.net!r}{did_you_mean(recipe.net, list(NETS))}")
    _, channels, height, width = recipe.input_shape
    return NETS[recipe.net](
        Norm(name=recipe.norm, power_iterations=recipe.train.power_iterations),
        in_channels=channels,
        height_px=height,
        width_px=width,
        width=recipe.width,
        classes=classes,
    )
