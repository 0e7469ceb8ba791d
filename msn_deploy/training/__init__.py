"""Training a recipe to a checkpoint, reading checkpoints back, and importing those of the paper's authors."""

from msn_deploy.training.authors import Imported, import_checkpoint
from msn_deploy.training.checkpoint import load_checkpoint, load_weights
from msn_deploy.training.gan import train_gan
from msn_deploy.training.loop import TrainResult, train

__all__ = ["Imported", "TrainResult", "import_checkpoint", "load_checkpoint", "load_weights", "train", "train_gan"]
