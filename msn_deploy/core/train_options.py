"""How a network is trained: the `[train]` section of a recipe, every number with its unit."""

from __future__ import annotations

from dataclasses import dataclass

from msn_deploy.core.errors import InputError

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("one-cycle", "cosine", "step", "constant")
AUGMENTATIONS = ("none", "flip", "crop", "crop-flip")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How a network is trained."""

    epochs: int
    """Passes over the training split."""
    batch_size: int
    """Images per optimizer step, over all processes together."""
    learning_rate: float
    """Peak of the schedule."""
    optimizer: str = "adam"
    """One of OPTIMIZERS; sgd has Nesterov momentum 0.9."""
    schedule: str = "one-cycle"
    """One of SCHEDULES: what follows the warm-up. step: a tenth after half, a hundredth after 3/4 of the steps."""
    warm_up: float = 0.3
    """Share of the steps (0 to 0.9) in which the learning rate rises, along a cosine, from 1 / 25 of its peak."""
    weight_decay: float = 0.0
    """On weights only, never on shift, gain or bias."""
    label_smoothing: float = 0.0
    """Share (0 to below 1) of each label that is spread over all classes."""
    clip_norm: float = 0.0
    """Largest norm of the whole gradient; 0 does not clip."""
    ema: float = 0.0
    """Decay per step (0 to below 1) of an average of the weights that is saved in their place; 0: none."""
    validation: float = 0.0
    """Share (0 to 0.5) of the training split that is held out, for `patience` to look at."""
    patience: int = 0
    """Stop after so many epochs without a better accuracy on the held-out images, and keep the best; 0: never."""
    augment: str = "none"
    """One of AUGMENTATIONS: flip left and right, crop after padding by an eighth of the side, or both."""
    amp: bool = False
    """Run the network in bfloat16 under autocast; weights, optimizer and loss stay in float32."""
    channels_last: bool = False
    """Keep activations and weights in the channels_last memory format."""
    power_iterations: int = 1
    """Per training step, for sigma."""
    seed: int = 0
    """Of initial weights, batch order and augmentation."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "power_iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < 100:
            raise InputError(f"train.learning_rate (--lr) must lie between 0 and 100, got {self.learning_rate}.")
        for name, most in (("weight_decay", 100), ("warm_up", 0.9), ("validation", 0.5), ("clip_norm", 1e6)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"train.{name} must lie between 0 and {most:g}, got {getattr(self, name)}.")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"train.seed (--seed) must lie between 0 and {2**32 - 1}, got {self.seed}.")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", AUGMENTATIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"train.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.patience < 0 or (self.patience and not self.validation):
            raise InputError(
                f"train.patience must be 0, or at least 1 with `validation` above 0, got {self.patience}.\n"
                "Early stopping needs held-out images: choosing an epoch by the test images would flatter it."
            )
