"""What training a GAN takes beside `[train]`: the `[gan]` section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from msn_deploy.core.errors import InputError


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
