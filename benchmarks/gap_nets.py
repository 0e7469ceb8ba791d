"""Variants of the networks that were tried in order to bring MSN closer to BatchNorm; none is in the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msn_deploy.msn import MSNConv2d
from msn_deploy.nets.densenet_bc import DenseNetBC, Shift
from msn_deploy.nets.registry import NETS


class TranslatedReLU(nn.Module):
    """relu(x) - shift, with the shift of the MSN layer before it: a shift then moves the kink, not the output."""

    def __init__(self, before: MSNConv2d) -> None:
        super().__init__()
        self.before = [before]  # not a submodule: it is one already

    def forward(self, x: Tensor) -> Tensor:
        shift = self.before[0].shift
        assert shift is not None
        return F.relu(x) - shift.view(-1, 1, 1)


class ScaledLinear(nn.Linear):
    """A linear layer with one trainable gain on its input, shared by all features, that starts at 10."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.input_gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x * self.input_gain, self.weight, self.bias)


def _translated(model: nn.Sequential) -> nn.Module:
    layers = list(model)
    for at, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU) and isinstance(layers[at - 1], MSNConv2d):
            layers[at] = TranslatedReLU(layers[at - 1])
    return nn.Sequential(*layers)


def _with_classifier_gain(model: nn.Sequential) -> nn.Module:
    last = model[-1]
    return nn.Sequential(*model[:-1], ScaledLinear(last.in_features, last.out_features))


def _with_momentum(momentum: float) -> Callable[[nn.Sequential], nn.Module]:
    def change(model: nn.Sequential) -> nn.Module:
        for layer in model:
            if isinstance(layer, MSNConv2d):
                layer.momentum = momentum
        return model

    return change


# DenseNet-BC. A feature is read by many, each with a shift of its own; BN divides it by its deviation each time.


def _convolutions(model: nn.Module) -> list[MSNConv2d]:
    return [layer for layer in model.modules() if isinstance(layer, MSNConv2d)]


def _features(model: DenseNetBC) -> list[MSNConv2d]:
    """Return the convolutions whose outputs are concatenated."""
    layers = [layer for block in model.blocks for layer in block]
    return [model.stem, *(each.feature for each in (*model.transitions, *layers))]


def _shifts(model: nn.Module) -> list[Shift]:
    return [module for module in model.modules() if isinstance(module, Shift)]


def _layer_gain(model: DenseNetBC) -> nn.Module:
    """Let the constant factor of each convolution be trained (one a layer, as sigmaReparam, arXiv 2303.06296)."""
    for layer in _convolutions(model):
        start = layer._buffers.pop("scale")
        layer.scale = nn.Parameter(torch.ones(()) if start is None else start)
        layer._divides_later = lambda _input: False  # which takes the factor for a constant
    return model


def _feature_gain(model: DenseNetBC) -> nn.Module:
    """Give each feature one gain for all its readers, before the concatenation: it folds into the convolution."""
    for layer in _features(model):
        layer.gain = nn.Parameter(torch.ones(layer.out_channels))
    return model


def _consumer_gain(model: DenseNetBC) -> nn.Module:
    """Give each reader a gain of its own per feature, as BN has, and the convolutions none."""
    for each in _shifts(model):
        each.gain = nn.Parameter(torch.ones_like(each.shift))
    return model


def _shift_decay(model: DenseNetBC) -> nn.Module:
    """Pull every shift towards zero."""
    for name, shift in model.named_parameters():
        if name.endswith("shift"):
            shift.register_hook(lambda grad, shift=shift: grad + 0.001 * shift.detach())
    return model


def _with_all_momentum(momentum: float) -> Callable[[DenseNetBC], nn.Module]:
    def change(model: DenseNetBC) -> nn.Module:
        for layer in _convolutions(model):
            layer.momentum = momentum
        return model

    return change


