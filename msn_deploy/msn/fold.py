"""Folding normalisation into plain weights, exactly: pure tensor functions below, `fold(model)` above.

MSN and SN  W' = gain / sigma * W                  b' = gain * (b - mean) + shift
BN          W' = gain / sqrt(var + eps) * W        b' = gain / sqrt(var + eps) * (b - mean) + shift

The arithmetic is done in float64 and rounded once. A fold refuses, never guesses: see FoldError's messages.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from msn_deploy.core.errors import FoldError
from msn_deploy.msn.layers import _MSN, _SN, _Spectral

_LOG = logging.getLogger(__name__)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_PLAIN: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def fold_msn_weights(
    weight: Tensor, bias: Tensor, *, sigma: Tensor, mean: Tensor, gain: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Fold y = gain * (conv(x, W / sigma) + b - mean) + shift into one plain convolution or matrix product.

    weight (C_out, ...); bias, mean, gain, shift (C_out,); sigma () > 0. Returns new tensors
    W' = gain / sigma * W and b' = gain * (b - mean) + shift in the dtype of weight; the inputs are untouched.
    Raises FoldError if sigma is not positive and finite. Source: arXiv 1907.04003; SN is mean = 0, gain = 1, shift = 0.
    """
    value = float(sigma)
    if not 0 < value < float("inf"):
        raise FoldError(
            f"sigma is {value}, not a positive finite number.\nLikely cause: a weight that is all zero or NaN."
        )
    return _scaled(weight, bias, gain.double() / sigma.double(), gain, mean, shift)


