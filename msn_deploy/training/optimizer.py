"""Where a network starts, what of it learns and moves it, how far at each point, and the average of where it was."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from msn_deploy.core.recipes import Freeze, TrainOptions
from msn_deploy.msn.centring import Centring
from msn_deploy.msn.layers import SpectralLayer
from msn_deploy.nets.blocks import classifier_of

_KEEPS_STATISTICS = (_BatchNorm, Centring, SpectralLayer)
_SMALLEST = 1e-3  # size of a channel, for one that is dead in the first batch
_START, _END = 1 / 25, 1e-4  # of the peak, as torch's OneCycleLR has them


@torch.no_grad()
def start_from_data(model: nn.Module, images: Tensor) -> None:
    """Divide weights by the size of what they read in a batch, images (N, C, H, W), channel by channel.

    The size of a channel x is sqrt(2 E[x^2]): 1 for the ReLU of a feature of unit deviation. Layer after layer, in the
    order of the forward: convolutions that have a spectral norm and a factor, whose `scale` then keeps W / sigma times
    scale divided by just that, and linear layers. A reader of many features, as in a DenseNet, then starts with all of
    them alike, whatever their size, and costs nothing. Close to LSUV (arXiv 1511.06422), which divides by outputs.
    """
    kept = {
        name: value.clone() for name, value in model.named_buffers() if name.split(".")[-1] not in ("u", "v", "scale")
    }

    def divide(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        x, weight = inputs[0].float(), layer.weight
        channel_dim = x.dim() + 1 - weight.dim() if weight.dim() > 2 else x.dim() - 1
        square = x.square().mean([dim for dim in range(x.dim()) if dim != channel_dim])
        size = (2 * square).sqrt().clamp_min(_SMALLEST)
        before = layer.sigma() if isinstance(layer, SpectralLayer) else None
        weight.div_(size.view(1, -1, *[1] * (weight.dim() - 2)))
        if before is not None:
            layer.settle()
            layer.scale.mul_(layer.sigma() / before)

    starts = [
        layer
        for layer in model.modules()
        if (isinstance(layer, SpectralLayer) and layer.scale is not None) or type(layer) is nn.Linear
    ]
    hooks = [layer.register_forward_pre_hook(divide) for layer in starts]
    training = model.training
    model.train()(images)
    model.train(training)
    for hook in hooks:
        hook.remove()
    for name, value in model.named_buffers():
        if name in kept:
            value.copy_(kept[name])


def freeze(model: nn.Module, what: Freeze) -> None:
    """Take from training what `train.freeze` says."""
    if what == "backbone":
        model.requires_grad_(False)
        model.get_submodule(classifier_of(model)).requires_grad_(True)


def into_training(model: nn.Module, what: Freeze) -> None:
    """Put a network into training mode, and what is frozen into that of evaluation."""
    model.train(what != "backbone")
    for module in model.modules() if what == "statistics" else ():
        if isinstance(module, _KEEPS_STATISTICS):
            module.eval()
    if what == "backbone":
        model.get_submodule(classifier_of(model)).train()


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of what is trained; weight decay is on weights, not on shift, gain and bias."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.dim() > 1]
    others = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=options.learning_rate, fused=True)  # one pass: with tiny batches the update is felt


def learning_rate(share: float, options: TrainOptions) -> float:
    """Return the learning rate at a share (0 to 1) of the steps: warm-up along a cosine, then the schedule.

    "one-cycle" and "cosine" fall along a cosine to 1e-4 of the peak; "one-cycle" is the name for a long warm-up, 0.3
    unless the recipe says otherwise (Smith and Topin, Super-Convergence, arXiv 1708.07120, in torch's form).
    """
    peak = options.learning_rate
    if share < options.warm_up:
        return _between(peak * _START, peak, share / options.warm_up)
    if options.schedule in ("one-cycle", "cosine"):
        return _between(peak * _END, peak, (1 - share) / (1 - options.warm_up))
    if options.schedule == "step":
        return peak / (100 if share >= 0.75 else 10 if share >= 0.5 else 1)
    return peak


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * (1 - math.cos(math.pi * share)) / 2


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential average of a model's parameters and buffers, to be moved by its `update_parameters`."""
    moved = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=moved, use_buffers=True)


def settled(average: AveragedModel, *, frozen: bool = False) -> nn.Module:
    """Return the averaged network, its u and v made singular vectors of its weights: the averages of them are none.

    frozen: u and v never moved, and stay.
    """
    model = average.module
    for module in model.modules() if not frozen else ():
        if isinstance(module, SpectralLayer):
            module.settle()
    return model
