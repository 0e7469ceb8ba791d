"""What moves the weights, and the average of where they have been."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from msn_deploy.core.recipes import TrainOptions
from msn_deploy.msn.layers import SpectralLayer


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; weight decay is on weights, not on shift, gain and bias."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer](groups, lr=options.learning_rate)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential average of a model's parameters and buffers, to be moved by its `update_parameters`."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def settled(average: AveragedModel) -> nn.Module:
    """Return the averaged network, its u and v made singular vectors of its weights: the averages of them are none."""
    model: nn.Module = average.module
    for module in model.modules():
        if isinstance(module, SpectralLayer):
            module.settle()
    return model
