"""What training a GAN takes beside `[train]`: the `[gan]` section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, fields

from msn_deploy.core.errors import InputError
from msn_deploy.core.train_options import TrainOptions

# The optimizer is Adam always; nothing is held out, and no label is there to be smoothed.
_TAKES_PART = (
    *("epochs", "batch_size", "learning_rate", "schedule", "warm_up", "augment", "amp", "channels_last"),
    *("power_iterations", "seed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GanOptions:
    """How generator and discriminator play; both learn at `train.learning_rate`, one step each per batch."""

    latent: int = 128
    """Numbers, normally distributed, that an image is generated from."""
    beta1: float = 0.5
    """Of Adam's running mean of the gradient."""

    def __post_init__(self) -> None:
        if not 1 <= self.latent <= 4096:
            raise InputError(f"gan.latent must lie between 1 and 4096, got {self.latent}.")
        if not 0 <= self.beta1 < 1:
            raise InputError(f"gan.beta1 must be at least 0 and below 1, got {self.beta1}.")


def refuse_unused(train: TrainOptions) -> None:
    """Raise InputError for an option of `[train]` that the training of a GAN would pass over."""
    for option in fields(train):
        value = getattr(train, option.name)
        if option.name not in _TAKES_PART and value != option.default:
            raise InputError(f"train.{option.name} has no part in training a GAN, got {value!r}.\nLeave it out.")
