"""The paper's GAN for images of 32x32: a DCGAN generator with BatchNorm, and a discriminator with a norm to choose.

Layout: that of the authors' repository (github.com/AntixK/mean-spectral-norm, MSNGAN), close to SNGAN's (Miyato et al.,
2018, arXiv 1802.05957). With MSN the convolutions that halve 16 and 8 pixels and the last one take the mean off; all
other layers of the discriminator have SN. Outputs are images from -1 to 1, and logits, positive for real images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from msn_deploy.core.errors import InputError
from msn_deploy.nets.blocks import Norm, classifier_layer, conv_norm

SIDE_PX = 32
_SLOPE = 0.1
# Per convolution its channels as a multiple of `width`, its kernel, its stride, and whether it takes the mean off.
_DISCRIMINATOR = (
    *((1, 3, 1, False), (1, 4, 2, False)),
    *((2, 3, 1, False), (2, 4, 2, True)),
    *((4, 3, 1, False), (4, 4, 2, True)),
    (8, 3, 1, True),
)


def generator(*, latent: int, channels: int, width: int) -> nn.Module:
    """Build the generator, (N, latent, 1, 1) to images (N, channels, 32, 32); its last stage has `width` channels."""
    layers: list[nn.Module] = []
    before = latent
    for multiple, stride, padding in ((8, 1, 0), (4, 2, 1), (2, 2, 1), (1, 2, 1)):
        layers += [
            nn.ConvTranspose2d(before, multiple * width, 4, stride, padding, bias=False),
            nn.BatchNorm2d(multiple * width),
            nn.ReLU(),
        ]
        before = multiple * width
    layers += [nn.ConvTranspose2d(before, channels, 3, 1, 1), nn.Tanh()]
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)  # Radford et al., 2016, arXiv 1511.06434
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    """Images (N, channels, 32, 32) to logits (N,)."""

    def __init__(self, norm: Norm, *, channels: int, width: int) -> None:
        super().__init__()
        plain = replace(norm, name="sn" if norm.name in ("sn", "msn", "msn-affine") else "none")
        layers: list[nn.Module] = []
        before = channels
        for multiple, kernel, stride, centred in _DISCRIMINATOR:
            chosen = norm if centred else plain
            layers += conv_norm(chosen, before, multiple * width, kernel, stride=stride, padding=1)
            layers.append(nn.LeakyReLU(_SLOPE))
            before = multiple * width
        self.features = nn.Sequential(*layers, nn.Flatten())
        kind = "sn" if plain.name == "sn" else "linear"
        self.last = classifier_layer(kind, plain, before * (SIDE_PX // 8) ** 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.features(images))).squeeze(1)


def require_side(height_px: int, width_px: int) -> None:
    """Raise InputError for images that the two networks are not made for."""
    if (height_px, width_px) != (SIDE_PX, SIDE_PX):
        raise InputError(f"dcgan makes images of {SIDE_PX}x{SIDE_PX} pixels, not {height_px}x{width_px}.")


def latents(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Draw generator inputs (count, size, 1, 1)."""
    return torch.randn(count, size, 1, 1, generator=rng)