class _Scaled:
    """A forward hook that moves a convolution's factor towards a deviation of 1 of what it makes; no gradient.

    each: how far per training step, as an exponent, after the first step, which goes all the way. per_channel: one
    factor per channel, in the gain of the layer, in place of one per layer, in its scale.
    """

    def __init__(self, layer: MSNConv2d, each: float, *, per_channel: bool = False) -> None:
        self.each, self.per_channel = each, per_channel
        if per_channel:
            layer.gain = nn.Parameter(torch.ones(layer.out_channels), requires_grad=False)
        elif layer.scale is None:
            layer.scale = torch.ones(())
        layer.register_buffer("steps", torch.zeros(()))
        layer.register_forward_hook(self)

    def __call__(self, layer: MSNConv2d, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        steps = layer.steps
        if not layer.training or (steps > 0 and not self.each):
            return y
        with torch.no_grad():
            centred = y.detach().float() if layer.shift is None else y.detach().float() - layer.shift.view(-1, 1, 1)
            square = centred.square().mean((0, 2, 3))
            deviation = (square if self.per_channel else square.mean()).sqrt().clamp_min(1e-3)
            factor = deviation ** -(1.0 if steps == 0 else self.each)
            if self.per_channel:  # anew each time, because the backward has the old one
                layer.gain = nn.Parameter(layer.gain * factor, requires_grad=False)
            else:
                layer.scale = layer.scale * factor
                layer.running_mean.mul_(factor)
            steps.add_(1)
        # In the first step, so that the layers behind see what they will see.
        return y * factor.view(-1, 1, 1).to(y.dtype) if steps == 1 else y


def _scaled(each: float, *, per_channel: bool = False) -> Callable[[DenseNetBC], nn.Module]:
    def change(model: DenseNetBC) -> nn.Module:
        for layer in _convolutions(model):
            _Scaled(layer, each, per_channel=per_channel)
        return model

    return change


class _StartedShift(Shift):
    """A reader's gain and shift, whose gain starts at one over the deviation of each feature in the first batch."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.steps == 0:
            with torch.no_grad():
                self.gain.copy_(1 / x.float().std((0, 2, 3)).clamp_min(1e-3))
                self.steps.add_(1)
        return super().forward(x)


def _replace(model: nn.Module, kind: type[nn.Module], made: Callable[[Any], nn.Module]) -> nn.Module:
    """Put what `made` returns in the place of each module of a kind."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is kind:
                setattr(module, name, made(child))
    return model


def _consumer_start(model: DenseNetBC) -> nn.Module:
    return _replace(model, Shift, lambda shift: _StartedShift(len(shift.shift)))


class _StartedColumns(Shift):
    """A reader's shift; in the first batch the weight behind it is divided by the deviation of each feature it reads.

    No gain is left: sigma is followed, and the factor of the layer keeps the deviation that it started with.
    """

    def __init__(self, channels: int, reads: nn.Module) -> None:
        super().__init__(channels)
        self.reads = [reads]  # not a submodule: it is one already
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.steps == 0:
            with torch.no_grad():
                _divide_columns(self.reads[0], x.float().std((0, 2, 3)).clamp_min(1e-3))
                self.steps.add_(1)
        return super().forward(x)


def _divide_columns(layer: Any, size: Tensor) -> None:
    """Divide a weight by the size of each input channel, and W / sigma times its factor by the same."""
    before = layer.sigma() if isinstance(layer, MSNConv2d) else None
    layer.weight.div_(size.view(1, -1, *[1] * (layer.weight.dim() - 2)))
    if before is not None:
        layer.settle()
        layer.scale = (1.0 if layer.scale is None else layer.scale) * layer.sigma() / before


def _columns_start(model: DenseNetBC) -> nn.Module:
    layers = [(layer.before, layer.bottleneck[0]) for block in model.blocks for layer in block]
    layers += [(each.before, each.feature) for each in model.transitions]
    for before, reads in (*layers, (model.last, model.classifier)):
        before[0] = _StartedColumns(len(before[0].shift), reads)
    return model


def _affine_start(model: DenseNetBC) -> nn.Module:
    """Start the gains of msn-affine, those of 1x1 convolutions and those of readers, at unit deviation."""

    def start(layer: MSNConv2d, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        if not layer.training or layer.steps > 0:
            return y
        with torch.no_grad():
            factor = 1 / y.detach().float().std((0, 2, 3)).clamp_min(1e-3)
            layer.gain.data.mul_(factor)
            layer.steps.add_(1)
        return y * factor.view(-1, 1, 1).to(y.dtype)

    for layer in _convolutions(model):
        if layer.gain is not None:
            layer.register_buffer("steps", torch.zeros(()))
            layer.register_forward_hook(start)
    return _consumer_start(model)


def _bn_readers(model: DenseNetBC) -> nn.Module:
    """BN where features are read, MSN in all convolutions."""
    return _replace(model, Shift, lambda shift: nn.BatchNorm2d(len(shift.shift)))


def _bn_last(model: DenseNetBC) -> nn.Module:
    """BN before the classifier alone."""
    _replace(model.last, Shift, lambda shift: nn.BatchNorm2d(len(shift.shift)))
    return model


def _bn_bottlenecks(model: DenseNetBC) -> nn.Module:
    """BN behind the 1x1 convolutions, which folds, MSN elsewhere."""
    for block in model.blocks:
        for layer in block:
            convolution = layer.bottleneck[0]
            plain = nn.Conv2d(convolution.in_channels, convolution.out_channels, 1, bias=False)
            layer.bottleneck = nn.Sequential(plain, nn.BatchNorm2d(convolution.out_channels))
    return model


class _RowNorm(MSNConv2d):
    """Each row of the weight over its own length in place of sigma: mean-only BN (arXiv 1602.07868, section 4)."""

    def _normalised_weight(self) -> Tensor:
        rows = torch.linalg.vector_norm(self.weight.flatten(1), dim=1).clamp_min(1e-12)
        return self.weight * (2**0.5 / rows).view(-1, 1, 1, 1)

    def _divides_later(self, input: Tensor) -> bool:
        return False


def _row_norm(model: DenseNetBC) -> nn.Module:
    for layer in _convolutions(model):
        layer.__class__ = _RowNorm
    return model


def _gain_noise(model: DenseNetBC) -> nn.Module:
    """Multiply each channel by 1 plus noise of a tenth in training, as the deviation of a batch does with BN."""

    def noisy(layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        return y * (1 + 0.1 * torch.randn(y.shape[1], 1, 1, dtype=y.dtype)) if layer.training else y

    for layer in _convolutions(model):
        layer.register_forward_hook(noisy)
    return model


class _ConstantDeviation(nn.BatchNorm2d):
    """BN whose deviation of the batch counts as a constant in the backward: what does its gradient give?"""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            super().forward(x.detach())  # moves the running numbers
            factor = torch.rsqrt(x.float().var((0, 2, 3), correction=0) + self.eps)
        centred = x - x.float().mean((0, 2, 3)).view(-1, 1, 1).to(x.dtype)
        scale = (self.weight * factor).view(-1, 1, 1).to(x.dtype)
        return torch.addcmul(self.bias.view(-1, 1, 1).to(x.dtype), centred, scale)


def _bn_constant_deviation(model: DenseNetBC) -> nn.Module:
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _ConstantDeviation
    return model


def _bn_no_gain(model: DenseNetBC) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.requires_grad_(False)
    return model


CHAIN = {
    "translated_relu": _translated,
    "classifier_gain": _with_classifier_gain,
    "momentum_002": _with_momentum(0.02),
}
DENSE: dict[str, Callable[[Any], nn.Module]] = {
    "layer_gain": _layer_gain,
    "feature_gain": _feature_gain,
    "consumer_gain": _consumer_gain,
    "consumer_start": _consumer_start,
    "columns_start": _columns_start,
    "affine_start": _affine_start,
    "shift_decay": _shift_decay,
    "momentum_002": _with_all_momentum(0.02),
    "unit_start": _scaled(0.0),
    "unit_scale": _scaled(0.1),
    "unit_channels": _scaled(0.1, per_channel=True),
    "bn_readers": _bn_readers,
    "bn_bottlenecks": _bn_bottlenecks,
    "bn_last": _bn_last,
    "row_norm": _row_norm,
    "gain_noise": _gain_noise,
    "bn_constant_deviation": _bn_constant_deviation,
    "bn_no_gain": _bn_no_gain,
}

"""The last two are of a network with BN, the others of one with MSN."""


def register() -> None:
    """Make the variants known as networks: NET_VARIANT, the chains' of CHAIN and DenseNet-BC-22's of DENSE."""
    for nets, changes in ((("cnn3", "vgg7"), CHAIN), (("densenet_bc_22",), DENSE)):
        for net in nets:
            for name, change in changes.items():

                def build(*args: Any, _net: str = net, _change: Any = change, **options: Any) -> nn.Module:
                    return _change(NETS[_net](*args, **options))

                NETS[f"{net}_{name}"] = build
