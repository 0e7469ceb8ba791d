"""From a recipe to the network it names, and from FILE.py:FACTORY to a network of the user's own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import torch
from torch import nn

from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.model_info import TaskName
from msn_deploy.core.recipes import GanOptions, Recipe
from msn_deploy.nets.blocks import Norm
from msn_deploy.nets.dcgan import Discriminator, generator, require_side
from msn_deploy.nets.densenet_bc import densenet_bc
from msn_deploy.nets.detector import detector
from msn_deploy.nets.sequential import SIX, cnn3, vgg7
from msn_deploy.nets.unet import unet

NETS: dict[str, Callable[..., nn.Module]] = {
    "cnn3": cnn3,
    "cnn3_relu": partial(cnn3, slope=0.0),
    "densenet_bc": densenet_bc,
    "densenet_bc_c08": partial(densenet_bc, compression=0.8),
    "densenet_bc_producer": partial(densenet_bc, producer=True),
    "densenet_bc_22": partial(densenet_bc, layers=3),
    "densenet_bc_22_producer": partial(densenet_bc, layers=3, producer=True),
    "vgg7": vgg7,
    "vgg7_svhn": partial(vgg7, stages=SIX),
}
"""Networks with a number per class and image."""
_POSITIONED: dict[TaskName, dict[str, Callable[..., nn.Module]]] = {
    "segmentation": {"unet": unet},
    "detection": {"detector": detector},
}
"""Networks that say where, by the only task that each is for."""

GAN = "dcgan"
MOST_PARAMETERS = 2**27
"""Of a network that a recipe names: 512 MiB in single precision, four times that while it is trained."""

_OF_A_USER = "__msn_deploy_source__"  # a mark of modules that were imported from FILE.py:FACTORY


def build_net(recipe: Recipe, *, classes: int) -> nn.Module:
    """Build the untrained network of a recipe: (N, C, H, W) to logits (N, classes). Raises InputError.

    For segmentation and detection see `UNet` and `Detector`. Of a recipe for a GAN it is the generator:
    (N, latent, 1, 1) to images (N, C, 32, 32) from -1 to 1. classes: also how many values regression has.
    """
    sketch_net(recipe, classes=classes)
    return _built(recipe, classes)


def sketch_net(recipe: Recipe, *, classes: int) -> nn.Module:
    """Build the same network on torch's meta device, where tensors have a shape and take no memory.

    Raises InputError for one that has too many parameters, and as `build_net`.
    """
    with torch.device("meta"):
        model = _built(recipe, classes)
    count = sum(each.numel() for each in model.parameters())
    if count > MOST_PARAMETERS:
        raise InputError(
            f"recipe {recipe.name}: {recipe.net} of width {recipe.width} for {classes} classes has {count} parameters; "
            f"at most {MOST_PARAMETERS} are built.\nLower `width`."
        )
    return model


def _built(recipe: Recipe, classes: int) -> nn.Module:
    if recipe.gan is not None or recipe.net == GAN:
        gan = _gan_of(recipe)
        return generator(latent=gan.latent, channels=recipe.input_shape[1], width=recipe.width)
    known = [*NETS, *(net for nets in _POSITIONED.values() for net in nets), GAN]
    if recipe.net not in known:
        raise InputError(f"recipe {recipe.name}: unknown net {recipe.net!r}{did_you_mean(recipe.net, known)}")
    fitting = _POSITIONED.get(recipe.task, NETS)
    if recipe.net not in fitting:
        raise InputError(
            f"recipe {recipe.name}: {recipe.net} is not a net for {recipe.task}.\nNets for it: {', '.join(fitting)}."
        )
    options: dict[str, Any] = {"classifier": recipe.classifier}
    if fitting is not NETS:
        if recipe.classifier != "linear":
            raise InputError(f"recipe {recipe.name}: {recipe.net} has no linear layer.\nLeave `classifier` out.")
        options = {}
    _, channels, height, width = recipe.input_shape
    return fitting[recipe.net](
        Norm(name=recipe.norm, power_iterations=recipe.train.power_iterations, init=recipe.init),
        in_channels=channels,
        height_px=height,
        width_px=width,
        width=recipe.width,
        classes=classes,
        **options,
    )


def build_discriminator(recipe: Recipe) -> nn.Module:
    """Build the untrained discriminator of a GAN: images (N, C, 32, 32) to logits (N,). Raises InputError."""
    _gan_of(recipe)
    norm = Norm(name=recipe.norm, power_iterations=recipe.train.power_iterations)
    return Discriminator(norm, channels=recipe.input_shape[1], width=recipe.width)


def _gan_of(recipe: Recipe) -> GanOptions:
    """Return the [gan] section of a recipe that can be built. Raises InputError."""
    if recipe.gan is None or recipe.net != GAN:
        raise InputError(f'recipe {recipe.name}: `net = "{GAN}"` and a [gan] section need each other.')
    require_side(*recipe.input_shape[2:])
    return recipe.gan


class _Loader(SourceFileLoader):
    """Leaves no `__pycache__` beside a file, as `python FILE` leaves none."""

    def set_data(self, path: Any, data: Any, **_options: Any) -> None:
        """Write no bytecode."""


def net_from_file(spec: str) -> nn.Module:
    """Import FILE.py, call FACTORY() and return its network in evaluation mode. The file's code is executed.

    Raises InputError if the file, the factory or its result is not what it should be.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist.\nA network of your own is given as FILE.py:FACTORY.")
    known = sys.modules.get(path.stem)
    taken = known is not None and not hasattr(known, _OF_A_USER)
    loader = _Loader(f"_{path.stem}" if taken else path.stem, str(path))
    module_spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    if path.suffix != ".py" or module_spec is None:
        raise InputError(f"{path} is not a Python file.\nA network of your own is given as FILE.py:FACTORY.")
    module = importlib.util.module_from_spec(module_spec)
    setattr(module, _OF_A_USER, True)
    sys.path.insert(0, str(path.parent.resolve()))  # so that the file can import its neighbours, as `python FILE` can
    sys.modules[module.__name__] = module  # where its dataclasses look for their names
    try:
        loader.exec_module(module)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise InputError(
                f"{path} defines no function called {name!r}.\nGive the one that makes the network: FILE.py:FACTORY."
            )
        model = factory()
    except InputError:
        raise
    except Exception as cause:  # whatever the user's own code raises is theirs to mend, and is shown as such
        raise InputError(f"{spec} raised {type(cause).__name__}: {cause}.\n`--debug` shows where.") from cause
    finally:
        sys.path.remove(str(path.parent.resolve()))
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{spec} returned {type(model).__name__}, not a torch.nn.Module.\nLet it return the network itself."
        )
    return model.eval()
