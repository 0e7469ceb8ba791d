"""Training a recipe to a checkpoint, and reading checkpoints back."""

from msn_deploy.training.checkpoint import load_checkpoint, load_weights
from msn_deploy.training.loop import TrainResult, train

__all__ = ["TrainResult", "load_checkpoint", "load_weights", "train"]
