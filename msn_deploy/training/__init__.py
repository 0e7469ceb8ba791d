"""Training a recipe to a checkpoint, reading checkpoints back, and importing those of the paper's authors.

Public names are loaded on first use, because `keep_freed_memory` is called before torch starts.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msn_deploy.training.authors import Imported, import_checkpoint
    from msn_deploy.training.checkpoint import load_checkpoint
    from msn_deploy.training.gan import train_gan
    from msn_deploy.training.loop import TrainResult, train
    from msn_deploy.training.weights import load_weights

_HOME = {
    "Imported": "authors",
    "TrainResult": "loop",
    "import_checkpoint": "authors",
    "load_checkpoint": "checkpoint",
    "load_weights": "weights",
    "train": "loop",
    "train_gan": "gan",
}
__all__ = [
    "Imported",
    "TrainResult",
    "import_checkpoint",
    "keep_freed_memory",
    "load_checkpoint",
    "load_weights",
    "train",
    "train_gan",
]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> None:
    """Tell glibc never to give memory back while this process lives; nothing happens where there is no glibc.

    A training step frees activations of many MiB and allocates the like again. By default glibc unmaps them, and every
    page of the next step costs a fault; benchmarks/results/*/train-step-default-malloc.json is a run without this.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_MMAP_MAX, 0)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"msn_deploy.training.{_HOME[name]}"), name)