def fold_bn_weights(
    weight: Tensor, bias: Tensor, *, mean: Tensor, var: Tensor, eps: float, gain: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Fold y = gain * (conv(x, W) + b - mean) / sqrt(var + eps) + shift into one plain convolution or matrix product.

    Shapes as in `fold_msn_weights`; var (C_out,) >= 0. Raises FoldError if var + eps is not positive and finite.
    """
    scale = gain.double() / torch.sqrt(var.double() + eps)
    if not bool(torch.isfinite(scale).all()):
        raise FoldError(
            "a BatchNorm has a variance that is negative or not finite.\nLikely cause: a diverged training."
        )
    return _scaled(weight, bias, scale, scale, mean, shift)


def _scaled(
    weight: Tensor, bias: Tensor, weight_scale: Tensor, bias_scale: Tensor, mean: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    folded = weight.double() * weight_scale.double().view(-1, *[1] * (weight.dim() - 1))
    offset = bias_scale.double() * (bias.double() - mean.double()) + shift.double()
    return folded.to(weight.dtype), offset.to(weight.dtype)


@torch.no_grad()
def fold(model: nn.Module, *, strict: bool = True) -> nn.Module:
    """Return a copy of the model with MSN, SN and conv-BN pairs folded into plain layers.

    A BatchNorm that no convolution or linear layer alone feeds stays when `strict` is False (with a warning in the
    log), and is a FoldError otherwise. Raises FoldError for a model in training mode and for shared layers.
    """
    for name, module in model.named_modules():
        if module.training:
            raise FoldError(
                f"{name or 'the model'} is in training mode, where sigma and mean still move.\nCall eval()."
            )
    _refuse_shared_parameters(model)
    try:
        model = copy.deepcopy(model)
    except RuntimeError as cause:  # torch copies no tensor that was computed, as the old weight_norm keeps one
        raise FoldError(f"the model cannot be copied: {str(cause).splitlines()[0][:160]}") from cause
    if isinstance(model, _Spectral):
        return _plain_layer("the layer", model)
    for name, module in list(model.named_modules()):
        if isinstance(module, _Spectral):
            _replace(model, name, _plain_layer(name, module))
    for refusal in _fold_batch_norms(model):
        if strict:
            raise FoldError(refusal)
        _LOG.warning("not folded: %s", refusal)
    return model


def _refuse_shared_parameters(model: nn.Module) -> None:
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in owners:
            raise FoldError(
                f"{owners[id(parameter)]} and {name} are one parameter; folding one would change the other."
            )
        owners[id(parameter)] = name


def _plain_layer(name: str, layer: _Spectral) -> nn.Module:
    """Return the plain torch twin of an SN or MSN layer, folded."""
    reason = _why_opaque(layer)
    if reason:
        raise FoldError(f"{name}: {reason}.")
    channels = layer.weight.shape[0]
    zeros = layer.weight.new_zeros(channels)
    ones = torch.ones_like(zeros)
    mean, gain, shift = zeros, ones, zeros
    if isinstance(layer, _MSN):
        mean = layer.running_mean
        gain = layer.gain if layer.gain is not None else ones
        shift = layer.shift if layer.shift is not None else zeros
    bias = layer.bias if layer.bias is not None else zeros
    try:
        weight, offset = fold_msn_weights(layer.weight, bias, sigma=layer.sigma(), mean=mean, gain=gain, shift=shift)
    except FoldError as cause:
        raise FoldError(f"{name}: {cause}") from cause
    plain: nn.Module
    if isinstance(layer, nn.Linear):
        plain = nn.Linear(layer.in_features, layer.out_features)
    else:
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        plain = _PLAIN[layer.weight.dim() - 2](
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
        )
    plain.weight, plain.bias = nn.Parameter(weight), nn.Parameter(offset)
    return plain.eval()


def _why_opaque(layer: nn.Module) -> str | None:
    """Return why a layer may compute something else than its weights and its class say, or None."""
    if parametrize.is_parametrized(layer):
        return f"{type(layer).__name__} computes its weight by a parametrisation"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "forward hooks may change what it computes"
    if isinstance(layer, _Spectral) and type(layer).forward not in (_MSN.forward, _SN.forward):
        return f"{type(layer).__name__} has a forward of its own"
    return None


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # so that a forward that reads a norm's statistics itself shows in the graph


def _fold_batch_norms(model: nn.Module) -> list[str]:
    """Fold each BatchNorm into the layer that alone feeds it; return a sentence per one that stays."""
    norms = [name for name, module in model.named_modules() if isinstance(module, _BATCH_NORMS)]
    if not norms:
        return []
    try:
        graph = _Tracer().trace(model)
    except Exception as cause:  # fx raises whatever the model's own forward raises on a symbolic input
        return [
            f"{norms[0]} and {len(norms) - 1} more: the data flow could not be traced ({type(cause).__name__}: {cause})"
        ]
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    refusals = [f"{name}: the data flow never reaches it" for name in norms if calls[name] == 0]
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in norms:
            continue
        reason = _fold_pair(model, node, calls, read)
        if reason:
            refusals.append(f"{node.target}: {reason}")
    return refusals


def _fold_pair(model: nn.Module, node: fx.Node, calls: Counter[object], read: set[str]) -> str | None:
    """Fold the BatchNorm that a node calls into its producer, or return why that would change the function."""
    norm = model.get_submodule(str(node.target))
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    assert isinstance(norm, _BATCH_NORMS)
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return "no layer feeds it directly"
    layer = model.get_submodule(str(source.target))
    if not isinstance(layer, _FOLDABLE):
        return f"{source.target} ({type(layer).__name__}) stands between it and the convolution before it"
    if calls[source.target] > 1 or calls[node.target] > 1:
        return f"{source.target} or the norm itself is used more than once"
    if read & {str(source.target), str(node.target)}:
        return f"the weights of {source.target} or of the norm are also used directly"
    if len(source.users) > 1:
        return f"the output of {source.target} is also used without the norm"
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics"
    for name, module in ((source.target, layer), (node.target, norm)):
        if reason := _why_opaque(module):
            return f"{name}: {reason}"
    zeros, ones = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_mean)
    try:
        weight, bias = fold_bn_weights(
            layer.weight,
            layer.bias if layer.bias is not None else zeros,
            mean=norm.running_mean,
            var=norm.running_var,
            eps=norm.eps,
            gain=norm.weight if norm.weight is not None else ones,
            shift=norm.bias if norm.bias is not None else zeros,
        )
    except FoldError as cause:
        raise FoldError(f"{node.target}: {cause}") from cause
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    _replace(model, str(node.target), nn.Identity())
    return None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module.eval())
