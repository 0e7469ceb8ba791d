"""Folding normalisation into plain weights, exactly: pure tensor functions below, `fold(model)` above.

MSN and SN  W' = gain / sigma * W                  b' = gain * (b - mean) + shift
BN          W' = gain / sqrt(var + eps) * W        b' = gain / sqrt(var + eps) * (b - mean) + shift

The arithmetic is done in float64 and rounded once. A fold refuses, never guesses: see FoldError's messages.
"""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from msn_deploy.core.errors import FoldError
from msn_deploy.msn import layers as ours
from msn_deploy.msn.layers import scale_channels
from msn_deploy.msn.pairs import LAYERS, UNREGISTERED, evaluation_calls_only_what_is_registered, find_pairs, why_opaque

_LOG = logging.getLogger(__name__)


def fold_msn_weights(
    weight: Tensor,
    bias: Tensor,
    *,
    sigma: Tensor,
    mean: Tensor,
    gain: Tensor,
    shift: Tensor,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Fold y = gain * (conv(x, W / sigma) + b - mean) + shift into one plain convolution or matrix product.

    weight (C_out, ...), or (C_in, C_out / groups, ...) if transposed; bias, mean, gain, shift (C_out,); sigma () > 0.
    Returns new tensors W' = gain / sigma * W and b' = gain * (b - mean) + shift in the dtype of weight.
    Raises FoldError if sigma is not positive and finite. Source: arXiv 1907.04003; SN is mean = 0, gain = 1, shift = 0.
    """
    value = float(sigma)
    if not 0 < value < float("inf"):
        raise FoldError(
            f"sigma is {value}, not a positive finite number.\nLikely cause: a weight that is all zero or NaN."
        )
    factor = gain.double() / sigma.double()
    return _scaled(weight, factor, transposed, groups), _offset(weight, bias, gain, mean, shift)


def fold_bn_weights(
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Tensor,
    var: Tensor,
    eps: float,
    gain: Tensor,
    shift: Tensor,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Fold y = gain * (conv(x, W) + b - mean) / sqrt(var + eps) + shift into one plain convolution or matrix product.

    Shapes as in `fold_msn_weights`; var (C_out,) >= 0. Raises FoldError if var + eps is not positive and finite.
    """
    scale = bn_scale(gain, var, eps)
    return _scaled(weight, scale, transposed, groups), _offset(weight, bias, scale, mean, shift)


def bn_scale(gain: Tensor, var: Tensor, eps: float) -> Tensor:
    """Return gain / sqrt(var + eps), shape (C_out,), in float64. Raises FoldError if it is not finite."""
    scale = gain.double() / torch.sqrt(var.double() + eps)
    if not bool(torch.isfinite(scale).all()):
        raise FoldError(
            "a BatchNorm has a variance that is negative or not finite.\nLikely cause: a diverged training."
        )
    return scale


def _scaled(weight: Tensor, factor: Tensor, transposed: bool, groups: int) -> Tensor:
    return scale_channels(weight.double(), factor.double(), transposed=transposed, groups=groups).to(weight.dtype)


def _offset(weight: Tensor, bias: Tensor, factor: Tensor, mean: Tensor, shift: Tensor) -> Tensor:
    return (factor.double() * (bias.double() - mean.double()) + shift.double()).to(weight.dtype)


@torch.no_grad()
def fold(model: nn.Module, *, strict: bool = True) -> nn.Module:
    """Return a copy of the model with its normalisation folded into plain layers.

    Folded are MSN and SN layers, BatchNorm that one layer alone feeds, and torch's own spectral_norm and
    weight_norm (parametrisations and the older hooks). A norm that can't be folded stays when `strict` is False (with
    a warning in the log), and is a FoldError otherwise. Raises FoldError for a model in training mode, for shared
    parameters, for parametrisations that it does not know and for layers called from outside of the module tree.
    """
    for name, module in model.named_modules():
        if module.training:
            raise FoldError(
                f"{name or 'the model'} is in training mode, where sigma and mean still move.\nCall eval()."
            )
    _refuse_shared_parameters(model)
    # In a holder, so that a model that is itself one layer is replaced like any other.
    holder = nn.ModuleDict({"model": copied(model)}).eval()
    for name, module in list(holder.named_modules()):
        settled = _settled(name.removeprefix("model."), module)
        if settled is not module:
            replace_module(holder, name, settled)
        if isinstance(module, ours.SpectralLayer):
            replace_module(holder, name, _plain_layer(name.removeprefix("model."), module))
    model = holder["model"]
    pairs, refusals = find_pairs(model)
    for pair in pairs:
        try:
            _merge(model.get_submodule(pair.layer), model.get_submodule(pair.norm))
        except FoldError as cause:
            raise FoldError(f"{pair.norm}: {cause}") from cause
        replace_module(model, pair.norm, nn.Identity())
    if pairs and not evaluation_calls_only_what_is_registered(model):
        raise FoldError(UNREGISTERED)
    for name, reason in refusals.items():
        if strict:
            raise FoldError(f"{name}: {reason}.")
        _LOG.warning("not folded: %s: %s", name, reason)
    return model


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one called `name`, in the mode of the one it replaces."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module.train(model.get_submodule(name).training))


def copied(model: nn.Module) -> nn.Module:
    """Copy a model deeply, also one whose older weight_norm hooks keep a computed tensor, which torch does not copy.

    Raises FoldError for another such tensor.
    """
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    try:
        return copy.deepcopy(model, computed)
    except RuntimeError as cause:
        raise FoldError(f"the model cannot be copied: {str(cause).splitlines()[0][:160]}") from cause


def _refuse_shared_parameters(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in owners:
            raise FoldError(
                f"{owners[id(parameter)]} and {name} are one parameter; folding one would change the other."
            )
        owners[id(parameter)] = name


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
            raise FoldError(f"{name}: {type(each).__name__} is no parametrisation that can be folded.")
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


def _merge(layer: nn.Module, norm: nn.Module) -> None:
    """Fold a BatchNorm into the layer that feeds it, in place."""
    assert isinstance(layer, LAYERS)
    weight, offset = fold_bn_weights(layer.weight, **bn_terms(layer, norm))
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(offset)


def bn_terms(layer: nn.Module, norm: nn.Module) -> dict[str, Any]:
    """Return what `fold_bn_weights` takes besides the weight, of a layer and the BatchNorm that it feeds."""
    assert isinstance(layer, LAYERS)
    mean = norm.running_mean
    assert isinstance(mean, Tensor)
    return {
        "bias": layer.bias if layer.bias is not None else torch.zeros_like(mean),
        "mean": mean,
        "var": norm.running_var,
        "eps": norm.eps,
        "gain": norm.weight if isinstance(norm.weight, Tensor) else torch.ones_like(mean),
        "shift": norm.bias if isinstance(norm.bias, Tensor) else torch.zeros_like(mean),
        "transposed": isinstance(layer, ours.TRANSPOSED),
        "groups": int(getattr(layer, "groups", 1)),
    }
