"""A layer that normalises its own weight, as the plain layer that it is in evaluation."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from msn_deploy.core.errors import FoldError
from msn_deploy.msn import layers as ours
from msn_deploy.msn.algebra import fold_msn_weights
from msn_deploy.msn.pairs import LAYERS, why_opaque


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldedLayer:
    """A layer and the plain one in its place. name: in the model. kind: class of the norm. sigma: that was divided by.

    sigma is None for weight_norm and standardised weights, which have none.
    """

    name: str
    kind: str
    before: nn.Module
    after: nn.Module
    sigma: float | None


@torch.no_grad()
def fold_layers(model: nn.Module, *, share: bool = False) -> tuple[nn.Module, list[FoldedLayer]]:
    """Return a copy of the model in which every MSN, SN and WS layer is a plain one, and what was replaced.

    So are layers under torch's spectral_norm and weight_norm. BatchNorm stays. share: see `copied`. Raises FoldError
    for a model in training mode and for a layer that can't be folded.
    """
    for name, module in model.named_modules():
        if module.training:
            raise FoldError(
                f"{name or 'the model'} is in training mode, where sigma and mean still move.\nCall eval().",
                code="TRAIN_MODE",
            )
    # In a holder, so that a model that is itself one layer is replaced like any other.
    holder = nn.ModuleDict({"model": copied(model, share=share)}).eval()
    originals = dict(nn.ModuleDict({"model": model}).named_modules(remove_duplicate=False))
    replaced: dict[int, nn.Module] = {}
    folded = []
    for name, module in list(holder.named_modules(remove_duplicate=False)):
        if id(module) in replaced:  # one module under two names
            replace_module(holder, name, replaced[id(module)])
            continue
        short, original = name.removeprefix("model").removeprefix("."), originals[name]
        kind = _normaliser(original)
        plain = _settled(short, module)
        if isinstance(plain, ours.SpectralLayer):
            plain = _plain_layer(short, plain)
        elif isinstance(plain, ours.WSConv2d):
            plain = _plain_standardised(short, plain)
        if plain is not module:
            replaced[id(module)] = plain
            replace_module(holder, name, plain)
        if kind:
            sigma = _sigma(original, plain)
            folded.append(FoldedLayer(name=short, kind=kind, before=original, after=plain, sigma=sigma))
    return holder["model"], folded


def _normaliser(layer: nn.Module) -> str:
    """Return the name of what normalises the weight of a layer; empty for nothing."""
    if isinstance(layer, (ours.SpectralLayer, ours.WSConv2d)):
        return type(layer).__name__
    if parametrize.is_parametrized(layer, "weight"):
        chain = layer.parametrizations["weight"]  # type: ignore[index]
        return ", ".join(type(each).__name__.removeprefix("_") for each in chain)
    hooks = [type(hook).__name__ for hook in layer._forward_pre_hooks.values()]
    return next((name for name in hooks if name in _KNOWN_HOOKS), "")


def raw_weight(layer: nn.Module) -> Tensor | None:
    """Return the weight of a layer before a spectral norm divides it, in the layer's own shape; None without one."""
    if isinstance(layer, ours.SpectralLayer):
        return layer.weight
    chain = layer.parametrizations["weight"] if parametrize.is_parametrized(layer, "weight") else None  # type: ignore[index]
    raw = getattr(layer, "weight_orig", None) if chain is None else getattr(chain, "original", None)
    return raw if isinstance(raw, Tensor) else None  # weight_norm keeps a magnitude and a direction instead


def _sigma(original: nn.Module, plain: nn.Module) -> float | None:
    """Return what a spectral norm divided by. A hook's own weight is of its last forward, so the fold is asked."""
    if isinstance(original, ours.SpectralLayer):
        return float(original.sigma())
    raw = raw_weight(original)
    return None if raw is None else float(raw.double().norm() / plain.weight.double().norm())  # type: ignore[operator]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module called `name`, in the mode of the one it replaces."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module.train(model.get_submodule(name).training))


def copied(model: nn.Module, *, share: bool = False) -> nn.Module:
    """Copy a model deeply, also one whose older weight_norm hooks keep a computed tensor, which torch does not copy.

    share: let the copy hold the very parameters and buffers that are in the CPU's memory, for one that is only read.
    Raises FoldError for another such tensor.
    """
    shared = {id(each): each for each in (*model.parameters(), *model.buffers()) if share and each.is_cpu}
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    try:
        return copy.deepcopy(model, {**shared, **computed})
    except RuntimeError as cause:
        raise FoldError(f"the model cannot be copied: {str(cause).splitlines()[0][:160]}") from cause


