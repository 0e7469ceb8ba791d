"""What may look on while a network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn


class Observer(Protocol):
    """Looks at a training without changing it; `train` calls it in this order."""

    def begin(self, model: nn.Module) -> None:
        """See the network before its first step; the place to register hooks."""

    def before_step(self, step: int) -> None:
        """See the network with the gradients of step `step` (from 0, through all epochs), before the weights move."""

    def after_epoch(self, entry: Mapping[str, float]) -> None:
        """See the history's entry of an epoch: epoch (from 1), train_loss, test_accuracy, seconds."""
