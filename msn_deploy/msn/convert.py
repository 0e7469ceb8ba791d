"""Turning the BatchNorms of a trained network into MSN, SN or plain layers, to fine-tune it from where it stands.

A layer with its BatchNorm is y = a * (W x + b - mean) + beta in evaluation, with a = gamma / sqrt(var + eps) per output
channel. The layer that takes their place starts as the same function; S is the spectral norm:

msn         weight a W   scale S(a W)    running mean a (mean - b)         shift beta
msn-affine  weight W     gain  a S(W)    running mean (mean - b) / S(W)    shift beta
sn          weight a W   scale S(a W)    bias a (b - mean) + beta
none        weight a W                   bias a (b - mean) + beta

u and v are the first singular pair itself, not an estimate, and scale is a constant: it replaces the 1 that
the spectral norm of an MSN or SN layer otherwise is. Arithmetic is done in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msn_deploy.core.errors import FoldError, InputError, did_you_mean
from msn_deploy.msn import layers as ours
from msn_deploy.msn.algebra import bn_scale, fold_bn_weights
from msn_deploy.msn.exported import Example
from msn_deploy.msn.fold import bn_terms
from msn_deploy.msn.norm_act import left_behind
from msn_deploy.msn.pairs import (
    LAYERS,
    UNREGISTERED,
    Linear,
    calls_only_what_is_registered,
    find_pairs_of_both_modes,
)
from msn_deploy.msn.plain import copied, replace_module

_NORMS = ("msn", "msn-affine", "sn", "none")
_SMALLEST = 1e-10  # spectral norm that a power iteration, which divides by nothing below 1e-12, keeps track of


class Conversion(NamedTuple):
    """A converted copy; the new kind of every layer converted ("MSNConv2d"), by name; why each other norm stays."""

    model: nn.Module
    converted: dict[str, str]
    kept: dict[str, str]


@torch.no_grad()
def convert(model: nn.Module, norm: str, *, power_iterations: int = 1, example: Example | None = None) -> Conversion:
    """Return a copy of the model in which every layer with a BatchNorm of its own is one layer with another norm.

    norm: "msn" (arXiv 1907.04003), "msn-affine" (with a gain), "sn" or "none". power_iterations: per training step.
    In evaluation the copy computes what the model does. Convolutions, transposed ones and linear layers count whose
    output one BatchNorm alone reads, in training as in evaluation; that norm becomes an Identity, or the activation
    that it holds (timm's BatchNormAct2d). Every other BatchNorm stays, with its reason in `kept`. Mode, dtype,
    device, memory format, frozen parameters, momentum and the count of batches are kept; the mode is the norm's.
    Parameters are new ones: make the optimiser afterwards.

    example: an input of the network, or a tuple of all, to follow its data flow by torch.export where torch.fx cannot
    (a loop over a tensor's sizes, a branch); it should be as large as those that the network will see.

    A linear layer's BatchNorm1d is taken to see (N, C): behind one that is called with (N, L, C) it would normalise L.

    Raises InputError for an unknown norm, for power_iterations below 1, and for a model that cannot be copied or that
    calls the layers from elsewhere than where they are registered.

    Examples:
        >>> import msn_deploy
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> conversion = msn_deploy.convert(net, "msn")
        >>> conversion.converted, type(conversion.model[0]).__name__
        ({'0': 'MSNConv2d'}, 'MSNConv2d')
    """
    if norm not in _NORMS:
        raise InputError(f"no norm called {norm!r} to convert to{did_you_mean(norm, _NORMS)}")
    if power_iterations < 1:
        raise InputError(f"power_iterations must be at least 1, got {power_iterations}.")
    model = copied(model)
    converted: dict[str, str] = {}
    # The model's own forward, which is traced, may draw random numbers, and so does the birth of a layer.
    with torch.random.fork_rng(devices=[]):
        pairs, kept = find_pairs_of_both_modes(model, example)
        names = _names_of_tensors(model)
        for pair in pairs:
            try:
                _refuse_what_is_tied(pair.linear, pair.batch_norm, names)
                new = _new_layer(pair.linear, pair.batch_norm, norm, power_iterations)
            except FoldError as cause:
                kept[pair.norm] = str(cause).splitlines()[0].rstrip(".")
                continue
            replace_module(model, pair.layer, new)
            new.train(pair.batch_norm.training)
            replace_module(model, pair.norm, left_behind(pair.batch_norm) or nn.Identity())
            converted[pair.layer] = type(new).__name__
        replaced = [name for pair in pairs if pair.layer in converted for name in (pair.layer, pair.norm)]
        if replaced and not calls_only_what_is_registered(model, replaced, example):
            raise InputError(UNREGISTERED)
    return Conversion(model, converted, kept)


def _names_of_tensors(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            names.setdefault(id(tensor), []).append(name)
    return names


def _refuse_what_is_tied(layer: nn.Module, norm: nn.Module, names: dict[int, list[str]]) -> None:
    """Raise FoldError if something besides the data flow hangs on the two: another owner, or hooks on gradients."""
    for module in (layer, norm):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if len(owners := names[id(tensor)]) > 1:
                raise FoldError(f"{owners[0]} and {owners[1]} are one tensor")
        if module._backward_hooks or module._backward_pre_hooks:
            raise FoldError(f"backward hooks on its {type(module).__name__} would be lost")


def _new_layer(layer: Linear, norm: _BatchNorm, kind: str, power_iterations: int) -> nn.Module:
    """Return the layer that a layer and its BatchNorm become; for "none" the layer itself, changed in place.

    Raises FoldError if the spectral norm is (next to) zero or not finite, or the variance is not.
    """
    terms = bn_terms(layer, norm)
    weight, offset = fold_bn_weights(layer.weight, **terms)
    frozen = {"requires_grad": layer.weight.requires_grad}
    if kind == "none":
        layer.weight = nn.Parameter(weight, **frozen)
        layer.bias = _parameter(offset, norm.bias, layer.bias, like=layer.weight)
        return layer
    new = _untrained_twin(layer, norm, kind, power_iterations)
    new.weight = layer.weight if kind == "msn-affine" else nn.Parameter(weight, **frozen)
    new.u, new.v = (vector.to(weight.dtype) for vector in _first_pair(new._matrix()))
    sigma = new.sigma()  # of u and v as rounded: what the layer will divide by
    if not _SMALLEST < float(sigma) < float("inf"):
        raise FoldError(f"the weight to be normalised has the spectral norm {float(sigma):g}")
    if kind != "msn-affine":
        new.scale = sigma
    if isinstance(new, ours._SN):
        new.bias = _parameter(offset, norm.bias, layer.bias, like=layer.weight)
        return new
    assert isinstance(new, ours._MSN)
    scale = bn_scale(terms["gain"], terms["var"], terms["eps"])
    mean = terms["mean"].double() - terms["bias"].double()
    if kind == "msn-affine":
        new.gain = _parameter((scale * sigma).to(weight.dtype), norm.weight, like=layer.weight)
    new.running_mean = (mean / sigma if kind == "msn-affine" else scale * mean).to(weight.dtype)
    new.shift = _parameter(terms["shift"].to(weight.dtype), norm.bias, like=layer.weight)
    if isinstance(norm.num_batches_tracked, Tensor):
        new.num_batches_tracked = norm.num_batches_tracked
    return new


def _untrained_twin(layer: Linear, norm: _BatchNorm, kind: str, power_iterations: int) -> ours.SpectralLayer:
    """Return an SN or MSN layer of the same shape, whose tensors are all to be set."""
    options: dict[str, Any] = {"power_iterations": power_iterations}
    if kind != "sn":
        options |= {"affine": kind == "msn-affine", "momentum": norm.momentum}
        options["sync_mean"] = isinstance(norm, nn.SyncBatchNorm)
    torch_kind = next(each for each in LAYERS if isinstance(layer, each))
    our_kind = getattr(ours, f"{'SN' if kind == 'sn' else 'MSN'}{torch_kind.__name__}")
    twin: ours.SpectralLayer = our_kind(**ours.constructor_arguments(layer), **options, dtype=layer.weight.dtype)
    return twin.to(layer.weight.device)


def _parameter(value: Tensor, *sources: object, like: Tensor) -> nn.Parameter:
    """Return a parameter that is frozen if the ones it is computed from all are; without any, if `like` is."""
    given = [each for each in sources if isinstance(each, Tensor)]
    return nn.Parameter(value, requires_grad=any(each.requires_grad for each in given or [like]))


def _first_pair(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first singular vectors u (rows,) and v (columns,) of a matrix, in float64.

    By the eigenvectors of the smaller of W W^T and W^T W: as exact for the largest singular value as the decomposition
    of W, and ten times faster for a wide one. Raises FoldError for a matrix that is not finite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise FoldError("the weight to be normalised is not finite")
    wide = matrix.double()
    if upright := wide.shape[0] > wide.shape[1]:
        wide = wide.t()
    left = torch.linalg.eigh(wide @ wide.t()).eigenvectors[:, -1]
    right = nn.functional.normalize(wide.t() @ left, dim=0, eps=1e-300)
    return (right, left) if upright else (left, right)