_KNOWN_PARAMETRISATIONS = (parametrizations._SpectralNorm, parametrizations._WeightNorm)
_KNOWN_HOOKS = {"SpectralNorm": torch.nn.utils.remove_spectral_norm, "WeightNorm": torch.nn.utils.remove_weight_norm}


def _settled(name: str, module: nn.Module) -> nn.Module:
    """Return a layer whose weight is a parameter of the value that torch's spectral_norm or weight_norm gives it."""
    for hook in list(module._forward_pre_hooks.values()):
        remove = _KNOWN_HOOKS.get(type(hook).__name__)
        if remove is not None and type(hook).__module__.startswith("torch.nn.utils"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch deprecates the hooks, not their removal
                remove(module, str(getattr(hook, "name", "weight")))
    if not parametrize.is_parametrized(module):
        return module
    chains: dict[str, nn.Module] = dict(module.parametrizations.items())  # type: ignore[union-attr,operator]
    for each in (each for chain in chains.values() for each in chain):  # type: ignore[attr-defined]
        if not isinstance(each, _KNOWN_PARAMETRISATIONS):
            raise FoldError(f"{name}: {type(each).__name__} is not a parametrisation that can be folded.")
    kind = type(module).__bases__[0]
    if set(chains) != {"weight"} or kind not in LAYERS:
        raise FoldError(f"{name}: a {kind.__name__} with its {', '.join(chains)} parametrised cannot be folded.")
    # Not torch's remove_parametrizations: on a copy it takes the weight away from the class of the original, too.
    plain: nn.Module = kind(**ours.constructor_arguments(module))
    plain.weight, plain.bias = nn.Parameter(module.weight.detach().clone()), module.bias  # type: ignore[operator]
    return plain


def _plain_layer(name: str, layer: ours.SpectralLayer) -> nn.Module:
    """Return the plain torch twin of an SN or MSN layer, folded."""
    reason = why_opaque(layer)
    if type(layer).forward not in (ours._MSN.forward, ours._SN.forward):
        reason = f"{type(layer).__name__} has a forward of its own"
    mean = gain = shift = None
    if isinstance(layer, ours._MSN):
        mean, gain, shift = layer.running_mean, layer.gain, layer.shift
        reason = reason or (None if mean is not None else "it keeps no running mean")
    if reason:
        raise FoldError(f"{name}: {reason}.")
    transposed, groups = layer.is_transposed, int(getattr(layer, "groups", 1))
    zeros = layer.weight.new_zeros(layer.channels)
    try:
        weight, offset = fold_msn_weights(
            layer.weight,
            layer.bias if isinstance(layer.bias, Tensor) else zeros,
            sigma=layer.sigma() if layer.scale is None else layer.sigma() / layer.scale,
            mean=zeros if mean is None else mean,
            gain=torch.ones_like(zeros) if gain is None else gain,
            shift=zeros if shift is None else shift,
            transposed=transposed,
            groups=groups,
        )
    except FoldError as cause:
        raise FoldError(f"{name}: {cause}") from cause
    kind = next(each for each in type(layer).__mro__ if each.__module__.startswith("torch.nn"))
    plain: nn.Module = kind(**ours.constructor_arguments(layer))
    plain.weight, plain.bias = nn.Parameter(weight), nn.Parameter(offset)
    return plain


def _plain_standardised(name: str, layer: ours.WSConv2d) -> nn.Module:
    """Return the convolution that has the standardised weight of a layer, computed in float64 and rounded once."""
    reason = why_opaque(layer)
    if type(layer).forward is not ours.WSConv2d.forward:
        reason = f"{type(layer).__name__} has a forward of its own"
    if reason:
        raise FoldError(f"{name}: {reason}.")
    gain = None if layer.gain is None else layer.gain.double()
    weight = ours.standardised(layer.weight.double(), gain, layer.eps)
    if not bool(torch.isfinite(weight).all()):
        raise FoldError(f"{name}: a weight or a gain is not finite.\nLikely cause: a diverged training.")
    plain = nn.Conv2d(**ours.constructor_arguments(layer), bias=False)
    plain.weight, plain.bias = nn.Parameter(weight.to(layer.weight.dtype)), layer.bias
    return plain
