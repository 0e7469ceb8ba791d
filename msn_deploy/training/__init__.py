"""Training a recipe to a checkpoint, reading checkpoints back, and importing those of the paper's authors.

Public names are loaded on first use: what tunes a process before torch starts is here too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msn_deploy.training.authors import Imported, import_checkpoint
    from msn_deploy.training.checkpoint import load_checkpoint, load_weights
    from msn_deploy.training.gan import train_gan
    from msn_deploy.training.loop import TrainResult, train

_HOME = {
    "Imported": "authors",
    "TrainResult": "loop",
    "import_checkpoint": "authors",
    "load_checkpoint": "checkpoint",
    "load_weights": "checkpoint",
    "train": "loop",
    "train_gan": "gan",
}
__all__ = ["Imported", "TrainResult", "import_checkpoint", "load_checkpoint", "load_weights", "train", "train_gan"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"msn_deploy.training.{_HOME[name]}"), name)
