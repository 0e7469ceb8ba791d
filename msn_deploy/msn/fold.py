"""`fold(model)`: a network with plain layers only. A fold refuses, never guesses: see FoldError's messages."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from msn_deploy.core.errors import FoldError
from msn_deploy.msn.algebra import fold_bn_weights
from msn_deploy.msn.exported import Example
from msn_deploy.msn.norm_act import left_behind
from msn_deploy.msn.pairs import UNREGISTERED, Linear, evaluation_calls_only_what_is_registered, find_pairs
from msn_deploy.msn.plain import fold_layers, replace_module

_LOG = logging.getLogger(__name__)


@torch.no_grad()
def fold(model: nn.Module, *, strict: bool = True, example: Example | None = None) -> nn.Module:
    """Return a copy of the model with its normalisation folded into plain layers.

    Folded are MSN and SN layers, BatchNorm that one layer alone feeds, and torch's own spectral_norm and
    weight_norm (parametrisations and the older hooks). A norm that can't be folded stays when `strict` is False
    (with a warning in the log), and is a FoldError otherwise. example: see `convert`. Raises FoldError for a model
    in training mode, for shared parameters, for parametrisations that it does not know and for layers called from
    outside of the module tree.

    Examples:
        >>> import msn_deploy
        >>> from torch import nn
        >>> net = nn.Sequential(msn_deploy.MSNConv2d(3, 8, 3), nn.ReLU()).eval()
        >>> msn_deploy.fold(net)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
        )
    """
    _refuse_shared_parameters(model)
    model, _ = fold_layers(model)
    pairs, refusals = find_pairs(model, example)
    for pair in pairs:
        try:
            _merge(pair.linear, pair.batch_norm)
        except FoldError as cause:
            raise FoldError(f"{pair.norm}: {cause}") from cause
        replace_module(model, pair.norm, left_behind(pair.batch_norm) or nn.Identity())
    if pairs and not evaluation_calls_only_what_is_registered(model, [pair.norm for pair in pairs], example):
        raise FoldError(UNREGISTERED)
    if refusals and strict:
        first, reason = next(iter(refusals.items()))
        count = len(refusals)
        rest = "" if count == 1 else f"\n{count} norms can't be folded. `fold(model, strict=False)` keeps them."
        raise FoldError(f"{first}: {reason}.{rest}")
    for name, reason in refusals.items():
        _LOG.warning("not folded: %s: %s", name, reason)
    return model


def _refuse_shared_parameters(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in owners:
            raise FoldError(
                f"{owners[id(parameter)]} and {name} are one parameter; folding one would change the other.",
                code="SHARED_PARAM",
            )
        owners[id(parameter)] = name


def _merge(layer: Linear, norm: _BatchNorm) -> None:
    """Fold a BatchNorm into the layer that feeds it, in place."""
    weight, offset = fold_bn_weights(layer.weight, **bn_terms(layer, norm))
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(offset)


def bn_terms(layer: Linear, norm: _BatchNorm) -> dict[str, Any]:
    """Return what `fold_bn_weights` takes besides the weight, of a layer and the BatchNorm that it feeds."""
    mean = norm.running_mean
    assert mean is not None  # `find_pairs` takes no other
    return {
        "bias": layer.bias if layer.bias is not None else torch.zeros_like(mean),
        "mean": mean,
        "var": norm.running_var,
        "eps": norm.eps,
        "gain": norm.weight if isinstance(norm.weight, Tensor) else torch.ones_like(mean),
        "shift": norm.bias if isinstance(norm.bias, Tensor) else torch.zeros_like(mean),
        "transposed": isinstance(layer, _ConvTransposeNd),
        "groups": int(getattr(layer, "groups", 1)),
    }
