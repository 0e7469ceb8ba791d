"""The learning rate at each point of a training."""

from __future__ import annotations

import math

from msn_deploy.core.recipes import TrainOptions

_START, _END = 1 / 25, 1e-4  # of the peak, as torch's OneCycleLR has them


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
