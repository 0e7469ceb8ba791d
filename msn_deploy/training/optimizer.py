"""What of a network learns, what moves it, how far at each point of a training, and the average of where it was."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from msn_deploy.core.recipes import Freeze, TrainOptions
from msn_deploy.msn.centring import Centring
from msn_deploy.msn.layers import SpectralLayer
from msn_deploy.nets.blocks import classifier_of

_KEEPS_STATISTICS = (_BatchNorm, Centring, SpectralLayer)
_START, _END = 1 / 25, 1e-4  # of the peak, as torch's OneCycleLR has them


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
